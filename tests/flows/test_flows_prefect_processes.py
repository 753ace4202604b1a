"""Flows in processes of their own, ended in every way: SIGTERM, kill -9, cancelled from the server."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from artifacts import toy
from flow_processes import Flows, begun, committed, free
from fragile_stages import busy, fragile_graph
from prefect_api import Api
from processes import children_of, gone, until

from vbert.artifacts.making.engine import build_here
from vbert.artifacts.store.store import Store


@pytest.fixture
def fate(tmp_path: Path) -> Path:
    directory = tmp_path / "fate"
    directory.mkdir()
    (directory / "log").touch()
    (directory / "slow").touch()
    return directory


@pytest.fixture
def start(prefect_server: dict[str, str], tmp_path: Path) -> Iterator[Flows]:
    flows = Flows(tmp_path / "store", prefect_server)
    yield flows
    flows.close()


@pytest.mark.parametrize("how", [pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL])
def test_ended_among_its_units_it_goes_on_with_the_missing_ones(
    start: Flows,
    prefect_server: dict[str, str],
    tmp_path: Path,
    fate: Path,
    how: signal.Signals,
) -> None:
    store, target = tmp_path / "store", fragile_graph(str(fate), count=8)
    first = start("fragile", fate=str(fate), count=8)
    until(lambda: committed(store, target.fingerprint) >= 2)
    children = children_of(first.pid)
    assert children
    first.send_signal(how)
    assert first.wait(20) != 0
    until(lambda: gone(children), 5)
    assert free(store, target.fingerprint)
    kept = committed(store, target.fingerprint)
    assert 2 <= kept < 8
    if how == signal.SIGTERM:
        run = Api(prefect_server["PREFECT_API_URL"]).run_into(store)
        assert run["state_type"] == "CRASHED"
        assert "termination signal" in run["state"]["message"]

    (fate / "slow").unlink()
    again = start("fragile", fate=str(fate), count=8)
    assert again.wait(60) == 0, again.communicate()[1]
    tasks = Api(prefect_server["PREFECT_API_URL"])
    run = tasks.run_into(store)
    assert len(tasks.tasks(run["id"], 2 + 8 - kept)) == 2 + 8 - kept
    counts = Counter(begun(fate))
    assert set(counts.values()) <= {1, 2}
    assert sum(counts.values()) <= 8 + 2  # at most the two that were at work are begun again
    assert Store(store).find("toy_fragile", target.fingerprint) is not None
    build_here([target], tmp_path / "other")
    for path in (tmp_path / "other" / "artifacts" / "toy_fragile" / target.fingerprint).glob("*/0*.json"):
        same = store / path.relative_to(tmp_path / "other")
        assert same.read_bytes() == path.read_bytes()


def test_training_leaves_off_at_a_checkpoint_on_sigterm(
    start: Flows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    first = start("toy", seconds=0.2)
    until(lambda: log.exists() and "add 2" in log.read_text())
    first.terminate()
    assert first.wait(20) != 0
    done = log.read_text().count("add ")
    assert done < 13
    again = start("toy", seconds=0.2)
    assert again.wait(60) == 0, again.communicate()[1]
    assert json.loads(again.communicate()[0]) == {"toy_total/total": 146}
    added = [line for line in log.read_text().splitlines() if line.startswith("add ")]
    assert added[:done] + added[-(13 - done) :] == [f"add {i}" for i in range(13)]


def test_a_step_that_works_in_our_own_process_is_interrupted(start: Flows, tmp_path: Path, fate: Path) -> None:
    process = start("busy", fate=str(fate))
    until((fate / "busy").exists)
    process.terminate()
    assert process.wait(20) != 0
    assert free(tmp_path / "store", busy(str(fate)).fingerprint)


def test_a_run_that_waits_for_another_builder_can_be_ended(start: Flows, tmp_path: Path, fate: Path) -> None:
    store = Store(tmp_path / "store")
    store.prepare()
    target = toy.graph().input("squares").input("numbers")
    with store.lock(target.fingerprint):
        process = start("toy")
        assert process.stderr is not None
        assert any("waiting for process" in line for line in process.stderr)  # Prefect's own lines may come before
        process.terminate()
        assert process.wait(20) != 0
    assert store.find("toy_numbers", target.fingerprint) is None


@pytest.mark.parametrize("how", ["Ctrl-C", "server"])
def test_a_run_of_the_command_that_is_cancelled_ends_so_at_a_checkpoint(
    start: Flows, prefect_server: dict[str, str], tmp_path: Path, fate: Path, how: str
) -> None:
    api, store, target = Api(prefect_server["PREFECT_API_URL"]), tmp_path / "store", fragile_graph(str(fate), count=60)
    process = start("fragile", fate=str(fate), count=60)
    until(lambda: committed(store, target.fingerprint) >= 1)
    children, run = children_of(process.pid), api.run_into(store)
    assert children
    if how == "Ctrl-C":
        process.send_signal(signal.SIGINT)
    else:
        api.post(f"flow_runs/{run['id']}/set_state", state={"type": "CANCELLING"})
    assert process.wait(20) != 0
    assert gone(children)
    assert free(store, target.fingerprint)
    assert 1 <= committed(store, target.fingerprint) < 60
    assert api.flow_run(run["id"])["state_type"] == "CANCELLED"
    tasks = api.post("task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}}, limit=200)
    assert {task["state_type"] for task in tasks} <= {"COMPLETED", "CANCELLED", "PENDING"}, tasks


def test_a_run_cancelled_from_the_server_stops_its_children(
    start: Flows, prefect_server: dict[str, str], tmp_path: Path, fate: Path
) -> None:
    api, store, target = Api(prefect_server["PREFECT_API_URL"]), tmp_path / "store", fragile_graph(str(fate), count=60)
    served = start("fragile", "serve", fate=str(fate), count=60)
    deployment: dict[str, Any] = {}
    until(lambda: bool(deployment.update(api.deployment("toy", tmp_path.name)) or deployment))
    run = api.post(f"deployments/{deployment['id']}/create_flow_run")
    until(lambda: committed(store, target.fingerprint) >= 1)
    children = children_of(served.pid)
    assert children
    api.post(f"flow_runs/{run['id']}/set_state", state={"type": "CANCELLING"})
    until(lambda: api.flow_run(run["id"])["state_type"] == "CANCELLED", 40)
    until(lambda: gone(children), 10)
    assert free(store, target.fingerprint)
    assert committed(store, target.fingerprint) < 60
    served.terminate()
