"""A toy trainable for the loop: a classifier with dropout on points that are functions of (seed, epoch, index)."""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vbert.artifacts.making import worker_main, workers
from vbert.artifacts.steps.settings import Numerics
from vbert.artifacts.steps.stage import Job, Machine
from vbert.training.loop import Schedule, run_training
from vbert.training.ranks import Ranks
from vbert.training.sampler import generator

SIZE = 50
ONE_THREAD = Numerics()


@dataclass
class ToyTrainable:
    seed: int = 0
    nan_at: int = -1
    kill_at: int = -1  # SIGKILL to this process in the loss of that step
    term_at: int = -1  # SIGTERM, likewise
    term_workers_at: int = -1  # SIGTERM to the loader workers alone
    term_in_validation: int = -1  # SIGTERM in the validation of this number
    best_at: int = -1  # the call after which `validation/late` is largest
    dropout: float = 0.2
    width: int = 32
    note: Path | None = None  # a directory in which each process that collates leaves its id
    one_thread: ClassVar[Numerics] = ONE_THREAD

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        w = self.width
        self.model: nn.Module = nn.Sequential(
            nn.Linear(8, w), nn.LayerNorm(w), nn.Dropout(self.dropout), nn.GELU(), nn.Linear(w, w), nn.Linear(w, 3)
        )
        self.calls = self.validations = 0
        self.weights: dict[str, float] = {}

    def size(self) -> int:
        return SIZE

    def collate(self, items: list[tuple[int, int]]) -> dict[str, Tensor]:
        if self.note is not None:
            self.note.mkdir(exist_ok=True)
            (self.note / str(os.getpid())).touch()
        rows = np.stack([generator(self.seed, epoch, i).standard_normal(8) for i, epoch in items])
        points = torch.from_numpy(rows).float()
        return {"points": points, "labels": points[:, :3].argmax(1)}

    def counts(self, batch: dict[str, Tensor]) -> dict[str, int]:
        return {"loss": len(batch["labels"])}

    def loss(self, batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        self.calls += 1
        if self.calls == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.calls == self.term_at:
            os.kill(os.getpid(), signal.SIGTERM)
        if self.calls == self.term_workers_at:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGTERM)
        loss = F.cross_entropy(model(batch["points"]), batch["labels"], reduction="sum")
        if self.calls == self.nan_at:
            loss = loss * float("nan")
        return {"loss": loss}

    def validate(self, ranks: Ranks) -> dict[str, float] | None:
        self.validations += 1
        if self.validations == self.term_in_validation:
            os.kill(os.getpid(), signal.SIGTERM)
        with torch.no_grad():
            value = float(self.model(torch.ones(4, 8)).sum())
        return {"validation/sum": value, "validation/late": -float(abs(self.calls - self.best_at))}


def train(
    job: Job, trainable: ToyTrainable, schedule: Schedule, numerics: Numerics = ONE_THREAD, best: str | None = None
) -> dict[str, Any]:
    """Runs in a child too; the digest covers every bit of model and curves."""
    curves = run_training(job, trainable, schedule, numerics, 3, best)
    digest = hashlib.sha256()
    for name, tensor in sorted(trainable.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    rows = [{k: v for k, v in row.items() if k != "validation/late"} for row in curves]
    digest.update(repr(rows).encode())
    return {"digest": digest.hexdigest(), "calls": trainable.calls, "rows": len(curves)}


def job(scratch: Path, rank: int = 0, world: int = 1, **machine: Any) -> Job:
    settings = Machine(**({"checkpoint_steps": 5, "loader_workers": 0} | machine))
    return Job(scratch, scratch, settings, rank, world, stop=worker_main.stopping)


def in_processes(
    scratch: Path,
    world: int,
    trainables: Sequence[Any],
    *arguments: Any,
    run: Callable[..., Any] = train,
    **machine: Any,
) -> list[Any]:
    """`run` in `world` processes of their own: each one's result, or its negative signal number or exit code."""
    context = multiprocessing.get_context("fork")
    port = workers.free_port()
    processes, readers = [], []
    for rank in range(world):
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(
            target=_rank,
            args=(
                writer,
                workers.rank_environment(rank, world, port),
                job(scratch, rank, world, **machine),
                trainables[rank],
                arguments,
                run,
            ),
        )
        process.start()
        writer.close()
        processes.append(process)
        readers.append(reader)
    results = []
    for process, reader in zip(processes, readers, strict=True):
        try:
            results.append(reader.recv())
        except EOFError:
            process.join()
            results.append(process.exitcode)
        process.join()
    return results


def _rank(
    writer: Any,
    environment: dict[str, str],
    job: Job,
    trainable: Any,
    arguments: tuple[Any, ...],
    run: Callable[..., Any],
) -> None:
    os.environ.update(environment)
    with contextlib.redirect_stderr(io.StringIO()):
        result = run(job, trainable, *arguments)
    writer.send(result)
