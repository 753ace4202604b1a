"""`vbert schedule` and `vbert run --prefect` on a real server, with the small recipe."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect_api import Api
from processes import until

from flows.graph import graph
from flows.recipe import resolve
from vbert.artifacts.making.plan import walk
from vbert.artifacts.store import durable

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
VBERT = [sys.executable, "-m", "flows.cli"]
AGAIN = ("finetune", "evaluate", "report")


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> Path:
    """A copy of the finished store."""
    return Path(shutil.copytree(finished_store, tmp_path / "store", symlinks=True))


def test_a_schedule_runs_the_pipeline_twice_the_second_all_cached(
    prefect_server: dict[str, str], store: Path, tmp_path: Path
) -> None:
    for stage in AGAIN:
        durable.remove_tree(store / "artifacts" / stage)
    api = Api(prefect_server["PREFECT_API_URL"])
    steps = walk(graph(resolve(TINY)))
    with open(tmp_path / "log", "w") as log:
        served = subprocess.Popen(
            [*VBERT, "schedule", TINY, "--store", str(store), "--every", "5s"],
            env=os.environ | prefect_server,
            cwd=tmp_path,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),  # as `&` in a script does
        )
    try:
        deployment = until(lambda: api.deployment("pipeline", "tiny"), said=(tmp_path / "log").read_text)
        filters = {
            "deployment_id": {"any_": [deployment["id"]]},
            "state": {"name": {"any_": ["Completed", "Failed", "Crashed"]}},
        }

        def two() -> list[dict[str, Any]]:
            ended = api.flow_runs(flow_runs=filters)
            return ended if len(ended) >= 2 else []

        runs = until(two, 240, (tmp_path / "log").read_text)  # about 35 s on a quiet machine
    finally:
        served.terminate()
        assert served.wait(30) == 0
    second, first = runs[-2:]
    assert {run["state_name"] for run in runs} == {"Completed"}
    assert first["name"].startswith("tiny · ")
    for run, built in ((first, AGAIN), (second, ())):
        tasks = api.tasks(run["id"], len(steps)).values()
        found = {task["name"]: task["state_name"] for task in tasks}
        assert found == {
            f"{step.title} {step.fingerprint[:6]}": "Completed" if step.stage_name in built else "Cached"
            for step in steps
        }
    assert api.deployment("pipeline", "tiny")["paused"]
    kept = [json.loads(path.read_text()) for path in (store / "runs").glob("*.json")]
    assert {record["status"] for record in kept if record.get("flow_run") == first["id"]} == {"done"}
    assert (
        len(
            api.post(
                "automations/filter", automations={"name": {"any_": ["vbert: a run without heartbeats has crashed"]}}
            )
        )
        == 1
    )


def test_the_command_runs_on_the_server_and_finds_everything(prefect_server: dict[str, str], store: Path) -> None:
    done = subprocess.run(
        [*VBERT, "run", TINY, "--store", str(store), "--prefect", "--json"],
        env=os.environ | prefect_server,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert {stage["status"] for stage in summary["stages"]} == {"cached"}
    assert summary["metrics"]["vqa/easy_vqa/test/accuracy"] >= 0.0
    assert "Traceback" not in done.stderr


def test_without_a_server_the_command_brings_its_own(store: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [*VBERT, "run", TINY, "--store", str(store), "--prefect", "--json"],
        env=_no_server(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "starting a Prefect server" in done.stderr
    assert {stage["status"] for stage in json.loads(done.stdout.splitlines()[-1])["stages"]} == {"cached"}


def test_a_schedule_without_a_server_says_how_to_start_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [*VBERT, "schedule", TINY, "--store", str(tmp_path), "--every", "1d"],
        env=_no_server(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "`prefect server start`" in done.stderr
    assert "Traceback" not in done.stderr


def _no_server(tmp_path: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | {"PREFECT_HOME": str(tmp_path / "home")}
