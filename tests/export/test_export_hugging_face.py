"""Models go from transformers into ours, out again, and back into transformers, with the same numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from export.export_world import WORDS, contract_of, make_detector, make_model
from model.model_batches import VISUAL, VOCABULARY, Both, hf_config, randomised
from safetensors import SafetensorError
from torch import Tensor

from vbert.errors import UserError
from vbert.export.folder import read_export, read_record
from vbert.export.hugging_face import network_for_transformers, write_hugging_face
from vbert.model.convert import architecture_of, load_pretrained
from vbert.model.vocabulary import SPECIAL, TextRules, Vocabulary, write_vocabulary
from vbert.objectives.trained import Model, write_model
from vbert.regions.contract import Contract

IMPORTED = Contract(
    detector="unknown", backend=None, weights=None, layer=None, dim=VISUAL, boxes=None, nms=None, features_of=None,
    preprocessing=None,
)  # fmt: skip
PLACES = [[2, 1], [8], [1, 2]]  # of phrases, a row of the batch
VQA = {"objective": "vqa", "kind": "answer", "answer_at": "mask", "max_text": 16}
CASES: dict[str, dict[str, Any]] = {
    "VisualBertForQuestionAnswering": VQA,
    "VisualBertForVisualReasoning": {"objective": "nlvr2", "kind": "answer", "max_text": 16},
    "VisualBertForMultipleChoice": {"objective": "choice", "kind": "choice", "align": "none", "max_text": 16},
    "VisualBertForRegionToPhraseAlignment": {"objective": "grounding", "kind": "phrases", "max_text": 16},
    "VisualBertForPreTraining": {"objective": "mlm_itm", "max_text": 16},
}


def batch(segments: str = "mixed") -> Both:
    return Both([5, 9, 6], [4, 1, 3], torch.float32, segments)


def ours(network: Any, both: Both) -> list[Tensor]:
    """What the heads say of the batch."""
    packed, starts = both.packed, both.packed.starts()
    if architecture_of(network) == "VisualBertForQuestionAnswering":
        packed = replace(packed, at=starts + torch.tensor(both.texts) - 2)
    elif architecture_of(network) == "VisualBertForRegionToPhraseAlignment":
        at = [int(start) + place for start, places in zip(starts, PLACES, strict=True) for place in places]
        packed = replace(packed, at=torch.tensor(at))
    elif architecture_of(network) == "VisualBertForPreTraining":
        packed = replace(packed, at=torch.arange(len(packed.order)))
    with torch.no_grad():
        out = network(packed)
    return list(out) if isinstance(out, tuple) else [out.masked_fill(out.isinf(), 0)]


def theirs(network: Any, both: Both) -> list[Tensor]:
    """The same of transformers' model."""
    padded, name = both.padded, type(network).__name__
    with torch.no_grad():
        if name == "VisualBertForMultipleChoice":
            return [network(**{key: tensor[:, None] for key, tensor in padded.items()}).logits]
        if name == "VisualBertForRegionToPhraseAlignment":
            positions = torch.tensor([places + [-1] * (2 - len(places)) for places in PLACES])
            labels = torch.ones(len(PLACES), 2, max(both.regions))
            out = network(**padded, region_to_phrase_position=positions, labels=labels).logits
            rows = [
                out[b, p].masked_fill(out[b, p] < -1000, 0)
                for b, places in enumerate(PLACES)
                for p in range(len(places))
            ]
            return [torch.stack(rows)]
        out = network(**padded)
    if name == "VisualBertForPreTraining":
        return [both.real(out.prediction_logits), out.seq_relationship_logits]
    return [out.logits]


def as_model(folder: Path, network: Any, head: dict[str, Any], labels: tuple[str, ...]) -> Model:
    words, out = folder / "words", folder / "model"
    words.mkdir()
    out.mkdir()
    tokens = [*SPECIAL, *WORDS, *(f"w{i}" for i in range(VOCABULARY - len(SPECIAL) - len(WORDS)))]
    write_vocabulary(words, tokens, TextRules())
    contract = IMPORTED.with_box_input("none")
    write_model(out, model=network, config=network.encoder.config, vocabulary=Vocabulary.at(words), contract=contract,
                head=head | ({"labels": labels} if labels else {}), curves=[])  # fmt: skip
    return Model.at(out)


