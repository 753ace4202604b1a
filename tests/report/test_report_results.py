"""Runs, their roles and colours; pictures of any size; series of curves; how figures read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from report.report_world import World

from flows.graph import graph
from flows.recipe import resolve
from vbert.data.images import Images, write_images
from vbert.data.raw import RawFiles, RawWriter
from vbert.objectives.trained import Model
from vbert.report.comparison import comparisons
from vbert.report.page import EvaluatedEntry
from vbert.report.plots import VALIDATED, Point, line_chart, losses, shares
from vbert.report.predictions import gallery
from vbert.report.render import cut, duration, figure, percent, size
from vbert.report.results import FLOOR, MAIN, SCRATCH, UNPAIRED, groups, runs
from vbert.report.thumbnails import ThumbnailAlbum

TINY = Path(__file__).parents[1] / "tiny.yaml"


def with_head(held: EvaluatedEntry, folder: Path, **changes: Any) -> EvaluatedEntry:
    """The entry with another head.json."""
    shutil.copytree(held.model.path, folder)
    path = folder / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return replace(held, model=Model.at(folder))


def started(held: EvaluatedEntry, start: str) -> EvaluatedEntry:
    """The entry as if the recipe's `start` had trained it."""
    made = graph(resolve(str(TINY), {"downstream.vqa.start": start}))
    assert made.step is not None
    (entry,) = made.step.arguments["downstream"].values()
    model = Model.at(held.model.path)
    model.step = entry.model.step
    return replace(held, model=model)


def test_controls_are_known_by_how_they_were_made_not_by_their_names(world: World, tmp_path: Path) -> None:
    held = world.downstream["vqa/toy/test"]
    downstream = {
        "a/toy/test": with_head(held, tmp_path / "floor", images="shuffled"),
        "b/toy/test": started(held, "none"),
        "c/toy/test": started(held, "pretrained"),
        "c/toy/val": started(held, "pretrained"),
        "d/other/test": held,
    }
    found = groups(runs(downstream, pretrained=True))
    assert [group.title for group in found] == ["vqa on other test", "vqa on toy test", "vqa on toy val"]
    assert [(run.name, run.role) for run in found[1].runs] == [("c", MAIN), ("b", SCRATCH), ("a", FLOOR)]
    tones = found[1].tones
    assert len(set(tones.values())) == 3
    assert tones["c/toy/test"] == found[0].tones["d/other/test"]  # a main run always looks the same
    assert runs(dict(reversed(downstream.items())), True) == runs(downstream, True)


def test_without_any_pre_training_no_run_is_a_control_for_lacking_it(world: World) -> None:
    (run,) = runs({"b/toy/test": started(world.downstream["vqa/toy/test"], "none")}, pretrained=False)
    assert run.role == MAIN
    assert run.note == "8 steps"


def of_seed(
    world: World, folder: Path, entry: str, seed: int, changes: dict[str, Any], right: set[int]
) -> EvaluatedEntry:
    """The entry as the recipe would have trained it with `seed`; the answers to the examples `right` are right."""
    from vbert.metrics.evaluation import Evaluation, write_evaluation
    from vbert.metrics.metric import ExampleScores

    made = graph(resolve(str(TINY), {"downstream.vqa.seed": seed, **changes}))
    assert made.step is not None
    *_, step = made.step.arguments["downstream"].values()
    held = next(iter(world.downstream.values()))
    model = Model.at(held.model.path)
    model.step = step.model.step
    rows = held.examples.table().to_pylist()
    folder = folder / f"{entry}@{seed}"
    folder.mkdir(parents=True)
    predictions = [
        {"example_id": row["example_id"], "answer": row["answers"][0]["answer"] if i in right else "?", "score": 0.5}
        for i, row in enumerate(rows)
    ]
    metrics = {"accuracy": ExampleScores([float(i in right) for i in range(len(rows))])}
    write_evaluation(folder, predictions=predictions, metrics=metrics, images=[row["image_ids"][0] for row in rows],
                     resamples=20, counts={"examples": len(rows)}, files={})  # fmt: skip
    return replace(held, model=model, evaluation=Evaluation.at(folder))


