"""The adapter on a real Prefect server: toy graphs, real child processes."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prefect_toy
import pytest
from artifacts import toy
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from prefect_api import Api

from flows.on_prefect import tasks, view
from flows.on_prefect.body import InProcess
from flows.on_prefect.in_process import in_this_process
from flows.on_prefect.schedule import schedule
from flows.pipeline import pipeline
from vbert.artifacts.making.engine import Engine, Events, build_here
from vbert.artifacts.making.plan import walk
from vbert.artifacts.steps.stage import Machine
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.verify import verify
from vbert.errors import BuildError, NotAccepted, UserError


@pytest.fixture
def api(prefect_server: dict[str, str]) -> Iterator[Api]:
    url, home = prefect_server["PREFECT_API_URL"], Path(prefect_server["PREFECT_HOME"])
    with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: home}):
        yield Api(url)


@pytest.fixture
def fate(tmp_path: Path) -> Path:
    """Where files say what becomes of a fragile unit; `log` there has a line a unit that was begun."""
    directory = tmp_path / "fate"
    directory.mkdir()
    (directory / "log").touch()
    return directory


def run(store: Path, kind: str = "toy", machine: Machine | None = None, **options: Any) -> tuple[str, Any, InProcess]:
    """(flow run id, its final state, what it built)."""
    target = prefect_toy.KINDS[kind](**options)
    with in_this_process([target], Store(store), Events()) as here:
        state = prefect_toy.toy_flow(str(store), kind, options, machine or Machine(), return_state=True)
    return str(state.state_details.flow_run_id), state, here


def bits(store: Path) -> dict[str, bytes]:
    files = (p for p in (store / "artifacts").rglob("*") if p.is_file() and p.name != "manifest.json")
    return {str(p.relative_to(store)): p.read_bytes() for p in files}


def test_the_first_run_builds_the_second_is_all_cached(api: Api, tmp_path: Path) -> None:
    flow_run, state, here = run(tmp_path / "store")
    target = toy.graph()
    assert state.result() == {"toy_total/total": 146}
    assert Counter(built.outcome for built in here.built) == {"built": 5}

    steps = {f"{artifact.title} {artifact.fingerprint[:6]}": artifact for artifact in walk(target)}
    tasks = api.tasks(flow_run, 5 + 6 + 7)
    assert steps.keys() <= tasks.keys()
    for name, artifact in steps.items():
        task = tasks[name]
        assert task["state_name"] == "Completed"
        assert task["state"]["message"].startswith("built in ")
        assert task["state"]["message"].endswith(f"{artifact.fingerprint} in {tmp_path / 'store'}")
        assert set(task["tags"]) == {artifact.stage_name, *([artifact.label] if artifact.label else [])}
        behind = {held["id"] for held in task["task_inputs"].get("wait_for", [])}
        assert behind == {tasks[f"{a.title} {a.fingerprint[:6]}"]["id"] for a in artifact.inputs()}
    units = [task for name, task in tasks.items() if name not in steps]
    squares = {task["id"] for name, task in tasks.items() if name.startswith("toy_squares[") and name in steps}
    assert "toy_squares[one] 0003" in tasks
    assert {task["task_inputs"]["__parents__"][0]["id"] for task in units} == squares
    assert {task["state_name"] for task in units} == {"Completed"}

    again, state, here = run(tmp_path / "store")
    assert state.result() == {"toy_total/total": 146}
    assert Counter(built.outcome for built in here.built) == {"cached": 5}
    tasks = api.tasks(again, 5)
    assert tasks.keys() == steps.keys()
    assert {task["state_name"] for task in tasks.values()} == {"Cached"}

    build_here([target], tmp_path / "other")
    assert bits(tmp_path / "store") == bits(tmp_path / "other")


def test_what_the_page_of_a_run_shows(api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "EVERY", 0.0)
    flow_run, _, _ = run(tmp_path / "store")
    artifacts = api.artifacts(flow_run)
    assert artifacts["toy-total-plan"]["description"] == "5 of 5 steps to build"
    rows = {row["step"]: row for row in json.loads(artifacts["toy-total-plan"]["data"])}
    assert rows["toy_squares[one]"]["found"] == "missing"
    assert all(row["size"].endswith("B") and row["took"].endswith(" s") for row in rows.values())
    assert '"metric": "toy_total/total"' in artifacts["toy-total-metrics"]["data"]
    progress = artifacts["toy-squares-one-progress"]
    assert progress["data"] == 100.0
    assert progress["description"].startswith("toy_squares[one]: done in ")
    squares = next(t for name, t in api.tasks(flow_run, 18).items() if t["id"] == progress["task_run_id"])
    assert squares["name"].startswith("toy_squares[one] ")
    fingerprint = toy.graph().fingerprint[:8]
    assert f"toy_total {fingerprint}: building" in api.logs(flow_run, "toy_total")


def test_what_will_not_be_accepted_ends_the_run_before_more_is_made(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as an input tells; and at once where it is known already."""

    def objection(self: toy.Squares) -> str | None:
        assert self.store is not None
        (numbers,) = self.inputs()
        return None if self.store.find("toy_numbers", numbers.fingerprint) is None else f"{self.title}: too many"

    monkeypatch.setattr(toy.Squares, "objection", objection)
    for built in (["toy_numbers[one]"], []):
        _, state, here = run(tmp_path / "store")
        with pytest.raises(NotAccepted, match=r"^toy_squares\[one\]: too many$"):
            state.result()
        assert [one.artifact.title for one in here.built] == built


