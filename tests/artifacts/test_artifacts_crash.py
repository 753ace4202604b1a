"""Publishing survives a power loss: every crash state that the operation log allows, and every log made worse."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from artifacts import toy
from artifacts.crash_states import TORN, Log, Op, State, Tree, earlier, states, without
from artifacts.memory import in_memory

from vbert.artifacts.making.build import Work
from vbert.artifacts.making.graph import Engine
from vbert.artifacts.steps.fingerprint import sha256
from vbert.artifacts.store import durable
from vbert.artifacts.store.manifest import Manifest
from vbert.artifacts.store.store import Store
from vbert.artifacts.store.units import make_unit

# ---------------------------------------------------------------------- what must hold in every state


def violations(state: State, root: Path, store: Path) -> list[str]:
    """What is wrong in a crash state: what has its final name and is not whole, what was acknowledged and is gone."""
    wrong: list[str] = []
    tree = _get(state.tree, store.relative_to(root))
    top = _dict(tree)
    if "store.json" in top and not _is_json(top["store.json"]):
        wrong.append("store.json is torn")
    leftovers = {found.inode for found in _dict(top.get("publishing")).values() if isinstance(found, Tree)}
    for stage, fingerprint, found in _two_deep(top.get("artifacts")):
        wrong += _torn(found, f"artifacts/{stage}/{fingerprint[:6]}", "manifest.json", _manifest_files)
    for stage, fingerprint, found in _two_deep(top.get("unfinished")):
        assert isinstance(found, Tree)
        for key, unit in _dict(found.get("units")).items():
            wrong += _torn(unit, f"{stage}/{fingerprint[:6]}/units/{key}", "unit.json", _unit_files)
        leftovers |= {made.inode for made in _dict(found.get("making")).values() if isinstance(made, Tree)}
    for name, found in _dict(top.get("runs")).items():
        if name.endswith(".json") and not name.startswith(".") and not _is_json(found):
            wrong.append(f"runs/{name} is torn")
    published = {path for names in state.acknowledged for path in names}
    for paths in state.acknowledged:
        at = paths[0].relative_to(store)
        if at.parts[0] == "unfinished" and store / "artifacts" / Path(*at.parts[1:3]) in published:
            continue  # its work is in the artifact
        there = [_get(tree, path.relative_to(store)) for path in paths]
        if not any(found is not None for found in there):
            wrong.append(f"{at} was acknowledged and is lost")
        if len(paths) == 1 and isinstance(there[0], Tree) and there[0].inode in leftovers:
            wrong.append(f"{at} was acknowledged and still has its old name, under which a sweep would empty it")
    return wrong


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


def _torn(found: Tree | bytes, name: str, record: str, files: Callable[[bytes], dict[str, str] | None]) -> list[str]:
    whole = found.get(record) if isinstance(found, Tree) else None
    named = files(whole) if isinstance(whole, bytes) else None
    if named is None:
        return [f"{name} is there, its {record} is not whole"]
    held = {file: _get(found, Path(file)) for file in named}
    return [f"{name}/{f} is torn" for f, sha in named.items() if not isinstance(b := held[f], bytes) or _sha(b) != sha]


@cache
def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@cache
def _manifest_files(data: bytes) -> dict[str, str] | None:
    try:
        found = Manifest.read(SimpleNamespace(read_bytes=lambda: data))  # type: ignore[arg-type]
    except ValueError:
        return None
    return {entry.name: entry.sha256 for entry in found.files}


@cache
def _unit_files(data: bytes) -> dict[str, str] | None:
    try:
        body = json.loads(data)
        claimed = body.pop("digest")
    except (ValueError, KeyError):
        return None
    if claimed != sha256(json.dumps(body, sort_keys=True)):
        return None
    return {entry["name"]: entry["sha256"] for entry in body["files"]}


# ---------------------------------------------------------------------- histories


def in_this_process(_: str, works: Sequence[Work], done: Callable[[Any], None]) -> None:
    for work in works:
        done(make_unit(work.unfinished, work.key, work.make, work.argument))


def engine(store: Path) -> Engine:
    return Engine(Store(store), run_units=in_this_process)


def build(store: Path, count: int = 5, then: Callable[[], None] = lambda: None) -> None:
    """Raw numbers, units, nested files, an alias, the record of a run."""
    builder = engine(store)
    builder.ensure_all([toy.nested(toy.numbers(count)), toy.nested(toy.numbers(count, order="down"))])
    then()
    builder.store.note_run("run", {"recipe": "toy"})


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
                log("remove", store / name)

        build(store, then=take_away)
        damaged = toy.numbers(5).bound(Store(store)).path
        (damaged / "numbers.json").chmod(0o644)
        (damaged / "numbers.json").write_bytes(b"")
        engine(store).ensure_all([toy.numbers(5)])
    return root, store, log.ops


class Killed(BaseException):
    """kill -9, for the process that would have gone on."""


@pytest.fixture(scope="module")
def killed_histories(disks: Path) -> list[tuple[Path, Path, list[Op], int]]:
    """Like `history`, but the first builder is killed after its n-th operation and a second goes on; (…, operations
    of the first): whatever the first had done and not synced, the second must not build on unsynced."""
    found = []
    for n in range(1, 1000):
        root = disks / str(n)
        root.mkdir()
        store = root / "data" / "store"
        with Log() as log, pytest.MonkeyPatch.context() as patch:

            def observe(name: str, *paths: Path, log: Log = log, n: int = n) -> None:
                log(name, *paths)
                if len(log.ops) == n:
                    durable.observe(None)
                    patch.setattr(durable, "remove_tree", lambda path: None)  # the dead clear nothing away
                    raise Killed

            durable.observe(observe)
            with suppress(Killed):
                build(store, 2)
                return found
            patch.undo()
            durable._settled.clear()  # another process, which knows of nothing
            durable.observe(log)
            build(store, 2)
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
    within = {"prepare", "attempt_directory", "make_unit", "commit", "complete", "publish", "set_aside", "note_run"}
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
    """Logs with one kind of step done too early: renames before what they name is synced, words before deeds."""
    seen = set()
    for index, op in enumerate(ops):
        kind = (op.name, op.site)
        if op.name not in ("rename", "acknowledge", "remove") or kind in seen or op.site.startswith("test_"):
            continue
        to = _too_early(ops, index)
        if to is not None and to < index:
            seen.add(kind)
            yield f"{op.name} at {op.site}", earlier(ops, index, to)


def _too_early(ops: Sequence[Op], index: int) -> int | None:
    op = ops[index]
    for at in range(index - 1, -1, -1):
        before = ops[at]
        if op.name == "rename" and before.name == "write" and before.paths[0].is_relative_to(op.paths[0]):
            return at + 1  # of the last file written: manifest, unit.json, the record of a run
        if op.name == "acknowledge" and before.name in ("rename", "mkdir", "write"):
            return at + 1
        if op.name == "remove" and before.name == "rename" and "artifacts" in before.paths[1].parts:
            return at  # unfinished work cleared away before it is published
    return None


def test_the_order_is_needed(history: tuple[Path, Path, list[Op]], capsys: pytest.CaptureFixture[str]) -> None:
    root, store, ops = history
    worse = dict(orders(ops))
    undetected = [name for name, mutated in worse.items() if survives(mutated, root, store)]
    with capsys.disabled():
        print(f" {len(worse)} orders, {len(undetected)} unnoticed ", end="")
    assert undetected == []
    assert len(worse) >= 6


def test_the_log_is_what_the_kernel_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line without its system call would prove nothing."""
    asked: list[tuple[str, ...]] = []
    real = {name: getattr(os, name) for name in ("fsync", "rename", "link", "mkdir")}

    def fsync(handle: int) -> None:
        real["fsync"](handle)
        path = os.readlink(f"/proc/self/fd/{handle}")
        asked.append(("syncdir" if os.path.isdir(path) else "fsync", path))

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("rename", "link", "mkdir"):

        def call(*paths: Any, name: str = name, **named: Any) -> None:
            real[name](*paths, **named)
            asked.append((name, *(str(p) for p in paths if not isinstance(p, int))))

        monkeypatch.setattr(os, name, call)
    with Log() as log:
        build(tmp_path / "store")
    logged = [(op.name, *map(str, op.paths)) for op in log.ops if op.name not in ("write", "acknowledge", "remove")]
    seen = [line for line in asked if line in set(logged)]
    assert seen == logged
    unlogged = [line for line in asked if line not in set(logged) and line[0] in ("fsync", "syncdir", "rename")]
    assert unlogged == []


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
                opened.verified(found, entry.name)
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
