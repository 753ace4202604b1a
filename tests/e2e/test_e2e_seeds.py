"""The demo over three seeds: detector, pre-training and fine-tuning drawn anew each time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

METRIC = "vqa/easy_vqa/test/accuracy"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_three_seeds_reach_the_accuracy(tmp_path: Path) -> None:
    reached = []
    for seed in range(3):
        command = [sys.executable, "-m", "flows.cli", "run", "demo", "--store", str(tmp_path), "--local", "--json"]
        done = subprocess.run([*command, "--set", f"seed={seed}"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        reached.append(json.loads(done.stdout.splitlines()[-1])["metrics"][METRIC])
    for curves in tmp_path.glob("artifacts/pretrain/*/*/curves.jsonl"):
        last = json.loads(curves.read_text().splitlines()[-1])
        assert last["validation/match/own/other"] >= 0.9
        assert 0.45 < last["validation/match/exchanged/other"] < 0.55
    assert median(reached) >= 0.99, reached
    assert min(reached) >= 0.97, reached
