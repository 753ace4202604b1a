"""How a report is made again, what the commonest answer alone gives, and curves of one point."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from flows.again import again
from flows.graph import graph
from flows.recipe import parse_changes, resolve
from vbert.data.examples import Examples, write_examples
from vbert.report.overview import facts, majority
from vbert.report.plots import Point, line_chart
from vbert.report.results import runs

from report_world import make_world  # isort: skip


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
    assert again(resolve("demo")) == "vbert run demo"
    changed = resolve("demo", {"limit": 40, "downstream.vqa.learning_rate": 5e-4, "regions.boxes": {"rule": "given"}})
    assert again(changed).startswith("vbert run demo --set ")
    assert made_of(again(changed), tmp_path) == graph(changed).fingerprint
    own = resolve(str(Path(__file__).parents[1] / "tiny.yaml"), {"pretrain.steps": 9})
    assert again(own).startswith("cat > tiny.yaml <<'END'\n")
    assert "steps: 9" in again(own)
    assert made_of(again(own), tmp_path) == graph(own).fingerprint


def test_the_commonest_training_answer_is_the_baseline(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    (held,) = world.downstream.values()
    rows: list[dict[str, Any]] = held.examples.table().to_pylist()
    training = [{**row, "example_id": f"t{i}", "split": "train"} for i, row in enumerate(rows)]
    for row in training[:5]:
        row["answers"] = [{"answer": "red", "score": 1.0}]
    (tmp_path / "more").mkdir()
    write_examples(tmp_path / "more", [*rows, *training])
    (run,) = runs({"vqa/toy/test": held.__class__(**{**vars(held), "examples": Examples.at(tmp_path / "more")})}, False)
    found = majority(run)
    assert found is not None
    assert found.answer == "red"
    wanted = [row["answers"][0]["answer"] == "red" for row in rows]
    assert found.values["accuracy"] == sum(wanted) / len(wanted)
    told = dict(facts([run], type("Chain", (), {"nodes": []})()))
    assert told["data: toy"] == "train 6, test 6 examples"
    (untrained,) = runs(world.downstream, False)
    assert majority(untrained) is None


def test_a_series_of_one_point_is_drawn() -> None:
    lone = line_chart("Held-out", [Point("map50", 6, 0.9, "held-out")], share=True)
    line = line_chart("Loss", [Point("loss", 1, 3.0), Point("loss", 2, 2.0)], share=False)
    assert lone is not None
    assert line is not None
    assert '"type": "point"' in json.dumps(lone.spec["layer"])
    assert '"type": "point"' not in json.dumps(line.spec["layer"])
