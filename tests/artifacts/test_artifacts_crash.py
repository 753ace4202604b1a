"""Publishing survives a power loss: every crash state that the operation log allows, and every log made worse."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from artifacts import toy
from artifacts.crash_states import TORN, Killed, Log, Op, State, Tree, earlier, states, without
from artifacts.memory import in_memory

from vbert.artifacts.making.engine import Engine
from vbert.artifacts.making.work import Work, make_unit
from vbert.artifacts.store import durable
from vbert.artifacts.store.digests import unseal
from vbert.artifacts.store.manifest import Manifest
from vbert.artifacts.store.store import Store
from vbert.artifacts.store.units import UnitRecord

# ---------------------------------------------------------------------- what must hold in every state


def violations(state: State, root: Path, store: Path) -> list[str]:
    """What is wrong in a crash state: what has its final name and is not whole, what was acknowledged and is gone."""
    wrong: list[str] = []
    tree = _get(state.tree, store.relative_to(root))
    top = _dict(tree)
    if "store.json" in top and not _is_json(top["store.json"]):
        wrong.append("store.json is torn")
    building: set[int] = set()
    for stage, fingerprint, found in _two_deep(top.get("artifacts")):
        wrong += _torn(found, f"artifacts/{stage}/{fingerprint[:6]}", "manifest.json", _manifest)
    for stage, fingerprint, found in _two_deep(top.get("unfinished")):
        assert isinstance(found, Tree)
        for key, unit in _dict(found.get("units")).items():
            wrong += _torn(unit, f"{stage}/{fingerprint[:6]}/units/{key}", "unit.json", _unit)
        places = [*_dict(found.get("making")).values(), *_dict(found.get("scratch")).values()]
        building |= {made.inode for place in places if isinstance(made := _dict(place).get("files"), Tree)}
    for name, found in _dict(top.get("runs")).items():
        if name.endswith(".json") and not name.startswith(".") and not _is_json(found):
            wrong.append(f"runs/{name} is torn")
    published = {path for names in state.acknowledged for path in names}
    for paths in state.acknowledged:
        at = paths[0].relative_to(store)
        if at.parts[0] == "unfinished" and store / "artifacts" / Path(*at.parts[1:3]) in published:
            continue  # its work is in the artifact
        there = [_get(tree, path.relative_to(store)) for path in paths]
        record = RECORDS.get((at.parts[0], at.parts[-2]), RECORDS.get((at.parts[0], "")))
        if not any(found is not None and (record is None or record in _dict(found)) for found in there):
            wrong.append(f"{at} was acknowledged and is lost")
        within = _dict(there[0]).values() if len(paths) == 1 else ()
        if any(isinstance(folder, Tree) and folder.inode in building for folder in within):
            wrong.append(f"{at} was acknowledged and still has its old name, under which a sweep would empty it")
    return wrong


RECORDS = {
    ("artifacts", ""): "manifest.json",
    ("unfinished", "units"): "unit.json",
}  # without which a thing is not there


def _get(tree: Tree | bytes | None, path: Path) -> Tree | bytes | None:
    for name in path.parts:
        if not isinstance(tree, Tree):
            return None
        tree = tree.get(name)
    return tree


def _dict(found: Tree | bytes | None) -> Tree:
    return found if isinstance(found, Tree) else Tree()


def _two_deep(tree: Tree | bytes | None) -> Iterator[tuple[str, str, Tree | bytes]]:
    for outer, inner in _dict(tree).items():
        for name, found in _dict(inner).items():
            yield outer, name, found


def _is_json(found: Tree | bytes | None) -> bool:
    try:
        return isinstance(found, bytes) and json.loads(found) is not None
    except ValueError:
        return False


def _torn(found: Tree | bytes, name: str, record: str, read: Callable[[bytes], Record | None]) -> list[str]:
    """What is wrong with a thing whose record is there: without it, it is nothing."""
    data = _dict(found).get(record)
    if data is None:
        return []
    said = read(data) if isinstance(data, bytes) else None
    if said is None:
        return [f"{name} is there, its {record} is not whole"]
    held = {file: _get(found, Path(said.folder, file)) for file, _ in said.files}
    return [
        f"{name}/{file} is torn" for file, sha in said.files if not isinstance(b := held[file], bytes) or _sha(b) != sha
    ]


@cache
def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Record(NamedTuple):
    folder: str
    files: list[tuple[str, str]]  # name, sha256


@cache
def _manifest(data: bytes) -> Record | None:
    try:
        found = Manifest.loads(data)
    except ValueError:
        return None
    return Record(found.content[:12], [(entry.name, entry.sha256) for entry in found.files])


@cache
def _unit(data: bytes) -> Record | None:
    try:
        found = UnitRecord.model_validate(unseal(data))
    except ValueError:
        return None
    return Record(found.content, [(entry.name, entry.sha256) for entry in found.files])


# ---------------------------------------------------------------------- histories


def in_this_process(_: str, works: Sequence[Work], done: Callable[[Any], None]) -> None:
    for work in works:
        done(make_unit(work))


def engine(store: Path) -> Engine:
    return Engine(Store(store), run_units=in_this_process)


def build(store: Path, count: int = 5, then: Callable[[], None] = lambda: None) -> None:
    """Raw numbers, units, nested files, an alias, the record of a run."""
    builder = engine(store)
    builder.ensure_all([toy.nested(toy.numbers(count)), toy.nested(toy.numbers(count, order="down"))])
    then()
    builder.store.record_run("run", {"recipe": "toy"})


@pytest.fixture(scope="module")
def disks() -> Iterator[Path]:
    """In memory where there is such a place: what a sync costs is no part of the model."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def history(disks: Path) -> tuple[Path, Path, list[Op]]:
    """(root, store, log) of a build into a store two directories below what was there, and of mending a damage."""
    root = disks / "whole"
    root.mkdir()
    store = root / "data" / "store"
    with Log() as log:

        def take_away() -> None:
            """As in a store that never had them: what makes one of these must see to its name too."""
            for name in ("runs", "damaged"):
                (store / name).rmdir()
                log.note("remove", store / name)

        build(store, then=take_away)
        damaged = toy.numbers(5).bound(Store(store)).path
        (damaged / "numbers.json").chmod(0o644)
        (damaged / "numbers.json").write_bytes(b"")
        engine(store).ensure_all([toy.numbers(5)])
    return root, store, log.ops


