"""Published VisualBERTs become models of ours: every form, every head, the semantics by name, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model.model_batches import Both
from model.published_world import (
    ANSWERS,
    SIZES,
    mmf_names,
    original_names,
    save_transformers,
    transformers_model,
    with_detector,
    words_in,
)
from objectives.objectives_world import CONTRACT as WORLD_CONTRACT
from objectives.objectives_world import DIM, World, make_world
from safetensors.torch import load_file
from torch import Tensor, nn

from vbert.artifacts.steps.fingerprint import digest
from vbert.artifacts.steps.settings import Numerics
from vbert.artifacts.steps.stage import Job, Machine
from vbert.errors import UserError
from vbert.model.config import VisualBertConfig
from vbert.model.published import Semantics, not_stated
from vbert.model.vocabulary import Vocabulary
from vbert.objectives import EvaluateSettings, objective
from vbert.objectives.downstream import run_finetune, run_predict
from vbert.objectives.pretraining.corpus import PretrainData
from vbert.objectives.pretraining.run import run_pretrain
from vbert.objectives.pretraining.settings import PretrainSettings
from vbert.objectives.published import CheckpointSettings, write_published
from vbert.objectives.trained import OVERRIDDEN, Model
from vbert.objectives.vqa import VqaSettings

CONTRACT = not_stated(10).model_copy(update={"detector": "theirs"})


def made(tmp_path: Path, form: str = "original", objective: str | None = "mlm_itm", **changes: Any) -> Model:
    """The model of the files in tmp_path/files."""
    words_in(tmp_path / "words", changes.pop("pieces", 61))
    (tmp_path / "answers.txt").write_text("\n".join(ANSWERS))
    given = {"name": "mine", "form": form, "objective": objective, "contract": CONTRACT, "sizes": SIZES, **changes}
    answers = tmp_path / "answers.txt" if objective == "vqa" else None
    directory = tmp_path / "made"
    directory.mkdir(exist_ok=True)
    settings = CheckpointSettings.model_validate(given)
    write_published(directory, tmp_path / "files", settings, Vocabulary.at(tmp_path / "words"), answers)
    return Model.at(directory)


def written(tmp_path: Path, tensors: dict[str, Tensor], name: str = "fine_tuned.th") -> None:
    (tmp_path / "files").mkdir(exist_ok=True)
    torch.save(tensors, tmp_path / "files" / name)


def outputs(model: Any, objective: str, both: Both) -> list[Tensor]:
    """Logits of ours or of transformers' for the same inputs."""
    ours = not hasattr(model, "visual_bert")
    with torch.no_grad():
        if objective == "mlm_itm":
            if ours:
                return list(model(replace(both.packed, at=torch.arange(len(both.packed.order)))))
            out = model(**both.padded)
            return [both.real(out.prediction_logits), out.seq_relationship_logits]
        if objective == "vqa" and ours:
            at = both.packed.starts() + torch.tensor(both.texts) - 2
            return [model(replace(both.packed, at=at))]
        if objective == "choice" and not ours:
            padded = {name: value[None] for name, value in both.padded.items()}
            return [_choices(model, padded)]
        return [model(both.packed) if ours else model(**both.padded).logits]


def _choices(model: Any, padded: dict[str, Tensor]) -> Tensor:
    logits: Tensor = model(**padded).logits
    return logits.view(-1, 1)


BATCH = Both([5, 9, 3], [4, 1, 7], torch.float32)


