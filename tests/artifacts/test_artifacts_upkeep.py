"""Upkeep of a store on a path, and of it alone: owners and processes, what format 1 left, a gc killed at any call."""

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
from artifacts.world import DAY, age, dead

from vbert.artifacts.making.engine import build_here
from vbert.artifacts.making.plan import walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.step_json import steps_as_json
from vbert.artifacts.store import durable
from vbert.artifacts.store.digests import sha256_file
from vbert.artifacts.store.owner import Owner
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.gc import gc
from vbert.artifacts.upkeep.verify import verify
from vbert.errors import UserError

SLOW = toy.Slow()


def run(store: Store, run_id: str, target: Artifact, **record: Any) -> None:
    steps = [artifact.fingerprint for artifact in walk(target)]
    known = {"recipe": "toy", "targets": [target.fingerprint], "steps": steps, "started": time.time(), "status": "done"}
    store.record_run(run_id, known | record)


def there(store: Store) -> set[str]:
    return {path.name for path in (store.root / "artifacts").glob("*/*")}


def marks(*targets: Artifact) -> set[str]:
    return {artifact.fingerprint for target in targets for artifact in walk(target)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def unfinished(store: Store, target: Artifact, owner: Owner) -> Path:
    """As a builder of `target` left it, or is at work on it."""
    store.prepare()
    at = durable.make_directories(store.unfinished(target.stage_name, target.fingerprint))
    store.describe(target.stage_name, target.fingerprint, steps_as_json(target))
    (at / "scratch" / "1" / "content").mkdir(parents=True)
    (at / "scratch" / "1" / "content" / "checkpoint").write_text("here")
    owner.write(at / "scratch" / "1.owner")
    return at


def test_what_a_live_builder_uses_stays(store: Store) -> None:
    target = toy.squares(toy.numbers(2), SLOW)
    build_here([toy.numbers(2), toy.numbers(3)], store)
    at = unfinished(store, target, Owner.current())
    age(at, 99 * DAY)
    swept = gc(store, dry_run=False, grace=0)
    assert at.exists()
    assert there(store) == marks(toy.numbers(2))  # its input, which no run names
    assert [item.kind for item in swept.items] == ["artifact"]


def test_leftovers_of_format_1(store: Store) -> None:
    """Its builders had a directory in publishing/, and a record of theirs beside it."""
    store.prepare()
    for name, days in (("young", 6), ("old", 8)):
        at = store.root / "publishing" / f"{name}.0"
        at.mkdir(parents=True)
        (at / "file").write_text("x")
        dead().write(at.with_name(f"{name}.0.owner"))
        age(at, days * DAY)
        age(at.with_name(f"{name}.0.owner"), days * DAY)
    assert {item.kind for item in gc(store, dry_run=False).items} == {"publishing"}
    assert sorted(path.name for path in (store.root / "publishing").iterdir()) == ["young.0", "young.0.owner"]


def test_damaged_things_and_trash(store: Store) -> None:
    store.prepare()
    young, old = store.root / "damaged" / "young", store.root / "damaged" / "old"
    for at in (young, old, store.root / "trash" / "x"):
        at.mkdir(parents=True)
        (at / "file").write_text("x")
    age(old, 8 * DAY)
    gc(store, dry_run=False)
    assert [path.name for path in (store.root / "damaged").iterdir()] == ["young"]
    assert list((store.root / "trash").iterdir()) == []


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
        assert verify(copy, quarantine=False) == []
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


def test_a_directory_that_is_made_again_is_made_to_last_again(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk: file systems give a new directory the inode that a removed one had."""
    store, synced = Store(tmp_path_factory.mktemp("disk")), list[Path]()
    real = durable.sync_directory
    monkeypatch.setattr(durable, "sync_directory", lambda path: synced.append(path) or real(path))
    for _ in range(3):
        synced.clear()
        build_here([toy.numbers(2)], store)
        assert store.root / "artifacts" / "toy_numbers" in synced
        gc(store, dry_run=False, grace=0)
        assert there(store) == set()


def test_gc_while_another_process_builds(store: Store) -> None:
    """Swept again and again beside a live builder that no run record names."""
    code = f"""
import sys
from artifacts import toy
from vbert.artifacts.making.engine import build_here
print(build_here([toy.squares(toy.numbers(5), toy.Slow(seconds=0.2))], {str(store.root)!r})[0].read())
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    store.prepare()
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)
    while not (store.root / "unfinished" / "toy_squares").exists():
        time.sleep(0.005)
        assert process.poll() is None
    sweeps = 0
    while process.poll() is None and not list((store.root / "artifacts").glob("toy_squares/*/manifest.json")):
        gc(store, dry_run=False, grace=0)
        sweeps += 1
    said, _ = process.communicate()
    assert process.returncode == 0
    assert json.loads(said.replace("'", '"')) == {f"{n:04d}.json": n * n for n in range(5)}
    assert sweeps >= 2


def test_gc_of_a_store_whose_builder_was_killed(store: Store, tmp_path: Path) -> None:
    code = f"""
from artifacts import toy
from vbert.artifacts.making.engine import build_here
build_here([toy.squares(toy.numbers(2), toy.Slow(seconds=60))], {str(store.root)!r})
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, start_new_session=True)
    while not list(store.root.glob("unfinished/toy_squares/*/making/*")):
        time.sleep(0.01)
        assert process.poll() is None
    assert gc(store, grace=0).items == []
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert {item.kind for item in gc(store, grace=0).items} == {"artifact", "unfinished"}
    assert gc(store).items == []
    gc(store, dry_run=False, grace=0)
    assert there(store) == set()
    assert list((store.root / "trash").glob("*")) == []
    assert list((store.root / "unfinished").glob("*/*")) == []


# ---------------------------------------------------------------------- verify


def test_verify_reads_as_fast_as_the_digests_allow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figure is printed; timing is not asserted."""
    store = Store(tmp_path)
    build_here([toy.bulk(4, 8)], store)
    began = time.perf_counter()
    assert verify(store) == []
    seconds = time.perf_counter() - began
    path = next(toy.bulk(4, 8).bound(store).path.glob("0.bin"))
    began = time.perf_counter()
    sha256_file(path)
    one = 8 / (time.perf_counter() - began)
    with capsys.disabled():
        print(f" verify {32 / seconds:.0f} MB/s, one thread's sha256 {one:.0f} MB/s ", end="")


def test_single_files_and_links_among_the_unfinished_go_as_they_are_listed(store: Store) -> None:
    build_here([toy.numbers(2)], store)
    run(store, "1", toy.numbers(2))
    elsewhere = store.root.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("x")
    (store.root / "damaged" / "file").write_text("x")
    (store.root / "damaged" / "link").symlink_to(elsewhere)
    (store.root / "damaged" / "dangling").symlink_to("nowhere")
    swept = gc(store, dry_run=False, grace=0)
    assert {item.name for item in swept.items} == {"damaged/file", "damaged/link", "damaged/dangling"}
    assert list((store.root / "damaged").iterdir()) == []
    assert (elsewhere / "file").exists()


def test_a_store_that_cannot_be_written_is_not_swept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    build_here([toy.numbers(2)], store)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=f"{store.root} is read-only for this user"):
        gc(store, dry_run=False, grace=0)
