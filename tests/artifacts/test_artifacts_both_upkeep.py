"""Runs, gc, why and lineage of a store, whatever keeps its files: what holds on a path holds in a bucket."""

from __future__ import annotations

import time
from typing import Any

import pytest
from artifacts import toy
from artifacts.world import (
    DAY,
    World,
    built,
    file_name,
    made,
    manifest_name,
    marks,
    pair,
    run,
    spoil,
    there,
    unfinished,
)

from vbert.artifacts.making.plan import walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep import gc as sweeping
from vbert.artifacts.upkeep.gc import gc, keep
from vbert.artifacts.upkeep.verify import verify
from vbert.artifacts.upkeep.why import lineage, why
from vbert.errors import UserError


def test_runs(world: World) -> None:
    store = world.store
    assert store.runs() == {}
    store.prepare()
    store.record_run("20260101-a", {"recipe": "a", "status": "running"})
    store.record_run("20260102-b.c", {"recipe": "b"})
    store.record_run("20260101-a", {"recipe": "a", "status": "done"})
    world.write("runs/torn.json", b'{"recipe"')
    world.write("runs/list.json", b"[1]")
    for seen in (store, world.another()):
        assert seen.runs() == {"20260101-a": {"recipe": "a", "status": "done"}, "20260102-b.c": {"recipe": "b"}}
        assert list(seen.runs()) == ["20260101-a", "20260102-b.c"]
        assert (seen.run("20260102-b.c"), seen.run("torn"), seen.run("none")) == ({"recipe": "b"}, {}, {})
    world.another().record_run("20260102-b.c", {"recipe": "c"})  # by somebody else, and as long as before
    assert store.runs()["20260102-b.c"] == {"recipe": "c"}
    with pytest.raises(UserError, match=r"no run '20260101-b'.*did you mean '20260101-a'"):
        keep(store, "20260101-b")
    keep(store, "20260101-a")
    assert world.another().run("20260101-a")["kept"]


def test_the_last_run_of_each_recipe_and_kept_runs_stay(world: World) -> None:
    old, mid, new, other = (pair(n) for n in (1, 2, 3, 4))
    store = built(world, old, mid, new, other)
    run(store, "1", old, started=1.0)
    run(store, "2", mid, started=2.0)
    run(store, "3", new, started=3.0)
    run(store, "0", other, started=0.5, recipe="other")
    keep(store, "1")
    planned = gc(store)
    assert there(world) == marks(old, mid, new, other)
    swept = gc(world.another(), dry_run=False)
    assert there(world) == marks(old, new, other)
    assert swept.items == planned.items
    assert (swept.removed, planned.removed, swept.kept, planned.kept) == (True, False, 6, 6)
    assert {item.name for item in swept.items} == {f"artifacts/{a.stage_name}/{a.fingerprint}" for a in walk(mid)}
    assert swept.bytes == sum(item.bytes for item in swept.items) > 0
    assert swept.as_json()["bytes"] == swept.bytes
    assert len(swept.lines()) == len(swept.items)
    keep(store, "1", kept=False)
    gc(store, dry_run=False)
    assert there(world) == marks(new, other)
    assert len(world.names("resolved")) == 4
    assert verify(world.another("third")) == []
    assert world.names("trash") == []


def test_the_last_run_of_each_set_of_changes_stays_and_all_recent_ones(world: World) -> None:
    """Three seeds are three runs to keep, the same recipe in two places too; one edited and run again is one."""
    month = time.time() - 31 * DAY
    one, two, three, four, five = (toy.numbers(n) for n in range(1, 6))
    store = built(world, one, two, three, four, five)
    asked = {"recipe": "toy", "source": "toy", "until": []}
    run(store, "1", one, **asked, changes={"seed": 1}, started=month)
    run(store, "2", two, **asked, changes={"seed": 2, "machine.units_at_once": 3}, started=month + 1)
    run(store, "3", three, **asked, changes={"seed": 2}, started=month + 2)  # of a recipe edited in between
    run(store, "4", four, **asked | {"source": "/elsewhere/toy.yaml"}, changes={"seed": 2}, started=month - 1)
    run(store, "5", five, recipe="toy", resolved={"seed": 1}, started=month - 2)  # what was changed isn't noted
    assert gc(store, recent=32 * DAY).items == [], "within the days that are asked for, all of them stay"
    gc(store, dry_run=False)
    assert there(world) == marks(one, three, four, five)
    run(store, "6", two, **asked, changes={"seed": 1}, started=month + 3)
    # It took long, and is recent.
    run(store, "7", two, **asked, changes={"seed": 1}, started=month + 3, seconds=2 * DAY)
    assert {item.name.split("/")[2] for item in gc(store).items} == marks(one)


