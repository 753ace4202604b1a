"""The store: publishing, aliases, runs, what a reader may rely on."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from artifacts import as_user, toy
from artifacts.crash_states import Log
from safetensors import SafetensorError

from vbert.artifacts.making.engine import Built, Engine, Events, build_here
from vbert.artifacts.steps.stage import Build, Figures, stage
from vbert.artifacts.store import durable
from vbert.artifacts.store.store import Store
from vbert.errors import BuildError, UserError

SLOW = toy.Slow()


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def outcomes(target: Any, store: Store | Path) -> dict[str, str]:
    at = store if isinstance(store, Store) else Store(store)
    return {built.artifact.title: built.outcome for built in Engine(at).ensure_all([target])}


def test_a_finished_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "store")
    made = build_here([toy.nested(toy.numbers(2).named("raw"))], store)[0]
    found = made.manifest
    assert [entry.name for entry in found.files] == ["own.json", "part0/0", "part1/1"]
    assert found.files[0].model_dump() == {
        "name": "own.json",
        "size": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }
    assert found.step == json.loads(json.dumps(found.step))
    assert found.hashed["arguments"] == {"numbers": {"artifact": toy.numbers(2).fingerprint}}
    assert {"processor", "libraries", "commit", "dirty", "python"} <= set(found.environment)
    assert made.path == store.root / "artifacts" / "toy_nested" / made.fingerprint / found.content[:12]
    assert sorted(p.name for p in made.path.parent.iterdir()) == [found.content[:12], "manifest.json"]
    for path in made.path.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o444)
    names = {p.name for p in store.root.iterdir()}
    assert names == {"store.json", "artifacts", "unfinished", "resolved", "locks", "damaged", "runs"}
    assert list((store.root / "unfinished").glob("*/*")) == []
    assert [p.suffix for p in (store.root / "locks").iterdir()] == [".lock"] * 2


def test_publish_order(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with Log() as log:
        made = build_here([toy.numbers(2)], store)[0]
    began = next(n for n, op in enumerate(log.ops) if op.paths[0].name == "numbers.json")
    mark, content = made.fingerprint, made.path.name
    steps = [(op.name, op.paths[-1].name) for op in log.ops[began:] if "resolved" not in op.paths[-1].parts]
    fresh = next(op.paths[0].name for op in log.ops if op.name == "link" and op.paths[1].parts[-4] == "artifacts")
    assert steps == [
        ("write", "numbers.json"),
        ("fsync", "numbers.json"),
        ("syncdir", "files"),
        ("mkdir", "toy_numbers"),
        ("mkdir", mark),
        ("rename", content),
        ("syncdir", mark),
        ("syncdir", "toy_numbers"),
        ("syncdir", "artifacts"),
        ("syncdir", "store"),
        ("syncdir", "1"),
        ("syncdir", "store"),
        ("write", fresh),
        ("fsync", fresh),
        ("link", "manifest.json"),
        ("syncdir", mark),
        ("acknowledge", mark),
        ("remove", mark),
    ]


def test_a_second_run_builds_nothing_and_writes_nothing(tmp_path: Path) -> None:
    build_here([toy.graph(2)], tmp_path)
    before = tree(tmp_path)
    with Log() as log:
        assert set(outcomes(toy.graph(2), tmp_path).values()) == {"cached"}
    assert log.ops == []
    assert tree(tmp_path) == before


def test_first_publisher_wins(tmp_path: Path) -> None:
    store = Store(tmp_path)
    build_here([toy.numbers(3)], store)
    target = toy.numbers(2)
    engine = Engine(store)
    with engine.building(target) as one, engine.building(target) as two:
        (one.directory / "numbers.json").write_text("[0, 1]")
        (two.directory / "numbers.json").write_text("[7]")
        record = engine._record(target, {}, 0.0, "", one.environment)
        first = store.publish(one.directory, record, {})
        with Log() as log:
            second = store.publish(two.directory, record, {})
    assert second == first
    assert target.bound(store).read() == [0, 1]
    # The loser says "done" too, so it too makes the name last.
    last = [(op.name, op.paths[0].name) for op in log.ops if op.paths[0].name == target.fingerprint]
    assert last[-2:] == [("syncdir", target.fingerprint), ("acknowledge", target.fingerprint)]


def test_a_failed_sync_is_no_lost_race(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync the bytes may be gone for good: it is told, never tried again, never taken for success."""
    store, target = Store(tmp_path), toy.numbers(2)
    real = durable.sync_directory

    def failing(path: Path) -> None:
        if path == tmp_path / "artifacts" / "toy_numbers" / target.fingerprint and (path / "manifest.json").exists():
            raise OSError(errno.EIO, "Input/output error", str(path))
        real(path)

    monkeypatch.setattr(durable, "sync_directory", failing)
    store.prepare()
    engine = Engine(store)
    with Log() as log, engine.building(target) as build:
        (build.directory / "numbers.json").write_text("[0, 1]")
        with pytest.raises(BuildError, match=r"failed to confirm .*Input/output error"):
            store.publish(build.directory, engine._record(target, {}, 0.0, "", build.environment), {})
    assert not any(op.name == "acknowledge" and "artifacts" in op.paths[0].parts for op in log.ops)


