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
from e2e.finished import TINY, contents, without
from flow_processes import ENVIRONMENT, Flows, begun, committed, free
from fragile_stages import fragile_graph
from prefect_api import Api
from processes import children_of, gone, until

from flows.on_prefect import dask_units
from vbert.artifacts.making.engine import build_here

pytest.importorskip("distributed", reason="Dask is not installed: pip install -e '.[dask]'")

DASK = {"units_on": "dask", "units_at_once": 2}
COMMAND = [sys.executable, "-m", "flows.cli", "run", TINY]
INSTALL = (
    "vbert: machine.units_on is dask, but Dask is not installed: `pip install -e '.[dask]'` in the checkout brings it "
    "(with `-c constraints.txt`, the versions tested); or set units_on to threads"
)


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

    def makers(self) -> list[psutil.Process]:
        return [child for worker in self.workers for child in children_of(worker.pid)]


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
        for process in reversed(started):  # a worker without its scheduler looks for it for a while
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(30)


def as_built_here(store: Path, fate: Path, count: int, other: Path, resumed: bool = False) -> bool:
    """Whether the store holds the bits that a build without Prefect and Dask makes; `resumed`: once it went on so."""
    (fate / "slow").unlink(missing_ok=True)
    target = fragile_graph(str(fate), count=count)
    for root in [store, other] if resumed else [other]:
        build_here([target], root)
    made, local = (next((s / "artifacts" / "toy_fragile" / target.fingerprint).glob("*/")) for s in (store, other))
    names = [path.name for path in made.glob("0*.json")]
    assert len(names) == count
    return all((made / name).read_bytes() == (local / name).read_bytes() for name in names)


