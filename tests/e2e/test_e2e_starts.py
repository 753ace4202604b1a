"""Trainings that start from each other: pre-training, pre-training on a task's labels, the task, the task again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e.finished import TINY

import vbert
from vbert.metrics.evaluation import Evaluation
from vbert.objectives.trained import Model

TRAININGS = """
pretrain:
  coco: {data: [shapes], steps: 4, batch_size: 8, learning_rate: 1.0e-3, validation_examples: 20}
  task: {start: coco, data: [shapes], itm_target: task_label, kinds: [pair], matched: [pair], steps: 2, batch_size: 8,
         learning_rate: 0.0, validation_examples: 20}
downstream:
  pairs: {objective: nlvr2, data: shapes, start: task, steps: 2, batch_size: 8, learning_rate: 0.0,
          validation_examples: 20, evaluate: {resamples: 50}}
  more: {objective: nlvr2, data: shapes, start: pairs, steps: 2, batch_size: 8, learning_rate: 1.0e-3,
         validation_examples: 20, evaluate: {resamples: 50}}
  again: {objective: nlvr2, data: shapes, start: more, steps: 0, evaluate: {resamples: 50}, learning_rate: 1.0e-3}
"""


@pytest.mark.slow
def test_each_begins_with_what_the_one_before_has_learnt(finished_store: Path, tmp_path: Path) -> None:
    """What doesn't move (a learning rate of 0) is what it started from, heads included."""
    shutil.copytree(finished_store, tmp_path / "store", ignore=shutil.ignore_patterns("unfinished", "locks"))
    before = Path(TINY).read_text().partition("pretrain:")[0]
    (tmp_path / "starts.yaml").write_text(f"{before}{TRAININGS}machine: {{units_at_once: 1}}\n")
    run = vbert.run(str(tmp_path / "starts.yaml"), store=tmp_path / "store", how="local")

    def weights(title: str) -> dict[str, Any]:
        return run.artifact(title, Model).load().state_dict()

    coco, task, pairs = weights("pretrain[coco]"), weights("pretrain[task]"), weights("finetune[pairs]")
    more, again = weights("finetune[more]"), weights("finetune[again]")
    assert all(torch.equal(task[name], coco[name]) for name in coco)
    kept = {name: name for name in coco if name.startswith("encoder.")} | {
        f"answer.dense.{part}": f"matching.dense.{part}" for part in ("weight", "bias")
    }
    assert all(torch.equal(pairs[name], task[source]) for name, source in kept.items())
    assert set(pairs) == set(kept)
    assert not torch.equal(more["answer.dense.weight"], pairs["answer.dense.weight"])
    assert all(torch.equal(again[name], more[name]) for name in more)
    predictions = [run.artifact(f"evaluate[{name}]", Evaluation).predictions() for name in ("more", "again")]
    assert predictions[0] == predictions[1] != []