@pytest.mark.parametrize(
    ("form", "objective"),
    [("transformers", "vqa"), *(("original", name) for name in ("mlm_itm", "vqa", "nlvr2", "choice"))],
)
def test_every_head_gives_the_numbers_of_its_class(tmp_path: Path, form: str, objective: str) -> None:
    theirs = transformers_model(objective)
    if form == "transformers":
        save_transformers(tmp_path / "files", theirs, vocabulary=False)
    else:
        written(tmp_path, with_detector(original_names(theirs.state_dict())))
    model = made(tmp_path, form, objective)
    assert (model.head()["objective"], model.head()["published"]) == (objective, {"name": "mine", "form": form})
    assert model.labels() == {"vqa": list(ANSWERS), "nlvr2": ["false", "true"]}.get(objective, [])
    ours = model.load()
    for mine, other in zip(outputs(ours, objective, BATCH), outputs(theirs, objective, BATCH), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    assert (model.contract().detector, model.contract().box_input) == ("theirs", "none")


def test_the_flickr_head_comes_with_the_heads_that_it_does_not_read(tmp_path: Path) -> None:
    theirs = transformers_model("grounding")
    named = original_names(theirs.state_dict())
    assert {"bert.flickr_attention.value.weight", "bert.cls.predictions.bias"} <= named.keys()
    written(tmp_path, named)
    ours = made(tmp_path, "original", "grounding").load()
    state = theirs.state_dict()
    assert torch.equal(ours.phrase.query.weight, state["attention.query.weight"])
    assert torch.equal(ours.encoder.layers[2].up.weight, state["visual_bert.encoder.layer.2.intermediate.dense.weight"])


class MmfClassifier(nn.Module):
    """`VisualBERTForClassification` of MMF, which reads the pooled vector, or of questions the last but one token."""

    def __init__(self, encoder: nn.Module, outputs: int) -> None:
        super().__init__()
        self.encoder = encoder
        dense, norm = nn.Linear(24, 24), nn.LayerNorm(24, eps=1e-12)
        self.classifier = nn.Sequential(nn.Sequential(dense, nn.GELU(), norm), nn.Linear(24, outputs))

    def named(self) -> dict[str, Tensor]:
        (dense, _, norm), last = self.classifier[0], self.classifier[1]
        parts = {"classifier.0.dense": dense, "classifier.0.LayerNorm": norm, "classifier.1": last}
        return {
            f"model.{name}.{kind}": getattr(part, kind).detach()
            for name, part in parts.items()
            for kind in ("weight", "bias")
        }

    def logits(self, both: Both, question: bool) -> Tensor:
        out = self.encoder(**both.padded)
        last = out.last_hidden_state[torch.arange(len(both.texts)), torch.tensor(both.texts) - 2]
        return self.classifier(last if question else out.pooler_output)  # type: ignore[no-any-return]


@pytest.mark.parametrize("objective", ["vqa", "classification"])
def test_the_classifiers_of_mmf_give_its_numbers(tmp_path: Path, objective: str) -> None:
    torch.manual_seed(2)
    bare = transformers_model("mlm_itm").visual_bert
    rows = {"vqa": len(ANSWERS), "classification": 3}[objective]
    theirs = MmfClassifier(bare, rows).eval()
    encoder = {f"visual_bert.{name}": value for name, value in bare.state_dict().items()}
    written(tmp_path, {"model": mmf_names(encoder) | theirs.named(), "best_update": 3}, "best.ckpt")
    semantics = Semantics(matching="untrained", answer_at="last", loss="bce")
    labels = {"labels": ("a", "b", "c"), "positive": "c"} if objective == "classification" else {}
    model = made(tmp_path, "mmf", objective, semantics=semantics, **labels)
    with torch.no_grad():
        expected = theirs.logits(BATCH, question=objective == "vqa")
    torch.testing.assert_close(outputs(model.load(), objective, BATCH)[0], expected, atol=1e-5, rtol=1e-5)
    if objective == "vqa":
        assert (model.head()["answer_at"], model.head()["loss"]) == ("last", "bce")


def test_a_pretrained_model_of_mmf_says_that_no_pair_was_trained_on(tmp_path: Path) -> None:
    theirs = transformers_model("mlm_itm")
    written(tmp_path, mmf_names(theirs.state_dict()), "model.pth")
    model = made(tmp_path, "mmf", semantics=Semantics(matching="untrained"))
    assert model.head()["untrained"] == ["matching"]
    for mine, other in zip(outputs(model.load(), "mlm_itm", BATCH), outputs(theirs, "mlm_itm", BATCH), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_semantics_of_transformers_documentation_are_brought_into_the_originals(tmp_path: Path) -> None:
    theirs = transformers_model("mlm_itm")
    save_transformers(tmp_path / "files", theirs)
    semantics = Semantics(visual_segment=1, matching="zero_is_true")
    ours = made(tmp_path, "transformers", semantics=semantics).load()
    one = Both([5, 9, 3], [4, 1, 7], torch.float32, "one")
    words, matching = outputs(theirs, "mlm_itm", one)
    mine, my_matching = outputs(ours, "mlm_itm", BATCH)
    torch.testing.assert_close(mine, words, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(my_matching.flip(1), matching, atol=1e-5, rtol=1e-5)


def test_tensors_without_a_place_are_listed(tmp_path: Path) -> None:
    tensors = original_names(transformers_model("nlvr2").state_dict())
    written(tmp_path, {**tensors, "bert.extra.weight": torch.ones(2), "bert.bert.encoder.layer.7.x": torch.ones(2)})
    with pytest.raises(UserError, match=r"1 of \d+ tensors have names that are none of the original repo.*bert\.extra"):
        made(tmp_path, objective="nlvr2")
    written(tmp_path, {**tensors, "bert.bert.encoder.layer.7.x": torch.ones(2)})
    with pytest.raises(UserError, match="1 tensors differ") as caught:
        made(tmp_path, objective="nlvr2")
    assert caught.value.details == "no place for visual_bert.encoder.layer.7.x"
    written(tmp_path, {**tensors, "bert.cls.predictions.bias": torch.ones(61)})
    with pytest.raises(UserError, match="1 tensors differ") as caught:
        made(tmp_path, objective="nlvr2")
    assert caught.value.details == "no place for cls.predictions.bias"
    tensors.pop("bert.classifier.bias")
    written(tmp_path, tensors)
    with pytest.raises(UserError, match=r"a VisualBertForVisualReasoning without `cls\.bias`"):
        made(tmp_path, objective="nlvr2")
    written(tmp_path, original_names(transformers_model("vqa").visual_bert.state_dict()))
    with pytest.raises(UserError, match=r"names that are none of|no VisualBERT"):
        made(tmp_path, objective="mlm_itm")


def test_parts_that_do_not_fit_each_other_are_refused(tmp_path: Path) -> None:
    theirs = transformers_model("vqa")
    written(tmp_path, original_names(theirs.state_dict()))
    with pytest.raises(UserError, match=r"its features have 10 numbers by its weights, 7 by its contract"):
        made(tmp_path, objective="vqa", contract=not_stated(7))
    with pytest.raises(UserError, match=r"the vocabulary has 62 pieces, the word embeddings 61 rows"):
        made(tmp_path, objective="vqa", pieces=62)
    with pytest.raises(UserError, match=r"answers\.txt holds other answers than its spec says, or in another order"):
        made(tmp_path, objective="vqa", answers_digest=digest(list(reversed(ANSWERS))))
    assert made(tmp_path, objective="vqa", answers_digest=digest(list(ANSWERS))).labels() == list(ANSWERS)
    with pytest.raises(UserError, match=r"2 tensors differ|sizes"):
        made(tmp_path, objective="vqa", sizes={**SIZES, "max_positions": 300})
    with pytest.raises(UserError, match=r"2 labels for a head of 5 rows"):
        made(tmp_path, objective="classification", labels=("a", "b"))
    save_transformers(tmp_path / "files", theirs)
    with pytest.raises(UserError, match=r"VisualBertForQuestionAnswering, which is of objective vqa, not nlvr2"):
        made(tmp_path, "transformers", "nlvr2", labels=ANSWERS)


def test_a_folder_says_its_own_contract_or_none(tmp_path: Path) -> None:
    save_transformers(tmp_path / "files", transformers_model("choice"))
    assert made(tmp_path, "transformers", None, contract=None).contract().detector == "unknown"
    not_stated(10).model_copy(update={"detector": "its own"}).write(tmp_path / "files")
    assert made(tmp_path, "transformers", None, contract=None).contract().detector == "its own"


def test_a_bare_encoder_says_that_its_heads_are_new(tmp_path: Path) -> None:
    transformers_model("mlm_itm").visual_bert.save_pretrained(tmp_path / "files")
    assert made(tmp_path, "transformers", None).head()["untrained"] == ["masked_language", "matching"]


def test_the_table_of_positions_is_extended_by_copies(tmp_path: Path) -> None:
    theirs = transformers_model("mlm_itm")
    written(tmp_path, original_names(theirs.state_dict()))
    model = made(tmp_path, max_positions=1100)
    assert model.config().max_positions == 1100
    before, after = theirs.visual_bert.embeddings.position_embeddings.weight, model.load().encoder.embeddings
    assert torch.equal(after.position.weight, torch.cat([before, before, before[:76]]))
    assert after.visual_position.weight.shape[0] == 1100
    with pytest.raises(UserError, match="max_positions 100 is below the checkpoint's 512"):
        made(tmp_path, max_positions=100)


def test_statements_have_two_labels(tmp_path: Path) -> None:
    save_transformers(tmp_path / "files", transformers_model("nlvr2"))
    config = json.loads((tmp_path / "files" / "config.json").read_text())
    given = {"id2label": {"0": "True", "1": "False"}, "label2id": {"True": 0, "False": 1}}
    (tmp_path / "files" / "config.json").write_text(json.dumps(config | given))
    assert made(tmp_path, "transformers", "nlvr2").labels() == ["true", "false"]
    given = {"id2label": {"0": "cat", "1": "dog"}, "label2id": {"cat": 0, "dog": 1}}
    (tmp_path / "files" / "config.json").write_text(json.dumps(config | given))
    with pytest.raises(UserError, match=r"a head of 2 rows \(cat, dog\) on the pooled vector"):
        made(tmp_path, "transformers", "nlvr2")
    assert made(tmp_path, "transformers", "classification").labels() == ["cat", "dog"]


# in training and evaluation


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), 60)


def start_in(tmp_path: Path, world: World, objective: str = "vqa", detector: str = "none") -> Model:
    """A published model for the world's features, or those of another detector."""
    from vbert.model.convert import save_pretrained
    from vbert.model.heads import AnswerModel, PretrainingModel

    sizes: dict[str, Any] = {"hidden_size": 16, "layers": 1, "heads": 2, "max_positions": 40, "visual_dim": DIM}
    sizes |= {"vocab_size": world.vocabulary.encoder().size, "box_input": "none", "standardise": False}
    config, draw = VisualBertConfig.model_validate(sizes), torch.Generator().manual_seed(4)
    answered = AnswerModel(config, len(ANSWERS), "at", draw)
    save_pretrained(
        answered if objective == "vqa" else PretrainingModel(config, draw), tmp_path / "theirs", conventions="original"
    )
    written(tmp_path, original_names(load_file(tmp_path / "theirs" / "model.safetensors")))
    (tmp_path / "answers.txt").write_text("<unk>\nred\ngreen\nblue\nblack")
    given: dict[str, Any] = {"name": "mine", "form": "original", "objective": objective}
    given["sizes"] = {name: sizes[name] for name in ("layers", "hidden_size", "heads", "max_positions")}
    given["contract"] = WORLD_CONTRACT.model_copy(update={"detector": detector})
    settings = CheckpointSettings.model_validate(given)
    (tmp_path / "made").mkdir()
    answers = tmp_path / "answers.txt" if objective == "vqa" else None
    write_published(tmp_path / "made", tmp_path / "files", settings, world.vocabulary, answers)
    return Model.at(tmp_path / "made")


def finetuned(tmp_path: Path, world: World, start: Model, **changes: Any) -> tuple[Model, dict[str, Any]]:
    given = {"data": "world", "steps": 0, "batch_size": 8, "learning_rate": 1e-3, "validation_examples": 4, **changes}
    settings = VqaSettings.model_validate(given)
    tmp_path.mkdir()
    job = Job(tmp_path / "tuned", tmp_path / "scratch", Machine(loader_workers=0))
    job.directory.mkdir()
    arguments = (world.examples, world.shards, start, objective("vqa"), settings, Numerics(), 0)
    return Model.at(job.directory), run_finetune(job, *arguments)


def test_a_published_model_is_evaluated_as_it_is(tmp_path: Path, world: World) -> None:
    start = start_in(tmp_path, world)
    model, figures = finetuned(tmp_path / "0", world, start)
    assert "notes" not in figures
    assert model.file("model.safetensors").read_bytes() == start.file("model.safetensors").read_bytes()
    assert model.labels() == ["<unk>", "red", "green", "blue", "black"]
    job = Job(tmp_path / "evaluated", tmp_path / "predicted", Machine(loader_workers=0))
    run_predict(job, model, world.examples, world.shards, objective("vqa"), EvaluateSettings(), "test", Numerics())
    lines = (tmp_path / "predicted" / "predictions" / "000000.jsonl").read_text().splitlines()
    assert {json.loads(line)["answer"] for line in lines} <= {"red", "green", "blue", "black"}


def test_features_of_another_detector_are_refused_and_accepted_in_words(tmp_path: Path, world: World) -> None:
    start = start_in(tmp_path, world, detector="another")
    with pytest.raises(UserError) as refused:
        finetuned(tmp_path / "0", world, start)
    said = refused.value.message
    assert re.search(r"detector is 'another' for the start \(.*\), 'none' for the regions", said), said
    assert "write `accept_contract: [detector]` to override it" in said
    model, figures = finetuned(tmp_path / "1", world, start, accept_contract=["detector"])
    assert model.head()[OVERRIDDEN] == {"detector": ["another", "none"]}
    assert model.contract().detector == "none"
    assert figures["notes"] == ["contract overridden: detector is 'another' for the start, 'none' for its regions"]
    after, figures = finetuned(tmp_path / "2", world, model)
    assert after.head()[OVERRIDDEN] == {"detector": ["another", "none"]}, "told of every model behind it"
    assert "notes" not in figures


def test_pre_training_goes_on_from_a_published_model(tmp_path: Path, world: World) -> None:
    settings = PretrainSettings(steps=3, batch_size=8, learning_rate=1e-3, accept_contract=("detector",))
    data = {"world": PretrainData(world.examples, world.shards)}

    def trained(start: Model, name: str) -> Model:
        job = Job(tmp_path / name, tmp_path / f"{name} scratch", Machine(loader_workers=0))
        job.directory.mkdir()
        run_pretrain(job, data, start, settings, Numerics(), 0)
        return Model.at(job.directory)

    (tmp_path / "vqa").mkdir()
    with pytest.raises(UserError, match="a model of objective vqa: pre-training goes on from a pre-trained one"):
        trained(start_in(tmp_path / "vqa", world), "first")
    start = start_in(tmp_path, world, "mlm_itm", "another")
    model = trained(start, "second")
    assert (model.head()[OVERRIDDEN], model.contract().detector) == ({"detector": ["another", "none"]}, "none")
    before, after = (one.load().encoder.embeddings.word.weight for one in (start, model))
    assert not torch.equal(before, after)
    assert torch.allclose(before, after, atol=0.01), "three steps from the published weights"


def test_a_start_without_the_head_is_refused_before_anything_is_computed(tmp_path: Path, world: World) -> None:
    written(tmp_path, original_names(transformers_model("nlvr2").state_dict()))
    with pytest.raises(UserError, match=r"mine has the head of objective nlvr2 and none of vqa"):
        made(tmp_path, objective="nlvr2", wanted="vqa")
    assert made(tmp_path, objective="nlvr2", wanted="nlvr2").labels() == ["false", "true"]
    (tmp_path / "mlm").mkdir()
    start = start_in(tmp_path / "mlm", world, "mlm_itm")
    with pytest.raises(UserError, match="steps: 0 evaluates the start as it is, and it has no answer head"):
        finetuned(tmp_path / "0", world, start)