def at_work(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """Dask workers below it whose children make units."""
    return list({child.parent().pid: child.parent() for child in children_of(process.pid)}.values())  # type: ignore[misc,union-attr]


def test_two_workers_make_the_units(start: Flows, api: Api, tmp_path: Path, fate: Path) -> None:
    (fate / "die-2").touch()
    process = start("fragile", machine=DASK, fate=str(fate))
    assert process.wait(200) == 0, process.communicate()[1]
    tasks = api.tasks(api.run_into(tmp_path / "store")["id"], 2 + 6)
    step = next(task for task in tasks.values() if "toy_fragile" in task["tags"])
    units = [tasks[f"toy_fragile[one] {n:04d}"] for n in range(6)]
    assert {task["task_inputs"]["__parents__"][0]["id"] for task in units} == {step["id"]}
    assert [task["state_name"] for task in units] == ["Completed"] * 6
    assert [task["run_count"] for task in units] == [1, 1, 2, 1, 1, 1]  # a worker's child died, the worker did not
    makers = set((fate / "makers").read_text().split())
    assert len(makers) == 2
    assert str(process.pid) not in makers
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
    tasks = api.tasks(api.run_into(tmp_path / "store")["id"], 2 + 80)
    assert {(task["state_name"], task["run_count"]) for task in tasks.values()} == {("Completed", 1)}
    again = [times for times in Counter(begun(fate)).values() if times > 1]
    assert again in ([], [2])  # none: it was between two units
    assert as_built_here(store, fate, 80, tmp_path / "other")


@pytest.mark.slow
def test_a_unit_that_kills_its_workers_is_tried_again_as_the_stage_says(start: Flows, api: Api, fate: Path) -> None:
    (fate / "kill-3").touch()
    start.environment |= {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}  # Dask itself would try three times
    process = start("fragile", machine=DASK, fate=str(fate))
    assert process.wait(200) == 0, process.communicate()[1]
    assert api.tasks(api.run_into(start.store)["id"], 2 + 6)["toy_fragile[one] 0003"]["run_count"] == 2


def test_a_killed_run_takes_its_workers_with_it(start: Flows, tmp_path: Path, fate: Path) -> None:
    (fate / "slow").touch()
    store, target = tmp_path / "store", fragile_graph(str(fate), count=20)
    process = start("fragile", machine=DASK, fate=str(fate), count=20)
    until(lambda: committed(store, target.fingerprint) >= 2)
    below = psutil.Process(process.pid).children(recursive=True)
    assert len(below) >= 4  # two workers and a child of each
    process.kill()
    process.wait(20)
    until(lambda: gone(below), 30)
    assert free(store, target.fingerprint)
    kept = committed(store, target.fingerprint)
    assert as_built_here(store, fate, 20, tmp_path / "other", resumed=True)
    assert len(begun(fate)) <= kept + 2 + (20 - kept) + 20  # here the missing ones alone, elsewhere all


@pytest.mark.parametrize("where", ["theirs", pytest.param("ours", marks=pytest.mark.slow)])
def test_a_cancelled_run_leaves_nothing_at_work(
    start: Flows, api: Api, tmp_path: Path, fate: Path, where: str, request: pytest.FixtureRequest
) -> None:
    (fate / "slow").touch()
    store, target = tmp_path / "store", fragile_graph(str(fate), count=40)
    theirs: Cluster | None = request.getfixturevalue("cluster") if where == "theirs" else None
    machine = theirs.machine if theirs else DASK
    served = start("fragile", "serve", machine=machine, fate=str(fate), count=40)
    deployment: dict[str, Any] = {}
    until(lambda: bool(deployment.update(api.deployment("toy", tmp_path.name)) or deployment))
    run = api.post(f"deployments/{deployment['id']}/create_flow_run")
    until(lambda: committed(store, target.fingerprint) >= 2)
    makers = theirs.makers() if theirs else children_of(served.pid)
    below = psutil.Process(served.pid).children(recursive=True)
    flow = [p for p in below if "resource_tracker" not in str(p.cmdline())]
    assert makers
    assert not free(store, target.fingerprint)
    api.post(f"flow_runs/{run['id']}/set_state", state={"type": "CANCELLING"})
    until(lambda: free(store, target.fingerprint))
    makers += theirs.makers() if theirs else children_of(served.pid)
    assert gone(makers)  # the lock is let go after the units have ended
    until(lambda: api.flow_run(run["id"])["state_type"] == "CANCELLED", 40)
    until(lambda: gone(flow), 10)
    kept = committed(store, target.fingerprint)
    assert 2 <= kept < 40
    served.terminate()
    served.wait(30)
    if theirs:
        assert all(worker.poll() is None for worker in theirs.workers)  # not ours to end

    (fate / "slow").unlink()
    again = start("fragile", machine=machine, fate=str(fate), count=40)
    assert again.wait(120) == 0, again.communicate()[1]
    assert len(api.tasks(api.run_into(tmp_path / "store")["id"], 2 + 40 - kept)) == 2 + 40 - kept
    assert as_built_here(store, fate, 40, tmp_path / "other")


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--local", "--prefect"])
def test_regions_on_a_schedulers_workers_one_of_them_killed(
    how: str, cluster: Cluster, prefect_server: dict[str, str], finished_store: Path, tmp_path: Path
) -> None:
    """The command and a real detector; `--local` too goes through Dask itself."""
    store = tmp_path / "store"
    without(finished_store, "regions", store)
    target = ["run", TINY, "--store", str(store), "--until", "regions"]
    running = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *target, how, "--machine", f"units_on={cluster.address}"],
        env=os.environ | prefect_server,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(lambda: bool(cluster.makers()) or running.poll() is not None)
    parent = cluster.makers()[0].parent()
    assert parent is not None
    parent.kill()
    assert running.wait(200) == 0, running.communicate()[1]
    regions = {title: content for title, content in contents(finished_store).items() if title.startswith("regions")}
    assert len(regions) == 2
    assert {title: content for title, content in contents(store).items() if title in regions} == regions
    assert not cluster.makers()  # a finished run leaves no idle child behind, and the workers alone
    assert all(worker.poll() is None for worker in cluster.workers)


def test_a_scheduler_that_does_not_answer_is_said(tmp_path: Path, vbert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dask_units, "SECONDS", 0.5)
    at = "tcp://127.0.0.1:9"
    code, _, said = vbert(*COMMAND[3:], "--local", "--machine", f"units_on={at}", "--store", tmp_path / "store")
    assert (code, at in said) == (2, True), said
    assert not (tmp_path / "store" / "artifacts").is_dir() or not list((tmp_path / "store" / "artifacts").iterdir())


@pytest.mark.parametrize("how", ["--local", "--prefect"])
def test_without_dask_one_sentence_says_how_to_install_it(how: str, tmp_path: Path) -> None:
    code = "import sys; sys.modules['distributed'] = None; from flows.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *COMMAND[3:], how, "--machine", "units_on=dask"],
        env=os.environ | {"VBERT_STORE": str(tmp_path / "store")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [INSTALL]
    assert not (tmp_path / "store").exists()
