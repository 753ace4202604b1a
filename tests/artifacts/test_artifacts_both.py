"""The store, whatever keeps its files: what holds on a path holds in a bucket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from artifacts import toy
from artifacts.world import (
    DAY,
    World,
    artifacts,
    dead,
    file_name,
    in_process,
    manifest_name,
    replace_manifest,
    spoil,
    unit_name,
)

from vbert.artifacts.making.engine import Built, Engine, Events
from vbert.artifacts.making.plan import plan, walk
from vbert.artifacts.making.work import Work, make_unit
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Build, Figures, Machine, stage
from vbert.artifacts.steps.step_json import steps_as_json
from vbert.artifacts.store import durable
from vbert.artifacts.store.manifest import content_digest
from vbert.artifacts.store.store import Begun, Store
from vbert.artifacts.upkeep import gc as sweeping
from vbert.artifacts.upkeep.gc import gc, keep
from vbert.artifacts.upkeep.verify import verify
from vbert.artifacts.upkeep.why import lineage, why
from vbert.errors import BuildError, Damaged, UserError

SQUARES = toy.squares(toy.numbers(3), toy.Slow())
VALUES = {"0000.json": 0, "0001.json": 1, "0002.json": 4}


@stage("both_doubled", makes=toy.Numbers, version=1)
def doubled(build: Build, numbers: toy.Numbers) -> Figures:
    """Made of an input, and by no child process."""
    (build.directory / "numbers.json").write_text(json.dumps([2 * n for n in numbers.read()]))
    return {}


def pair(count: int, order: str = "up") -> toy.Numbers:
    return doubled(toy.numbers(count, order))


class Heard(Events):
    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.outcomes: dict[str, str] = {}

    def message(self, artifact: Artifact, sentence: str) -> None:
        self.sentences.append(sentence)

    def finished(self, built: Built) -> None:
        self.outcomes[built.artifact.title] = built.outcome


def made(store: Store, *targets: Artifact) -> Heard:
    heard = Heard()
    Engine(store, events=heard, run_units=in_process).ensure_all(targets)
    return heard


def marks(*targets: Artifact) -> set[str]:
    return {artifact.fingerprint for target in targets for artifact in walk(target)}


def there(world: World) -> set[str]:
    """Fingerprints of all that lies in artifacts/."""
    return {name.split("/")[2] for name in world.names("artifacts")}


# ---------------------------------------------------------------------- finished artifacts


def test_a_finished_artifact_and_its_readers(world: World) -> None:
    store, target = world.store, toy.nested(toy.numbers(2))
    assert [line.status for line in plan([target], store)] == ["missing", "missing"]
    heard = made(store, target)
    assert heard.outcomes == {"toy_numbers": "built", "toy_nested": "built"}
    found = store.find("toy_nested", target.fingerprint)
    assert found is not None
    assert found.files[0].model_dump() == {
        "name": "own.json",
        "size": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }
    files = ["own.json", "part0/0", "part1/1"]
    base = f"artifacts/toy_nested/{target.fingerprint}"
    assert world.names(base) == [*(f"{base}/{found.content[:12]}/{name}" for name in files), f"{base}/manifest.json"]
    assert world.names("unfinished") == []
    assert store.where(found, "part0/0") == f"{store.location}/{base}/{found.content[:12]}/part0/0"
    other = world.another()
    assert [line.status for line in plan([target], other)] == ["present", "present"]
    bound = target.bound(other)
    assert bound.manifest == found
    assert (bound.names(), bound.read()) == (files, {"0": 0, "1": 1})
    whole = bound.path
    assert sorted(path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()) == files
    with pytest.raises(BuildError, match=r"has no file 'x'; it has own\.json, part0/0"):
        bound.file("x")
    with pytest.raises(BuildError, match="toy_numbers is not built"):
        toy.numbers(9).bound(other).read()
    assert verify(other) == []


def test_a_second_run_builds_nothing_and_writes_nothing(world: World) -> None:
    made(world.store, SQUARES)
    before = {name: world.read(name) for name in world.names()}
    for store in (world.store, world.another()):
        assert made(store, SQUARES).outcomes == {"toy_numbers": "cached", "toy_squares": "cached"}
    assert {name: world.read(name) for name in world.names()} == before


def test_early_cut_off_makes_aliases(world: World) -> None:
    """`order` changes the fingerprint and not the content: what rests on it is adopted."""
    store, target = world.store, toy.squares(toy.numbers(3, "down"), toy.Slow())
    made(store, SQUARES)
    turned = world.another()
    assert made(turned, target).outcomes == {"toy_numbers": "built", "toy_squares": "adopted"}
    assert world.names(f"artifacts/toy_squares/{target.fingerprint}") == [manifest_name(target)]
    alias = store.record("toy_squares", target.fingerprint)
    assert alias is not None
    assert (alias.alias_of, alias.files) == (SQUARES.fingerprint, [])
    third = world.another("third")
    assert target.bound(third).read() == VALUES
    assert {line.status for line in plan([target], third)} == {"present"}
    assert set(made(third, target).outcomes.values()) == {"cached"}
    assert verify(third) == []


def test_early_cut_off_does_without_its_index(world: World) -> None:
    """What the index leads to is looked at: nothing rests on it."""
    made(world.store, SQUARES)
    target = toy.squares(toy.numbers(3, "down"), toy.Slow())
    (name,) = world.names("resolved/toy_squares")
    for data in (b"", b"\xff\xfe", b"0" * 64, b"../..", b"\0"):
        world.write(name, data)
        store = world.another("m" + data.hex()[:4])
        bound = target.bound(store)
        assert store.resolved("toy_squares", name.rpartition("/")[2]) is None
        assert bound.step is not None
    assert made(store, target).outcomes["toy_squares"] == "built"
    assert target.bound(world.another()).read() == VALUES


def test_an_alias_whose_target_went_is_built_again(world: World) -> None:
    again = toy.squares(toy.numbers(3, "down"), toy.Slow())
    made(world.store, SQUARES)
    made(world.store, again)
    for name in world.names(f"artifacts/toy_squares/{SQUARES.fingerprint}"):
        world.delete(name)
    store = world.another()
    with pytest.raises(Damaged, match=f"alias of {SQUARES.fingerprint[:8]}, which is gone") as seen:
        store.find("toy_squares", again.fingerprint)
    assert (seen.value.fingerprint, seen.value.file) == (again.fingerprint, "manifest.json")
    assert [(d.fingerprint, d.file) for d in verify(store, quarantine=False)] == [(again.fingerprint, "manifest.json")]
    assert made(store, again).outcomes == {"toy_numbers": "cached", "toy_squares": "built"}
    assert again.bound(store).read() == VALUES
    assert made(store, SQUARES).outcomes == {"toy_numbers": "cached", "toy_squares": "adopted"}


@pytest.mark.parametrize("same_bits", [True, False])
def test_the_first_publisher_wins_and_the_loser_compares_its_bits(world: World, same_bits: bool) -> None:
    """Other bits within one numerics class are told; not of a stage whose bits are no promise."""
    one = toy.numbers(2)
    made(world.store, one)
    first = world.store.find("toy_numbers", one.fingerprint)
    heard, store = Heard(), world.another()
    store.prepare()
    assert one.step is not None
    other = replace(one.step.stage, same_bits=same_bits, function=seven)
    changed = one._copy(step=replace(one.step, stage=other))
    assert Engine(store, Machine(), heard)._build(changed.bound(store), "of other inputs") == first
    assert ["(numbers.json)" in sentence for sentence in heard.sentences] == [True] * same_bits
    assert one.bound(world.another("third")).read() == [0, 1]
    assert artifacts(world) == {f"toy_numbers/{one.fingerprint}/numbers.json": b"[0, 1]"}
    assert world.names("unfinished") == []


def seven(build: Build, count: int, order: str) -> Figures:
    (build.directory / "numbers.json").write_text("[7]")
    return {}


def test_two_publishers_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks switched off, both stand before the manifest: one is taken, and both have the same."""
    target = toy.numbers(3)
    monkeypatch.setattr(Store, "lock", lambda *_: nullcontext())
    both, files = threading.Barrier(2, timeout=30), type(world.store.files)
    create = files.create

    def meet(self: Any, name: str, data: bytes) -> bool:
        if name == manifest_name(target):
            both.wait()
        return create(self, name, data)

    monkeypatch.setattr(files, "create", meet)
    stores = [world.another("one"), world.another("two")]
    results: list[Any] = [None, None]

    def build(n: int) -> None:
        results[n] = Engine(stores[n]).ensure(target)

    threads = [threading.Thread(target=build, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results[0].manifest == results[1].manifest
    assert list(artifacts(world)) == [f"toy_numbers/{target.fingerprint}/numbers.json"]
    assert verify(world.another("third")) == []


def test_force_compares_bits_and_replaces_nothing(world: World) -> None:
    made(world.store, SQUARES)
    before = {name: world.read(name) for name in world.names() if not name.startswith("locks/")}
    engine = Engine(world.another(), run_units=in_process)
    assert engine.compare(SQUARES) == []
    one = toy.numbers(3)
    assert one.step is not None
    changed = one._copy(step=replace(one.step, stage=replace(one.step.stage, function=seven)))
    assert engine.compare(changed) == ["numbers.json"]
    assert {name: world.read(name) for name in world.names() if not name.startswith("locks/")} == before


class Killed(BaseException):
    pass


@contextmanager
def killed_after(world: World, steps: int) -> Iterator[list[str]]:
    """Killed before (odd `steps`) or after each call that changes the store. Yields those that were made."""
    done: list[str] = []

    def dying(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Any, *given: Any) -> Any:
            done.append(f"{name} {given[0]}")
            number = len(done)
            if steps == 2 * number - 1:
                raise Killed
            result = real(self, *given)
            if steps == 2 * number:
                raise Killed
            return result

        return call

    files = type(world.store.files)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("create", "replace", "add_folder", "remove", "quarantine"):
            patch.setattr(files, name, dying(name, getattr(files, name)))
        yield done


EVERY = pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])


