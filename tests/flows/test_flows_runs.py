"""The records of runs: contents, listing, and the comparison of two."""

from __future__ import annotations

from pathlib import Path

import pytest
from artifacts import toy

from flows.runs import difference, difference_lines, record_run, row_lines, rows, run_id
from vbert.artifacts.making.engine import build_here
from vbert.artifacts.steps.stage import Stopped
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.gc import asked, keep
from vbert.errors import BuildError, UserError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_record_says_what_was_asked_for_and_how_it_ended(store: Store) -> None:
    target = toy.squares(toy.numbers(2).named("two"), toy.Slow()).named("two")
    with record_run(store, "1", "toy", [target], source="toy.yaml", changes={"seed": 1}, until=["toy_squares"]):
        assert store.run("1")["status"] == "running"
        keep(store, "1")
        build_here([target], store)
    for name, error, status in (
        ("2", Stopped, "stopped"),
        ("3", KeyboardInterrupt, "stopped"),
        ("4", OSError, "failed"),
    ):
        with pytest.raises(error), record_run(store, name, "toy", [target], changes={"seed": int(name)}):
            raise error
        assert store.run(name)["status"] == status
    first = store.run("1")
    assert first["steps"] == {mark.fingerprint: mark.title for mark in (target.inputs()[0], target)}
    assert (first["status"], first["kept"], first["metrics"]) == ("done", True, {"toy_squares[two]/squares": 2})
    assert len({asked(record) for record in store.runs().values()}) == 4
    row, *others = rows(store, "toy")
    assert [other["kept"] for other in others] == [False] * 3
    one, metrics = row_lines(row | {"seconds": 5.2})
    assert one == f"1  toy  seed=1  until toy_squares  {row['started']}  done in 5 s  kept"
    assert metrics.split() == ["toy_squares[two]/squares", "2"]
    with record_run(store, "1", "toy", [target]):  # under the same name
        pass
    assert store.run("1")["kept"], "what `vbert keep` said of it stays"
    with pytest.raises(UserError, match=r"no run of a recipe 'toi' in .*; did you mean 'toy'\?"):
        rows(store, "toi")
    assert store.run("5") == {}


def test_what_ends_a_run_is_told_also_where_its_record_cannot_be_written(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the server of a bucket is away: it ended as failed, with the server's fault."""

    def away(*_: object) -> None:
        raise BuildError("s3://bucket: `put runs/1.json` failed for 300 s")

    def run(error: type[BaseException] | None) -> None:
        with monkeypatch.context() as patch, record_run(store, "1", "toy", [toy.numbers(2)]):
            patch.setattr(Store, "record_run", away)
            if error is not None:
                raise error

    for error in (KeyboardInterrupt, Stopped, ValueError):
        with pytest.raises(error):
            run(error)
    with pytest.raises(BuildError, match="failed for 300 s"):
        run(None)


def test_two_runs_are_compared_by_settings_artifacts_and_metrics(store: Store) -> None:
    a = {
        "resolved": {"seed": 0, "pretrain": {"steps": 6, "data": ["a"]}},
        "steps": {"f" * 64: "regions", "1" * 64: "finetune[vqa]", "3" * 64: "only"},
        "metrics": {"vqa/accuracy": 0.99, "vqa/examples": 9673},
    }
    b = {
        "resolved": {"seed": 0, "pretrain": {"steps": 9, "data": ["a"]}, "limit": 3},
        "steps": {"f" * 64: "regions", "2" * 64: "finetune[vqa]"},
        "metrics": {"vqa/accuracy": 0.9925, "vqa/examples": 9673},
    }
    store.record_run("a", a)
    store.record_run("b", b)
    found = difference(store, "a", "b")
    assert found["settings"] == {"pretrain.steps": [6, 9], "limit": [None, 3]}
    assert difference_lines(found) == [
        "settings:",
        "  pretrain.steps  6 → 9",
        "  limit  (none) → 3",
        "artifacts:",
        "  finetune[vqa]  11111111 → 22222222",
        "  only  33333333 → (none)",
        "metrics:",
        "  vqa/accuracy  0.9900 → 0.9925  (+0.0025)",
    ]
    assert difference_lines(difference(store, "a", "a")) == [
        "settings: the same", "artifacts: the same", "metrics: the same",
    ]  # fmt: skip
    store.record_run("old", {"steps": ["f" * 64]})  # as records were once
    assert difference(store, "old", "a")["artifacts"]["ffffffff"] == [["f" * 64], None]
    with pytest.raises(UserError, match="no run 'c' in "):
        difference(store, "a", "c")


def test_a_run_of_any_name_has_a_file(store: Store) -> None:
    for name in ("a/b", "../up", "ü [x] y", "/"):
        run = run_id(name)
        assert "/" not in run
        store.record_run(run, {"recipe": name})
    assert sorted(record["recipe"] for record in store.runs().values()) == sorted(["a/b", "../up", "ü [x] y", "/"])


def test_two_runs_of_one_second_have_names_of_their_own() -> None:
    """Also in two containers, whose processes may have one number."""
    assert len({run_id("demo") for _ in range(20)}) == 20
