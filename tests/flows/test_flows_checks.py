"""Settings that don't fit each other are refused when the recipe is read, with the field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from flows.graph import graph
from flows.recipe import as_yaml, resolve
from vbert.errors import UserError
from vbert.model.bert import known_sizes, model_names
from vbert.model.config import ModelSettings
from vbert.model.published import spec_of

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
X = {"data": "easy_vqa", "steps": 1, "learning_rate": 1e-3}
BERT = {"model": {"init": "minilm_l6"}}
CAPTIONS = {**X, "objective": "captioning"}
TAGS = {**CAPTIONS, "tags": True}
RETRIEVAL = {**X, "objective": "retrieval"}
TAUGHT = {**X, "objective": "vqa", "teacher": "vqa"}
SIZES = {"layers": 1, "hidden_size": 16, "heads": 2}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"pretrain.max_text": 513}, "pretrain.max_text: 513 is beyond the model's 512 positions (max_positions); "),
        ({"model.max_positions": 64, "downstream.vqa.max_text": 65}, "vqa.max_text: 65 is beyond the model's 64 "),
        ({**BERT, "downstream.vqa.max_text": 600}, "downstream.vqa.max_text: 600 is beyond the model's 512 "),
        ({"downstream.vqa.start": "minilm_l6", "downstream.vqa.max_text": 600}, "600 is beyond the model's 512 "),
        (
            {"model": {"init": "minilm_l6", "layers": 12}},
            "model.layers: 12, but 6 is that of init minilm_l6: leave it ",
        ),
        ({"model": {"init": "minilm_l6", "initializer_range": 0.1}}, "0.1, but init minilm_l6 brings its own"),
        (
            {"downstream.vqa.steps": 0},
            "downstream.vqa.steps: 0 evaluates the start as it is, and it has no",
        ),
        (
            {"downstream.vqa.select": "best", "downstream.vqa.validation_examples": 0},
            "downstream.vqa.select: best, but validation_examples is 0; write last",
        ),
        (
            {"downstream.x": {**X, "objective": "nlvr2", "start": "vqa", "steps": 0}},
            "downstream.x.steps: 0 evaluates the start as it is, and vqa is of objective vqa, not nlvr2: train 1 step",
        ),
        ({"downstream.vqa.images": "none", "downstream.vqa.text": "none"}, "vqa.text: none beside images: none leaves"),
        ({"downstream.vqa.select_by": "accuracy/shape"}, "vqa.select_by: select is last, which goes by none; write "),
        ({"downstream.vqa.answers": "gone.txt"}, "downstream.vqa.answers: there is no file "),
        ({"pretrain.accumulate": 3}, "batch_size: 8 is not a multiple of processes × accumulate = 3; set it to 9"),
        ({"numerics.finetune.processes": 3}, "8 is not a multiple of processes × accumulate = 3; set it to 9"),
        ({"detector.train.accumulate": 3}, "4 is not a multiple of processes × accumulate = 3; set it to 6"),
        ({"pretrain.captions": 2, "model.type_vocab": 1}, "pretrain.captions: 2, but the model has one segment type"),
        (
            {"downstream.x": {**RETRIEVAL, "negatives": "batch", "batch_size": 1}},
            "downstream.x.batch_size: negatives: batch are drawn from the other pairs that a process computes at once",
        ),
        (
            {"downstream.x": {**RETRIEVAL, "batch_size": 4, "accumulate": 2}, "numerics.finetune.processes": 2},
            "x.batch_size: 4 over processes × accumulate leaves one pair, and the dual encoder learns from the other ",
        ),
        ({"downstream.x": TAGS}, "downstream.x: tags: true stand behind max_text; give it"),
        (
            {"downstream.x": {**TAGS, "max_text": 70}, "model.max_positions": 96},
            "x.max_text: captions (70) and tags (tag_pieces: 30) need 100 positions, and the model has 96; lower one",
        ),
        ({**BERT, "downstream.x": {**TAGS, "max_text": 500}}, "need 530 positions, and the model has 512"),
        ({"downstream.x": {**TAGS, "max_text": 22, "images": "none"}}, "x: tags: true are read from the image, and "),
        ({"downstream.x": {**CAPTIONS, "evaluate": {"minimum": 30}}}, "x.evaluate: minimum: 30 pieces at least, but "),
        (
            {"downstream.x": {**CAPTIONS, "evaluate": {"minimum": 19}, "max_text": 20}},
            "x.evaluate: minimum: 19 pieces at least, but the model is trained on 18 at most (max_text - 2); lower it",
        ),
        ({"downstream.x": {**CAPTIONS, "text": "none"}}, "x.text: none, but the text is what is to be written; what "),
        ({"downstream.x": {**CAPTIONS, "text": "shuffled"}}, "x.text: shuffled, but the text is what is to be written"),
        ({"downstream.vqa.model": SIZES}, "downstream.vqa.model: start pretrained has sizes of its own; write start: "),
        (
            {"downstream.x": {**TAUGHT, "start": "vqa", "model": SIZES}},
            "x.model: start vqa has sizes of its own; write",
        ),
        (
            {"downstream.vqa": {**X, "objective": "vqa", "start": "none", "model": {**SIZES, "heads": 3}}},
            "downstream.vqa.model: hidden_size 16 is not a multiple of heads 3",
        ),
        (
            {"downstream.x": {**TAUGHT, "teacher": "vqq"}},
            "x.teacher: no entry before this one is called 'vqq'; did you ",
        ),
        ({"downstream.x": {**TAUGHT, "teacher": "x"}}, "downstream.x.teacher: x is this entry itself"),
        ({"downstream.x": {**TAUGHT, "teacher": "y"}, "downstream.y": TAUGHT}, "y stands later: move it before this "),
        (
            {"downstream.vqa.seeds": [0, 1], "downstream.x": {**TAUGHT, "seeds": [1, 2]}},
            "downstream.x.teacher: vqa is not trained with seed 2, but with 0, 1",
        ),
        (
            {"downstream.x": {**CAPTIONS, "teacher": "vqa"}},
            "x.teacher: captioning has no labels that a teacher could say",
        ),
        (
            {"downstream.x": {**RETRIEVAL, "teacher": "vqa"}},
            "it is for vqa, nlvr2, classification, choice, visual_entai",
        ),
        ({"downstream.x": {**TAUGHT, "objective": "nlvr2"}}, "x.teacher: vqa is of objective vqa, not nlvr2"),
        ({"downstream.x": {**TAUGHT, "start": "vqa", "steps": 0}}, "x.teacher: steps: 0 learns nothing from it: train"),
        ({"downstream.x": {**TAUGHT, "loss": "bce"}}, "x.loss: bce, but its teacher vqa has kl: set the same"),
        ({"downstream.x": {**TAUGHT, "images": "none"}}, "x.images: none, but its teacher vqa has own: set the same"),
        (
            {"downstream.vqa.teacher_weight": 0.9},
            "vqa.teacher_weight: is for an entry with a teacher: name one, or lea",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve(TINY, changes)
    assert said in refused.value.message


def test_what_fits_is_taken() -> None:
    for changes in (
        {"pretrain.max_text": 512},
        {"model.max_positions": 64, "pretrain.max_text": 64},
        {"model": {"init": "minilm_l6", "layers": 6, "hidden_size": 384, "box_input": "none"}},
        {"downstream.vqa.select": "best"},
        {"numerics.pretrain.processes": 2, "pretrain.accumulate": 4},
        {**BERT, "pretrain.captions": 2},
        {"downstream.x": {**X, "objective": "choice", "images": "none", "text": "none"}},  # the choices are left
        {"downstream.x": {**X, "objective": "vqa", "start": "vqa", "steps": 0}},
        {"downstream.x": {**RETRIEVAL, "batch_size": 1, "dual": 0, "evaluate": {"rerank": "all"}}},
        {"downstream.x": {**RETRIEVAL, "negatives": "batch", "batch_size": 2}},
        {"downstream.x": {**TAGS, "max_text": 66}, "model.max_positions": 96},
        {"downstream.x": {**CAPTIONS, "evaluate": {"minimum": 18}, "max_text": 20}},
        {"downstream.x": {**TAUGHT, "start": "none", "model": SIZES, "teacher_weight": 0.9, "minimum_count": 1}},
        {"downstream.vqa.seeds": [0, 1], "downstream.x": {**TAUGHT, "seed": 1}},
    ):
        resolve(TINY, changes)


def test_a_split_that_a_spec_does_not_have_is_not_selected_by(tmp_path: Path) -> None:
    spec = (Path(__file__).parents[2] / "data_specs" / "datasets" / "easy_vqa.yaml").read_text()
    own = tmp_path / "own.yaml"
    changes = {"data.easy_vqa.spec": str(own), "downstream.vqa.select": "best"}
    own.write_text(spec.replace("name: easy_vqa", "name: own"))
    resolve(TINY, changes)
    own.write_text(spec.replace("name: easy_vqa", "name: own").replace("validation:", "# validation:"))
    with pytest.raises(UserError, match=r"downstream.vqa.select: best, but easy_vqa has no split val; write last"):
        resolve(TINY, changes)


def test_a_recipe_with_init_is_written_without_the_sizes_that_the_bert_brings(tmp_path: Path) -> None:
    """Written out it is read back; that the BERT's sizes are said again changes nothing."""
    recipe = resolve(TINY, BERT)
    (tmp_path / "again.yaml").write_text(as_yaml(recipe))
    again = resolve(str(tmp_path / "again.yaml"), {"name": recipe.name})
    assert graph(again).fingerprint == graph(recipe).fingerprint
    assert graph(resolve(recipe, {"seed": 0})).fingerprint == graph(recipe).fingerprint
    said = resolve(TINY, {"model": {"init": "minilm_l6", "layers": 6, "hidden_size": 384}})
    assert graph(said).fingerprint == graph(recipe).fingerprint


