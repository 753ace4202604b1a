"""Builds a store again and again, each time killed or failed at another system call (`test_artifacts_strace.py`).

One interpreter does the imports; every build is a fork of it to which strace is attached, so that the n-th call counted
is the n-th of the build. Prints one JSON line for each sweep: {"sweep", "points", "torn", "lost", "stuck", "hidden"}.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from artifacts.crash_states import acknowledging
from artifacts.memory import in_memory
from artifacts.test_artifacts_crash import build

from vbert.artifacts.store import durable
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.gc import gc
from vbert.artifacts.upkeep.verify import verify

CALLS = (
    "fsync",
    "rename",
    "mkdir",
    "link",
    "unlink",
    "unlinkat",
    "chmod",
    "fchmod",
    "openat",
    "write",
    "close",
    "rmdir",
)
ERRORS = ("fsync", "rename", "mkdir", "link", "openat", "write", "fchmod", "unlink")
COUNT = 2


def contents(root: Path) -> dict[str, list[tuple[str, str]]]:
    """Fingerprint → its files' names and digests, aliases followed (whether one was found to be one is no matter)."""
    store, found = Store(root), {}
    for path in (root / "artifacts").glob("*/*"):
        whole = store.find(path.parent.name, path.name)
        found[path.name] = [(entry.name, entry.sha256) for entry in whole.files] if whole else []
    return found


def one(store: Path, told: Path, strace: list[str]) -> int:
    """A build under strace; its exit status. What it acknowledged is in the file `told`."""
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.read(ready, 1)
            out = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

            acknowledging(pytest.MonkeyPatch(), lambda path: os.write(out, f"{path}\n".encode()))
            build(store, COUNT)
            status = 0
        except BaseException:
            if "VBERT_SWEEP_SHOW" in os.environ:
                traceback.print_exc()
        finally:
            os._exit(status)
    tracer = subprocess.Popen(["strace", "-p", str(child), *strace], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    attached = tracer.stderr.readline()
    assert "attached" in attached, attached
    os.write(go, b"x")
    _, status = os.waitpid(child, 0)
    tracer.wait()
    tracer.stderr.close()
    os.close(ready)
    os.close(go)
    return status


def wrong(store: Path, told: Path, golden: dict[str, list[tuple[str, str]]]) -> list[str]:
    """What does not hold of a store whose builder was killed or failed, and of the same build done again."""
    found = [f"torn: {damage}" for damage in verify(Store(store), quarantine=False)] if store.exists() else []
    for line in told.read_text().splitlines() if told.exists() else []:
        path = Path(line)
        published = store / "artifacts" / Path(*path.relative_to(store).parts[1:3])
        if not path.exists() and not published.exists():
            found.append(f"lost: {path}")
    durable._lasting.clear()
    try:
        build(store, COUNT)
    except BaseException as error:
        return [*found, f"stuck: {error!r}"]
    if contents(store) != golden:
        found.append("torn: other bits after the same command")
    gc(Store(store), keep_roots=[p.name for p in (store / "artifacts").glob("*/*")], dry_run=False, grace=0)
    left = [path for name in ("unfinished", "trash", "damaged") for path in (store / name).rglob("*") if path.is_file()]
    return [*found, *(f"stuck: {path} is left" for path in left)]


def sweep(
    name: str, call: str, action: str, count: int, stride: int, at: Path, golden: dict[str, list[tuple[str, str]]]
) -> None:
    result: Counter[str] = Counter()
    shown: list[str] = []
    began = time.monotonic()
    for n in range(1, count + 1, stride):
        store, told = at / "data" / "store", at / "told"
        options = ["-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{action}:when={n}"]
        status = one(store, told, options)
        found = wrong(store, told, golden)
        if call == "fsync" and action == "error=EIO" and status == 0:
            found.append(f"hidden: fsync {n} failed and the build said nothing")
        for what in found:
            result[what.split(":")[0]] += 1
            shown.append(f"{n}: {what}")
        result["points"] += 1
        shutil.rmtree(at / "data", ignore_errors=True)
        told.unlink(missing_ok=True)
    line: dict[str, Any] = {"sweep": name, "seconds": round(time.monotonic() - began, 1), "examples": shown[:3]}
    print(json.dumps(line | {key: result[key] for key in ("points", "torn", "lost", "stuck", "hidden")}), flush=True)


def main(stride: int) -> None:
    with tempfile.TemporaryDirectory(dir=in_memory()) as name:
        at = Path(name)
        build(at / "golden", COUNT)  # and every import is done
        golden = contents(at / "golden")
        trace = at / "trace"
        one(at / "data" / "store", at / "told", ["-o", str(trace), "-e", f"trace={','.join(CALLS)}"])
        counts = Counter(line.split("(")[0] for line in trace.read_text().splitlines())
        assert not wrong(at / "data" / "store", at / "told", golden)
        shutil.rmtree(at / "data")
        (at / "told").unlink()
        for call in CALLS:
            sweep(f"kill at {call}", call, "signal=KILL", counts[call], stride, at, golden)
        for error in ("ENOSPC", "EIO"):
            for call in ERRORS:
                sweep(f"{error} at {call}", call, f"error={error}", counts[call], stride, at, golden)


if __name__ == "__main__":
    main(int(sys.argv[1]))