def test_what_was_made_lately_stays_whoever_made_it(world: World) -> None:
    """By `build_here`, a notebook, a step on a cluster: no run names it. With all it is made from."""
    first, again = pair(2), pair(2, "down")
    store = built(world, first)
    made(store, again)  # adopted: an alias of the older one
    gc(store, dry_run=False)
    assert there(world) == marks(again) | {first.fingerprint}
    assert again.bound(world.another()).read() == [0, 2]
    world.age("artifacts/both_doubled", 8 * DAY)
    gc(store, dry_run=False)
    assert there(world) == marks(toy.numbers(2, "down")), "its own time is not over"


def test_roots_given_by_hand_and_their_lineage_stay(world: World) -> None:
    store = built(world, pair(2), toy.numbers(9))
    gc(store, keep_roots=[pair(2).fingerprint], dry_run=False)
    assert there(world) == marks(pair(2))


def test_a_failed_run_does_not_unroot_the_last_good_one(world: World) -> None:
    good, failed, older = pair(2), pair(3), pair(1)
    store = built(world, older, good, toy.numbers(3))
    run(store, "0", older, started=0.5)
    run(store, "1", good, started=1.0)
    run(store, "2", failed, started=2.0, status="failed")
    gc(store, dry_run=False)
    assert there(world) == marks(good, toy.numbers(3))  # what the failed one had made is there for its next try


def test_a_run_that_does_not_say_what_it_rests_on_keeps_all(world: World) -> None:
    store = built(world, toy.numbers(1), toy.numbers(2))
    store.record_run("1", {"recipe": "toy", "targets": [pair(7).fingerprint], "status": "failed"})
    swept = gc(store, dry_run=False)
    assert there(world) == marks(toy.numbers(1), toy.numbers(2))
    assert "run 1 did not finish" in swept.lines()[-1]


def test_a_run_going_on_is_a_root(world: World) -> None:
    one, two = pair(2), pair(3)
    store = built(world, toy.numbers(2), two)
    run(store, "1", one, status="running", started=time.time() - 60)
    run(store, "2", two)
    gc(store, dry_run=False)
    assert there(world) == marks(toy.numbers(2), two)
    run(store, "1", one, status="running", started=time.time() - 31 * DAY)  # it never ended
    run(store, "2", two)
    gc(store, dry_run=False)
    assert there(world) == marks(two)


def test_aliases_keep_their_targets_and_go_before_them(world: World) -> None:
    first, again = pair(2), pair(2, "down")
    store = built(world, first, again)
    gc(store, keep_roots=[again.fingerprint], dry_run=False)
    assert there(world) == marks(again) | {first.fingerprint}
    assert again.bound(world.another()).read() == [0, 2]
    assert [item.kind for item in gc(store).items] == ["alias", "artifact", "artifact"]


def test_unfinished_work_of_the_dead_goes_after_the_grace(world: World) -> None:
    store, target = world.store, pair(2)
    unfinished(store, target)
    gc(store, dry_run=False)
    assert world.names("unfinished") != []
    world.age("unfinished", 8 * DAY)
    assert {item.kind for item in gc(store, dry_run=False).items} == {"unfinished"}
    assert world.names("unfinished") == []
    assert not store.unfinished(target.stage_name, target.fingerprint).exists()


def test_unfinished_work_of_a_root_stays_and_so_do_its_inputs(world: World) -> None:
    store, target = built(world, toy.numbers(2), toy.numbers(3)), pair(2)
    unfinished(store, target)
    world.age("unfinished", 8 * DAY)
    store.record_run("1", {"recipe": "toy", "targets": [target.fingerprint], "steps": [target.fingerprint]})
    gc(store, dry_run=False)
    assert there(world) == marks(toy.numbers(2))
    assert (store.unfinished("both_doubled", target.fingerprint) / "scratch" / "1" / "content" / "checkpoint").exists()