@pytest.fixture(scope="module")
def killed_histories(disks: Path) -> list[tuple[Path, Path, list[Op], int]]:
    """Like `history`, but the first builder is killed after its n-th operation and a second goes on; (…, operations
    of the first): whatever the first had done and not synced, the second must not build on unsynced."""
    found = []
    for n in range(1, 1000):
        root = disks / str(n)
        root.mkdir()
        store = root / "data" / "store"
        with Log(kill_at=n) as first, suppress(Killed):
            build(store, 2)
            return found
        durable._lasting.clear()  # another process, which knows of nothing
        with Log() as log:
            build(store, 2)
        log.ops[:0] = first.ops
        found.append((root, store, log.ops, n))
    raise AssertionError


# ---------------------------------------------------------------------- the tests


def test_no_crash_state_is_torn_or_lost(
    history: tuple[Path, Path, list[Op]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, store, ops = history
    count, distinct, wrong = 0, set(), []
    for state in states(ops, root, samples=150):
        count += 1
        distinct.add((state.after, repr(state.tree)))
        wrong += [(state.after, what) for what in violations(state, root, store)]
    with capsys.disabled():
        print(f" {len(ops)} operations, {count:,} crash states, {len(distinct):,} distinct ", end="")
    assert not wrong, wrong[:5]
    assert len(distinct) >= 5_000


def test_nor_after_a_kill_and_a_second_builder(
    killed_histories: list[tuple[Path, Path, list[Op], int]], capsys: pytest.CaptureFixture[str]
) -> None:
    count = 0
    for root, store, ops, killed in killed_histories:
        for state in states(ops, root, samples=2, start=max(killed, len(ops) - 2)):
            count += 1
            assert not violations(state, root, store), (killed, state.after)
    with capsys.disabled():
        print(f" {len(killed_histories)} kills, {count:,} crash states ", end="")
    assert len(killed_histories) > 100


def sync_sites(ops: Sequence[Op]) -> list[str]:
    return sorted({op.site for op in ops if op.name in ("fsync", "syncdir")})


def survives(ops: Sequence[Op], root: Path, store: Path) -> bool:
    return not any(violations(state, root, store) for state in states(ops, root, samples=8))


def test_every_sync_is_needed(
    history: tuple[Path, Path, list[Op]],
    killed_histories: list[tuple[Path, Path, list[Op], int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The store with any one of its syncs left out is found to be wrong by the enumeration above."""
    root, store, ops = history
    functions = {site.split(":")[1] for site in sync_sites(ops)}
    within = {
        "prepare",
        "new_attempt",
        "make_unit",
        "complete",
        "add_folder",
        "create",
        "replace",
        "_lasts",
        "quarantine",
    }
    assert functions == within
    undetected = [site for site in sync_sites(ops) if survives(without(ops, site), root, store)]
    for site in list(undetected):
        for its_root, its_store, its_ops, killed in killed_histories:
            last = states(without(its_ops, site), its_root, samples=2, start=max(killed, len(its_ops) - 3))
            if any(violations(state, its_root, its_store) for state in last):
                undetected.remove(site)
                break
    with capsys.disabled():
        print(f" {len(sync_sites(ops))} syncs left out in turn, {len(undetected)} unnoticed ", end="")
    assert undetected == []


def orders(ops: Sequence[Op]) -> Iterator[tuple[str, list[Op]]]:
    """Logs with one kind of step done too early: a record named before its bytes are synced or before its files have
    their place, words before deeds."""
    seen = set()
    for index, op in enumerate(ops):
        for kind, worse in _too_early(ops, index):
            if (kind, op.site) not in seen:
                seen.add((kind, op.site))
                yield f"{kind} at {op.site}", worse


def _too_early(ops: Sequence[Op], index: int) -> Iterator[tuple[str, list[Op]]]:
    op, before = ops[index], ops[:index]
    own = [i for i, other in enumerate(before) if other.paths[0] == op.paths[0]]  # what was done to the same file
    if op.name == "acknowledge":
        at = max(i for i, other in enumerate(before) if other.name in ("rename", "link", "mkdir", "write"))
        yield "word before deed", earlier(ops, index, at + 1)
    elif (
        op.name in ("link", "rename") and own and ops[own[0]].name == "write" and op.paths[-1].parts[-3] != "resolved"
    ):  # an index may be torn
        yield f"{op.name} before the bytes last", earlier(ops, index, own[0] + 1)
    if op.name == "link" and op.paths[1].name in RECORDS.values():
        placed = [i for i, o in enumerate(before) if o.name == "rename" and o.paths[1].parent == op.paths[1].parent]
        if placed:
            record = [ops[i] for i in own if i > placed[-1]] + [op]
            rest = [other for other in ops[placed[-1] :] if other not in record]
            yield "record before files", [*ops[: placed[-1]], *record, *rest]
    if op.name == "remove":
        published = [i for i, o in enumerate(before) if o.name == "link" and "artifacts" in o.paths[1].parts]
        if published and op.paths[0].parent.name == ops[published[-1]].paths[1].parts[-3]:
            yield "cleared before published", earlier(ops, index, published[-1])


def test_the_order_is_needed(history: tuple[Path, Path, list[Op]], capsys: pytest.CaptureFixture[str]) -> None:
    root, store, ops = history
    worse = dict(orders(ops))
    undetected = [name for name, mutated in worse.items() if survives(mutated, root, store)]
    with capsys.disabled():
        print(f" {len(worse)} orders, {len(undetected)} unnoticed ", end="")
    assert undetected == []
    assert {name.partition(" at ")[0] for name in worse} == {
        "word before deed",
        "link before the bytes last",
        "rename before the bytes last",
        "record before files",
        "cleared before published",
    }


def test_the_store_reads_crash_states_as_the_model_says(history: tuple[Path, Path, list[Op]], tmp_path: Path) -> None:
    """Some states written to a disk: the store itself finds each artifact whole or absent; a build completes them."""
    root, _, ops = history
    chosen = list(states(ops, root, samples=2))[:: max(1, len(list(states(ops, root, samples=2))) // 60)]
    completed = 0
    for number, state in enumerate(chosen):
        disk = tmp_path / str(number)
        _write(_get(state.tree, Path()), disk)
        opened = Store(disk / "data" / "store")
        for target in (toy.numbers(5), toy.nested(toy.numbers(5)), toy.nested(toy.numbers(5, order="down"))):
            found = opened.find(target.stage_name, target.fingerprint)
            for entry in found.files if found else []:
                opened.file(found, entry.name)
        if number % 6 == 0:
            last = engine(opened.root).ensure_all([toy.nested(toy.numbers(5))])[-1].artifact
            assert last.bound(opened).read() == {"0": 0, "1": 1, "2": 4, "3": 9, "4": 16}
            completed += 1
    assert completed >= 8


def _write(tree: Tree | bytes | None, at: Path) -> None:
    if isinstance(tree, Tree):
        at.mkdir()
        for name, found in tree.items():
            _write(found, at / name)
    else:
        at.write_bytes(tree or b"")


def test_the_model_tears(tmp_path: Path) -> None:
    """Of a file written without a sync, every state is there: absent, empty, torn, whole; synced, only whole."""
    path = tmp_path / "a"
    unsynced = [Op("write", (path,), data=b"whole")]
    found = [state.tree.get("a") for state in states(unsynced, tmp_path)]
    assert {None, b"", TORN, b"whole"} == set(found)  # type: ignore[arg-type]
    synced = [*unsynced, Op("fsync", (path,)), Op("syncdir", (tmp_path,))]
    assert [state.tree for state in states(synced, tmp_path, start=3)] == [{"a": b"whole"}]
