"""Each field of a recipe changes exactly the stages it should, and no other."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from recipe_world import by_hand
from regions import interop_files

from flows.fields import keyed, members, models
from flows.graph import graph
from flows.models import published
from flows.recipe import Recipe, recipe_names, resolve
from vbert.artifacts.making.plan import plan, walk
from vbert.artifacts.store.store import Store
from vbert.model.published import published_names, published_spec
from vbert.objectives import OBJECTIVES, DownstreamSettings
from vbert.objectives.pretraining import OBJECTIVE

FINGERPRINTS = Path(__file__).parents[1] / "fingerprints.json"
TINY = str(Path(__file__).parents[1] / "tiny.yaml")

PHOTOS = ["generate[shapes]", "images[shapes]", "examples[shapes]", "overlaps"]
EASY = ["images[easy_vqa]", "examples[easy_vqa]", "overlaps"]
EVALUATED = ["evaluate[vqa]", "report"]
EXPLAINED = ["explain[vqa]", "report"]
FINETUNED = ["finetune[vqa]", *EVALUATED]
TAUGHT = ["finetune[small]", "evaluate[small]", "report"]
PRETRAINED = ["pretrain", *FINETUNED]
REGIONS = ["regions[easy_vqa]", "regions[shapes]", *PRETRAINED]
DETECTED = ["detector", *REGIONS]
TEXTS = ["vocabulary", *PRETRAINED]

SEEDED = [
    f"{sign}{stage}[vqa{seed}]"
    for stage in ("finetune", "evaluate")
    for sign, seed in (("-", ""), ("+", "@0"), ("+", "@1"))
]
BERT = ["-vocabulary", "+download[minilm_l6]", "+bert[minilm_l6]", "+bert_vocabulary"]
COCO = [f"+download[coco_2017 {part}]" for part in ("annotations", "train", "val")]
MOBILENET = "fasterrcnn_mobilenet_v3_large_fpn"
PUBLISHED = f"torchvision_{MOBILENET}"
IMPORTED = ["import_features[easy_vqa]", *PRETRAINED]

# What every training has; of a detector the rate differs.
SCHEDULE: dict[str, Any] = {
    "steps": 9,
    "batch_size": 12,
    "learning_rate": 5e-4,
    "schedule": "constant",
    "warmup": 0.2,
    "weight_decay": 0.1,
    "clip": 2.0,
    "clip_rule": "per_tensor",
    "optimizer": "bert_adam",
    "beta2": 0.98,
    "epsilon": 1e-6,
    "accumulate": 2,
    "validate_every": 3,
}
TRAINED = {"detector.train": DETECTED, "pretrain": PRETRAINED, "downstream.NAME": FINETUNED}
COMPUTED = {
    "detector": DETECTED,
    "regions": REGIONS,
    "pretrain": PRETRAINED,
    "finetune": FINETUNED,
    "evaluate": EVALUATED,
}

# Every field → (another value than the recipe's, the stages that change; + those that come and - those that go).
CHANGES: dict[str, tuple[Any, list[str]]] = {
    **{f"{at}.{name}": (value, stages) for at, stages in TRAINED.items() for name, value in SCHEDULE.items()},
    **{
        f"numerics.{stage}.{name}": (value, stages)
        for stage, stages in COMPUTED.items()
        for name, value in {"threads": 2, "processes": 2, "precision": "bf16"}.items()
        if (stage, name) != ("regions", "processes")
    },
    "name": ("other", ["report"]),
    "seed": (1, DETECTED),
    "limit": (40, [*PHOTOS[1:], *EASY, *DETECTED, "vocabulary"]),
    "data.NAME.spec": ("coco_2017", [*COCO, "-download[easy_vqa]", *EASY, "regions[easy_vqa]", *TEXTS]),
    "data.NAME.folder": ("$FOLDER/photos", ["download[others]", "images[others]", "overlaps", *DETECTED]),
    "data.NAME.files": ({"package": "$FOLDER/photos"}, ["download[easy_vqa]", *EASY, "regions[easy_vqa]", *TEXTS]),
    "data.NAME.known_overlap": ("as in the paper", ["overlaps", "report"]),
    "data.NAME.images": (90, [*PHOTOS, *DETECTED, "vocabulary"]),
    "data.NAME.size": (72, [*PHOTOS, *DETECTED, "vocabulary"]),
    "data.NAME.seed": (5, [*PHOTOS, *DETECTED, "vocabulary"]),
    "data.NAME.unusable_boxes": (0.5, []),
    "data.NAME.dead_links": (0.5, []),
    "data.NAME.features.path": ("$FOLDER/other.tsv", ["download[features]", *IMPORTED]),
    "data.NAME.features.detector": ("bottom_up_attention_36", IMPORTED),
    "data.NAME.features.format": ("bottom_up_tsv", IMPORTED),
    "data.NAME.features.layer": ("fc6", IMPORTED),
    "data.NAME.features.weights": ("0" * 64, IMPORTED),
    "data.NAME.features.boxes_in": ("normalised", IMPORTED),
    "data.NAME.features.dtype": ("float32", IMPORTED),
    "data.NAME.features.sizes": ("$FOLDER/sizes.csv", ["+download[sizes]", *IMPORTED]),
    "data.NAME.features.ids": (r"(\d+)", IMPORTED),
    "data.NAME.features.id_form": ("img/{}.png", IMPORTED),
    "data.NAME.features.cap": (3, IMPORTED),
    "data.NAME.features.classes": ("$FOLDER/words.txt", IMPORTED),
    "data.NAME.features.attributes": ("$FOLDER/words.txt", IMPORTED),
    "data.NAME.features.images_per_shard": (3, IMPORTED),
    "data.NAME.features.quarantine": (0.5, []),
    "data.NAME.features.manual.steps": (["Ask for them."], []),
    "data.NAME.features.manual.files.NAME.size": (7, []),
    "data.NAME.features.manual.files.NAME.sha256": ("0" * 64, []),
    "data.NAME.features.manual.files.NAME.count": (7, []),
    "detector.spec": (MOBILENET, [f"+download[{MOBILENET} start]", *DETECTED]),
    "detector.weights": (
        "$FOLDER/words.txt",
        [f"download[{PUBLISHED} weights]", f"weights[{PUBLISHED}]", "overlaps", *REGIONS],
    ),
    "detector.start": ("$FOLDER/words.txt", ["+download[shapes_cnn start]", *DETECTED]),
    "detector.train.data": ("easy_vqa", ["overlaps", *DETECTED]),
    "detector.train.attribute_weight": (0.1, DETECTED),
    "detector.train.flip": (0.1, DETECTED),
    "detector.train.short_sides": ([64, 72], DETECTED),
    "regions.boxes": ({"rule": "given"}, REGIONS),
    "regions.boxes[adaptive].minimum": (2, REGIONS),
    "regions.boxes[adaptive].maximum": (5, REGIONS),
    "regions.boxes[adaptive].score": (0.3, REGIONS),
    "regions.boxes[fixed].count": (5, REGIONS),
    "regions.nms": ({"rule": "rising"}, REGIONS),
    "regions.nms[per_class].rule": ("class_agnostic", REGIONS),
    "regions.nms[per_class].iou": (0.6, REGIONS),
    "regions.nms[proposals].iou": (0.6, REGIONS),
    "regions.nms[proposals].widths": ("continuous", REGIONS),
    "regions.nms[rising].iou": (0.2, REGIONS),
    "regions.nms[rising].last": (0.8, REGIONS),
    "regions.nms[rising].step": (0.2, REGIONS),
    "regions.images_per_shard": (20, REGIONS),
    "regions.batch": (2, REGIONS),
    "regions.quarantine": (0.5, []),
    "vocabulary.do_lower_case": (False, TEXTS),
    "vocabulary.strip_accents": (False, TEXTS),
    "vocabulary.tokenize_chinese_chars": (False, TEXTS),
    "vocabulary.size": (200, TEXTS),
    "vocabulary.min_frequency": (3, TEXTS),
    "model.hidden_size": (64, PRETRAINED),
    "model.layers": (2, PRETRAINED),
    "model.heads": (4, PRETRAINED),
    "model.intermediate_size": (48, PRETRAINED),
    "model.max_positions": (256, PRETRAINED),
    "model.type_vocab": (3, PRETRAINED),
    "model.activation": ("relu", PRETRAINED),
    "model.hidden_dropout": (0.2, PRETRAINED),
    "model.attention_dropout": (0.2, PRETRAINED),
    "model.layer_norm_eps": (1e-6, PRETRAINED),
    "model.initializer_range": (0.1, PRETRAINED),
    "model.box_input": ("none", PRETRAINED),
    "model.standardise": (False, PRETRAINED),
    "model.box_gain": (6.0, PRETRAINED),
    "model.init": ({"init": "minilm_l6"}, [*BERT, *PRETRAINED]),
    "pretrain.data": (["shapes"], PRETRAINED),
    "pretrain.start": ("minilm_l6", [*BERT, *PRETRAINED]),
    "pretrain.seed": (1, PRETRAINED),
    "pretrain.seeds": ([0, 1], ["-pretrain", "+pretrain[pretrained@0]", "+pretrain[pretrained@1]", "report"]),
    "pretrain.mlm": (0.5, PRETRAINED),
    "pretrain.itm": (0.5, PRETRAINED),
    "pretrain.kinds": (["caption"], PRETRAINED),
    "pretrain.matched": (["caption", "question"], PRETRAINED),
    "pretrain.masked": (0.2, PRETRAINED),
    "pretrain.content": (0.5, PRETRAINED),
    "pretrain.answers": (0.5, PRETRAINED),
    "pretrain.whole_word": (True, PRETRAINED),
    "pretrain.captions": (2, PRETRAINED),
    "pretrain.itm_target": ("task_label", PRETRAINED),
    "pretrain.itm_rows": ("unmasked", PRETRAINED),
    "pretrain.itm_share": (0.3, PRETRAINED),
    "pretrain.itm_draw": ("paired", PRETRAINED),
    "pretrain.mismatched": (0.4, PRETRAINED),
    "pretrain.altered": (0.5, PRETRAINED),
    "pretrain.altered_by": (["color"], PRETRAINED),
    "pretrain.question_types": (["color"], PRETRAINED),
    "pretrain.images": ("shuffled", PRETRAINED),
    "pretrain.accept_contract": (["detector"], []),
    "pretrain.max_text": (20, PRETRAINED),
    "pretrain.train_pooler": (False, PRETRAINED),
    "pretrain.validation_examples": (10, PRETRAINED),
    "downstream.NAME.objective": ("classification", FINETUNED),
    "downstream.NAME[classification].positive": ("yes", FINETUNED),
    "downstream.NAME[nlvr2].segment": (2.5, FINETUNED),
    "downstream.NAME[choice].align": (False, FINETUNED),
    "downstream.NAME[choice].cut": ("choice", FINETUNED),
    "downstream.NAME[choice].protocol": ("vcr", FINETUNED),
    "downstream.NAME[grounding].protocol": ("merged", [*FINETUNED, "heads[vqa]"]),
    "downstream.NAME[grounding].loss": ("cross_entropy", FINETUNED),
    "downstream.NAME[grounding].iou": ("exact", [*FINETUNED, "heads[vqa]"]),
    "downstream.NAME[grounding].as_original": (True, [*FINETUNED, "heads[vqa]"]),
    "downstream.NAME[grounding].floor": (0.3, []),
    "downstream.NAME[grounding].zero_shot": (False, ["-heads[vqa]", "report"]),
    "downstream.NAME[captioning].predict": ("next", FINETUNED),
    "downstream.NAME[captioning].mask": (0.3, FINETUNED),
    "downstream.NAME[captioning].label_smoothing": (0.1, FINETUNED),
    "downstream.NAME[captioning].tags": (True, FINETUNED),
    "downstream.NAME[captioning].tag_pieces": (9, FINETUNED),
    "downstream.NAME[captioning].references": (["list"], FINETUNED),
    "downstream.NAME[captioning].evaluate.beams": (2, EVALUATED),
    "downstream.NAME[captioning].evaluate.length": (9, EVALUATED),
    "downstream.NAME[captioning].evaluate.minimum": (2, EVALUATED),
    "downstream.NAME[captioning].evaluate.length_penalty": (0.5, EVALUATED),
    "downstream.NAME[captioning].evaluate.no_repeat": (3, EVALUATED),
    "downstream.NAME[retrieval].loss": ("margin", FINETUNED),
    "downstream.NAME[retrieval].margin": (0.1, FINETUNED),
    "downstream.NAME[retrieval].negatives": ("mined", FINETUNED),
    "downstream.NAME[retrieval].wrong": (2, FINETUNED),
    "downstream.NAME[retrieval].mine_every": (100, FINETUNED),
    "downstream.NAME[retrieval].candidates": (99, FINETUNED),
    "downstream.NAME[retrieval].hard": (9, FINETUNED),
    "downstream.NAME[retrieval].dual": (64, FINETUNED),
    "downstream.NAME[retrieval].evaluate.rerank": ("all", EVALUATED),
    "downstream.NAME[retrieval].evaluate.folds": (5, EVALUATED),
    "downstream.NAME.data": ("shapes", ["overlaps", *FINETUNED]),
    "downstream.NAME.start": ("none", FINETUNED),
    "downstream.NAME.model.layers": (2, FINETUNED),
    "downstream.NAME.model.hidden_size": (24, FINETUNED),
    "downstream.NAME.model.heads": (4, FINETUNED),
    "downstream.NAME.model.intermediate_size": (20, FINETUNED),
    "downstream.NAME.model.initializer_range": (0.1, FINETUNED),
    "downstream.NAME.teacher": ("vqa", TAUGHT),
    "downstream.NAME.teacher_weight": (0.9, TAUGHT),
    "downstream.NAME.teacher_temperature": (4.0, TAUGHT),
    "downstream.NAME.seed": (1, FINETUNED),
    "downstream.NAME.seeds": ([0, 1], [*SEEDED, "report"]),
    "downstream.NAME.accept_contract": (["detector"], []),
    "downstream.NAME.share": (0.5, FINETUNED),
    "downstream.NAME.answers": ("$FOLDER/words.txt", ["+download[vqa answers]", *FINETUNED]),
    "downstream.NAME.types": (["shape"], FINETUNED),
    "downstream.NAME.images": ("shuffled", FINETUNED),
    "downstream.NAME.text": ("none", FINETUNED),
    "downstream.NAME.select_by": ("accuracy/shape", FINETUNED),
    "downstream.NAME.select": ("best", FINETUNED),
    "downstream.NAME.max_text": (20, FINETUNED),
    "downstream.NAME.train_pooler": (False, FINETUNED),
    "downstream.NAME.validation_examples": (10, FINETUNED),
    "downstream.NAME[vqa].loss": ("bce", FINETUNED),
    "downstream.NAME[vqa].answer_at": ("pooled", FINETUNED),
    "downstream.NAME[vqa].minimum_count": (2, FINETUNED),
    "downstream.NAME[vqa].protocol": ("exact", FINETUNED),
    "downstream.NAME.evaluate.splits": (["val", "test"], ["+evaluate[vqa val]", "report"]),
    "downstream.NAME.evaluate.batch_size": (64, EVALUATED),
    "downstream.NAME.evaluate.resamples": (60, EVALUATED),
    "downstream.NAME.explain.examples": (7, EXPLAINED),
    "downstream.NAME.explain.methods": (["rollout"], EXPLAINED),
    "downstream.NAME.explain.seed": (1, EXPLAINED),
    "downstream.NAME.explain.resamples": (60, EXPLAINED),
    "machine.units_at_once": (4, []),
    "machine.steps_at_once": (3, []),
    "machine.loader_workers": (0, []),
    "machine.checkpoint_steps": (3, []),
    "machine.device": ("cpu", []),
    "machine.units_on": ("dask", []),
}

BY_HAND = {
    "data.easy_vqa.features": {
        "path": "$FOLDER/theirs.tsv",
        "detector": "unknown",
        "manual": {"steps": ["Look."], "files": {"theirs": {}}},
    }
}

SMALL = {"objective": "vqa", "data": "easy_vqa", "start": "none", "steps": 1, "learning_rate": 1e-3}
SIZES = {"layers": 1, "hidden_size": 16, "heads": 2}

# Where a field stands in the recipe, and what must stand beside it; by the beginnings of their names.
PLACES: dict[str, tuple[str, dict[str, Any]]] = {
    "data.NAME": ("data.shapes", {}),
    "data.NAME.spec": ("data.easy_vqa.spec", {}),
    "data.NAME.files": ("data.easy_vqa.files", {}),
    "data.NAME.folder": ("data.others.folder", {"data.others": {"folder": "$FOLDER"}, "detector.train.data": "others"}),
    "data.NAME.features": (
        "data.easy_vqa.features",
        {"data.easy_vqa.features": {"path": "$FOLDER/theirs.tsv", "detector": "unknown"}},
    ),
    "data.NAME.features.manual": ("data.easy_vqa.features.manual", BY_HAND),
    "data.NAME.features.manual.files.NAME": ("data.easy_vqa.features.manual.files.theirs", BY_HAND),
    "detector.weights": ("detector.weights", {"detector": {"spec": PUBLISHED}}),
    "model.init": ("model", {"model": {"hidden_dropout": 0}}),
    "downstream.NAME": ("downstream.vqa", {}),
    "downstream.NAME.tags": ("downstream.vqa.tags", {"downstream.vqa.max_text": 22}),
    "downstream.NAME.model": ("downstream.vqa.model", {"downstream.vqa.start": "none", "downstream.vqa.model": SIZES}),
    "downstream.NAME.teacher": ("downstream.small.teacher", {"downstream.small": SMALL}),
    **{
        f"downstream.NAME.{name}": (f"downstream.small.{name}", {"downstream.small": {**SMALL, "teacher": "vqa"}})
        for name in ("teacher_weight", "teacher_temperature")
    },
    "downstream.NAME.explain": ("downstream.vqa.explain", {"downstream.vqa.explain": {}}),
    "downstream.NAME.select_by": ("downstream.vqa.select_by", {"downstream.vqa.select": "best"}),
}


def leaves(model: type[BaseModel], path: str = "") -> Iterator[str]:
    """Every field of a settings model by its dotted name, those of its models taken apart.

    A name that the user chooses is NAME. Where several models may stand, the field itself counts too, and those of each
    by the rule that says it: `regions.boxes[fixed].count`. What has one value alone is none.
    """
    for name, info in members(model):
        at = f"{path}.{name}" if path else name
        inner = models(info.annotation)
        for value in keyed(info.annotation) if not inner else ():
            inner, at = models(value), f"{at}.NAME" if models(value) else at
        if not inner:
            if get_origin(info.annotation) is not Literal or len(get_args(info.annotation)) > 1:
                yield at
        elif all(issubclass(one, DownstreamSettings) for one in inner):
            yield from leaves(DownstreamSettings, at)
            for one in dict.fromkeys(inner):
                its = next(name for name, entry in OBJECTIVES.items() if entry.settings is one)
                inherited = {leaf.rpartition(".")[2] for leaf in leaves(DownstreamSettings)}
                yield from (leaf for leaf in leaves(one, f"{at}[{its}]") if leaf.rpartition(".")[2] not in inherited)
        elif len(inner) == 1:
            yield from leaves(inner[0], at)
        else:
            yield at
            for one in inner:
                yield from leaves(one, f"{at}[{get_args(one.model_fields['rule'].annotation)[0]}]")


def placed(leaf: str) -> tuple[str, dict[str, Any]]:
    """The dotted field of `tiny.yaml` that is meant, and what else must be changed there so that it may stand."""
    beside: dict[str, Any] = {}
    for told in re.findall(r"(.*)\[(.*)\]", leaf):
        beside |= {"downstream.vqa.objective": told[1]} if told[0] in PLACES else {told[0]: {"rule": told[1]}}
    field = re.sub(r"\[.*\]", "", leaf)
    at = max((start for start in PLACES if f"{field}.".startswith(f"{start}.")), key=len, default=None)
    if at is None:
        return field, beside
    return PLACES[at][0] + field.removeprefix(at), beside | PLACES[at][1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What recipes may name: features of others, a table of sizes, words, a photo."""
    at = tmp_path_factory.mktemp("given")
    interop_files.lxmert_tsv(at / "theirs.tsv", interop_files.images(2))
    interop_files.lxmert_tsv(at / "other.tsv", interop_files.images(3))
    (at / "sizes.csv").write_text("image_id,width,height\n")
    (at / "words.txt").write_text("one\ntwo\n")
    for name in ("photo.png", "photos/other.png"):
        (at / name).parent.mkdir(exist_ok=True)
        (at / name).write_bytes(name.encode())
    return at


