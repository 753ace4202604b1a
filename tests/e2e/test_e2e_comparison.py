"""`does_pretraining_help` in small: pre-trainings, shares and seeds in one run, up to the table of gains."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.recipe import Recipe, as_yaml, resolve

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
LEFT_OUT = ("bert_both",)  # its BERT is fetched


def small(starts: set[str], seeds: list[int]) -> Recipe:
    """The shipped recipe over the data and detector of the tiny one, its entries with `starts`, for a few steps."""
    whole = resolve("does_pretraining_help").model_dump(mode="json", by_alias=True)
    tiny = resolve(TINY).model_dump(mode="json", by_alias=True)
    few = {"steps": 4, "batch_size": 8, "validation_examples": 20, "validate_every": 0}
    entries: dict[str, Any] = {
        name: entry
        | few
        | {"seeds": seeds, "share": 4 * entry["share"], "evaluate": entry["evaluate"] | {"resamples": 50}}
        for name, entry in whole["downstream"].items()
        if entry["start"] in starts
    }
    pretrain = {name: entry | few for name, entry in whole["pretrain"].items() if name in starts}
    shared = {
        name: tiny[name] for name in ("seed", "limit", "data", "detector", "regions", "vocabulary", "model", "machine")
    }
    return Recipe.model_validate({**shared, "name": "small", "pretrain": pretrain, "downstream": entries})


def run(recipe: Recipe, store: Path, folder: Path) -> dict[str, float]:
    (folder / "small.yaml").write_text(as_yaml(recipe))
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "run",
        str(folder / "small.yaml"),
        "--store",
        str(store),
        "--local",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])["metrics"]
    return found


def page(store: Path) -> str:
    newest = max((store / "artifacts" / "report").glob("*/*/report.html"), key=lambda path: path.stat().st_mtime)
    text = newest.read_text().replace("<wbr>", "")
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text))


def check(metrics: dict[str, float], told: str, names: list[str], seeds: list[int]) -> None:
    for name in names:
        whole = f"{name}/easy_vqa/test/accuracy"
        each = [metrics[f"{name}@{seed}/easy_vqa/test/accuracy"] for seed in seeds]
        assert metrics[whole] == pytest.approx(sum(each) / len(seeds))
        start, _, share = name.rpartition("_")
        if start == "none":
            assert f"{whole}_gain" not in metrics
            continue
        assert metrics[f"{whole}_gain"] == pytest.approx(
            metrics[whole] - metrics[f"none_{share}/easy_vqa/test/accuracy"]
        )
        assert metrics[f"{whole}_gain_low"] <= metrics[f"{whole}_gain"] <= metrics[f"{whole}_gain_high"]
    assert "What each start gives · vqa on easy_vqa test" in told
    assert "unpaired (unpaired texts) unpaired_5 20" in told


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_start_and_share_of_the_recipe(finished_store: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(finished_store, store)
    starts = {"none", *resolve("does_pretraining_help").pretrainings()} - set(LEFT_OUT)
    metrics = run(small(starts, [0, 1]), store, tmp_path)
    check(metrics, page(store), [f"{start}_{share}" for start in starts for share in (2, 5)], [0, 1])
