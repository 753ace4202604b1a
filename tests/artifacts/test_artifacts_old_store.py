"""A store that an earlier version made (commit 186ead5, format 1) is read, gone on with and kept up.

`old_store.tar.xz` holds stages of `toy.py`: finished ones, an alias, one of whose five units three are committed, one
that was stopped behind its third checkpoint of seven, one that was found damaged, and the records of two runs.
`old_bucket.tar.xz` is what lay in a bucket likewise.
"""

from __future__ import annotations

import json
import os
import tarfile
import time
from pathlib import Path

import pytest
from artifacts import toy

from vbert.artifacts.making.engine import Built, Engine, Events, build_here
from vbert.artifacts.making.plan import plan
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Machine
from vbert.artifacts.store.owner import Owner
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.gc import gc, keep
from vbert.artifacts.upkeep.verify import verify
from vbert.artifacts.upkeep.why import lineage, why

FAST = toy.Slow()
ONE = toy.squares(toy.numbers(3).named("one"), FAST).named("one")
TWO = toy.squares(toy.numbers(4).named("two"), FAST).named("two")
NESTED = toy.nested(toy.numbers(2))
ALIAS = toy.squares(toy.numbers(3, "down"), FAST)
UNITS = toy.squares(toy.numbers(5), FAST)
STOPPED = toy.total(ONE, {"two": TWO}, toy.Slow(seconds=0.02))
DAMAGED = toy.squares(toy.numbers(1), FAST)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    with tarfile.open(Path(__file__).parent / "old_store.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    return Store(tmp_path / "store")


@pytest.fixture
def log(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Which units were made since; children that start meanwhile keep its name."""
    path = tmp_path_factory.mktemp("toys") / "log"
    path.touch()
    monkeypatch.setenv("TOY_LOG", str(path))
    return path


class Seen(Events):
    def __init__(self) -> None:
        self.outcomes: dict[str, str] = {}
        self.steps: list[int] = []

    def finished(self, built: Built) -> None:
        self.outcomes[built.artifact.title] = built.outcome

    def progress(self, artifact: Artifact, done: int, total: int, figures: dict[str, float]) -> None:
        self.steps.append(done)


def aged(store: Store, *parts: str) -> None:
    then = time.time() - 8 * 86_400
    for part in parts:
        for path in [store.root / part, *(store.root / part).rglob("*")]:
            os.utime(path, (then, then), follow_symlinks=False)


def test_what_is_finished_is_found_and_read(store: Store) -> None:
    assert ONE.bound(store).read() == {"0000.json": 0, "0001.json": 1, "0002.json": 4}
    assert NESTED.bound(store).read() == {"0": 0, "1": 1}
    assert ALIAS.bound(store).read() == ONE.bound(store).read()
    assert ALIAS.bound(store).manifest.fingerprint == ONE.fingerprint
    assert ONE.bound(store).figures == {"squares": 3}
    assert len(list(store.manifests())) == 10
    assert verify(store) == []


def test_the_plan_says_what_is_there_how_far_and_what_was_damaged(store: Store) -> None:
    lines = {line.artifact.fingerprint: line for line in plan([ONE, ALIAS, UNITS, STOPPED, DAMAGED], store)}
    states = {artifact: lines[artifact.fingerprint] for artifact in (ONE, ALIAS, UNITS, STOPPED, DAMAGED)}
    assert [line.status for line in states.values()] == ["present", "present", "unfinished", "unfinished", "missing"]
    kept = states[UNITS].begun
    assert kept is not None
    assert (kept.done, kept.total, kept.of) == (3, 5, "units")
    assert "damaged" in str(states[DAMAGED].damage)


def test_the_missing_units_alone_are_made(store: Store, log: Path) -> None:
    (made,) = build_here([UNITS], store)
    assert made.read() == {f"{n:04d}.json": n * n for n in range(5)}
    assert sorted(log.read_text().splitlines()) == ["square 3", "square 4"]
    assert not store.unfinished("toy_squares", UNITS.fingerprint).exists()
    assert verify(store) == []


@pytest.mark.parametrize("builder", ["dead", "of another machine"])
def test_a_stopped_one_goes_on_from_its_checkpoint(builder: str, store: Store) -> None:
    if builder == "dead":
        for record in store.root.glob("unfinished/*/*/scratch/*.owner"):
            gone = {"pid": 2**22 + 1, "started": "0"}
            Owner(**vars(Owner.current()) | gone).write(record)
    events = Seen()
    (made,) = build_here([STOPPED], store, events=events)
    assert made.read() == 0 + 1 + 4 + 0 + 1 + 4 + 9
    assert events.steps == [4, 5, 6, 7]


def test_what_is_made_of_the_same_content_is_adopted(store: Store, log: Path) -> None:
    """Also of what is new, and of an alias's input."""
    events = Seen()
    again = toy.squares(toy.numbers(4, "down").named("again"), FAST).named("again")
    build_here([again, toy.squares(toy.numbers(3, "sideways"), FAST).named("third")], store, events=events)
    assert events.outcomes["toy_numbers[again]"] == "built"
    assert (events.outcomes["toy_squares[again]"], events.outcomes["toy_squares[third]"]) == ("adopted", "adopted")
    assert log.read_text() == ""
    assert again.bound(store).manifest.fingerprint == TWO.fingerprint


def test_damage_is_found_and_mended(store: Store, log: Path) -> None:
    path = ONE.bound(store).path / "0002.json"
    path.chmod(0o644)
    path.write_bytes(b"5")
    (damage,) = verify(store)
    assert (damage.fingerprint, damage.file) == (ONE.fingerprint, "0002.json")
    build_here([ALIAS, DAMAGED], store)
    assert sorted(log.read_text().splitlines()) == ["square 0", "square 0", "square 1", "square 2"]
    assert verify(store) == []


def test_gc_goes_by_its_runs(store: Store) -> None:
    """The last run of each set of changes keeps what it needs, half done or not; the rest is old enough to go."""
    aged(store, "artifacts", "damaged", "unfinished")
    keep(store, "20261128-101500-toy-00000000")
    swept = gc(store, dry_run=False)
    gone = {(item.kind, item.name.split("/")[2]) for item in swept.items if item.kind != "damaged"}
    left = {("artifact", a.fingerprint) for a in (toy.numbers(1), toy.numbers(3, "down"), toy.numbers(5))}
    assert gone == left | {("alias", ALIAS.fingerprint), ("unfinished", UNITS.fingerprint)}
    assert [item.kind for item in swept.items].count("damaged") == 1
    assert build_here([STOPPED], store)[0].read() == 19
    assert verify(store) == []


def test_why_lineage_and_runs(store: Store) -> None:
    said = why(store, toy.squares(toy.numbers(3), toy.Slow(scale=2)))
    assert any("settings.scale 1 → 2" in line for line in said), said
    assert [line.split()[0] for line in lineage(store, ONE.fingerprint)] == ["toy_numbers[one]", "toy_squares[one]"]
    runs = store.runs()
    assert [runs[run]["status"] for run in sorted(runs)] == ["done", "stopped"]
    assert runs["20261128-101500-toy-00000000"]["kept"] is False


def test_part_of_its_units_can_be_made(store: Store, log: Path) -> None:
    made = Engine(store, Machine(), Events()).make_units(UNITS, range(3, 4))
    assert (made.done, made.total) == (4, 5)
    assert log.read_text().splitlines() == ["square 3"]
    assert json.loads((store.root / "store.json").read_text())["format"] == 2


def test_what_lies_in_a_bucket_is_read_and_gone_on_with(
    tmp_path: Path, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("obstore", reason="the extra `s3` is not installed")
    pytest.importorskip("moto", reason="moto is the S3 server of this test")
    from artifacts.s3 import Site, serving

    with serving() as server, tarfile.open(Path(__file__).parent / "old_bucket.tar.xz") as tar:
        site = Site(server, tmp_path / "machines", monkeypatch)
        for member in tar:
            lines = tar.extractfile(member)
            assert lines is not None
            server.put(site.bucket, site.key(member.name), lines.read())
        store = Store(site.url)
        assert ONE.bound(store).read() == {"0000.json": 0, "0001.json": 1, "0002.json": 4}
        assert NESTED.bound(store).read() == {"0": 0, "1": 1}
        assert ALIAS.bound(store).manifest.fingerprint == ONE.fingerprint
        (line,) = (line for line in plan([UNITS], store) if line.artifact == UNITS)
        assert line.begun is not None
        assert (line.begun.done, line.begun.of) == (3, "units")  # of how many, the machine alone knew that made them
        events = Seen()
        again = toy.squares(toy.numbers(3, "sideways").named("third"), FAST).named("third")
        made, _ = build_here([UNITS, again], store, events=events)
        assert made.read() == {f"{n:04d}.json": n * n for n in range(5)}
        assert events.outcomes["toy_squares[third]"] == "adopted"
        assert sorted(log.read_text().splitlines()) == ["square 3", "square 4"]
        assert verify(store) == []
        gc(store, dry_run=False)
        assert ONE.bound(store).read() == {"0000.json": 0, "0001.json": 1, "0002.json": 4}
        assert store.runs()["20261128-101500-toy-00000000"]["status"] == "done"


def test_it_becomes_a_store_of_this_version_when_something_is_made_and_no_sooner(store: Store) -> None:
    """Whoever runs an earlier version on it beside this one can go on until then."""

    def format_() -> int:
        return int(json.loads((store.root / "store.json").read_text())["format"])

    told: list[str] = []

    class Heard(Events):
        def message(self, artifact: Artifact, sentence: str) -> None:
            told.append(sentence)

    build_here([ONE, ALIAS], store, events=Heard())
    store.prepare()
    gc(store)
    assert (format_(), told) == (1, [])
    build_here([toy.numbers(9)], store, events=Heard())
    build_here([toy.numbers(10)], store, events=Heard())
    assert format_() == 2
    assert told == [f"{store.root} is of a later format now: earlier versions of vbert can't open it"]


def test_gc_leaves_a_live_builder_of_that_version(store: Store) -> None:
    """Its files are in `publishing/`, and who it is beside them."""
    mine = store.root / "publishing" / f"{UNITS.fingerprint}.{'a' * 32}"
    mine.mkdir(parents=True)
    (mine / "file").write_text("x")
    Owner.current().write(store.root / "locks" / f"{UNITS.fingerprint}.holder")
    Owner.current().write(store.root / "unfinished" / "toy_squares" / UNITS.fingerprint / "scratch" / "1.owner")
    aged(store, "publishing")
    assert [item for item in gc(store, dry_run=False).items if item.kind == "publishing"] == []
    assert (mine / "file").exists()
