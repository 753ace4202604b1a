"""The commands that make a report again, majority baselines, and curves of one point."""

from __future__ import annotations

import json
import shlex
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from report.report_world import make_world

from flows.graph import graph
from flows.recipe import parse_changes, resolve
from flows.reproduce import commands_to_reproduce
from vbert.data.examples import Examples, write_examples
from vbert.report.baselines import MajorityBaseline, answer_baselines, detector_baselines, random_order
from vbert.report.overview import facts
from vbert.report.plots import Point, line_chart
from vbert.report.results import runs


def made_of(lines: str, folder: Path) -> str:
    """The report's fingerprint that the lines lead to: what a shell would do with them."""
    text, _, command = lines.rpartition("\n")
    words = shlex.split(command)
    assert words[:2] == ["vbert", "run"]
    name = words[2]
    if text:
        (folder / name).write_text(text.partition("\n")[2].removesuffix("END"))
        name = str(folder / name)
    changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    return graph(resolve(name, parse_changes(changes, "--set"))).fingerprint


def test_the_block_leads_to_the_same_report(tmp_path: Path) -> None:
    assert commands_to_reproduce(resolve("demo")) == "vbert run demo"
    changed = resolve("demo", {"limit": 40, "downstream.vqa.learning_rate": 5e-4, "regions.boxes": {"rule": "given"}})
    assert commands_to_reproduce(changed).startswith("vbert run demo --set ")
    assert made_of(commands_to_reproduce(changed), tmp_path) == graph(changed).fingerprint
    own = resolve(str(Path(__file__).parents[1] / "tiny.yaml"), {"pretrain.steps": 9})
    assert commands_to_reproduce(own).startswith("cat > tiny.yaml <<'END'\n")
    assert "steps: 9" in commands_to_reproduce(own)
    assert made_of(commands_to_reproduce(own), tmp_path) == graph(own).fingerprint


def test_the_commonest_training_answer_to_a_kind_of_question_is_its_baseline(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    (held,) = world.downstream.values()
    rows: list[dict[str, Any]] = held.examples.table().to_pylist()
    training = [{**row, "example_id": f"t{i}", "split": "train"} for i, row in enumerate(rows * 2)]
    given = ("red", "no", "red", "no", "red", "no", "no", "no", "yes", "no", "no", "yes")
    for row, answer in zip(training, given, strict=True):
        row["answers"] = [{"answer": answer, "score": 1.0}, {"answer": "yes", "score": 0.3}]
    (tmp_path / "more").mkdir()
    write_examples(tmp_path / "more", [*rows, *training])
    more = held.__class__(**{**vars(held), "examples": Examples.at(tmp_path / "more")})
    (run,) = runs({"vqa/toy/test": more}, False)
    assert answer_baselines(run, ["test", "val"]) == {
        "test": {
            "accuracy": MajorityBaseline("no", pytest.approx(2 / 6)),
            "accuracy/kind 0": MajorityBaseline("red", pytest.approx(1 / 3)),
            "accuracy/kind 1": MajorityBaseline("no", pytest.approx(1 / 3)),
        }
    }
    told = dict(facts([run], type("Lineage", (), {"nodes": []})()))
    assert told["data: toy"] == "train 12, test 6 examples"
    (untrained,) = runs(world.downstream, False)
    assert answer_baselines(untrained, ["test"]) == {}


def test_the_commonest_training_attribute_stands_beside_those_of_the_split_a_detector_is_evaluated_on(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path)
    found = detector_baselines(world.detector, world.images)
    assert (found.split, found.attributes) == ("val", {"val": MajorityBaseline("red", pytest.approx(1 / 3))})
    assert detector_baselines(world.detector, None).split == "test, or val"


def test_a_series_of_one_point_is_drawn() -> None:
    lone = line_chart("Held-out", [Point("map50", 6, 0.9, "held-out")], share=True)
    line = line_chart("Loss", [Point("loss", 1, 3.0), Point("loss", 2, 2.0)], share=False)
    assert lone is not None
    assert line is not None
    assert '"type": "point"' in json.dumps(lone.spec["layer"])
    assert '"type": "point"' not in json.dumps(line.spec["layer"])


def test_chance_of_retrieval_is_that_of_every_order() -> None:
    """Three images with 1, 2 and 2 texts: recalls over all orders."""
    owners = ["a", "b", "b", "c", "c"]
    found = random_order([{"image_ids": [name]} for name in owners])
    orders = list(permutations(owners))
    by_image = [sum(order[0] == name for order in orders) / len(orders) for name in "abc"]
    assert found["image_to_text_r1"].share == pytest.approx(sum(by_image) / 3)
    assert found["text_to_image_r1"].share == pytest.approx(1 / 3)
    assert found["text_to_image_r5"].share == found["image_to_text_r5"].share == 1
    assert random_order([]) == {}
