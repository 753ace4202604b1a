"""Damage: seen before it is used, named by file, moved away, built again; neighbours are left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from artifacts import toy

from vbert.artifacts.making.engine import Engine, Events, build_here
from vbert.artifacts.making.plan import plan
from vbert.artifacts.making.work import Work, make_unit
from vbert.artifacts.steps.stage import Machine
from vbert.artifacts.store.digests import digests_shared
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.verify import verify
from vbert.errors import BuildError, Damaged

TARGET = toy.squares(toy.numbers(3), toy.Slow())
NEIGHBOUR = toy.squares(toy.numbers(2), toy.Slow())
VALUES = {"0000.json": 0, "0001.json": 1, "0002.json": 4}


class Heard(Events):
    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.started_: list[str] = []

    def message(self, artifact: Any, sentence: str) -> None:
        self.sentences.append(sentence)

    def started(self, artifact: Any) -> None:
        self.started_.append(artifact.title)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    build_here([TARGET, NEIGHBOUR], root)
    return root


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "store"))


def put(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)
    path.chmod(0o444)


def file(store: Path, artifact: Any, name: str) -> Path:
    """A file of the artifact, or its manifest."""
    path: Path = artifact.bound(Store(store)).path
    return path.parent / name if name == "manifest.json" else path / name


def damages(data: bytes, other: bytes) -> Iterator[tuple[str, bytes]]:
    """Ways in which a disk, a tool or a hand may harm a file of these bytes."""
    end = len(data.rstrip())  # a line's end lost at the end of a manifest is no loss
    for size in sorted({0, 1, end - 1, len(data) // 2, *range(0, len(data), 97)}):
        if 0 <= size < end:
            yield f"cut to {size}", data[:size]
    draw = random.Random(len(data))
    for bit in range(8 * len(data)) if len(data) < 8 else draw.sample(range(8 * len(data)), 120):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        yield f"bit {bit} flipped", bytes(flipped)
    if data.strip(b"\0"):
        yield "zero tail", data[: len(data) // 2] + bytes(len(data) - len(data) // 2)
    yield "longer", data + b"\0"
    yield "another file", other


def seen(root: Path, target: Any = TARGET) -> Damaged | None:
    """What a reader of everything hits first."""
    artifact = target.bound(Store(root))
    try:
        for name in artifact.names():
            artifact.file(name)
    except Damaged as damage:
        return damage
    return None


@pytest.mark.parametrize("name", ["0002.json", "manifest.json"])
def test_every_damage_is_seen_with_the_file_named(store: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, data = file(store, TARGET, name), file(store, TARGET, name).read_bytes()
    other = file(store, NEIGHBOUR, "0001.json" if name == "0002.json" else name).read_bytes()
    missed, count = [], 0
    for what, bytes_ in damages(data, other):
        count += 1
        put(path, bytes_)
        damage = seen(store)
        if damage is None or damage.file != name or damage.fingerprint != TARGET.fingerprint:
            missed.append((what, str(damage)))
    with capsys.disabled():
        print(f" {count} damages ", end="")
    assert missed == []
    put(path, data)
    assert seen(store) is None
    assert seen(store, NEIGHBOUR) is None


def swap(path: Path) -> None:
    other = path.with_name("0001.json")
    mine, theirs = path.read_bytes(), other.read_bytes()
    put(path, theirs)
    put(other, mine)


def symlink(path: Path) -> None:
    shutil.copy(path, path.with_name("elsewhere"))
    path.unlink()
    path.symlink_to("elsewhere")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


# Those of a path only: `test_artifacts_both.py` has what a bucket suffers too.
HARMS: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: put(path, b""),
    "link": symlink,
    "dangling link": lambda path: (path.unlink(), path.symlink_to("nowhere"))[0],
    "directory": directory,
}


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["0002.json", "manifest.json"])
def test_damage_is_moved_away_and_built_again(store: Path, name: str, harm: str) -> None:
    HARMS[harm](file(store, TARGET, name))
    raw, neighbour = store / "artifacts" / "toy_numbers", NEIGHBOUR.bound(Store(store)).path
    before = {path: path.stat().st_mtime_ns for at in (raw, neighbour) for path in at.rglob("*")}
    heard = Heard()
    reader = toy.total(TARGET, {}, toy.Slow())
    Engine(Store(store), events=heard).ensure_all([reader])
    assert reader.bound(Store(store)).read() == 5
    assert TARGET.bound(Store(store)).read() == VALUES
    moved = list((store / "damaged").iterdir())
    assert len(moved) == 1
    assert f"toy_squares/{TARGET.fingerprint[:8]}/{name} is damaged" in heard.sentences[0]
    assert f"moved to {moved[0]}" in heard.sentences[0]
    assert heard.started_.count("toy_squares") == 1
    assert "toy_numbers" not in heard.started_
    assert {path: path.stat().st_mtime_ns for at in (raw, neighbour) for path in at.rglob("*")} == before


def test_swapped_files_are_seen(store: Path) -> None:
    path = TARGET.bound(Store(store)).path / "0002.json"
    assert path.stat().st_size == path.with_name("0001.json").stat().st_size
    swap(path)
    damage = seen(store)
    assert damage is not None
    assert damage.file == "0001.json"


def test_a_file_or_nothing_where_an_artifact_belongs(store: Path) -> None:
    path = TARGET.bound(Store(store)).path.parent
    for replace in (lambda: path.write_text("x"), path.mkdir, lambda: path.symlink_to("nowhere")):
        if path.is_dir():
            shutil.rmtree(path)
        replace()
        if path.is_dir():
            assert Store(store).find("toy_squares", TARGET.fingerprint) is None
        else:
            with pytest.raises(Damaged, match=r"manifest\.json"):
                Store(store).find("toy_squares", TARGET.fingerprint)
        assert build_here([TARGET], store)[0].read() == VALUES


def test_damage_deep_below_is_mended_while_a_reader_builds(store: Path) -> None:
    """A unit in a child reads its damaged input: the input is built again, then the step goes on."""
    path = toy.numbers(3).bound(Store(store)).path / "numbers.json"
    put(path, b"[0, 1, 9]")
    heard = Heard()
    target = toy.squares(toy.numbers(3), toy.Slow(scale=2))
    Engine(Store(store), events=heard).ensure_all([target])
    assert target.bound(Store(store)).read() == {"0000.json": 0, "0001.json": 2, "0002.json": 8}
    assert "numbers.json is damaged: its sha256" in heard.sentences[0]


def test_what_a_user_may_not_read_is_no_damage(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Any) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    opened = Store(store)
    monkeypatch.setattr(os, "lstat", denied)
    with pytest.raises(BuildError, match=r"can't be read: Permission denied") as caught:
        opened.find("toy_squares", TARGET.fingerprint)
    assert not isinstance(caught.value, Damaged)


# ---------------------------------------------------------------------- unfinished work


def unit(store: Path) -> Path:
    """A store in which units 0 and 1 of TARGET are committed and 2 is not."""
    shutil.rmtree(TARGET.bound(Store(store)).path.parent)
    for n in (0, 1):
        make_unit(Work(Store(store), "toy_squares", TARGET.fingerprint, f"{n:04d}", toy.square_of, n, Machine()))
    return Store(store).unfinished("toy_squares", TARGET.fingerprint) / "units" / "0001"


def record(path: Path) -> Path:
    return path.parents[1] / "unit.json"


UNIT_HARMS = HARMS | {
    "record cut": lambda path: put(record(path), record(path).read_bytes()[:-9]),
    "record empty": lambda path: put(record(path), b""),
    "record missing": lambda path: record(path).unlink(),
    "record of another": lambda path: put(record(path), (path.parents[2] / "0000" / "unit.json").read_bytes()),
    "figure changed": lambda path: put(record(path), record(path).read_bytes().replace(b'"n": 1', b'"n": 7')),
}


@pytest.mark.parametrize("harm", UNIT_HARMS)
def test_a_damaged_unit_is_made_again_and_no_other(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    path = unit(store)
    UNIT_HARMS[harm](next(path.glob("*/0001.json")))
    log, heard = tmp_path / "log", Heard()
    monkeypatch.setenv("TOY_LOG", str(log))
    Engine(Store(store), events=heard).ensure_all([TARGET])
    assert TARGET.bound(Store(store)).read() == VALUES
    assert sorted(log.read_text().split("\n")) == ["", "square 1", "square 2"]
    file = "unit.json" if "record" in harm or "figure" in harm else "0001.json"
    assert harm == "record missing" or f"unit 0001/{file} is damaged" in heard.sentences[0]
    assert verify(Store(store)) == []


def test_every_bit_of_a_units_record_counts(store: Path) -> None:
    path = unit(store) / "unit.json"
    data = path.read_bytes()
    missed = []
    for bit in range(0, 8 * len(data), 61):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        if json_or_none(bytes(flipped)) == json_or_none(data):
            continue
        put(path, bytes(flipped))
        if "0001" in Store(store).units("toy_squares", TARGET.fingerprint).committed(contents=True):
            missed.append(bit)
        else:
            shutil.copytree(next((path.parents[2] / "broken").iterdir()), path.parent)
            shutil.rmtree(path.parents[2] / "broken")
    assert missed == []


def json_or_none(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


# ---------------------------------------------------------------------- verify


def test_a_run_brings_back_what_its_page_shows_and_what_was_damaged(tmp_path: Path) -> None:
    """The page itself is whole; what else lies behind it may be gone, and nothing is made for that."""
    root = tmp_path / "store"
    squares = toy.squares(toy.numbers(2), toy.Slow())
    page = toy.page(toy.total(squares, {}, toy.Slow()), squares)
    build_here([page], root)

    def states() -> dict[str, str]:
        return {line.artifact.stage_name: line.status for line in plan([page], Store(root))}

    def directory(stage: str) -> Path:
        return next((root / "artifacts" / stage).iterdir())

    whole = dict.fromkeys(states(), "present")
    shutil.rmtree(directory("toy_numbers"))
    assert states() == whole | {"toy_numbers": "unneeded"}, "raw data may be deleted"
    shutil.rmtree(directory("toy_total"))
    assert states() == whole | {"toy_numbers": "unneeded", "toy_total": "missing"}, "the page shows it"
    build_here([page], root)
    assert states() == whole | {"toy_numbers": "unneeded"}
    build_here([toy.numbers(2)], root)
    put(next(directory("toy_numbers").glob("*/numbers.json")), b"[0, 2]")  # of the same size
    assert states() == whole
    assert [damage.stage for damage in verify(Store(root))] == ["toy_numbers"]
    assert states() == whole | {"toy_numbers": "missing"}, "verify has found it damaged"
    build_here([page], root)
    assert states() == whole
    assert verify(Store(root)) == []


def test_what_was_damaged_and_cannot_be_made_again_ends_no_run_that_stands_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download whose server is gone: every run failed for it until damaged/ was swept."""
    store, squares, again = Store(tmp_path / "store"), toy.squares(toy.numbers(2), toy.Slow()), toy.Slow(scale=2)
    page = toy.page(toy.total(squares, {}, toy.Slow()), squares)
    build_here([page], store)
    put(file(store.root, toy.numbers(2), "numbers.json"), b"[0, 2]")
    assert [damage.stage for damage in verify(store)] == ["toy_numbers"]
    real = Engine.make

    def gone(self: Engine, artifact: Any, build: Any) -> Any:
        if artifact.stage_name == "toy_numbers":
            raise BuildError("numbers can't be downloaded: HTTP 404")
        return real(self, artifact, build)

    monkeypatch.setattr(Engine, "make", gone)
    heard = Heard()
    built = Engine(Store(store.root), events=heard).ensure_all([page])
    assert [one.outcome for one in built] == ["cached"] * 3
    (said,) = heard.sentences
    assert said.startswith("toy_numbers was found damaged and can't be made again (numbers can't be downloaded: HTTP")
    for target in (toy.numbers(2), toy.squares(toy.numbers(2), again)):
        with pytest.raises(BuildError, match=r"^numbers can't be downloaded: HTTP 404$"):
            build_here([target], store.root)