@EVERY
def test_a_builder_killed_between_any_two_steps(world: World, every: bool) -> None:
    """What is there is whole, and the next run goes on."""
    target, steps = toy.nested(toy.numbers(2)), 0
    turned = toy.nested(toy.numbers(2, "down"))
    while True:
        steps += 1 if every else 3 if world.kind == "path" else 11
        with killed_after(world, steps) as done:
            try:
                for one in (target, turned):  # which is adopted
                    made(world.another(f"m{steps}"), one)
            except Killed:
                pass
            else:
                break
        for owner in (world.another(f"m{steps}").root / "unfinished").glob("*/*/scratch/*.owner"):
            dead().write(owner)
        store = world.another(f"m{steps}" if steps % 3 else f"n{steps}")
        assert verify(store, quarantine=False) == [], done
        for name in ("toy_numbers", "toy_nested"):
            for found in store.manifests(name):
                assert store.find(name, found.fingerprint) is not None, done
        made(store, target, turned)
        assert {one.bound(store).read()["1"] for one in (target, turned)} == {1}
        assert len(artifacts(world)) == 5, done
        gc(world.another(f"m{steps}"), dry_run=False, grace=0)
        assert there(world) == set(), done
        assert world.names("resolved") == world.names("unfinished") == [], done
    assert steps > 12


