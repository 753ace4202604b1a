"""Reuse on the whole chain: a second run builds nothing, and a change rebuilds only its stages."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2e.finished import contents

from vbert.data.readers import shapes

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
Run = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def run(vbert: Any) -> Run:
    """`vbert run` on the tiny recipe: its JSON line and what it said. Its children are those of the tests before."""

    def call(*arguments: str | Path) -> tuple[dict[str, Any], str]:
        code, out, said = vbert("run", TINY, *arguments, "--local", "--json")
        assert code == 0, said
        return json.loads(out.splitlines()[-1]), said

    return call


def built(summary: dict[str, Any]) -> list[str]:
    return [stage["stage"] for stage in summary["stages"] if stage["status"] == "built"]


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_store, tmp_path / "store"))


def test_a_second_run_builds_nothing(store: Path, run: Run) -> None:
    summary, said = run("--store", store)
    assert built(summary) == []
    assert len(summary["stages"]) == 15
    assert "vqa/easy_vqa/test/accuracy" in summary["metrics"]
    assert "nothing to build" in said


def test_a_learning_rate_rebuilds_what_comes_after_it(store: Path, run: Run) -> None:
    summary, _ = run("--store", store, "--set", "downstream.vqa.learning_rate=1e-4")
    assert built(summary) == ["finetune", "evaluate", "report"]


def test_a_reader_whose_tables_come_out_the_same_rebuilds_only_its_stage(
    store: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "VERSION", 99)
    summary, said = run("--store", store)
    assert built(summary) == ["images", "examples"]
    assert said.count("same content as before") == 9
    again, _ = run("--store", store)
    assert built(again) == []


@pytest.mark.parametrize(
    "machine",
    [
        {"loader_workers": 2, "units_at_once": 2, "checkpoint_steps": 3},
        pytest.param({"loader_workers": 0, "units_at_once": 1, "checkpoint_steps": 1000}, marks=pytest.mark.slow),
    ],
)
def test_machine_settings_do_not_change_bits(
    machine: dict[str, int], finished_store: Path, tmp_path: Path, run: Run
) -> None:
    settings = [word for name, value in machine.items() for word in ("--machine", f"{name}={value}")]
    run("--store", tmp_path / "other", "--until", "finetune", *settings)
    expected = contents(finished_store)
    del expected["evaluate[vqa]"]
    assert contents(tmp_path / "other") == expected


@pytest.mark.parametrize(
    ("stage", "file", "changes"),
    [
        ("pretrain", "model.safetensors", "downstream.vqa.steps=9"),
        pytest.param("regions", "000000.tar", "pretrain.steps=9", marks=pytest.mark.slow),
        pytest.param("detector", "weights.safetensors", "regions.images_per_shard=40", marks=pytest.mark.slow),
    ],
)
def test_a_flipped_byte_is_named_and_rebuilt(
    stage: str, file: str, changes: str, store: Path, finished_store: Path, run: Run
) -> None:
    (path,) = sorted((store / "artifacts" / stage).glob(f"*/*/{file}"))[:1]
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    summary, said = run("--store", store, "--set", changes)
    assert f"{stage}/{path.parents[1].name[:8]}/{file} is damaged" in said
    assert list((store / "damaged").glob(f"{stage}-*"))
    clean, _ = run("--store", shutil.copytree(finished_store, store.parent / "clean"), "--set", changes)
    assert summary["metrics"] == clean["metrics"]
    assert contents(store) == contents(store.parent / "clean")


def test_a_truncated_file_is_seen_by_the_plan(store: Path, finished_store: Path, run: Run) -> None:
    (path, *_) = (store / "artifacts" / "finetune").glob("*/*/model.safetensors")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-100])
    (store / "artifacts" / "report").rename(store / "gone")
    summary, said = run("--store", store)
    assert "model.safetensors is damaged" in said
    assert built(summary) == ["finetune", "report"]
    assert contents(store) == contents(finished_store)