def test_what_somebody_builds_stays_and_so_do_its_inputs(world: World) -> None:
    store, target = built(world, toy.numbers(2), toy.numbers(3)), pair(2)
    unfinished(store, target)
    world.age("unfinished", 99 * DAY)
    world.builder(target.fingerprint)
    swept = gc(store, dry_run=False, grace=0)
    assert there(world) == marks(toy.numbers(2))  # its input, which no run names
    assert [(item.kind, item.name) for item in swept.items if not item.name.startswith(sweeping.WORKING)] == [
        ("artifact", f"artifacts/toy_numbers/{toy.numbers(3).fingerprint}")
    ]
    assert world.names("unfinished") != []


def test_unfinished_work_of_a_finished_artifact_goes_at_once(world: World) -> None:
    store, target = world.store, toy.numbers(2)
    made(store, target)
    unfinished(store, target)
    gc(store, keep_roots=[target.fingerprint], dry_run=False)
    assert world.names("unfinished") == []
    assert not store.unfinished("toy_numbers", target.fingerprint).exists()
    assert there(world) == marks(target)


def test_leftovers_of_killed_builders_and_what_was_damaged_go_after_the_grace(world: World) -> None:
    store, target = world.store, toy.numbers(2)
    made(store, target)
    world.write(f"artifacts/toy_bulk/{'a' * 64}/{'b' * 12}/file", b"x" * 100)
    spoil(world, file_name(world, target, "numbers.json"), "short")
    assert len(verify(store)) == 1
    assert gc(world.another(), dry_run=False).items == []
    for folder in ("artifacts", "damaged"):
        world.age(folder, 8 * DAY)
    swept = gc(world.another(), dry_run=False)
    assert {(item.kind, item.name.split("/")[0]) for item in swept.items} == {
        ("publishing", "artifacts"),
        ("damaged", "damaged"),
    }
    assert world.names("artifacts") == world.names("damaged") == []


def test_a_damaged_artifact_that_nothing_needs_goes(world: World) -> None:
    store = built(world, toy.numbers(2), toy.numbers(3))
    world.write(manifest_name(toy.numbers(2)), b"{}")
    world.age("artifacts", 8 * DAY)
    run(store, "1", toy.numbers(3))
    gc(world.another(), dry_run=False)
    assert there(world) == marks(toy.numbers(3))


def test_what_became_needed_after_the_plan_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    store = built(world, toy.numbers(2), toy.numbers(3))
    real = sweeping._Sweeping.plan

    def then_a_run_begins(self: Any) -> Any:
        items = real(self)
        run(store, "1", pair(2), status="running")
        return items

    monkeypatch.setattr(sweeping._Sweeping, "plan", then_a_run_begins)
    assert gc(store, dry_run=False).kept == 1
    assert there(world) == marks(toy.numbers(2))