@EVERY
def test_a_gc_killed_between_any_two_steps(world: World, every: bool) -> None:
    kept, first, again = pair(2), pair(4), pair(4, "down")
    steps = 0
    while True:
        steps += 1 if every else 3 if world.kind == "path" else 7
        made(world.store, kept, first)
        made(world.store, again)
        unfinished(world.store, toy.numbers(9))
        run(world.store, "1", kept)
        with killed_after(world, steps) as done, suppress(Killed):
            gc(world.another(), dry_run=False, grace=0)
            break
        store = world.another("third")
        assert marks(kept) <= there(world), done
        assert verify(store, quarantine=False) == [], done
        assert kept.bound(store).read() == [0, 2]
        assert all(store.find(*name) is not None for name in store.names()), done
        gc(store, dry_run=False, grace=0)
        assert there(world) == marks(kept), done
    assert there(world) == marks(kept)
    assert steps > 8


# ---------------------------------------------------------------------- damage


@pytest.mark.parametrize("how", ["gone", "short", "flipped"])
@pytest.mark.parametrize("file", ["0002.json", "manifest.json"])
def test_damage_is_found_named_moved_away_and_mended(world: World, file: str, how: str) -> None:
    neighbour = toy.squares(toy.numbers(2), toy.Slow())
    made(world.store, SQUARES, neighbour)
    before = artifacts(world)
    beside = {name: world.read(name) for name in world.names("artifacts") if SQUARES.fingerprint not in name}
    spoil(world, manifest_name(SQUARES) if file == "manifest.json" else file_name(world, SQUARES, file), how)
    if (file, how) == ("manifest.json", "gone"):  # it is no artifact without
        assert world.another().find("toy_squares", SQUARES.fingerprint) is None
    else:
        fresh = world.another()
        with pytest.raises(Damaged) as seen:
            SQUARES.bound(fresh).read()
        assert (seen.value.stage, seen.value.fingerprint) == ("toy_squares", SQUARES.fingerprint)
        assert seen.value.file == file
        damaged = verify(world.another("third"))
        assert [(d.stage, d.fingerprint, d.file) for d in damaged] == [("toy_squares", SQUARES.fingerprint, file)]
        kept = world.names("damaged")
        assert len({name.split("/")[1] for name in kept}) == 1
        assert any(name.endswith("/manifest.json") for name in kept)
        assert any(name.endswith(file) for name in kept) or how == "gone"
        assert world.names(f"artifacts/toy_squares/{SQUARES.fingerprint}") == []
        lines = {line.artifact: line for line in plan([SQUARES], world.another())}
        assert lines[SQUARES].status == "missing"
        assert lines[SQUARES].damage is not None
    last = world.another("fourth")
    assert made(last, SQUARES, neighbour).outcomes["toy_squares"] in ("built", "cached")
    assert artifacts(world) == before
    assert {name: world.read(name) for name in beside} == beside
    assert verify(world.another("fifth")) == []


