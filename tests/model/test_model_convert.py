"""Conversions against transformers' own models and files, written by its `save_pretrained` in each test."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from model.model_batches import Both, bert, hf_config, randomised, small_config
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    BertModel,
    VisualBertForPreTraining,
    VisualBertForQuestionAnswering,
)

from vbert.errors import UserError
from vbert.model.bert import BertWeights
from vbert.model.checkpoint import read_tensors, write_bert
from vbert.model.convert import folded, load_bert, load_pretrained, save_pretrained
from vbert.model.heads import MATCH, AnswerModel, PretrainingModel
from vbert.model.vocabulary import SPECIAL, TextRules, Vocabulary, write_vocabulary

NEW = {  # what no BERT has, and the visual tables that are copies
    "encoder.embeddings.visual_position.weight",
    "encoder.embeddings.visual_token_type.weight",
    "encoder.embeddings.visual_projection.weight",
    "encoder.embeddings.visual_projection.bias",
}


def outputs(model: Any, both: Both) -> list[Tensor]:
    with torch.no_grad():
        if isinstance(model, PretrainingModel):
            words, matching = model(replace(both.packed, at=torch.arange(len(both.packed.order))))
            return [words, matching]
        out = model(**both.padded)
    return [both.real(out.prediction_logits), out.seq_relationship_logits]


def batch(dtype: torch.dtype = torch.float32, visual_types: str = "zero") -> Both:
    return Both([5, 9, 3], [4, 1, 7], dtype, visual_types)


# transformers' VisualBERT, both ways


@pytest.mark.parametrize("visual_types", ["zero", "one"])
def test_transformers_models_load_and_go_back_unchanged(tmp_path: Path, visual_types: str) -> None:
    theirs = randomised(VisualBertForPreTraining(hf_config(hidden_act="gelu_new")))
    theirs.save_pretrained(tmp_path / "theirs")
    ours, report = load_pretrained(tmp_path / "theirs")
    assert report.created == report.ignored == ()
    for mine, other in zip(outputs(ours, batch()), outputs(theirs, batch()), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    save_pretrained(ours, tmp_path / "back")
    first, second = (load_file(tmp_path / at / "model.safetensors") for at in ("theirs", "back"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    again, loading = VisualBertForPreTraining.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    both = batch(visual_types=visual_types)
    assert all(torch.equal(a, b) for a, b in zip(outputs(again.eval(), both), outputs(theirs, both), strict=True))


def test_the_hf_conventions_exchange_segment_and_matching_label(tmp_path: Path) -> None:
    """A model of ours, exported so, answers a user who follows transformers' documentation: type 1, 0 = match."""
    ours = randomised(PretrainingModel(small_config()))
    save_pretrained(ours, tmp_path, conventions="hf")
    theirs = VisualBertForPreTraining.from_pretrained(tmp_path).eval()
    words, matching = outputs(ours, batch(visual_types="zero"))
    their_words, their_matching = outputs(theirs, batch(visual_types="one"))
    torch.testing.assert_close(words, their_words, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(matching[:, MATCH], their_matching[:, 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(matching[:, 1 - MATCH], their_matching[:, 1], atol=1e-5, rtol=1e-5)
    for conventions in ("hf", None):  # config.json says it
        back, _ = load_pretrained(tmp_path, conventions)
        assert all(torch.equal(a, b) for a, b in zip(back.parameters(), ours.parameters(), strict=True))
    plain, _ = load_pretrained(tmp_path, "original")
    assert not torch.allclose(outputs(plain, batch())[1], matching)


def test_the_statistics_of_features_are_folded_exactly(tmp_path: Path) -> None:
    ours = randomised(PretrainingModel(small_config(standardise=True, box_input="append6", visual_dim=4))).double()
    draw = torch.Generator().manual_seed(1)
    ours.encoder.set_statistics(torch.randn(10, generator=draw) * 3, torch.rand(10, generator=draw) + 0.1)
    save_pretrained(ours, tmp_path)
    theirs = VisualBertForPreTraining.from_pretrained(tmp_path, dtype=torch.float64).eval()
    both = batch(torch.float64)
    for mine, other in zip(outputs(ours, both), outputs(theirs, both), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-13, rtol=0)
    state = {k: v.double() for k, v in ours.state_dict().items()}
    projected = ours.encoder.embeddings.visual_projection(
        (both.packed.visual - state["encoder.embeddings.feature_mean"]) / state["encoder.embeddings.feature_std"]
    )
    flat = folded(state)
    name = "encoder.embeddings.visual_projection"
    direct = both.packed.visual @ flat[f"{name}.weight"].T + flat[f"{name}.bias"]
    torch.testing.assert_close(direct, projected, atol=1e-14, rtol=1e-14)
    again, _ = load_pretrained(tmp_path)
    assert (again.encoder.config.box_input, again.encoder.config.visual_dim) == ("append6", 4)
    assert not again.encoder.config.standardise


def test_question_answering_models_go_both_ways(tmp_path: Path) -> None:
    theirs = randomised(VisualBertForQuestionAnswering(hf_config(num_labels=5)))
    theirs.save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match=r"5 rows without the answers that they stand for: give .* \(`answers: FILE`\)"):
        load_pretrained(tmp_path / "theirs")
    (tmp_path / "answers.txt").write_text("yes\nno\nred\ntwo\n<unk>\n")
    ours, report = load_pretrained(tmp_path / "theirs", answers=tmp_path / "answers.txt")
    assert isinstance(ours, AnswerModel)
    assert (report.ignored, report.answers) == ((), ("yes", "no", "red", "two", "<unk>"))
    both = batch()
    mask_at = both.packed.starts() + torch.tensor(both.texts) - 2  # theirs reads the last but one token of the text
    with torch.no_grad():
        mine = ours(replace(both.packed, at=mask_at))
        torch.testing.assert_close(mine, theirs(**both.padded).logits, atol=1e-5, rtol=1e-5)
        save_pretrained(ours, tmp_path / "back", answers=report.answers)
        assert load_pretrained(tmp_path / "back")[1].answers == report.answers
        back = VisualBertForQuestionAnswering.from_pretrained(tmp_path / "back").eval()
        assert torch.equal(back(**both.padded).logits, theirs(**both.padded).logits)


def test_labels_go_with_their_heads(tmp_path: Path) -> None:
    """Of other heads than VQA's too; incomplete ones, and as many as don't fit, are refused."""
    ours = AnswerModel(small_config(), 3, "pooled")
    save_pretrained(ours, tmp_path, answers=("yes", "no", "perhaps"))
    assert load_pretrained(tmp_path)[1].answers == ("yes", "no", "perhaps")
    with pytest.raises(UserError, match=r"answers: 2 different ones for a head of 3 rows"):
        save_pretrained(ours, tmp_path, answers=("yes", "no", "no"))
    (tmp_path / "two.txt").write_text("yes\nno\n")
    with pytest.raises(UserError, match=r"two\.txt has 2 answers, the head of .* 3 rows"):
        load_pretrained(tmp_path, answers=tmp_path / "two.txt")
    asked = tmp_path / "asked"
    save_pretrained(AnswerModel(small_config(), 3), asked, answers=("yes", "no", "perhaps"))
    config = json.loads((asked / "config.json").read_text())
    for labels in ({"0": "yes", "1": "no"}, {"0": "yes", "1": "no", "2": None}):
        (asked / "config.json").write_text(json.dumps(config | {"id2label": labels}))
        with pytest.raises(UserError, match=r"3 rows without the answers that they stand for"):
            load_pretrained(asked)


@pytest.mark.parametrize("stated", [["VisualBertForQuestionAnswring"], "BertModel"])
def test_another_architecture_is_refused(tmp_path: Path, stated: Any) -> None:
    save_pretrained(PretrainingModel(small_config()), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": stated}))
    with pytest.raises(UserError, match=r"architectures: .* is no VisualBERT of transformers; "):
        load_pretrained(tmp_path)


def test_a_bare_encoder_loads_and_its_heads_are_reported_as_new(tmp_path: Path) -> None:
    theirs = randomised(VisualBertForPreTraining(hf_config()))
    theirs.visual_bert.save_pretrained(tmp_path)
    ours, report = load_pretrained(tmp_path)
    assert isinstance(ours, PretrainingModel)
    assert {name.partition(".")[0] for name in report.created} == {"masked_language", "matching"}
    with torch.no_grad():
        expected = theirs.visual_bert(**batch().padded).last_hidden_state
    torch.testing.assert_close(ours.encoder(batch().packed), batch().real(expected), atol=1e-5, rtol=1e-5)


def test_the_vocabulary_travels_with_the_export(tmp_path: Path) -> None:
    words, out = tmp_path / "words", tmp_path / "out"
    words.mkdir()
    write_vocabulary(words, [*SPECIAL, "Cat", "猫"], TextRules(do_lower_case=False))
    save_pretrained(PretrainingModel(small_config()), out, vocabulary=Vocabulary.at(words))
    assert Vocabulary.at(out).encode("Cat 猫") == [5, 6]


def test_checkpoints_of_another_kind_are_refused(tmp_path: Path) -> None:
    theirs = VisualBertForPreTraining(hf_config(bypass_transformer=True))
    theirs.save_pretrained(tmp_path / "bypass")
    with pytest.raises(UserError, match="bypass_transformer"):
        load_pretrained(tmp_path / "bypass")
    with pytest.raises(UserError, match=r"no config\.json"):
        load_pretrained(tmp_path)
    bert(tmp_path / "bert")
    with pytest.raises(UserError, match="model_type is 'bert'"):
        load_pretrained(tmp_path / "bert")


# BERT as the start


def started(folder: Path, tmp_path: Path) -> tuple[PretrainingModel, Any]:
    directory = tmp_path / f"weights of {folder.name}"
    directory.mkdir()
    write_bert(directory, folder)
    model = PretrainingModel(small_config(), torch.Generator().manual_seed(0))
    return model, load_bert(model, BertWeights.at(directory))


def test_transformers_itself_loads_nothing_of_a_bert_and_raises_nothing(tmp_path: Path) -> None:
    """Why `load_bert` exists. If this fails, transformers has learnt it."""
    source = bert(tmp_path / "bert")
    loaded = VisualBertForPreTraining.from_pretrained(tmp_path / "bert", visual_embedding_dim=10)
    theirs = dict(loaded.visual_bert.named_parameters())
    arrived = [n for n, p in source.bert.named_parameters() if n in theirs and torch.equal(theirs[n], p)]
    assert arrived == []


def test_every_weight_of_a_bert_arrives(tmp_path: Path) -> None:
    source = bert(tmp_path / "bert")
    ours, report = started(tmp_path / "bert", tmp_path)
    assert set(report.created) == NEW
    assert report.ignored == ()
    save_pretrained(ours, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for name, parameter in source.named_parameters():
        assert torch.equal(written[name.replace("bert.", "visual_bert.", 1)], parameter), name
    table = ours.encoder.embeddings
    assert torch.equal(table.visual_position.weight, source.bert.embeddings.position_embeddings.weight)
    assert torch.equal(table.visual_token_type.weight, source.bert.embeddings.token_type_embeddings.weight)
    text = Both([5, 9, 3], [0, 0, 0], torch.float32)
    with torch.no_grad():
        expected = source.bert(text.padded["input_ids"], text.padded["attention_mask"], text.padded["token_type_ids"])
    mine = ours.eval().encoder(text.packed)
    torch.testing.assert_close(mine, text.real(expected.last_hidden_state), atol=1e-5, rtol=1e-5)


def rename(folder: Path, new_name: Callable[[str], str | None]) -> None:
    path = folder / "model.safetensors"
    tensors = {new_name(name): tensor for name, tensor in load_file(path).items()}
    save_file({name: tensor for name, tensor in tensors.items() if name}, path)


HEADS_ = {
    f"{part}.{kind}"
    for part in ("masked_language.dense", "masked_language.norm", "matching.dense")
    for kind in ("weight", "bias")
} | {"masked_language.bias"}
POOLER = {"encoder.pooler.weight", "encoder.pooler.bias"}
VARIANTS: dict[str, tuple[Callable[[str], str | None], set[str]]] = {
    "gamma and beta": (
        lambda n: n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
        set(),
    ),
    "without a pooler": (lambda n: None if "pooler" in n else n, POOLER),
    "without heads": (lambda n: None if n.startswith("cls.") else n, HEADS_),
    "without prefix, pooler and heads": (
        lambda n: None if n.startswith("cls.") or "pooler" in n else n.removeprefix("bert."),
        HEADS_ | POOLER,
    ),
    "the bias under decoder": (lambda n: "cls.predictions.decoder.bias" if n == "cls.predictions.bias" else n, set()),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_spellings_of_berts_tensors(tmp_path: Path, variant: str) -> None:
    new_name, created = VARIANTS[variant]
    bert(tmp_path / "plain")
    bert(tmp_path / "variant")
    rename(tmp_path / "variant", new_name)
    plain, _ = started(tmp_path / "plain", tmp_path)
    model, report = started(tmp_path / "variant", tmp_path)
    assert set(report.created) == NEW | created
    assert report.ignored == ()
    for name, tensor in model.state_dict().items():
        if name not in created:
            assert torch.equal(tensor, plain.state_dict()[name]), name


def test_a_bare_bert_model_and_a_pytorch_file_load(tmp_path: Path) -> None:
    source = bert(tmp_path / "bert", kind=BertModel)
    (tmp_path / "bert" / "model.safetensors").unlink()
    extra = {"embeddings.position_ids": torch.arange(512)[None], "classifier.weight": torch.ones(2, 24)}
    torch.save({**source.state_dict(), **extra}, tmp_path / "bert" / "pytorch_model.bin")
    ours, report = started(tmp_path / "bert", tmp_path)
    assert set(report.created) == NEW | HEADS_
    assert report.ignored == ("classifier.weight",)
    assert "ignored 1: classifier.weight" in str(report)
    assert torch.equal(ours.encoder.pooler.weight, source.pooler.dense.weight)


def test_weights_in_shards_load(tmp_path: Path) -> None:
    source = bert(tmp_path / "bert")
    source.save_pretrained(tmp_path / "bert", max_shard_size="20KB")
    assert len(list((tmp_path / "bert").glob("model-*.safetensors"))) > 1
    (tmp_path / "bert" / "model.safetensors").unlink(missing_ok=True)
    _, report = started(tmp_path / "bert", tmp_path)
    assert set(report.created) == NEW
    index = tmp_path / "bert" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(UserError, match="not a file name beside it"):
        read_tensors(tmp_path / "bert")


def test_a_bert_that_does_not_fit_is_an_error_that_names_the_tensors(tmp_path: Path) -> None:
    bert(tmp_path / "narrow", intermediate_size=48)
    with pytest.raises(UserError, match="does not fit") as error:
        started(tmp_path / "narrow", tmp_path)
    assert (
        "shape of bert.encoder.layer.0.intermediate.dense.weight: [48, 24] instead of [96, 24]" in error.value.details
    )
    bert(tmp_path / "short", num_hidden_layers=2)
    with pytest.raises(UserError) as error:
        started(tmp_path / "short", tmp_path)
    assert "missing bert.encoder.layer.2.attention.self.query.weight" in error.value.details
    bert(tmp_path / "deep", num_hidden_layers=4)
    with pytest.raises(UserError) as error:
        started(tmp_path / "deep", tmp_path)
    assert "no place for bert.encoder.layer.3.attention.output.LayerNorm.bias" in error.value.details
    bert(tmp_path / "torn")
    rename(tmp_path / "torn", lambda n: None if n.endswith("layer.1.attention.self.key.weight") else n)
    with pytest.raises(UserError) as error:
        started(tmp_path / "torn", tmp_path)
    assert "missing: bert.encoder.layer.1.attention.self.key.weight" in error.value.details


def test_what_is_no_bert_is_refused(tmp_path: Path) -> None:
    bert(tmp_path / "bert")
    config = tmp_path / "bert" / "config.json"
    given = json.loads(config.read_text())
    for change, message in (
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ):
        config.write_text(json.dumps({**given, **change}))
        with pytest.raises(UserError, match=message):
            write_bert(tmp_path, tmp_path / "bert")
    config.write_text(json.dumps(given))
    rename(tmp_path / "bert", lambda n: n.replace("embeddings", "embedding"))
    with pytest.raises(UserError, match="no BERT"):
        write_bert(tmp_path, tmp_path / "bert")
    bert(tmp_path / "long")
    (tmp_path / "long" / "vocab.txt").write_text("\n".join([*SPECIAL, *map(str, range(100))]))
    with pytest.raises(UserError, match="105 tokens, the word embeddings 61 rows"):
        write_bert(tmp_path, tmp_path / "long")


def test_a_pickle_that_would_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"bert.embeddings.word_embeddings.weight": Attack()}, file)
    with pytest.raises(UserError, match=r"it holds bert\..*\.weight \(a posix\.mkdir\)"):
        read_tensors(tmp_path)
    torch.save({"weight": Attack()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"it holds weight \(a posix\.mkdir\)"):
        read_tensors(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_sizes_and_box_numbers_come_from_the_right_side(tmp_path: Path) -> None:
    bert(tmp_path / "bert", hidden_act="gelu_new", layer_norm_eps=1e-5)
    directory = tmp_path / "weights"
    directory.mkdir()
    write_bert(directory, tmp_path / "bert")
    settings = small_config(hidden_size=128, layers=7, box_input="append6", standardise=True, hidden_dropout=0.3)
    config = BertWeights.at(directory).model_config(settings, visual_dim=9)
    assert (config.hidden_size, config.layers, config.activation, config.layer_norm_eps) == (24, 3, "gelu_new", 1e-5)
    assert (config.visual_input, config.standardise, config.hidden_dropout) == (15, True, 0.3)


def test_a_visualbert_that_can_not_be_built_is_refused_in_a_sentence(tmp_path: Path) -> None:
    theirs = VisualBertForPreTraining(hf_config())
    theirs.save_pretrained(tmp_path / "theirs")
    config = tmp_path / "theirs" / "config.json"
    given = json.loads(config.read_text())
    for change in ({"num_attention_heads": 5}, {"visual_embedding_dim": "wide"}, {"hidden_act": "swish"}):
        config.write_text(json.dumps(given | change))
        with pytest.raises(UserError, match=r"config\.json: no sizes of a VisualBERT that can be built here"):
            load_pretrained(tmp_path / "theirs")
    config.write_text(json.dumps(given))
    path = tmp_path / "theirs" / "model.safetensors"
    tensors = load_file(path)
    key = "visual_bert.encoder.layer.0.attention.self.key.weight"
    for other in (torch.zeros(()), torch.zeros(3, 5)):
        save_file(tensors | {key: other}, path)
        with pytest.raises(UserError, match="does not fit the model") as refused:
            load_pretrained(tmp_path / "theirs")
        assert f"{key} + " in refused.value.details
    save_file(tensors | {key: torch.full_like(tensors[key], torch.nan)}, path)
    with pytest.raises(UserError, match=rf"NaN or infinite numbers in 1 of \d+ tensors \({key}\)"):
        load_pretrained(tmp_path / "theirs")