def test_what_was_made_of_the_same_content_is_adopted(api: Api, tmp_path: Path) -> None:
    run(tmp_path / "store")
    flow_run, _, here = run(tmp_path / "store", order="down")
    assert Counter(built.outcome for built in here.built) == {"built": 2, "adopted": 3}
    tasks = api.tasks(flow_run, 5)
    total = next(task for name, task in tasks.items() if name.startswith("toy_total"))
    assert total["state_name"] == "Cached"
    assert "has the content of" in total["state"]["message"]


def is_unit(name: str) -> bool:
    """A unit's task run is named by its key, a step's by six hex digits, which may begin with 0 too."""
    return re.fullmatch(r"toy_fragile\[one\] 0\d{3}(…\d{4})?", name) is not None


def test_a_failed_unit_fails_its_step_and_only_missing_units_are_made_again(
    api: Api, tmp_path: Path, fate: Path
) -> None:
    (fate / "fail-3").touch()
    flow_run, state, _ = run(tmp_path / "store", "fragile", fate=str(fate))
    assert state.is_failed()
    with pytest.raises(BuildError, match=r"toy_fragile\[one\]: 1 of 6 units failed.*3 is not to be squared"):
        state.result()
    begun = Counter((fate / "log").read_text().split())
    assert begun["3"] == 2  # retried once, as the stage says
    finished = len(begun) - 1
    tasks = api.tasks(flow_run, 2 + finished + 1)
    by_state = Counter(task["state_name"] for name, task in tasks.items() if is_unit(name))
    assert by_state == {"Completed": finished, "Failed": 1}  # none of them RolledBack
    assert tasks["toy_fragile[one] 0003"]["run_count"] == 2

    (fate / "fail-3").unlink()
    again, state, here = run(tmp_path / "store", "fragile", fate=str(fate))
    assert state.is_completed()
    assert [built.outcome for built in here.built] == ["cached", "built"]
    assert len(api.tasks(again, 2 + 6 - finished)) == 2 + 6 - finished
    assert Counter((fate / "log").read_text().split()) == Counter(map(str, range(6))) + Counter(["3", "3"])


def test_a_dead_child_is_replaced_and_the_unit_tried_again(api: Api, tmp_path: Path, fate: Path) -> None:
    (fate / "die-2").touch()
    flow_run, state, _ = run(tmp_path / "store", "fragile", fate=str(fate))
    assert state.is_completed()
    unit = api.tasks(flow_run, 2 + 6)["toy_fragile[one] 0002"]
    assert (unit["run_count"], unit["state_name"]) == (2, "Completed")


def test_a_full_disk_is_told_with_what_is_missing(api: Api, tmp_path: Path, fate: Path) -> None:
    (fate / "full-5").touch()
    _, state, _ = run(tmp_path / "store", "fragile", Machine(units_at_once=1), fate=str(fate))
    said = (
        r"toy_fragile\[one\]: no room left for .*/square \(.*\); 5 of 6 units are done, the others need about 0\.0 MB;"
    )
    with pytest.raises(BuildError, match=said):
        state.result()


def test_many_units_share_a_task_run(api: Api, tmp_path: Path, fate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "MOST_UNITS", 3)
    flow_run, state, _ = run(tmp_path / "store", "fragile", fate=str(fate), count=7)
    assert state.is_completed()
    units = {name for name in api.tasks(flow_run, 2 + 3) if is_unit(name)}
    assert units == {"toy_fragile[one] 0000…0002", "toy_fragile[one] 0003…0005", "toy_fragile[one] 0006"}