@pytest.mark.parametrize("file", ["numbers.json", "manifest.json"])
def test_damage_below_a_reader_is_mended_while_it_builds(world: World, file: str) -> None:
    made(world.store, toy.numbers(3))
    before = artifacts(world)
    name = manifest_name(toy.numbers(3)) if file == "manifest.json" else file_name(world, toy.numbers(3), file)
    spoil(world, name, "flipped")
    heard = made(world.another(), pair(3))
    assert pair(3).bound(world.store).read() == [0, 2, 4]
    assert [f"toy_numbers/{toy.numbers(3).fingerprint[:8]}/{file} is damaged" in s for s in heard.sentences] == [True]
    assert f"moved to {world.store.location}/damaged/toy_numbers-" in heard.sentences[0]
    assert before.items() <= artifacts(world).items()


def test_what_is_made_again_is_no_copy_of_what_else_is_damaged(world: World) -> None:
    """The same bytes lie in two artifacts, both are spoilt, and one is found to be."""
    one, two = toy.numbers(3), toy.numbers(3, "down")
    made(world.store, one, two)
    reader = world.another()
    assert two.bound(reader).read() == [0, 1, 2]
    for target in (one, two):
        spoil(world, file_name(world, target, "numbers.json"), "flipped")
    with pytest.raises(Damaged) as seen:
        one.bound(reader).read()
    assert reader.quarantine(seen.value) is not None
    with suppress(Damaged):  # of one in a bucket its copy is whole
        assert two.bound(reader).read() == [0, 1, 2]
    made(reader, one)
    assert one.bound(world.another("third")).read() == [0, 1, 2]
    assert [d.fingerprint for d in verify(world.another("third"))] == [two.fingerprint]


