"""Units on Dask, on a real Prefect server: clusters of our own and a scheduler's, killed workers, cancelled runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from flow_processes import ENVIRONMENT, Flows, begun, children_of, committed, free, gone, until
from fragile_stages import fragile_graph
from prefect_api import Api

from vbert.artifacts.graph import build_here

pytest.importorskip("distributed", reason="Dask is not installed: pip install -e '.[dask]'")

DASK = {"units_on": "dask", "units_at_once": 2}


@pytest.fixture
def fate(tmp_path: Path) -> Path:
    directory = tmp_path / "fate"
    directory.mkdir()
    (directory / "log").touch()
    return directory


@pytest.fixture
def api(prefect_server: dict[str, str]) -> Api:
    return Api(prefect_server["PREFECT_API_URL"])


@pytest.fixture
def start(prefect_server: dict[str, str], tmp_path: Path) -> Iterator[Flows]:
    flows = Flows(tmp_path / "store", prefect_server)
    yield flows
    flows.close()


@dataclass
class Cluster:
    """`dask scheduler` and two `dask worker`, as a user starts them."""

    address: str
    scheduler: subprocess.Popen[bytes]
    workers: list[subprocess.Popen[bytes]]

    @property
    def machine(self) -> dict[str, Any]:
        return {"units_on": self.address}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    note = tmp_path / "scheduler.json"
    environment = os.environ | ENVIRONMENT | {"DASK_TEMPORARY_DIRECTORY": str(tmp_path)}

    def dask(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "dask", *arguments, "--scheduler-file", str(note), "--no-dashboard"]
        with open(tmp_path / "dask.log", "a") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    started = [dask("scheduler", "--host", "127.0.0.1", "--port", "0")]
    try:
        until(note.exists)
        started += [dask("worker", "--nthreads", "1", "--host", "127.0.0.1") for _ in range(2)]
        found = Cluster(json.loads(note.read_text())["address"], started[0], started[1:])
        until(lambda: (tmp_path / "dask.log").read_text().count("Registered to:") >= 2)
        yield found
    finally:
        for process in started:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in started:
            process.wait(30)


def run_of(api: Api) -> dict[str, Any]:
    return api.flow_runs(flow_runs={"name": {"any_": ["fragile"]}})[0]


def as_built_here(store: Path, fate: Path, count: int, other: Path) -> bool:
    """Whether the store holds the bits that a build without Prefect and Dask makes."""
    (fate / "slow").unlink(missing_ok=True)
    target = fragile_graph(str(fate), count=count)
    build_here([target], other)
    made, local = (s / "artifacts" / "toy_fragile" / target.fingerprint for s in (store, other))
    names = [path.name for path in made.glob("0*.json")]
    assert len(names) == count
    return all((made / name).read_bytes() == (local / name).read_bytes() for name in names)


def at_work(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """Dask workers below it whose children make units."""
    return list({child.parent().pid: child.parent() for child in children_of(process.pid)}.values())  # type: ignore[misc,union-attr]


def test_two_workers_make_the_units_and_only_the_missing_ones(
    start: Flows, api: Api, tmp_path: Path, fate: Path
) -> None:
    (fate / "fail-3").touch()
    first = start("fragile", machine=DASK, fate=str(fate))
    assert first.wait(120) == 1
    assert "1 of 6 units failed" in first.communicate()[1]
    finished = len(set(begun(fate))) - 1
    tasks = api.tasks(run_of(api)["id"], 2 + finished + 1)
    step = next(task for task in tasks.values() if "toy_fragile" in task["tags"])
    units = {name: task for name, task in tasks.items() if task["name"].startswith("toy_fragile[one] 0")}
    units.pop(step["name"], None)
    assert {task["task_inputs"]["__parents__"][0]["id"] for task in units.values()} == {step["id"]}
    assert Counter(task["state_name"] for task in units.values()) == {"Completed": finished, "Failed": 1}
    assert tasks["toy_fragile[one] 0003"]["run_count"] == 2  # retried once, as the stage says

    (fate / "fail-3").unlink()
    again = start("fragile", machine=DASK, fate=str(fate))
    assert again.wait(120) == 0, again.communicate()[1]
    assert len(api.tasks(run_of(api)["id"], 2 + 6 - finished)) == 2 + 6 - finished
    assert Counter(begun(fate)) == Counter(map(str, range(6))) + Counter(["3", "3"])
    makers = set((fate / "makers").read_text().split())
    assert len(makers) > 1
    assert not makers & {str(first.pid), str(again.pid)}
    assert as_built_here(tmp_path / "store", fate, 6, tmp_path / "other")


def test_a_killed_worker_loses_its_unit_alone(start: Flows, api: Api, tmp_path: Path, fate: Path) -> None:
    (fate / "slow").touch()
    store, target = tmp_path / "store", fragile_graph(str(fate), count=80)
    process = start("fragile", machine=DASK, fate=str(fate), count=80)
    until(lambda: committed(store, target.fingerprint) >= 2)
    workers = at_work(process)
    assert len(workers) == 2
    children = workers[0].children()
    workers[0].kill()
    until(lambda: gone(children), 5)
    until(lambda: len(set((fate / "makers").read_text().split())) == 3)  # its nanny has replaced it
    (fate / "slow").unlink()
    assert process.wait(120) == 0, process.communicate()[1]
    tasks = api.tasks(run_of(api)["id"], 2 + 80)
    assert {(task["state_name"], task["run_count"]) for task in tasks.values()} == {("Completed", 1)}
    again = [times for times in Counter(begun(fate)).values() if times > 1]
    assert again in ([], [2])  # none: it was between two units
    assert as_built_here(store, fate, 80, tmp_path / "other")


@pytest.mark.parametrize("where", ["ours", "theirs"])
def test_a_cancelled_run_leaves_nothing_at_work(
    start: Flows, api: Api, tmp_path: Path, fate: Path, where: str, request: pytest.FixtureRequest
) -> None:
    (fate / "slow").touch()
    store, target = tmp_path / "store", fragile_graph(str(fate), count=60)
    theirs: Cluster | None = request.getfixturevalue("cluster") if where == "theirs" else None
    machine = theirs.machine if theirs else DASK
    served = start("fragile", "serve", machine=machine, fate=str(fate), count=60)
    deployment: dict[str, Any] = {}
    until(lambda: bool(deployment.update(api.deployment("toy", tmp_path.name)) or deployment))
    run = api.post(f"deployments/{deployment['id']}/create_flow_run")
    until(lambda: committed(store, target.fingerprint) >= 2)
    hosts = [worker.pid for worker in theirs.workers] if theirs else [served.pid]
    makers = [child for pid in hosts for child in children_of(pid)]
    flow = [p for p in psutil.Process(served.pid).children(recursive=True) if p not in makers]
    assert makers
    assert not free(store, target.fingerprint)
    api.post(f"flow_runs/{run['id']}/set_state", state={"type": "CANCELLING"})
    until(lambda: free(store, target.fingerprint), 60)
    makers += [child for pid in hosts for child in children_of(pid)]
    assert gone(makers)  # the lock is let go after the units have ended
    until(lambda: api.flow_run(run["id"])["state_type"] == "CANCELLED", 40)
    until(lambda: gone(flow), 10)
    kept = committed(store, target.fingerprint)
    assert 2 <= kept < 60
    served.terminate()
    served.wait(30)
    if theirs:
        assert all(worker.poll() is None for worker in theirs.workers)  # not ours to end

    (fate / "slow").unlink()
    again = start("fragile", machine=machine, fate=str(fate), count=60)
    assert again.wait(120) == 0, again.communicate()[1]
    assert len(api.tasks(run_of(api)["id"], 2 + 60 - kept)) == 2 + 60 - kept
    if theirs:
        assert not [child for pid in hosts for child in children_of(pid)]  # a finished run leaves no idle ones
    assert as_built_here(store, fate, 60, tmp_path / "other")


def test_a_lost_scheduler_is_told_and_the_next_run_goes_on(
    start: Flows, cluster: Cluster, tmp_path: Path, fate: Path
) -> None:
    (fate / "slow").touch()
    store, target = tmp_path / "store", fragile_graph(str(fate), count=8)
    process = start("fragile", machine=cluster.machine, fate=str(fate), count=8)
    until(lambda: committed(store, target.fingerprint) >= 2)
    cluster.scheduler.kill()
    assert process.wait(120) == 1
    assert "the Dask scheduler at tcp://" in process.communicate()[1]
    until(lambda: free(store, target.fingerprint))
    again = start("fragile", machine={}, fate=str(fate), count=8)
    assert again.wait(60) == 0, again.communicate()[1]
    assert max(Counter(begun(fate)).values()) <= 2
    assert as_built_here(store, fate, 8, tmp_path / "other")