def test_entries_are_compared_over_their_seeds_with_the_one_not_pre_trained(world: World, tmp_path: Path) -> None:
    none, less = {"downstream.vqa.start": "none"}, {"downstream.vqa.share": 0.5}
    unpaired = {"pretrain.images": "shuffled"}
    arms: dict[str, tuple[dict[str, Any], list[set[int]]]] = {
        "a": ({}, [{0, 1, 2, 3}, {0, 1, 2}]),
        "b": (none, [{0, 1}, {0, 1, 2}]),
        "c": (unpaired, [{0, 1}, {4}]),
        "d": (less, [{0}, {0}]),  # nothing without pre-training sees as little
    }
    downstream = {
        f"{entry}@{seed}/toy/test": of_seed(world, tmp_path, entry, seed, changes, right[seed])
        for entry, (changes, right) in arms.items()
        for seed in (0, 1)
    }
    (group,) = groups(runs(downstream, pretrained=True))
    assert [run.name for run in group.runs] == ["a@0", "d@0", "c@0", "b@0"]  # a chart has an entry once
    assert [run.role for run in group.runs] == [MAIN, MAIN, UNPAIRED, SCRATCH]
    (found,) = comparisons([group])
    told = {arm.first.entry: arm for arm in found.arms}
    assert {name: round(6 * arm.mean, 6) for name, arm in told.items()} == {"a": 3.5, "b": 2.5, "c": 1.5, "d": 1}
    assert {name for name, arm in told.items() if arm.gain} == {"a", "c"}
    gain = told["a"].gain
    assert gain is not None
    assert told["a"].baseline == "b"
    assert gain.by_seed == (pytest.approx(2 / 6), pytest.approx(0))
    assert gain.value == pytest.approx(1 / 6)
    assert gain.low <= gain.value <= gain.high
    figures = found.figures()
    assert figures["a/toy/test/accuracy"] == pytest.approx(3.5 / 6)
    assert figures["a/toy/test/accuracy_gain"] == pytest.approx(1 / 6)
    assert figures["c/toy/test/accuracy_gain"] == pytest.approx(-1 / 6)
    assert "b/toy/test/accuracy_gain" not in figures
    assert comparisons(groups(runs({"a/toy/test": downstream["a@0/toy/test"]}, True))) == []


def test_a_taught_entry_is_compared_with_the_same_without_its_teacher(world: World, tmp_path: Path) -> None:
    """And an entry is compared with those of its own size alone."""
    none = {"downstream.vqa.start": "none"}
    taught = {"objective": "vqa", "data": "easy_vqa", "start": "none", "teacher": "vqa", "steps": 8, "learning_rate": 1}
    downstream = {
        "alone/toy/test": of_seed(world, tmp_path, "alone", 0, none, {0, 1}),
        "taught/toy/test": of_seed(world, tmp_path, "taught", 0, {"downstream.small": taught}, {0, 1, 2}),
        "larger/toy/test": of_seed(world, tmp_path, "larger", 0, {}, {0, 1, 2, 3}),
    }
    larger = Model.at(Path(shutil.copytree(downstream["larger/toy/test"].model.path, tmp_path / "sizes")))
    sizes = json.loads((larger.path / "config.json").read_text())
    (larger.path / "config.json").write_text(json.dumps(sizes | {"hidden_size": 2 * sizes["hidden_size"]}))
    larger.step = downstream["larger/toy/test"].model.step
    downstream["larger/toy/test"] = replace(downstream["larger/toy/test"], model=larger)
    (group,) = groups(runs(downstream, pretrained=True))
    assert {run.name: run.note for run in group.runs}["taught"] == "without pre-training, taught by vqa, 8 steps"
    (found,) = comparisons([group])
    told = {arm.first.entry: arm for arm in found.arms}
    assert {name: arm.baseline for name, arm in told.items()} == {"alone": "", "taught": "alone", "larger": ""}
    assert told["taught"].gain is not None
    assert told["taught"].gain.value == pytest.approx(1 / 6)


def test_shelves_hold_many_kinds_before_more_of_one(world: World) -> None:
    (run,) = runs(world.downstream, pretrained=False)
    shelves = {shelf.title: shelf.shown for shelf in gallery(run, ThumbnailAlbum(320), 2).shelves}
    assert {one.kind for one in shelves["Wrong"]} == {"kind 0", "kind 1"}
    assert all(not one.right for one in shelves["Wrong"])
    assert [one.confidence for one in shelves["Least certain"]] == [0.5, 0.53], "both are below the threshold"
    assert "Right" not in shelves


