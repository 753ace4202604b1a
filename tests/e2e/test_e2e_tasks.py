"""`shapes_tasks`: every task that chooses an answer is learnt, and neither its text nor its images alone tell it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REACHED = {
    "vqa": 0.95,
    "vqa/count": 0.90,
    "vqa/relation": 0.90,
    "pairs@0": 0.90,
    "pairs@1": 0.90,
    "pairs@2": 0.90,
    "sentiment": 0.97,
    "choice": 0.85,
}
CONTROLS = {"vqa_text": 0.60, "pairs_text": 0.55, "sentiment_text": 0.40, "sentiment_image": 0.40, "choice_text": 0.40}


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_each_task_is_learnt_and_its_controls_are_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "run", "shapes_tasks", "--store", str(tmp_path), "--local", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])["metrics"]

    def accuracy(name: str) -> float:
        entry, _, part = name.partition("/")
        return found["/".join(filter(None, (entry, "shapes/test/accuracy", part)))]

    assert {name: accuracy(name) for name, least in REACHED.items() if accuracy(name) < least} == {}
    assert {name: accuracy(name) for name, most in CONTROLS.items() if accuracy(name) > most} == {}
    for seed in range(3):
        assert 0.5 < found[f"pairs@{seed}/shapes/test/consistency"] <= accuracy(f"pairs@{seed}")
