"""A real publish killed at every system call it makes, and failed at every one that can fail."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_killed_and_failed_at_every_system_call(capsys: pytest.CaptureFixture[str]) -> None:
    allowed = subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True, text=True, check=False)
    if allowed.returncode != 0:
        pytest.skip(f"strace may not trace here: {allowed.stderr}")
    command = [
        sys.executable,
        str(Path(__file__).with_name("syscall_sweep.py")),
        os.environ.get("VBERT_SWEEP_STRIDE", "1"),
    ]
    environment = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    sweeps = [json.loads(line) for line in done.stdout.splitlines()]
    with capsys.disabled():
        print()
        for line in sweeps:
            print(f"  {line['sweep']}: {line['points']} points, {line['seconds']} s")
        print(f"  {sum(line['points'] for line in sweeps):,} points ", end="")
    bad = [line for line in sweeps if any(line[key] for key in ("torn", "lost", "stuck", "hidden"))]
    assert bad == []
    assert sum(line["points"] for line in sweeps) >= 500 // int(command[-1])