def test_only_what_is_still_damaged_is_moved_away(world: World) -> None:
    """Two readers see one damage; the first mends it; the second must not move what is whole by now."""
    target = toy.numbers(2)
    made(world.store, target)
    spoil(world, file_name(world, target, "numbers.json"), "short")
    one, two = world.another("one"), world.another("two")
    with pytest.raises(Damaged) as seen:
        target.bound(two).read()
    moved = one.quarantine(seen.value)
    assert moved is not None
    assert moved.startswith(f"{one.location}/damaged/toy_numbers-")
    assert any(world.read(name) == b"[0, " for name in world.names("damaged"))
    assert two.quarantine(seen.value) is None  # gone
    made(one, target)
    assert two.quarantine(seen.value) is None  # whole
    assert target.bound(two).read() == [0, 1]
    assert two.were_damaged([("toy_numbers", target.fingerprint), ("toy_numbers", pair(2).fingerprint)]) == {
        ("toy_numbers", target.fingerprint)
    }


def test_damage_that_comes_back_ends_in_an_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def always(self: Store, found: Any, name: str) -> Path:
        raise Damaged(found.stage, found.fingerprint, name, "its sha256 is not the manifest's")

    made(world.store, toy.numbers(2))
    monkeypatch.setattr(Store, "file", always)
    with pytest.raises(BuildError, match="damaged again and again; is the disk failing"):
        made(world.store, pair(2))


def test_a_manifest_that_leads_elsewhere(world: World) -> None:
    """Names and contents of a manifest become paths: none may lead out of the artifact."""
    target = toy.numbers(2)
    made(world.store, target)
    found = world.store.find("toy_numbers", target.fingerprint)
    assert found is not None
    for name, content in (("../../x", None), ("/x", None), ("a//b", None), ("numbers.json", "../../../..")):
        entry = found.files[0].model_copy(update={"name": name})  # unchecked
        replace_manifest(world, target, files=[entry.model_dump()], content=content or content_digest([entry]))
        with pytest.raises(Damaged, match="is no name of a file" if content is None else "its content is not") as seen:
            world.another().find("toy_numbers", target.fingerprint)
        assert seen.value.file == "manifest.json"


@pytest.mark.parametrize("fields", [{"format": 2}, {"fingerprint": "f" * 64}, {"stage": "toy_total"}, {"more": 1}])
def test_a_manifest_of_something_else(world: World, fields: dict[str, Any]) -> None:
    target = toy.numbers(2)
    made(world.store, target)
    replace_manifest(world, target, **fields)
    with pytest.raises(Damaged) as seen:
        world.another().find("toy_numbers", target.fingerprint)
    assert (seen.value.fingerprint, seen.value.file) == (target.fingerprint, "manifest.json")
    made(world.another(), target)
    assert target.bound(world.another()).read() == [0, 1]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ('{"format": 3, "id": "x"}', "store format 3, this version knows 2; upgrade vbert"),
        ('{"format": "new"}', "is not a store's record"),
        ("[]", "is not a store's record"),
        ("", "is not a store's record"),
    ],
)
def test_a_newer_or_foreign_store_is_refused(world: World, record: str, said: str) -> None:
    world.write("store.json", record.encode())
    with pytest.raises(UserError, match=said):
        world.another().prepare()
    assert world.names() == ["store.json"] or world.kind == "path"
    assert world.read("store.json") == record.encode()


# ---------------------------------------------------------------------- units


def unit(store: Store, key: str, make: Any, argument: Any) -> Figures:
    return make_unit(Work(store, "toy_squares", SQUARES.fingerprint, key, make, argument, Machine()))


def units(world: World, count: int) -> Store:
    """Units committed by somebody else, of what is not finished."""
    made(world.store, toy.numbers(3))
    store = world.another("worker")
    store.prepare()
    for n in range(count):
        unit(store, f"{n:04d}", toy.square_of, n)
    return store


def test_units_that_somebody_committed_are_not_made_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units(world, 2)
    store = world.another()
    assert store.begun("toy_squares", SQUARES.fingerprint) == Begun(2, None, "units")
    assert plan([SQUARES], store)[-1].status == "unfinished"
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    assert made(store, SQUARES).outcomes["toy_squares"] == "built"
    assert (tmp_path / "log").read_text() == "square 2\n"
    assert SQUARES.bound(world.another("third")).read() == VALUES
    assert world.names("unfinished") == []