def test_what_was_made_after_the_plan_stays(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it was made from, although the plan had that go."""
    store = built(world, toy.numbers(2))
    real = sweeping._Sweeping.plan

    def then_it_is_used(self: Any) -> Any:
        items = real(self)
        made(world.another(), pair(2))
        return items

    monkeypatch.setattr(sweeping._Sweeping, "plan", then_it_is_used)
    gc(store, dry_run=False)
    assert there(world) == marks(pair(2))


def test_parts_that_no_manifest_leads_to_go(world: World) -> None:
    """Of a builder killed before its manifest, whose artifact another one published with other bits."""
    store, target = built(world, toy.numbers(2)), toy.numbers(2)
    run(store, "1", target)
    stray = f"artifacts/toy_numbers/{target.fingerprint}/{'c' * 12}"
    world.write(f"{stray}/numbers.json", b"x" * 100)
    assert gc(world.another()).items == []
    world.age("artifacts", 8 * DAY)
    swept = gc(world.another(), dry_run=False)
    assert [(item.kind, item.name) for item in swept.items] == [("publishing", stray)]
    assert target.bound(world.another()).read() == [0, 1]
    assert gc(world.another()).items == []


def test_foreign_names_in_the_store_stay_and_are_told(world: World) -> None:
    store = built(world, toy.numbers(2))
    run(store, "1", toy.numbers(2))
    world.write("artifacts/Photos/holiday/1.jpg", b"x")
    world.age("artifacts", 8 * DAY)
    swept = gc(world.another(), dry_run=False)
    assert (swept.items, [note.split(" is ")[0] for note in swept.notes]) == ([], ["artifacts/Photos/holiday"])
    assert world.names("artifacts/Photos") == ["artifacts/Photos/holiday/1.jpg"]


def test_a_record_that_is_none_of_a_run_is_passed_over(world: World) -> None:
    store = built(world, toy.numbers(2))
    run(store, "1", toy.numbers(2))
    for number, text in enumerate(('{"targets": 5}', '{"recipe": 3, "started": "x"}', "[]", '"x"', "{")):
        world.write(f"runs/odd{number}.json", text.encode())
    assert set(world.another().runs()) == {"1"}
    assert gc(world.another(), grace=0).items == []


# ---------------------------------------------------------------------- why and lineage


def lines(store: Store, target: Artifact) -> list[str]:
    return why(store, target)[1:]


def test_why_names_the_fields(world: World) -> None:
    store, slow = world.store, toy.Slow
    assert why(store, toy.numbers(2)) == ["no toy_numbers yet"]
    made(store, toy.graph(2))
    assert why(store, toy.squares(toy.numbers(2), slow(scale=3)))[0].startswith("compared with toy_squares[one] ")
    assert why(store, toy.numbers(2))[0].startswith(f"toy_numbers {toy.numbers(2).fingerprint[:8]} is there, made ")
    assert lines(world.another(), toy.numbers(4)) == ["toy_numbers: count 3 → 4"]
    assert lines(store, toy.squares(toy.numbers(2), slow(scale=3))) == ["toy_squares: settings.scale 1 → 3"]


def test_why_follows_inputs_to_the_setting(world: World) -> None:
    made(world.store, toy.graph(2))
    before, after = toy.graph(2), toy.graph(2, order="down")
    said = lines(world.store, after)
    assert f"toy_total: squares {short(before, 'toy_squares[one]')} → {short(after, 'toy_squares[one]')}" in said
    assert f"toy_total: more.two {short(before, 'toy_squares[two]')} → {short(after, 'toy_squares[two]')}" in said
    assert 'toy_numbers: order "up" → "down"' in said
    assert len(said) == len(set(said)) == 5


def short(graph: Artifact, title: str) -> str:
    return next(a.fingerprint[:8] for a in walk(graph) if a.title == title)


def test_why_takes_the_most_alike(world: World) -> None:
    made(world.store, toy.squares(toy.numbers(3, "down"), toy.Slow(scale=2)))
    made(world.store, toy.squares(toy.numbers(3), toy.Slow(scale=2)))
    made(world.store, toy.squares(toy.numbers(5, "down"), toy.Slow(scale=7, seconds=0.001)))
    assert lines(world.store, toy.squares(toy.numbers(3), toy.Slow())) == ["toy_squares: settings.scale 2 → 1"]


def test_why_without_the_inputs_manifests(world: World) -> None:
    """Raw data may be deleted; the step's own file still says what it was."""
    made(world.store, pair(2))
    for name in world.names("artifacts/toy_numbers"):
        world.delete(name)
    assert lines(world.another(), pair(3))[1:] == ["toy_numbers: count 2 → 3"]


def test_why_of_a_raised_version(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    made(world.store, toy.numbers(2))
    monkeypatch.setitem(toy.numbers.__dict__, "version", 2)
    assert lines(world.store, toy.numbers(2)) == ["toy_numbers: version 1 → 2"]


def test_lineage(world: World) -> None:
    graph = toy.graph(2, order="down")
    made(world.store, toy.graph(2))
    made(world.store, graph)
    said = lineage(world.another(), graph.fingerprint[:12])
    titles = [line.split(" ")[0] for line in said]
    assert sorted(titles) == sorted(artifact.title for artifact in walk(graph))
    assert titles.index("toy_numbers[one]") < titles.index("toy_squares[one]") < titles.index("toy_total") == 4
    assert said[-1].endswith(" ← " + " ".join(sorted(a.fingerprint[:8] for a in graph.inputs())))
    assert f", as {toy.graph(2).fingerprint[:8]}" in said[-1]
    for name in world.names("artifacts/toy_numbers"):
        world.delete(name)
    assert "not in the store" in lineage(world.another("third"), graph.fingerprint)[0]
    for mark, error in (("zzzz", "no artifact begins with 'zzzz'"), ("", "artifacts begin with ''")):
        with pytest.raises(UserError, match=error):
            lineage(world.store, mark)