def test_verify_trusts_no_earlier_check(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that rot under an unchanged time stamp: what a run remembers is not what verify believes."""
    monkeypatch.setenv("VBERT_VERIFIED", str(tmp_path / "verified"))
    opened = Store(store)
    path = TARGET.bound(opened).file("0002.json")
    info = path.stat()
    put(path, b"5")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    TARGET.bound(opened).file("0002.json")
    TARGET.bound(Store(store)).file("0002.json")
    assert [damage.file for damage in verify(opened)] == ["0002.json"]


def test_a_digest_is_taken_once_a_run_by_all_its_processes(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vbert.artifacts.store import local_files

    monkeypatch.setenv("VBERT_VERIFIED", str(tmp_path / "verified"))
    read: list[Path] = []
    real = local_files.sha256_file
    monkeypatch.setattr(local_files, "sha256_file", lambda path: read.append(path) or real(path))
    for _ in range(3):
        assert TARGET.bound(Store(store)).read() == VALUES
    assert len(read) == 3
    monkeypatch.delenv("VBERT_VERIFIED")
    assert TARGET.bound(Store(store)).read() == VALUES
    assert len(read) == 6
    with digests_shared():
        with digests_shared():  # a run within one has its file
            TARGET.bound(Store(store)).read()
        TARGET.bound(Store(store)).read()
        assert len(read) == 9
        del os.environ["VBERT_VERIFIED"]  # by a run beside it, in another thread
    assert "VBERT_VERIFIED" not in os.environ
