"""A recipe whose region features are imported: the whole chain without a detector."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from refused import refused
from regions import interop_files as files

from flows.graph import graph
from flows.recipe import Recipe, resolve
from vbert.artifacts.making.engine import build_here
from vbert.artifacts.making.plan import walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.data.yaml import load_yaml
from vbert.errors import UserError

COUNT = 60

RECIPE = """
limit: {count}
data:
  shapes: {{spec: shapes, images: {count}, features: {{path: {path}, detector: unknown, layer: fc6}}}}
vocabulary: {{size: 300}}
model: {{layers: 1, hidden_size: 32, heads: 2}}
pretrain: {{data: [shapes], steps: 4, batch_size: 8, learning_rate: 1.0e-3, validation_examples: 20}}
downstream:
  vqa: {{data: shapes, steps: 4, batch_size: 8, learning_rate: 7.0e-4, evaluate: {{resamples: 50}}}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = tmp_path / "shapes.tsv"
    given = [replace(one, name=f"{number:06d}") for number, one in enumerate(files.images(COUNT, dim=24))]
    files.lxmert_tsv(path, given)
    written = tmp_path / "imported.yaml"
    written.write_text(RECIPE.format(count=COUNT, path=path))
    return resolve(str(written))


def stages(target: Artifact) -> set[str]:
    return {artifact.title.partition("[")[0] for artifact in walk(target)}


def test_the_type_of_the_numbers_can_be_stated(recipe: Recipe) -> None:
    def imported(given: Recipe) -> Artifact:
        return next(a for a in walk(graph(given)) if a.stage_name == "import_features")

    plain, stated = imported(recipe), imported(resolve(recipe, {"data.shapes.features.dtype": "float16"}))
    assert plain.input("settings").dtype is None
    assert stated.input("settings").dtype == "float16"
    assert plain.fingerprint != stated.fingerprint


def test_the_chain_runs_on_imported_features(recipe: Recipe, tmp_path: Path) -> None:
    target = graph(recipe)
    assert {"import_features", "pretrain", "finetune", "evaluate", "report"} <= stages(target)
    assert not {"detector", "weights", "regions"} & stages(target)
    (made,) = build_here([target], tmp_path / "store", recipe.machine)
    assert 0 <= made.figures["vqa/shapes/test/accuracy"] <= 1
    page = made.file("report.html").read_text()
    assert "The region features were imported: no detector ran here." in page
    assert "import_features" in page


def test_a_changed_statement_imports_again_and_a_moved_file_does_not(recipe: Recipe, tmp_path: Path) -> None:
    def prints(changes: dict[str, Any]) -> dict[str, str]:
        return {a.title: a.fingerprint for a in walk(graph(resolve(str(tmp_path / "imported.yaml"), changes)))}

    base = prints({})
    changed = prints({"data.shapes.features.layer": "fc7"})
    behind = {"import_features[shapes]", "pretrain", "finetune[vqa]", "evaluate[vqa]", "report"}
    assert {title for title in base if base[title] != changed[title]} == behind
    elsewhere = tmp_path / "elsewhere" / "shapes.tsv"
    elsewhere.parent.mkdir()
    (tmp_path / "shapes.tsv").rename(elsewhere)
    moved = prints({"data.shapes.features.path": str(elsewhere)})
    assert set(moved.values()) == set(base.values())


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("has no `features`, and there is no `detector`", {"data.other": {"spec": "shapes"}}),
        (r"missing.tsv: no such file or folder", {"data.shapes.features.path": "missing.tsv"}),
        (r"no detector 'botom_up", {"data.shapes.features.detector": "botom_up_attention_36"}),
        (r"features.laier: .*layer", {"data.shapes.features.laier": "fc6"}),
    ],
)
def test_what_can_not_be_is_said(said: str, changes: dict[str, Any], recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        graph(resolve(str(tmp_path / "imported.yaml"), changes))


def test_a_detector_that_is_not_trained_here_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").touch()
    fields = (
        '{"data": {"photos": {"folder": "."}}, '
        '"detector": {"spec": "detectron2_faster_rcnn_R_50_FPN_3x", "train": {"data": "photos"}}}'
    )
    with refused("'detectron2'", "detector.train", error=UserError):
        graph(load_yaml(fields, "a recipe", Recipe, {}))