def photo(folder: Path, width: int, height: int, save: Callable[[Any, BytesIO], None]) -> Images:
    import hashlib

    import numpy as np
    from PIL import Image

    for part in ("raw", "images"):
        (folder / part).mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    out = BytesIO()
    save(Image.fromarray(pixels), out)
    with RawWriter(folder / "raw") as raw:
        raw.add("a", out.getvalue())
    digest = hashlib.sha256(out.getvalue()).hexdigest()
    write_images(
        folder / "images",
        [{"image_id": "a", "path": "own/a", "sha256": digest, "width": width, "height": height}],
    )
    return Images.at(folder / "images").over({"own": RawFiles.at(folder / "raw")})


def test_photos_become_small_and_boxes_stay_in_their_own_pixels(tmp_path: Path) -> None:
    images = photo(tmp_path, 640, 480, lambda image, out: image.save(out, "PNG"))
    found = ThumbnailAlbum(side=320).picture(images, "a")
    assert (found.width, found.height) == (640, 480)
    assert found.uri is not None
    assert found.uri.startswith("data:image/jpeg;base64,")
    assert len(found.uri) < 120_000
    assert not found.small


def test_a_broken_image_is_a_reason(tmp_path: Path) -> None:
    images = photo(tmp_path, 8, 8, lambda image, out: out.write(b"GIF89a nothing more") and None)
    found = ThumbnailAlbum(side=320).picture(images, "a")
    assert found.uri is None
    assert "damaged" in found.reason or "not an image" in found.reason
    assert ThumbnailAlbum(side=320).picture(images, "b").reason == "no such image"


def test_a_damaged_file_of_the_store_is_the_store_s_to_mend(world: World) -> None:
    from vbert.errors import Damaged

    class Torn(Images):
        def open(self, image_id: str) -> Any:
            raise Damaged("download", "f" * 64, "files.tar", "its size is another")

    with pytest.raises(Damaged):
        ThumbnailAlbum(320).picture(Torn.at(world.images.path), "0")


def test_held_out_losses_join_their_training_losses_and_accuracies_stand_apart() -> None:
    rows = [
        {"step": 1, "learning_rate": 1e-3, "loss": 3.0, "mlm": 2.0},
        {"step": 2, "learning_rate": 1e-3, "loss": float("nan"), "mlm": 1.0, "validation/mlm": 1.5,
         "validation/mlm_accuracy": 0.6, "map50": 0.5},
    ]  # fmt: skip
    assert [(p.name, p.kind, p.value) for p in losses(rows)] == [
        ("loss", "training", 3.0),
        ("mlm", "training", 2.0),
        ("mlm", "training", 1.0),
        ("mlm", VALIDATED, 1.5),
    ]
    assert [(p.name, p.value) for p in shares(rows)] == [("mlm_accuracy", 0.6), ("map50", 0.5)]


def test_charts_are_logarithmic_only_for_positive_losses_of_several_magnitudes() -> None:
    def kind(*values: float) -> str:
        chart = line_chart("x", [Point("loss", i, v) for i, v in enumerate(values)], share=False)
        assert chart is not None
        return str(chart.spec["layer"][0]["encoding"]["y"]["scale"].get("type", "linear"))

    assert kind(5.0, 0.01) == "log"
    assert kind(5.0, 1.0) == "linear"
    assert kind(5.0, 0.0) == "linear"
    assert line_chart("x", [], share=True) is None


@pytest.mark.parametrize(
    ("shown", "wanted"),
    [
        (percent(0.9997), "99.97\u00a0%"),
        (percent(1.25), "1.250"),
        (percent(float("nan")), "–"),
        (figure(9673), "9,673"),
        (figure(0.9512, "map50"), "95.1\u00a0%"),
        (figure(0.4927, "loss"), "0.4927"),
        (figure(3_200_000, "bytes"), "3.2 MB"),
        (figure("f" * 64), "f" * 12 + "…"),
        (duration(0.44), "0.4 s"),
        (duration(59.7), "1 min 0 s"),
        (duration(7500), "2 h 5 min"),
        (size(999), "999 B"),
        (cut("abcdef", 4), "abc…"),
    ],
)
def test_figures_read(shown: str, wanted: str) -> None:
    assert shown == wanted
