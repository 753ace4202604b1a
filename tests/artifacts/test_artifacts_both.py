"""The store, whatever keeps its files: what holds on a path holds in a bucket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from artifacts import toy
from artifacts.world import (
    Heard,
    World,
    artifacts,
    dead,
    file_name,
    in_process,
    made,
    manifest_name,
    marks,
    pair,
    replace_manifest,
    run,
    spoil,
    there,
    unfinished,
    unit_name,
)

from vbert.artifacts.making.engine import Engine
from vbert.artifacts.making.plan import plan
from vbert.artifacts.making.work import Work, make_unit
from vbert.artifacts.steps.stage import Build, Figures, Machine
from vbert.artifacts.store.manifest import content_digest
from vbert.artifacts.store.store import Begun, Store
from vbert.artifacts.upkeep.gc import gc
from vbert.artifacts.upkeep.verify import verify
from vbert.errors import BuildError, Damaged, UserError

SQUARES = toy.squares(toy.numbers(3), toy.Slow())
VALUES = {"0000.json": 0, "0001.json": 1, "0002.json": 4}


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