def prints(changes: dict[str, Any], folder: Path | None = None) -> dict[str, str]:
    return fingerprints(json.dumps(changes).replace("$FOLDER", str(folder)))


@cache
def fingerprints(changes: str) -> dict[str, str]:
    return {a.title: a.fingerprint for a in walk(graph(resolve(TINY, json.loads(changes))))}


@pytest.fixture(scope="module")
def base() -> dict[str, str]:
    return prints({})


@pytest.mark.parametrize("leaf", CHANGES)
def test_a_field_changes_exactly_its_stages(leaf: str, folder: Path) -> None:
    value, expected = CHANGES[leaf]
    field, beside = placed(leaf)
    before, after = prints(beside, folder), prints(beside | {field: value}, folder)
    changed = [title for title in before if title in after and before[title] != after[title]]
    come, gone = after.keys() - before.keys(), before.keys() - after.keys()
    assert sorted([*changed, *(f"+{t}" for t in come), *(f"-{t}" for t in gone)]) == sorted(set(expected))


def test_every_field_of_the_recipe_is_covered() -> None:
    assert sorted(set(leaves(Recipe))) == sorted(CHANGES)


def test_the_version_of_pre_training_changes_its_stage_and_what_rests_on_it(
    base: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.graph.OBJECTIVE", OBJECTIVE.model_copy(update={"version": OBJECTIVE.version + 1}))
    raised = {a.title: a.fingerprint for a in walk(graph(resolve(TINY)))}
    assert [title for title in base if base[title] != raised[title]] == [t for t in base if t in PRETRAINED]


def test_what_somebody_gave_is_checked_before_what_takes_long(tmp_path: Path) -> None:
    (tmp_path / "my_bert").mkdir()
    (tmp_path / "my_bert" / "config.json").write_text("{}")
    recipe = resolve("demo", {"model": {"init": str(tmp_path / "my_bert")}})
    order = [line.artifact.title for line in plan([graph(recipe)], Store(tmp_path / "store"))]
    assert order[:2] == ["download[my_bert]", "bert[my_bert]"]
    assert order.index("bert[my_bert]") < order.index("images[shapes]") < order.index("regions[shapes]")


def test_a_label_changes_nothing(base: dict[str, str]) -> None:
    assert set(prints({"downstream.vqa.objective": "vqa"}).values()) == set(base.values())


def test_shipped_recipes_and_published_models_keep_their_fingerprints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upgrade rebuilds nothing unless it is meant to: then `VBERT_GOLDEN=record pytest` records the new ones. Files
    that a person fetches are empty here."""
    monkeypatch.setenv("VBERT_DATA", str(tmp_path))
    placed = by_hand(tmp_path)
    found = {
        name: {a.title: a.fingerprint for a in walk(graph(resolve(name, placed.get(name))))} for name in recipe_names()
    }
    models = [name for name in published_names() if getattr(published_spec(name).source, "manual", None) is None]
    found["models"] = {(a := published(name)).title: a.fingerprint for name in models}
    if os.environ.get("VBERT_GOLDEN") == "record":
        FINGERPRINTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    assert found == json.loads(FINGERPRINTS.read_text())