@stage("store_odd", makes=toy.Numbers, version=1)
def odd(build: Build, kind: str) -> Figures:
    (build.directory / "file").write_text("x")
    if kind == "link":
        (build.directory / "link").symlink_to("file")
    elif kind == "directory link":
        (build.directory / "deep").mkdir()
        (build.directory / "link").symlink_to("deep")
    elif kind == "pipe":
        os.mkfifo(build.directory / "pipe")
    elif kind == "manifest":
        (build.directory / "manifest.json").write_text("{}")
    return {}


@pytest.mark.parametrize("kind", ["link", "directory link", "pipe", "manifest"])
def test_artifacts_hold_files_only(tmp_path: Path, kind: str) -> None:
    with pytest.raises(
        BuildError, match=f"store_odd left .*{'manifest.json' if kind == 'manifest' else kind.split()[-1]}"
    ):
        build_here([odd(kind)], tmp_path)
    assert Store(tmp_path).find("store_odd", odd(kind).fingerprint) is None
    assert list((tmp_path / "unfinished").glob("*/*/scratch/*/files")) == []


def test_write_file_leaves_another_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("another's")
    with pytest.raises(FileExistsError):
        durable.write_file(path, b"mine")
    assert path.read_text() == "another's"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_disk_full_keeps_what_is_finished_and_says_so(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, target = Store(tmp_path), toy.squares(toy.numbers(3), SLOW)
    build_here([toy.numbers(3)], store)
    real = durable.write_file

    def full(path: Path, data: bytes, mode: int = durable.READ) -> None:
        if path.name.startswith(".manifest.json"):
            raise error
        real(path, data, mode)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_file", full)
        with pytest.raises(BuildError, match=r"toy_squares: no room left for .*MB free\); finished units .* are kept"):
            build_here([target], store)
    assert len(list((store.unfinished("toy_squares", target.fingerprint) / "units").iterdir())) == 3
    log = tmp_path / "log"
    monkeypatch.setenv("TOY_LOG", str(log))
    assert build_here([target], store)[0].read() == {"0000.json": 0, "0001.json": 1, "0002.json": 4}
    assert not log.exists()


def test_a_read_only_store_can_be_read() -> None:
    """As another user: root may write where no one may."""
    if (reason := as_user.why_not()) is not None:
        pytest.skip(reason)
    with as_user.shared_directory() as data:
        build_here([toy.numbers(2)], data / "store")
        before = tree(data)
        code = f"""
from artifacts import toy
from vbert.errors import BuildError
from vbert.artifacts.making.engine import Engine
from vbert.artifacts.making.plan import plan
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.gc import gc
from vbert.artifacts.upkeep.verify import verify
store = Store({str(data / "store")!r})
assert store.read_only()
target = toy.numbers(2)
assert [b.outcome for b in Engine(store).ensure_all([target])] == ["cached"]
assert target.bound(store).read() == [0, 1]
assert [line.status for line in plan([toy.squares(target, toy.Slow())], store)] == ["present", "missing"]
assert verify(store) == [] and gc(store, grace=0).items
try: Engine(store).ensure_all([toy.numbers(3)])
except BuildError as error: print(error)
"""
        subprocess.run(["chmod", "-R", "g-w", data / "store"], check=True)
        said, wrong = as_user.python(54321, code).communicate()
        assert said.strip() == f"toy_numbers is missing and the store {data / 'store'} is read-only for this user", (
            wrong
        )
        assert tree(data) == before


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; --store takes a directory"):
        Store(tmp_path / "file")


def test_moving_a_store_is_mv(tmp_path: Path) -> None:
    build_here([toy.graph(2)], tmp_path / "old")
    build_here([toy.graph(2, order="down")], tmp_path / "old")
    before = {p.relative_to(tmp_path / "old"): p.read_bytes() for p in (tmp_path / "old").rglob("*") if p.is_file()}
    assert not any(str(tmp_path).encode() in data for data in before.values())
    (tmp_path / "old").rename(tmp_path / "new")
    for order in ("up", "down"):
        assert set(outcomes(toy.graph(2, order=order), tmp_path / "new").values()) == {"cached"}
        assert toy.graph(2, order=order).bound(Store(tmp_path / "new")).read() == 6


def test_a_publish_between_two_looks_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`find` without a lock, while another publishes: absent or whole, never "its manifest is missing"."""
    store, target = Store(tmp_path), toy.numbers(2)
    path = tmp_path / "artifacts" / "toy_numbers" / target.fingerprint / "manifest.json"
    real = os.lstat

    def publishes_after_the_look(at: Any) -> os.stat_result:
        try:
            return real(at)
        except FileNotFoundError:
            if Path(at) == path:
                monkeypatch.setattr(os, "lstat", real)
                build_here([target], tmp_path)
            raise

    monkeypatch.setattr(os, "lstat", publishes_after_the_look)
    store.find("toy_numbers", target.fingerprint)  # raises nothing
    assert store.find("toy_numbers", target.fingerprint) is not None


def test_two_who_compare_do_not_clear_away_each_others_work(tmp_path: Path) -> None:
    """The second waits for the first, which is building aside."""
    store, target = Store(tmp_path), toy.squares(toy.numbers(2), SLOW)
    build_here([target], store)
    waited: list[str] = []
    work = store.unfinished(target.stage_name, target.fingerprint) / "units"

    class Waiting(Events):
        def message(self, artifact: Any, sentence: str) -> None:
            waited.append(sentence)

    with ThreadPoolExecutor(1) as threads:
        with store.lock(target.fingerprint):
            work.mkdir(parents=True)
            second = threads.submit(Engine(Store(tmp_path), events=Waiting()).compare, target)
            deadline = time.monotonic() + 20
            while not waited and time.monotonic() < deadline:
                time.sleep(0.01)
            assert work.is_dir()
        assert second.result() == []
    assert waited[0].startswith("toy_squares: waiting for process ")


def test_earlier_artifacts_of_a_stage(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for count in (1, 2):
        build_here([toy.numbers(count)], store)
    with Engine(store).building(toy.numbers(3)) as build:
        assert {a.fingerprint for a in build.earlier()} == {toy.numbers(n).fingerprint for n in (1, 2)}
        assert sorted(len(a.read()) for a in build.earlier()) == [1, 2]  # type: ignore[attr-defined]
    build_here([toy.graph(n) for n in (1, 2)], store)  # with steps behind them, in whatever order a manifest has them
    with Engine(store).building(toy.graph(3)) as build:
        assert sorted(a.read() for a in build.earlier()) == [1, 6]  # type: ignore[attr-defined]


def test_events_tell_what_happened(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []

    class Telling(Events):
        def started(self, artifact: Any) -> None:
            told.append(("started", artifact.title))

        def finished(self, built: Built) -> None:
            told.append((built.outcome, built.artifact.title))

    build_here([toy.squares(toy.numbers(1), SLOW)], tmp_path, events=Telling())
    build_here([toy.squares(toy.numbers(1), SLOW)], tmp_path, events=Telling())
    assert told == [
        ("started", "toy_numbers"),
        ("built", "toy_numbers"),
        ("started", "toy_squares"),
        ("built", "toy_squares"),
        ("cached", "toy_numbers"),
        ("cached", "toy_squares"),
    ]


def test_an_index_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    """It is no more than a hint."""
    (tmp_path / "resolved" / "toy_numbers").parent.mkdir()
    (tmp_path / "resolved" / "toy_numbers").write_text("a file")
    assert build_here([toy.numbers(2)], tmp_path)[0].read() == [0, 1]


def test_a_loose_artifact_by_the_directory_of_its_manifest(tmp_path: Path) -> None:
    made = build_here([toy.numbers(2)], tmp_path)[0]
    for directory in (made.path, made.path.parent):
        loose = toy.Numbers.at(directory)
        assert (loose.read(), loose.input("count")) == ([0, 1], 2)


@pytest.mark.parametrize("name", ["locks", "runs"])
def test_a_file_where_a_folder_belongs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match=f"{tmp_path / name} is no directory"):
        build_here([toy.numbers(2)], tmp_path)