@pytest.mark.parametrize("conventions", ["hf", "original"])
@pytest.mark.parametrize("name", CASES)
def test_there_and_back_again(name: str, conventions: Any, tmp_path: Path) -> None:
    given, both = randomised(getattr(transformers, name)(hf_config(num_labels=3))), batch()
    with torch.no_grad():
        given.visual_bert.embeddings.visual_projection.weight *= 40  # or all regions come out alike
        for parameter_name, parameter in given.named_parameters():
            parameter += parameter_name.endswith("LayerNorm.weight")
    given.save_pretrained(tmp_path / "given")
    (tmp_path / "answers.txt").write_text("no\nyes\nred\n")
    labelled = name in ("VisualBertForQuestionAnswering", "VisualBertForVisualReasoning")
    read, report = load_pretrained(
        tmp_path / "given", conventions, answers=tmp_path / "answers.txt" if labelled else None
    )
    assert report.created == ()
    model = as_model(tmp_path, read, CASES[name], report.answers)
    network = network_for_transformers(model)
    expected = theirs(given, both)
    if conventions == "hf":
        both.packed.visual_types = 1 - both.packed.visual_types
    for k, (mine, other) in enumerate(zip(ours(network, both), expected, strict=True)):
        swapped = conventions == "hf" and k == 1  # the matching head's labels
        assert float((mine - (other.flip(1) if swapped else other)).abs().max()) <= 1e-5
    write_hugging_face(
        tmp_path / "out", model, network, None, conventions=conventions, title="t", card="", made_from={}
    )
    again, loading = getattr(transformers, name).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for back, other in zip(theirs(again.eval(), both), expected, strict=True):
        assert float((back - other).abs().max()) <= 1e-5
        assert float(other.std()) > 1e-2  # something is said
    assert again.config.conventions == conventions
    if labelled:
        assert again.config.id2label == {0: "no", 1: "yes", 2: "red"}


def test_the_defaults_of_transformers_are_the_hf_conventions(tmp_path: Path) -> None:
    """A user who gives no segments gets 1 for regions there, where ours says 0; label 0 is a pair."""
    contract = IMPORTED.model_copy(update={"dim": 4}).with_box_input("append6")
    model = make_model(tmp_path / "m", contract, CASES["VisualBertForPreTraining"], vocab_size=VOCABULARY)
    network, both = network_for_transformers(model), batch("zero")
    assert model.config().standardise  # folded into the projection
    write_hugging_face(tmp_path / "out", model, network, None, conventions="hf", title="t", card="", made_from={})
    there = transformers.VisualBertForPreTraining.from_pretrained(tmp_path / "out").eval()
    del both.padded["visual_token_type_ids"]
    words, matching = ours(network, both)
    their_words, their_matching = theirs(there, both)
    assert float((words - their_words).abs().max()) <= 1e-5
    assert float((matching.flip(1) - their_matching).abs().max()) <= 1e-5
    assert float((matching - their_matching).abs().max()) > 0.1


def test_the_tokenizer_is_read_right(tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", IMPORTED.with_box_input("append6"))
    write_hugging_face(
        tmp_path / "out",
        model,
        network_for_transformers(model),
        None,
        conventions="hf",
        title="t",
        card="",
        made_from={},
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    encoder = model.vocabulary().encoder()
    for text in ("What color IS it?", "a red dogs é 猫。", "unknown words"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == list(encoder(text).ids)
    assert tokenizer("[MASK]")["input_ids"] == [encoder.cls, encoder.mask, encoder.sep]
    assert tokenizer.model_max_length == 24


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ({"objective": "retrieval", "kind": "retrieval", "dual": 8, "negatives": "batch", "wrong": 1}, "dual encoder"),
        ({"objective": "captioning", "kind": "captions", "tags": 0, "tag_pieces": 0, "max_text": 16}, "see only what"),
    ],
)  # fmt: skip
def test_what_transformers_cannot_compute_is_refused(head: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = make_model(tmp_path / "m", IMPORTED.with_box_input("append6"), head)
    with pytest.raises(UserError, match=rf"^{head['objective']}: transformers .*{said}.*export without --format"):
        network_for_transformers(model)


def test_the_folder_has_the_detector_and_is_not_taken_for_ours(tmp_path: Path) -> None:
    detector = make_detector(tmp_path / "d")
    model = make_model(tmp_path / "m", contract_of(detector))
    network, out = network_for_transformers(model), tmp_path / "out"
    write_hugging_face(out, model, network, detector, conventions="hf", title="t", card="# t", made_from={})
    assert read_record(out).layout == "transformers"
    assert (out / "detector/weights.safetensors").read_bytes() == detector.file("weights.safetensors").read_bytes()
    assert (out / "contract.json").read_bytes() == model.file("contract.json").read_bytes()
    with pytest.raises(UserError, match="was exported for transformers"):
        read_export(out)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """safetensors' error of it is no OSError."""
    model = make_model(tmp_path / "m", IMPORTED.with_box_input("append6"))
    network, out = network_for_transformers(model), tmp_path / "out"

    def full(*arguments: Any, **named: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("vbert.model.checkpoint.save_file", full)
    with pytest.raises(UserError, match=r"out can't be written \(No space left on device\)"):
        write_hugging_face(out, model, network, None, conventions="hf", title="t", card="", made_from={})
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
