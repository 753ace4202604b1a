"""The device of each process."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from training.training_toy import ToyTrainable, job, train

from vbert.device import of_rank
from vbert.errors import UserError
from vbert.training.schedule import Schedule


def test_the_processes_of_an_evaluation_take_the_gpus_in_turns() -> None:
    assert [str(of_rank("cuda", rank, 2)) for rank in range(5)] == ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]
    assert {str(of_rank("cpu", rank, 0)) for rank in range(3)} == {"cpu"}


def test_training_wants_a_gpu_for_each_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="processes 3 want a GPU each and there are 2"):
        train(job(tmp_path, 0, 3, device="cuda"), ToyTrainable(), Schedule(steps=1, batch_size=3, learning_rate=0.1))
