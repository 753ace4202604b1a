"""Upkeep: what gc sweeps and never sweeps, killed where it may be; keep, why and lineage."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from artifacts import toy

from vbert.artifacts.making.graph import build_here, walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import steps_as_json
from vbert.artifacts.store import durable
from vbert.artifacts.store.owner import Owner
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep import upkeep
from vbert.artifacts.upkeep.upkeep import gc, keep, lineage, verify, why
from vbert.errors import UserError

SLOW = toy.Slow()
DAY = 86_400.0


def run(store: Store, run_id: str, target: Artifact, **record: Any) -> None:
    steps = [artifact.fingerprint for artifact in walk(target)]
    known = {"recipe": "toy", "targets": [target.fingerprint], "steps": steps, "started": time.time(), "status": "done"}
    store.note_run(run_id, known | record)


def there(store: Store) -> set[str]:
    return {path.name for path in (store.root / "artifacts").glob("*/*")}


def built(store: Store, *targets: Artifact) -> None:
    """Built longer ago than the grace."""
    for target in targets:
        build_here([target], store)
    aged(store.root / "artifacts", 8 * DAY)


def marks(*targets: Artifact) -> set[str]:
    return {artifact.fingerprint for target in targets for artifact in walk(target)}


def aged(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    for at in [path, *path.rglob("*")]:
        os.utime(at, (then, then), follow_symlinks=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_the_last_run_of_each_recipe_and_kept_runs_stay(store: Store) -> None:
    old, mid, new, other = (toy.squares(toy.numbers(n), SLOW) for n in (1, 2, 3, 4))
    built(store, old, mid, new, other)
    run(store, "1", old, started=1.0)
    run(store, "2", mid, started=2.0)
    run(store, "3", new, started=3.0)
    run(store, "0", other, started=0.5, recipe="other")
    keep(store, "1")
    planned = gc(store)
    assert there(store) == marks(old, mid, new, other)
    swept = gc(store, dry_run=False)
    assert there(store) == marks(old, new, other)
    assert swept.items == planned.items
    assert (swept.removed, planned.removed, swept.kept, planned.kept) == (True, False, 6, 6)
    assert {item.name.split("/")[2] for item in swept.items if item.kind == "artifact"} == marks(mid)
    assert swept.bytes == sum(item.bytes for item in swept.items) > 0
    assert swept.as_json()["bytes"] == swept.bytes
    assert len(swept.lines()) == len(swept.items)
    assert not list((store.root / "trash").iterdir())
    keep(store, "1", kept=False)
    gc(store, dry_run=False)
    assert there(store) == marks(new, other)
    assert verify(store) == []


def test_the_last_run_of_each_set_of_changes_stays_and_all_recent_ones(store: Store) -> None:
    """Three seeds are three runs to keep, the same recipe in two places too; one edited and run again is one."""
    month = time.time() - 31 * DAY
    one, two, three, four, five = (toy.squares(toy.numbers(n), SLOW) for n in range(1, 6))
    built(store, one, two, three, four, five)
    asked = {"recipe": "toy", "source": "toy", "until": []}
    run(store, "1", one, **asked, changes={"seed": 1}, started=month)
    run(store, "2", two, **asked, changes={"seed": 2, "machine.units_at_once": 3}, started=month + 1)
    run(store, "3", three, **asked, changes={"seed": 2}, started=month + 2)  # of a recipe edited in between
    run(store, "4", four, **asked | {"source": "/elsewhere/toy.yaml"}, changes={"seed": 2}, started=month - 1)
    run(store, "5", five, recipe="toy", resolved={"seed": 1}, started=month - 2)  # what was changed isn't noted
    assert gc(store, recent=32 * DAY).items == [], "within the days that are asked for, all of them stay"
    gc(store, dry_run=False)
    assert there(store) == marks(one, three, four, five)
    run(store, "6", two, **asked, changes={"seed": 1}, started=month + 3)
    run(
        store, "7", two, **asked, changes={"seed": 1}, started=month + 3, seconds=2 * DAY
    )  # it took long, and is recent
    assert {item.name.split("/")[2] for item in gc(store).items} == marks(one)


def test_what_was_made_lately_stays_whoever_made_it(store: Store) -> None:
    """By `build_here`, a notebook, a step on a cluster: no run names it. With all it is made from."""
    first, again = toy.squares(toy.numbers(2), SLOW), toy.squares(toy.numbers(2, "down"), SLOW)
    built(store, first)
    build_here([again], store)  # adopted: an alias of the older one
    gc(store, dry_run=False)
    assert there(store) == marks(again) | {first.fingerprint}
    assert again.bound(store).read() == {"0000.json": 0, "0001.json": 1}
    aged(store.root / "artifacts" / "toy_squares", 8 * DAY)
    gc(store, dry_run=False)
    assert there(store) == marks(toy.numbers(2, "down")), "its own time is not over"


def test_keep_names_the_nearest_run(store: Store) -> None:
    run(store, "20261124-101500-demo", toy.numbers(1))
    with pytest.raises(UserError, match=r"no run '20261124-101501-demo'.*did you mean '20261124-101500-demo'"):
        keep(store, "20261124-101501-demo")


def test_roots_given_by_hand_and_their_lineage_stay(store: Store) -> None:
    built(store, toy.graph(2), toy.numbers(9))
    gc(store, keep_roots=[toy.graph(2).fingerprint], dry_run=False)
    assert there(store) == marks(toy.graph(2))


def test_a_failed_run_does_not_unroot_the_last_good_one(store: Store) -> None:
    good, failed, older = (toy.squares(toy.numbers(n), SLOW) for n in (2, 3, 1))
    built(store, older, good, toy.numbers(3))
    run(store, "0", older, started=0.5)
    run(store, "1", good, started=1.0)
    run(store, "2", failed, started=2.0, status="failed")
    gc(store, dry_run=False)
    assert there(store) == marks(good, toy.numbers(3))  # what the failed one had made is there for its next try


def test_a_run_that_does_not_say_what_it_rests_on_keeps_all(store: Store) -> None:
    built(store, toy.numbers(1), toy.numbers(2))
    store.note_run("1", {"recipe": "toy", "targets": [toy.graph(7).fingerprint], "status": "failed"})
    swept = gc(store, dry_run=False)
    assert there(store) == marks(toy.numbers(1), toy.numbers(2))
    assert "run 1 did not finish" in swept.lines()[-1]


def test_a_run_going_on_is_a_root(store: Store) -> None:
    one, two = toy.squares(toy.numbers(2), SLOW), toy.squares(toy.numbers(3), SLOW)
    built(store, toy.numbers(2), two)
    run(store, "1", one, status="running", started=time.time() - 60)
    run(store, "2", two)
    gc(store, dry_run=False)
    assert there(store) == marks(toy.numbers(2), two)
    run(store, "1", one, status="running", started=time.time() - 31 * DAY)  # it never ended
    run(store, "2", two)
    gc(store, dry_run=False)
    assert there(store) == marks(two)


def test_aliases_keep_their_targets_and_go_before_them(store: Store) -> None:
    first, again = toy.squares(toy.numbers(2), SLOW), toy.squares(toy.numbers(2, "down"), SLOW)
    built(store, first)
    built(store, again)
    gc(store, keep_roots=[again.fingerprint], dry_run=False)
    assert there(store) == marks(again) | {first.fingerprint}
    assert again.bound(store).read() == {"0000.json": 0, "0001.json": 1}
    kinds = [item.kind for item in gc(store).items]
    assert kinds == ["alias", "artifact", "artifact"]


def dead() -> Owner:
    return Owner(**{**vars(Owner.current()), "pid": 2**22 + 1})


def unfinished(store: Store, target: Artifact, owner: Owner) -> Path:
    """As a builder of `target` left it, or is at work on it."""
    store.prepare()
    at = durable.make_directories(store.unfinished(target.stage_name, target.fingerprint))
    store.describe(target.stage_name, target.fingerprint, steps_as_json(target))
    (at / "scratch" / "1" / "content").mkdir(parents=True)
    (at / "scratch" / "1" / "content" / "checkpoint").write_text("here")
    owner.write(at / "scratch" / "1.owner")
    return at


def test_unfinished_work_of_the_dead_goes_after_the_grace(store: Store) -> None:
    target = toy.squares(toy.numbers(2), SLOW)
    at = unfinished(store, target, dead())
    gc(store, dry_run=False)
    assert at.exists()
    aged(at, 8 * DAY)
    gc(store, dry_run=False)
    assert not at.exists()


def test_unfinished_work_of_a_root_stays(store: Store) -> None:
    target = toy.squares(toy.numbers(2), SLOW)
    at = unfinished(store, target, dead())
    aged(at, 8 * DAY)
    run(store, "1", toy.total(target, {}, SLOW), status="failed")
    gc(store, dry_run=False)
    assert (at / "scratch" / "1" / "content" / "checkpoint").exists()


def test_what_a_live_builder_uses_stays(store: Store) -> None:
    target = toy.squares(toy.numbers(2), SLOW)
    build_here([toy.numbers(2), toy.numbers(3)], store)
    at = unfinished(store, target, Owner.current())
    aged(at, 99 * DAY)
    swept = gc(store, dry_run=False, grace=0)
    assert at.exists()
    assert there(store) == marks(toy.numbers(2))  # its input, which no run names
    assert [item.kind for item in swept.items] == ["artifact"]


def test_unfinished_work_of_a_finished_artifact_goes_at_once(store: Store) -> None:
    target = toy.numbers(2)
    build_here([target], store)
    at = unfinished(store, target, dead())
    gc(store, keep_roots=[target.fingerprint], dry_run=False)
    assert not at.exists()
    assert there(store) == marks(target)


def test_leftovers_of_publishing(store: Store) -> None:
    store.prepare()
    cases: list[tuple[str, Owner | None, float, bool]] = [
        ("dead", dead(), 0, False),
        ("live", Owner.current(), 99 * DAY, True),
        ("unknown", None, 0, True),
        ("unknown_old", None, 8 * DAY, False),
        ("elsewhere", Owner(**{**vars(dead()), "host": "elsewhere"}), 0, True),
        ("elsewhere_old", Owner(**{**vars(dead()), "host": "elsewhere"}), 8 * DAY, False),
    ]
    for name, owner, age, _ in cases:
        at = store.root / "publishing" / f"{name}.0"
        at.mkdir()
        (at / "file").write_text("x")
        aged(at, age)
        if owner is not None:
            owner.write(at.with_name(f"{name}.0.owner"))
            os.utime(at.with_name(f"{name}.0.owner"), (time.time() - age,) * 2)
    dead().write(store.root / "publishing" / "gone.0.owner")
    gc(store, dry_run=False)
    left = {path.name.split(".")[0] for path in (store.root / "publishing").iterdir()}
    assert left == {name for name, _, _, stays in cases if stays}


def test_damaged_things_and_trash(store: Store) -> None:
    store.prepare()
    young, old = store.root / "damaged" / "young", store.root / "damaged" / "old"
    for at in (young, old, store.root / "trash" / "x"):
        at.mkdir(parents=True)
        (at / "file").write_text("x")
    aged(old, 8 * DAY)
    gc(store, dry_run=False)
    assert [path.name for path in (store.root / "damaged").iterdir()] == ["young"]
    assert list((store.root / "trash").iterdir()) == []


def test_what_became_needed_after_the_plan_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    built(store, toy.numbers(2), toy.numbers(3))
    real = upkeep.Sweeping.plan

    def then_a_run_begins(self: Any) -> Any:
        items = real(self)
        run(store, "1", toy.squares(toy.numbers(2), SLOW), status="running")
        return items

    monkeypatch.setattr(upkeep.Sweeping, "plan", then_a_run_begins)
    assert gc(store, dry_run=False).kept == 1
    assert there(store) == marks(toy.numbers(2))


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_killed_gc_loses_nothing(
    store: Store, tmp_path: Path, every: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed after each of its steps: the kept is whole, the rest whole, absent or in the trash."""
    kept, first, again = toy.graph(2), toy.squares(toy.numbers(4), SLOW), toy.squares(toy.numbers(4, "down"), SLOW)
    build_here([kept, first], store)
    build_here([again], store)
    unfinished(store, toy.numbers(9), dead())
    run(store, "1", kept)

    class Killed(BaseException):
        pass

    def gc_killed_after(steps: int) -> int:
        """How many steps there were up to the end or the kill."""
        copy = Store(shutil.copytree(store.root, tmp_path / str(steps)))
        done = 0

        def count(*_: Any) -> None:
            nonlocal done
            done += 1
            if done == steps:
                raise Killed

        with pytest.MonkeyPatch.context() as patch:
            for name in ("rename", "rmdir", "unlink", "mkdir"):
                patch.setattr(os, name, _then(getattr(os, name), count))
            with suppress(Killed):
                gc(copy, dry_run=False, grace=0)
        assert marks(kept) <= there(copy)
        assert verify(copy, set_aside=False) == []
        assert kept.bound(copy).read() == 6
        gc(copy, dry_run=False, grace=0)
        assert there(copy) == marks(kept)
        assert list((copy.root / "trash").iterdir()) == []
        shutil.rmtree(copy.root)
        return done

    total = gc_killed_after(0)
    points = range(1, total + 1, 1 if every else max(1, total // 12))
    for steps in points:
        assert gc_killed_after(steps) >= steps
    with capsys.disabled():
        print(f" {len(points)} of {total} kill points ", end="")
    assert total > 30


def _then(function: Callable[..., Any], after: Callable[..., None]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        found = function(*arguments, **named)
        after()
        return found

    return call


def test_gc_while_another_process_builds(store: Store) -> None:
    """Swept again and again beside a live builder that no run record names."""
    code = f"""
import sys
from artifacts import toy
from vbert.artifacts.making.graph import build_here
print(build_here([toy.squares(toy.numbers(5), toy.Slow(seconds=0.2))], {str(store.root)!r})[0].read())
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    store.prepare()
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    while not (store.root / "unfinished" / "toy_squares").exists():
        time.sleep(0.005)
        assert process.poll() is None
    sweeps = 0
    while process.poll() is None and not list((store.root / "artifacts").glob("toy_squares/*")):
        gc(store, dry_run=False, grace=0)
        sweeps += 1
    said, _ = process.communicate()
    assert process.returncode == 0
    assert json.loads(said.replace("'", '"')) == {f"{n:04d}.json": n * n for n in range(5)}
    assert sweeps >= 2


def test_gc_of_a_store_whose_builder_was_killed(store: Store, tmp_path: Path) -> None:
    code = f"""
from artifacts import toy
from vbert.artifacts.making.graph import build_here
build_here([toy.squares(toy.numbers(2), toy.Slow(seconds=60))], {str(store.root)!r})
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    while not list(store.root.glob("publishing/*.owner")) or not list(
        store.root.glob("unfinished/toy_squares/*/making/*")
    ):
        time.sleep(0.01)
        assert process.poll() is None
    assert gc(store, grace=0).items == []
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert {item.kind for item in gc(store, grace=0).items} == {"artifact", "unfinished", "publishing"}
    assert {item.kind for item in gc(store).items} == {"publishing"}
    gc(store, dry_run=False, grace=0)
    assert there(store) == set()
    assert [list((store.root / name).glob("*")) for name in ("publishing", "trash")] == [[], []]
    assert list((store.root / "unfinished").glob("*/*")) == []


# ---------------------------------------------------------------------- verify


def test_verify_of_what_is_missing_and_of_aliases(store: Store) -> None:
    first, again = toy.squares(toy.numbers(2), SLOW), toy.squares(toy.numbers(2, "down"), SLOW)
    build_here([first], store)
    build_here([again], store)
    shutil.rmtree(store.directory("toy_squares", first.fingerprint))
    found = verify(store)
    assert [(damage.fingerprint, damage.file) for damage in found] == [(again.fingerprint, "manifest.json")]
    assert not store.directory("toy_squares", again.fingerprint).exists()
    assert verify(store) == []
    assert build_here([again], store)[0].read() == {"0000.json": 0, "0001.json": 1}


def test_verify_reads_as_fast_as_the_digests_allow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figure is printed; timing is not asserted."""
    store = Store(tmp_path)
    build_here([toy.bulk(4, 8)], store)
    began = time.perf_counter()
    assert verify(store) == []
    seconds = time.perf_counter() - began
    path = next(toy.bulk(4, 8).bound(store).path.glob("0.bin"))
    began = time.perf_counter()
    durable.sha256_file(path)
    one = 8 / (time.perf_counter() - began)
    with capsys.disabled():
        print(f" verify {32 / seconds:.0f} MB/s, one thread's sha256 {one:.0f} MB/s ", end="")


# ---------------------------------------------------------------------- why and lineage


def lines(store: Store, target: Artifact) -> list[str]:
    return why(store, target)[1:]


def test_why_names_the_fields(store: Store) -> None:
    build_here([toy.graph(2)], store)
    assert why(store, toy.squares(toy.numbers(2), toy.Slow(scale=3)))[0].startswith("compared with toy_squares[one] ")
    assert lines(store, toy.numbers(4)) == ["toy_numbers: count 3 → 4"]
    assert lines(store, toy.squares(toy.numbers(2), toy.Slow(scale=3))) == ["toy_squares: settings.scale 1 → 3"]


def test_why_follows_inputs_to_the_setting(store: Store) -> None:
    build_here([toy.graph(2)], store)
    changed = toy.graph(2, order="down")
    before, after = toy.graph(2), changed
    said = lines(store, changed)
    assert f"toy_total: squares {short(before, 'toy_squares[one]')} → {short(after, 'toy_squares[one]')}" in said
    assert f"toy_total: more.two {short(before, 'toy_squares[two]')} → {short(after, 'toy_squares[two]')}" in said
    assert 'toy_numbers: order "up" → "down"' in said
    assert len(said) == len(set(said)) == 5


def short(graph: Artifact, title: str) -> str:
    return next(a.fingerprint[:8] for a in walk(graph) if a.title == title)


def test_why_takes_the_most_alike(store: Store) -> None:
    build_here([toy.squares(toy.numbers(3, "down"), toy.Slow(scale=2))], store)
    build_here([toy.squares(toy.numbers(3), toy.Slow(scale=2))], store)
    build_here([toy.squares(toy.numbers(5, "down"), toy.Slow(scale=7, seconds=0.001))], store)
    assert lines(store, toy.squares(toy.numbers(3), SLOW)) == ["toy_squares: settings.scale 2 → 1"]


def test_why_without_the_inputs_manifests(store: Store) -> None:
    """Raw data may be deleted; the step's own file still says what it was."""
    build_here([toy.squares(toy.numbers(2), SLOW)], store)
    shutil.rmtree(store.root / "artifacts" / "toy_numbers")
    said = lines(store, toy.squares(toy.numbers(3), SLOW))
    assert said[1:] == ["toy_numbers: count 2 → 3"]


def test_why_of_a_raised_version_and_of_the_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert why(store, toy.numbers(2)) == ["no toy_numbers yet"]
    build_here([toy.numbers(2)], store)
    assert why(store, toy.numbers(2))[0].startswith(f"toy_numbers {toy.numbers(2).fingerprint[:8]} is there, made ")
    monkeypatch.setitem(toy.numbers.__dict__, "version", 2)
    assert lines(store, toy.numbers(2)) == ["toy_numbers: version 1 → 2"]


def test_lineage(store: Store) -> None:
    build_here([toy.graph(2)], store)
    build_here([toy.graph(2, order="down")], store)
    graph = toy.graph(2, order="down")
    said = lineage(store, graph.fingerprint[:12])
    titles = [line.split(" ")[0] for line in said]
    assert sorted(titles) == sorted(artifact.title for artifact in walk(graph))
    assert titles.index("toy_numbers[one]") < titles.index("toy_squares[one]") < titles.index("toy_total") == 4
    assert said[-1].endswith(" ← " + " ".join(sorted(a.fingerprint[:8] for a in graph.inputs())))
    assert f", as {toy.graph(2).fingerprint[:8]}" in said[-1]
    shutil.rmtree(store.root / "artifacts" / "toy_numbers")
    assert "not in the store" in lineage(store, graph.fingerprint)[0]
    for mark, error in (("zzzz", "no artifact begins with 'zzzz'"), ("", "artifacts begin with ''")):
        with pytest.raises(UserError, match=error):
            lineage(store, mark)