def test_damage_found_while_reading_is_mended_within_the_task(api: Api, tmp_path: Path) -> None:
    store = tmp_path / "store"
    run(store)
    before = bits(store)
    target = toy.graph()
    shutil.rmtree(store / "artifacts" / "toy_total" / target.fingerprint)
    damaged = target.input("squares").bound(Store(store)).path / "0002.json"
    damaged.chmod(0o644)
    damaged.write_bytes(b"5")  # the size stays, so only reading shows it
    flow_run, state, here = run(store)
    assert state.is_completed()
    outcomes = {built.artifact.title: built.outcome for built in here.built}
    assert outcomes["toy_total"] == "built"
    assert bits(store) == before
    assert any("0002.json is damaged" in line for line in api.logs(flow_run, "damaged"))


def test_what_was_damaged_and_cannot_be_made_again_ends_no_run_that_stands_without_it(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, target = Store(tmp_path / "store"), toy.graph()
    build_here([target], store)
    numbers = toy.numbers(6).named("one")
    file = numbers.bound(store).path / "numbers.json"
    file.chmod(0o644)
    file.write_bytes(b"x")
    assert [damage.fingerprint for damage in verify(store)] == [numbers.fingerprint]

    def gone(*_: Any) -> Any:
        raise BuildError("it can't be downloaded: HTTP 404")

    monkeypatch.setattr(Engine, "make", gone)
    flow_run, state, here = run(store.root)
    assert state.is_completed()
    assert Counter(built.outcome for built in here.built) == {"cached": 4}
    lost = api.tasks(flow_run, 5)[f"toy_numbers[one] {numbers.fingerprint[:6]}"]
    assert (lost["state_name"], lost["run_count"]) == ("Completed", 1)
    assert any("can't be made again (it can't be downloaded: HTTP 404)" in line for line in api.logs(flow_run, "again"))


def test_steps_run_side_by_side_within_the_limit(api: Api, tmp_path: Path) -> None:
    machine = Machine(steps_at_once=2, units_at_once=2)
    flow_run, state, _ = run(tmp_path / "store", machine=machine, seconds=0.1)
    assert state.is_completed()
    spans = [
        (task["start_time"], task["end_time"])
        for task in api.tasks(flow_run, 18).values()
        if "toy_squares" in task["tags"]  # their units have none
    ]
    (begin_a, end_a), (begin_b, end_b) = spans
    assert begin_a < end_b
    assert begin_b < end_a


def test_wrong_parameters_are_refused_by_the_server_with_the_field(api: Api, tmp_path: Path) -> None:
    import httpx

    from flows.pipeline import pipeline

    deployment = pipeline.to_deployment("refuses").apply()
    path = f"deployments/{deployment}/create_flow_run"
    recipe = {"data": {"shapes": {"spec": "shapes"}}, "detector": {"spec": "shapes_cnn"}}
    for parameters, said in (
        ({"machine": {"units_at_once": 0}}, "'machine.units_at_once'. Failure reason: 0 is less than the minimum of 1"),
        ({"recipe": recipe | {"seed": -1}}, "'recipe.seed'. Failure reason: -1 is less than the minimum of 0"),
        ({"recipe": recipe | {"sead": 1}}, "'sead' was unexpected"),
        ({"store": 3}, "'store'. Failure reason: 3 is not of type 'string'"),
    ):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            api.post(path, parameters=parameters)
        assert refused.value.response.status_code == 409
        assert said in refused.value.response.json()["detail"]


def test_a_server_that_does_not_answer_is_said_at_once(tmp_path: Path) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        with pytest.raises(UserError, match=r"no Prefect server answers at http://127\.0\.0\.1:9/api"):
            run(tmp_path / "store")
        with pytest.raises(UserError, match="no Prefect server answers"):
            schedule(pipeline, "demo", {}, str(tmp_path), Machine(), None, "1d")


def test_flows_have_the_store_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`$VBERT_STORE` was not heeded: a deployment built all again, into ./store."""
    from flows.evaluate import evaluate
    from flows.on_prefect import body
    from flows.pipeline import pipeline
    from flows.preprocess import preprocess
    from flows.train import train

    seen: list[str] = []

    def noted(_: Any, store: Store, *__: Any) -> dict[str, float]:
        seen.append(store.location)
        return {}

    monkeypatch.setattr(body, "build_targets", noted)
    monkeypatch.setenv("VBERT_STORE", str(tmp_path / "mine"))
    for flow in (pipeline, preprocess, train, evaluate):
        flow.fn("demo")
    pipeline.fn("demo", store=str(tmp_path / "other"))
    monkeypatch.delenv("VBERT_STORE")
    monkeypatch.chdir(tmp_path)
    pipeline.fn("demo")
    assert seen == [str(tmp_path / name) for name in (*["mine"] * 4, "other", "store")]


@pytest.mark.parametrize("every", ["5", "s", "0s", "1y", "-1d"])
def test_an_interval_is_a_number_and_a_unit(every: str) -> None:
    with pytest.raises(UserError, match="--every"):
        schedule(pipeline, "demo", {}, "store", Machine(), None, every)
