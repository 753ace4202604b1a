"""Each field of a recipe changes exactly the stages it should, and no other."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from flows.graph import graph
from flows.recipe import Recipe, recipe_names, resolve
from vbert.artifacts.making.graph import plan, walk
from vbert.artifacts.steps.settings import Settings, Wiring
from vbert.artifacts.store.store import Store

FINGERPRINTS = Path(__file__).parents[1] / "fingerprints.json"
TINY = str(Path(__file__).parents[1] / "tiny.yaml")

PHOTOS = ["generate[shapes]", "images[shapes]", "examples[shapes]"]
EASY = ["images[easy_vqa]", "examples[easy_vqa]"]
EVALUATED = ["evaluate[vqa]", "report"]
FINETUNED = ["finetune[vqa]", *EVALUATED]
PRETRAINED = ["pretrain", *FINETUNED]
REGIONS = ["regions[easy_vqa]", "regions[shapes]", *PRETRAINED]
DETECTED = ["detector", *REGIONS]
TEXTS = ["vocabulary", *PRETRAINED]

# dotted field → (a value other than the recipe's, the stages that change)
CHANGES: dict[str, tuple[Any, list[str]]] = {
    "name": ("other", ["report"]),
    "seed": (1, DETECTED),
    "limit": (40, [*PHOTOS[1:], *EASY, *DETECTED, "vocabulary"]),
    "data.shapes.images": (90, [*PHOTOS, *DETECTED, "vocabulary"]),
    "data.shapes.size": (72, [*PHOTOS, *DETECTED, "vocabulary"]),
    "data.shapes.seed": (5, [*PHOTOS, *DETECTED, "vocabulary"]),
    "detector.train.steps": (7, DETECTED),
    "detector.train.batch_size": (5, DETECTED),
    "detector.train.learning_rate": (1e-3, DETECTED),
    "detector.train.validate_every": (3, DETECTED),
    "regions.boxes.score": (0.2, REGIONS),
    "regions.boxes.maximum": (5, REGIONS),
    "regions.images_per_shard": (20, REGIONS),
    "regions.quarantine": (0.5, []),
    "data.shapes.unusable_boxes": (0.5, []),
    "vocabulary.size": (200, TEXTS),
    "vocabulary.min_frequency": (3, TEXTS),
    "model.layers": (2, PRETRAINED),
    "model.hidden_size": (64, PRETRAINED),
    "model.box_input": ("none", PRETRAINED),
    "model.standardise": (False, PRETRAINED),
    "pretrain.data": (["shapes"], PRETRAINED),
    "pretrain.steps": (9, PRETRAINED),
    "pretrain.mlm": (0.5, PRETRAINED),
    "pretrain.itm": (0.5, PRETRAINED),
    "pretrain.masked": (0.2, PRETRAINED),
    "pretrain.itm_rows": ("unmasked", PRETRAINED),
    "pretrain.captions": (2, PRETRAINED),
    "pretrain.images": ("shuffled", PRETRAINED),
    "pretrain.seed": (1, PRETRAINED),
    "downstream.vqa.steps": (9, FINETUNED),
    "downstream.vqa.learning_rate": (5e-4, FINETUNED),
    "downstream.vqa.loss": ("bce", FINETUNED),
    "downstream.vqa.start": ("none", FINETUNED),
    "downstream.vqa.images": ("shuffled", FINETUNED),
    "downstream.vqa.share": (0.5, FINETUNED),
    "downstream.vqa.seed": (1, FINETUNED),
    "downstream.vqa.evaluate.resamples": (60, EVALUATED),
    "downstream.vqa.evaluate.batch_size": (64, EVALUATED),
    "numerics.detector.threads": (2, DETECTED),
    "numerics.regions.threads": (2, REGIONS),
    "numerics.regions.precision": ("bf16", REGIONS),
    "numerics.pretrain.processes": (2, PRETRAINED),
    "numerics.finetune.threads": (2, FINETUNED),
    "numerics.evaluate.threads": (2, EVALUATED),
    "machine.units_at_once": (4, []),
    "machine.loader_workers": (0, []),
    "machine.checkpoint_steps": (3, []),
    "machine.device": ("cpu", []),
    "machine.steps_at_once": (3, []),
    "machine.units_on": ("dask", []),
}


def prints(changes: dict[str, Any]) -> dict[str, str]:
    return {a.title: a.fingerprint for a in walk(graph(resolve(TINY, changes)))}


@pytest.fixture(scope="module")
def base() -> dict[str, str]:
    return prints({})


@pytest.mark.parametrize("field", CHANGES)
def test_a_field_changes_exactly_its_stages(field: str, base: dict[str, str]) -> None:
    value, expected = CHANGES[field]
    changed = prints({field: value})
    assert changed.keys() == base.keys()
    assert sorted(t for t in base if base[t] != changed[t]) == sorted(expected)


def leaves(model: type[Settings], prefix: str = "") -> set[str]:
    """Every field of a settings model by its dotted name, those of its models taken apart."""
    found = set()
    for name, info in model.model_fields.items():
        inner = info.annotation
        if isinstance(inner, type) and issubclass(inner, Settings) and Wiring not in info.metadata:
            found |= leaves(inner, f"{prefix}{name}.")
        else:
            found.add(f"{prefix}{name}")
    return found


def test_every_block_of_the_recipe_is_covered() -> None:
    covered = {field.split(".")[0] for field in CHANGES}
    assert covered == set(Recipe.model_fields)
    assert {f for f in leaves(Recipe) if f.startswith("machine.")} <= set(CHANGES)


def test_what_somebody_gave_is_checked_before_what_takes_long(tmp_path: Path) -> None:
    (tmp_path / "my_bert").mkdir()
    (tmp_path / "my_bert" / "config.json").write_text("{}")
    recipe = resolve("demo", {"model": {"init": str(tmp_path / "my_bert")}})
    order = [line.artifact.title for line in plan([graph(recipe)], Store(tmp_path / "store"))]
    assert order[:2] == ["download[my_bert]", "bert[my_bert]"]
    assert order.index("bert[my_bert]") < order.index("images[shapes]") < order.index("regions[shapes]")


def test_a_label_changes_nothing(base: dict[str, str]) -> None:
    assert set(prints({"downstream.vqa.objective": "vqa"}).values()) == set(base.values())


def test_shipped_recipes_keep_their_fingerprints() -> None:
    """An upgrade rebuilds nothing unless it is meant to: then `VBERT_GOLDEN=record pytest` records the new ones."""
    found = {name: {a.title: a.fingerprint for a in walk(graph(resolve(name)))} for name in recipe_names()}
    if os.environ.get("VBERT_GOLDEN") == "record":
        FINGERPRINTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(FINGERPRINTS.read_text())