@pytest.mark.parametrize("how", ["gone", "short", "flipped"])
@pytest.mark.parametrize("file", ["0001.json", "unit.json"])
def test_a_damaged_unit_is_made_again_and_no_other(
    world: World, file: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units(world, 2)
    spoil(world, unit_name(world, SQUARES, "0001", file), how)
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    heard = made(world.another(), SQUARES)
    assert sorted((tmp_path / "log").read_text().splitlines()) == ["square 1", "square 2"]
    told = [sentence for sentence in heard.sentences if f"unit 0001/{file} is damaged" in sentence]
    assert len(told) == ((file, how) != ("unit.json", "gone"))  # it is no unit without
    assert SQUARES.bound(world.another("third")).read() == VALUES
    assert verify(world.another("fourth")) == []


def test_the_first_unit_of_a_key_stands(world: World) -> None:
    """Two makers, other bits (another processor): one of them is taken, by all."""
    made(world.store, toy.numbers(3))
    for value in ("first", "second"):
        store = world.another(value)
        store.prepare()
        unit(store, "0000", write_value, value)
    for n in (1, 2):
        unit(store, f"{n:04d}", toy.square_of, n)
    heard = made(store, SQUARES)
    assert [("unit 0000" in sentence, "other bits" in sentence) for sentence in heard.sentences] == (
        [(True, True)] if world.kind == "bucket" else []  # on a path the second maker saw that it is made
    )
    assert SQUARES.bound(world.another("third")).file("0000.json").read_text() == "first"


def write_value(job: Any, value: str) -> Figures:
    (job.directory / "0000.json").write_text(value)
    return {}


# ---------------------------------------------------------------------- runs, and what they keep


def run(store: Store, run_id: str, target: Artifact, **record: Any) -> None:
    steps = [artifact.fingerprint for artifact in walk(target)]
    known = {"recipe": "toy", "targets": [target.fingerprint], "steps": steps, "started": time.time(), "status": "done"}
    store.record_run(run_id, known | record)


def built(world: World, *targets: Artifact) -> Store:
    """Built longer ago than the grace."""
    for target in targets:
        made(world.store, target)
    world.age("artifacts", 8 * DAY)
    return world.store


def unfinished(store: Store, target: Artifact) -> None:
    """As a builder of `target` that is dead left it."""
    store.prepare()
    store.describe(target.stage_name, target.fingerprint, steps_as_json(target))
    scratch = durable.make_directories(store.unfinished(target.stage_name, target.fingerprint) / "scratch")
    (scratch / "1" / "content").mkdir(parents=True, exist_ok=True)
    (scratch / "1" / "content" / "checkpoint").write_text("here")
    dead().write(scratch / "1.owner")


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


# ---------------------------------------------------------------------- verify


def test_verify_reads_everything_and_names_each_bad_file(world: World) -> None:
    other = toy.squares(toy.numbers(2), toy.Slow())
    made(world.store, SQUARES, other)
    for name in ("0001.json", "0002.json"):
        spoil(world, file_name(world, SQUARES, name), "flipped")
    spoil(world, manifest_name(other), "flipped")
    told: list[tuple[int, int]] = []
    found = verify(world.store, lambda done, total: told.append((done, total)), quarantine=False)
    expected = [(SQUARES, "0001.json"), (SQUARES, "0002.json"), (other, "manifest.json")]
    assert [(d.fingerprint, d.file) for d in found] == sorted(
        ((target.fingerprint, file) for target, file in expected), key=lambda one: one[0][:8] + one[1]
    )
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1]
    assert world.names("damaged") == []
    assert len(verify(world.store)) == 3
    assert len({name.split("/")[1] for name in world.names("damaged")}) == 2
    assert verify(world.store) == []
    made(world.another(), SQUARES, other)
    assert SQUARES.bound(world.store).read() == VALUES


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
    assert lines(world.store, SQUARES) == ["toy_squares: settings.scale 2 → 1"]


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
