"""kill -9 of everything at random moments, then the same command: nothing finished is made again, bits are equal."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from artifacts import toy
from processes import until

from vbert.artifacts.making.engine import build_here
from vbert.artifacts.making.plan import walk
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.gc import gc
from vbert.artifacts.upkeep.verify import verify

TESTS = Path(__file__).parents[1]
SECONDS = 0.03
COUNT = 4
TARGET = toy.graph(COUNT, seconds=SECONDS)
COMMAND = f"""
import sys
from artifacts import toy
from vbert.artifacts.making.engine import build_here
print(build_here([toy.graph({COUNT}, seconds=float(sys.argv[2]))], sys.argv[1])[0].read())
"""


def command(store: Path, log: Path, seconds: float = SECONDS) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(store), str(seconds)],
        env=os.environ | {"PYTHONPATH": str(TESTS), "TOY_LOG": str(log)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def contents(store: Path) -> dict[str, bytes]:
    """Every file of every artifact but the manifests, which record times."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted((store / "artifacts").rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


def committed(store: Path) -> set[str]:
    """`stage/fingerprint/key` of the units that are committed, and `stage/fingerprint` of what is published."""
    units = {
        str(p.parent.relative_to(store / "unfinished")) for p in (store / "unfinished").glob("*/*/units/*/unit.json")
    }
    return units | {str(p.relative_to(store / "artifacts")) for p in (store / "artifacts").glob("*/*")}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    store = tmp_path_factory.mktemp("golden")
    build_here([TARGET], store)
    return contents(store)


@pytest.mark.parametrize("seed", [1, 2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 40))])
def test_killed_at_random_moments(
    tmp_path: Path, golden: dict[str, bytes], seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(seed)
    store, log, kills = tmp_path / "store", tmp_path / "log", 0
    log.touch()
    while kills < draw.choice((3, 4, 5)):
        process = command(store, log)
        before = log.read_text().count("\n")
        # At a piece of work more, then a moment later: in a unit, between two, at a commit, at publishing.
        more, moment = draw.randrange(0, 5), draw.random() * 2 * SECONDS
        wanted = before + more
        until(lambda: process.poll() is not None or log.read_text().count("\n") >= wanted, pause=0.002)  # noqa: B023  at once
        if process.poll() is not None:
            break
        time.sleep(moment)  # the moment is drawn
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kills += 1
        assert verify(Store(store), quarantine=False) == []
    last = command(store, log)
    said, wrong = last.communicate(timeout=60)
    assert last.returncode == 0, wrong
    assert said.strip() == str(sum(n * n for n in range(COUNT)) + sum(n * n for n in range(COUNT + 1)))
    assert contents(store) == golden
    assert verify(Store(store)) == []
    with capsys.disabled():
        print(f" {kills} kills ", end="")
    # A kill may cost what was being made: two units at once, one checkpoint interval.
    done = Counter(log.read_text().splitlines())
    units = sum(count for line, count in done.items() if line.startswith("square"))
    adds = [count for line, count in done.items() if line.startswith("add")]
    assert units <= COUNT + COUNT + 1 + 2 * kills
    assert sum(adds) <= 2 * COUNT + 1 + kills
    gc(Store(store), keep_roots=[TARGET.fingerprint], dry_run=False, grace=0)
    assert committed(store) == {f"{a.stage_name}/{a.fingerprint}" for a in walk(TARGET)}
    assert [list((store / name).iterdir()) for name in ("trash", "damaged") if (store / name).exists()][-1] == []


def test_a_committed_unit_is_never_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed with some units committed: the rest is made, and only the rest."""
    store, log, again = tmp_path / "store", tmp_path / "log", tmp_path / "again"
    process = command(store, log, seconds=1)
    units = store / "unfinished" / "toy_squares"
    until(lambda: len(list(units.glob("*/units/*/unit.json"))) >= 2 or process.poll() is not None, pause=0.002)
    assert process.poll() is None  # two more are being made
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    have = {int(path.parent.name) for path in units.glob("*/units/*/unit.json")}
    target = next(a for a in walk(toy.graph(COUNT, seconds=1)) if (units / a.fingerprint).exists())
    monkeypatch.setenv("TOY_LOG", str(again))
    made = build_here([target], store)[0]
    missing = set(range(COUNT)) - have
    assert missing
    assert sorted(again.read_text().splitlines()) == [f"square {n}" for n in sorted(missing)]
    assert sorted(made.names()) == [f"{n:04d}.json" for n in range(COUNT)]
