"""Every field can be looked up, a data set can be begun, and `--machine` is refused as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from flows.fields import everything, fields_at, members, models, roots
from flows.graph import graph
from flows.recipe import machine_from, resolve
from flows.starting import start_data
from vbert.artifacts.making.engine import build_here
from vbert.artifacts.making.plan import select, walk
from vbert.artifacts.store.store import Store
from vbert.errors import UserError


def test_every_field_of_recipes_specs_and_machine_is_described() -> None:
    lacking, seen = [], set[type[BaseModel]]()

    def look(model: type[BaseModel]) -> None:
        if model in seen:
            return
        seen.add(model)
        for name, info in members(model):
            inner = everything(info.annotation)
            if not info.description and not (len(inner) == 1 and inner[0].__doc__):
                lacking.append(f"{model.__name__}.{name}")
            for one in inner:
                look(one)

    for root in (one for kinds in roots().values() for one in models(kinds)):
        look(root)
    assert lacking == []


def test_a_field_of_one_of_several_rules_says_whose_it_is() -> None:
    found = {(field.path, field.kind): field for field in fields_at("detectors.boxes")}
    assert found["detectors.boxes.rule", "adaptive"].description.startswith("Every box that scores above")
    assert ("detectors.boxes.rule", "given") in found
    assert found["detectors.boxes.count", "whole number"].description == "(fixed) boxes kept, the best ones"
    networks = [(field.default, field.description) for field in fields_at("detectors.architecture.pooled")]
    assert [default for default, _ in networks] == ["5", "14"]
    assert [said.partition(")")[0] for _, said in networks] == ["(plain_cnn", "(bottom_up_c4"]


def test_a_field_is_found_by_its_path() -> None:
    (steps,) = fields_at("pretrain.steps")
    assert (steps.path, steps.default, steps.description) == ("pretrain.steps", "required", "optimiser steps")
    (rate,) = fields_at("downstream.vqa.learning_rate")
    assert rate.kind == "number"
    assert "machine.device" in {field.path for field in fields_at("machine")}
    assert "datasets.sources" in {field.path for field in fields_at("datasets")}
    assert "seed" in {field.path for field in fields_at(None)}
    with pytest.raises(UserError, match="there is no 'lr'; did you mean 'learning_rate'"):
        fields_at("pretrain.lr")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "units_at_once=0",
            "--machine units_at_once: input should be greater than or equal to 1 (got 0)",
        ),
        ("device=gpu", "--machine device: input should be 'auto', 'cpu' or 'cuda' (got \"gpu\")"),
        ("gpus=1", "--machine gpus: there is no such setting; did you mean 'device'?"),
        ("device=cuda", "--machine device=cuda: torch sees no GPU here; say device=auto or device=cpu"),
    ],
)
def test_a_wrong_machine_is_reported_as_such(given: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError) as found:
        machine_from([given])
    assert found.value.message == said


def test_a_begun_data_set_works_as_it_is(tmp_path: Path) -> None:
    start_data(tmp_path / "d")
    recipe: Any = resolve(str(tmp_path / "d" / "recipe.yaml"))
    (target,) = select(walk(graph(recipe)), "examples[mine]")
    (built,) = build_here([target], Store(tmp_path / "store"))
    assert built.table().num_rows == 5  # type: ignore[attr-defined]
    cookbook = (Path(__file__).parents[2] / "docs/cookbook.md").read_text()
    assert (tmp_path / "d" / "examples.jsonl").read_text() in cookbook
    with pytest.raises(UserError, match="exists; give another folder with --to"):
        start_data(tmp_path / "d")