def test_sizes_are_known_before_a_bert_is_fetched(tmp_path: Path) -> None:
    for name in model_names():
        ModelSettings.model_validate(spec_of(name).sizes)
        assert {"layers", "hidden_size", "heads", "intermediate_size", "max_positions"} <= spec_of(name).sizes.keys()
    (tmp_path / "bert").mkdir()
    assert known_sizes(str(tmp_path / "bert")) == {}
    (tmp_path / "bert" / "config.json").write_text("[")
    assert known_sizes(str(tmp_path / "bert")) == {}
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"max_position_embeddings": 40, "vocab_size": 9}))
    assert known_sizes(str(tmp_path / "bert")) == {"max_positions": 40}
    assert known_sizes(str(tmp_path / "none")) is None
    with pytest.raises(UserError, match=r"pretrain.max_text: 41 is beyond the model's 40 positions"):
        resolve(TINY, {"model": {"init": str(tmp_path / "bert")}, "pretrain.max_text": 41})
    with pytest.raises(UserError, match=r"model.hidden_size: 32, but init .*/bert brings its own: leave it out"):
        resolve(TINY, {"model.init": str(tmp_path / "bert")})


def test_an_evaluation_without_examples_is_told() -> None:
    from flows.running import RecipeRun

    run = object.__new__(RecipeRun)
    run.targets = [graph(resolve(TINY))]
    for examples, said in ((0, ["evaluate[vqa]: no examples in split test"]), (5, [])):
        figures = {"examples": examples}
        run.store = Mock(find=lambda stage, _, its=figures: Mock(figures=its if stage == "evaluate" else {}))
        assert run.warnings() == said
