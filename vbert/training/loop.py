"""The one training loop: detectors, pre-training and every downstream task.

accelerate brings the device, bf16 autocast, DDP and trackers. It does not prepare the loader: the order of samples is
ours (`vbert.training.sampler`), so that a run resumed at any step ends in the same bits.
"""

from __future__ import annotations

import logging
import math
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vbert.artifacts.steps.fingerprint import digest
from vbert.artifacts.steps.settings import Numerics
from vbert.artifacts.steps.stage import Job, Stopped
from vbert.errors import BuildError, UserError
from vbert.training.checkpoint import Checkpoints, DamagedCheckpoint, TrainingState
from vbert.training.optimizer import clip_gradients, make_optimizer, optimizer_tensors, restore_optimizer
from vbert.training.process import blocked, die_with_parent, make_accelerator, seed_process
from vbert.training.ranks import Ranks
from vbert.training.sampler import GlobalBatchSampler, IndexDataset, derive, items
from vbert.training.schedule import Schedule

__all__ = ["Batch", "Mines", "Schedule", "Trainable", "run_training"]

log = logging.getLogger("vbert.training")
LOG_EVERY = {"cpu": 1}  # steps between two readings of the losses, by kind of device
Batch = Any  # the result of `collate` and argument of `loss`: tensors, or an object with `to` and `pin_memory`


class Trainable(Protocol):
    """The loop's interface to a model with its data and losses.

    A loss is a sum of terms divided by their number in the whole batch of an optimiser step, over all its parts and
    processes: cutting a batch changes bits, never the minimised loss. So a `Trainable` returns sums and counts, and the
    loop divides.
    """

    model: nn.Module

    @property
    def weights(self) -> Mapping[str, float]:
        """The losses' weights in the minimised sum; 1 by default."""

    def size(self) -> int:
        """The number of training examples."""

    def collate(self, items: list[tuple[int, int]]) -> Batch:
        """A batch of (example index, epoch); runs in loader workers, a function of (seed, epoch, example id) alone."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Loss → the number of its terms in this part, a batch made by `collate`."""

    def loss(self, batch: Batch, model: nn.Module) -> dict[str, Tensor]:
        """Loss → the sum of its terms in this part, a scalar. `model` is `self.model`, as DDP wraps it. A single loss
        may be called "loss", as the weighted sum is."""

    def validate(self, ranks: Ranks) -> dict[str, float] | None:
        """Figures on held-out examples, of `self.model` in eval mode. Called on every rank; those of rank 0 count."""


@runtime_checkable
class Mines(Protocol):
    """A `Trainable` whose samples are made with what the weights of a moment say of them: mined negatives."""

    @property
    def mine_every(self) -> int:
        """Steps between two searches; 0: none."""

    def mine(self, samples: Sequence[tuple[int, int]], ranks: Ranks) -> dict[str, Tensor]:
        """What the samples (index, epoch) of the next steps are made with, by `self.model` in eval mode. Called on
        every rank, which return the same. Raises Stopped."""

    def use_mined(self, samples: Sequence[tuple[int, int]], mined: Mapping[str, Tensor]) -> None:
        """Has `collate` make them so; called before it, also where training goes on from a checkpoint."""


def run_training(
    job: Job, trainable: Trainable, schedule: Schedule, numerics: Numerics, seed: int, best: str | None = None
) -> list[dict[str, float]]:
    """Train `trainable.model` in place, from the newest whole checkpoint in `job.scratch` if there is one.

    best: the validation figure whose largest value selects the model; None keeps the last one. Returns the curves:
    a row for each hundredth of the steps and each validation, {"step", "learning_rate", losses averaged since the
    last row, validation figures (on rank 0)}. Raises Stopped after a checkpoint when SIGTERM came,
    BuildError when the loss is not finite.
    """
    return _TrainingLoop(job, trainable, schedule, numerics, seed, best).curves()


class _TrainingLoop:
    def __init__(
        self, job: Job, trainable: Trainable, schedule: Schedule, numerics: Numerics, seed: int, best: str | None
    ) -> None:
        self.job, self.trainable, self.schedule, self.seed, self.best = job, trainable, schedule, seed, best
        if problem := schedule.uneven(job.world):
            raise UserError(f"batch_size {problem}")
        if schedule.steps and not trainable.size():
            raise BuildError("there are no training examples: look at the splits of the data and at --limit")
        self.accelerator = make_accelerator(job, numerics)
        torch.set_num_threads(numerics.threads)  # after accelerate, which sets its own
        self.device = self.accelerator.device
        self.ranks = Ranks(job)
        self.model = self.accelerator.prepare_model(trainable.model)
        self.optimizer = make_optimizer(trainable.model, schedule)
        self.checkpoints = Checkpoints(job.scratch / "checkpoints", self._digest(numerics))
        self.state = TrainingState(self.checkpoints.digest)
        # Reading a loss waits for the device: at once on a CPU, every few steps elsewhere.
        self.log_every = LOG_EVERY.get(self.device.type, 10)
        self.row = max(1, schedule.steps // 100)
        self.losses: list[dict[str, Tensor]] = []  # of the steps since they were last read
        self.mines = trainable if isinstance(trainable, Mines) and trainable.mine_every else None
        self.mined: dict[str, Tensor] = {}  # for the steps up to state.mined_until

    def _digest(self, numerics: Numerics) -> str:
        shapes = {name: list(t.shape) for name, t in self.trainable.model.state_dict().items()}
        parts = [self.schedule, numerics, self.seed, self.best, shapes, self.trainable.size()]
        return digest(parts)  # by the marks of the settings: a field added since, unused, leaves a checkpoint valid

    def curves(self) -> list[dict[str, float]]:
        try:
            self._warm_up_ddp()
            self._resume()
            self._steps()
            if self.best and self.state.best_step:
                self._load(self._best_model())
        finally:
            self.accelerator.end_training()
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.trainable.model.eval()
        return self.state.curves

    def _warm_up_ddp(self) -> None:
        """A throw-away step on a fresh DDP, which regroups its buckets after its first backward: that changes the
        order of sums, and with three ranks or more a resumed run would differ in its first step (measured)."""
        if self.job.world == 1 or not self.schedule.steps:
            return
        before = {name: tensor.clone() for name, tensor in self.trainable.model.state_dict().items()}
        self.model.train()
        parts = list(self._loader(0, 1, workers=0))
        counts = self._counts(parts)
        for batch in parts:
            seed_process(derive(self.seed, "settle", self.job.rank))
            self._backward(self._losses(batch, counts))
        self.optimizer.zero_grad()
        self._load(before)

    def _resume(self) -> None:
        """Go on from the checkpoint that rank 0 finds whole."""
        checkpoint = self.checkpoints.latest() if self.job.rank == 0 else None
        if self.job.world > 1:
            step = [checkpoint[0].step if checkpoint else -1]
            torch.distributed.broadcast_object_list(step)
            if self.job.rank and step[0] >= 0:
                checkpoint = self.checkpoints.latest()
            if step[0] != (checkpoint[0].step if checkpoint else -1):
                raise BuildError(f"rank {self.job.rank} can't read the checkpoint of step {step[0]} in the scratch")
        if checkpoint is not None:
            self.state, parts = checkpoint
            self._load(parts["model"])
            restore_optimizer(self.optimizer, parts["optimizer"])
            self.mined = parts.get("mined", {})
            log.info("training goes on from step %d", self.state.step)

    def _steps(self) -> None:
        last = self.schedule.steps
        if self.state.due:
            self._write_row(True)
        batches: Iterator[Batch] | None = None
        while self.state.step < last:
            step = self.state.step
            if batches is None or step == self.state.mined_until:
                batches = self._batches(step, last)
            self._step(batches)
            self.state.step = step = step + 1
            checkpoint = step == last or step % self.job.machine.checkpoint_steps == 0
            validate = step == last or bool(self.schedule.validate_every and step % self.schedule.validate_every == 0)
            row = step == last or step % self.row == 0 or validate
            stopping = self.ranks.stopping()  # at every step: the sender of SIGTERM will not wait long
            if checkpoint or row or stopping or step % self.log_every == 0:
                self._gather()
            if row:
                self.state.due = validate and stopping  # validation may take longer than the time that is left
                if not self.state.due:
                    self._write_row(validate)
            if checkpoint or stopping:
                self._save()
            if stopping and (step < last or self.state.due):
                raise Stopped(f"training stopped at step {step}")

    def _batches(self, step: int, last: int) -> Iterator[Batch]:
        """Those of the steps from `step` on: to the last, or to the next search for what they are made with."""
        if self.mines is not None:
            start = step - step % self.mines.mine_every
            last = min(last, start + self.mines.mine_every)
            size, of = self.trainable.size(), self.schedule.batch_size
            samples = items(size, self.seed, start * of, last * of)
            if self.state.mined_until <= step:
                self._mine(samples, last)
            self.mines.use_mined(samples, self.mined)
        with blocked(
            signal.SIGTERM
        ):  # workers inherit it: sent to the whole group, the signal is the trainer's to obey
            return iter(self._loader(step, last, self.job.machine.loader_workers))

    def _mine(self, samples: Sequence[tuple[int, int]], until: int) -> None:
        """Search, and keep what is found: it took the time of many steps. Stopped meanwhile, it is due again."""
        assert self.mines is not None
        if self.losses:
            self._gather()
        self.model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                self.mined = self.mines.mine(samples, self.ranks)
        except Stopped:
            self._save()
            raise Stopped(f"training stopped at step {self.state.step}, before its negatives were mined") from None
        self.state.mined_until = until
        self._save()

    def _step(self, batches: Iterator[Batch]) -> None:
        step, parts = self.state.step, self.schedule.accumulate
        # Dropout and other draws from the global state are functions of (seed, step, rank).
        seed_process(derive(self.seed, "step", step, self.job.rank))
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.rate(step)
        totals: dict[str, Tensor] = {}
        waiting = [next(batches) for _ in range(parts)]  # all of them: a part's weight depends on the others
        counts = self._counts(waiting)
        for part in range(parts):
            with ExitStack() as stack:
                if part < parts - 1:
                    stack.enter_context(self.accelerator.no_sync(self.model))
                losses = self._losses(waiting.pop(0), counts)
                self._backward(losses)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach().double()
        clip_gradients(self.trainable.model, self.schedule)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.losses.append(totals)

    def _counts(self, parts: list[Batch]) -> dict[str, Tensor]:
        """Loss → its divisor: the count of the whole batch, over all its parts and ranks; at least 1."""
        each = [self.trainable.counts(part) for part in parts]
        numbers = torch.tensor([sum(part[name] for part in each) for name in each[0]], device=self.device)
        if self.job.world > 1:
            torch.distributed.all_reduce(numbers)
        return dict(zip(each[0], numbers.clamp(min=1), strict=True))

    def _losses(self, batch: Batch, counts: dict[str, Tensor]) -> dict[str, Tensor]:
        """A part's addends to the losses of the whole batch, and "loss", their weighted sum, which is minimised."""
        sums = self.trainable.loss(send_to_device(batch, self.device, non_blocking=True), self.model)
        losses = {name: value / counts[name] for name, value in sums.items()}
        weighted = [self.trainable.weights.get(name, 1.0) * value for name, value in losses.items()]
        return {**losses, "loss": torch.stack(weighted).sum()}

    def _backward(self, losses: dict[str, Tensor]) -> None:
        """Multiplies the loss by the number of ranks: DDP averages gradients, and they must be added."""
        self.accelerator.backward(losses["loss"] * self.job.world)

    def _gather(self) -> None:
        """Add up the losses of the last steps over ranks into the window."""
        names = sorted(self.losses[0])
        table = torch.stack([torch.stack([entry[name] for name in names]) for entry in self.losses])
        if self.job.world > 1:
            torch.distributed.all_reduce(table)
        rows = table.tolist()
        first = self.state.step - len(rows) + 1
        self.losses = []
        for step, row in enumerate(rows, first):
            if not all(map(math.isfinite, row)):
                figures = ", ".join(f"{name} {value}" for name, value in zip(names, row, strict=True))
                raise BuildError(
                    f"training step {step}: {figures} is not finite; lower learning_rate "
                    f"({self.schedule.learning_rate:g}) or raise warmup ({self.schedule.warmup:g})"
                )
            self.state.window.append(dict(zip(names, row, strict=True)))
        self.job.progress(self.state.step, self.schedule.steps, loss=self.state.window[-1]["loss"])

    def _write_row(self, validate: bool) -> None:
        step, window = self.state.step, self.state.window
        row: dict[str, float] = {"step": step, "learning_rate": self.schedule.rate(step - 1)}
        for name in window[0]:
            row[name] = math.fsum(entry[name] for entry in window) / len(window)
        if validate:
            figures = self._validate()
            row |= figures
            if self.job.rank == 0:
                self._compare(figures)
        self.state.window, self.state.due = [], False
        self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=step)
        self.state.curves.append(row)

    def _validate(self) -> dict[str, float]:
        """Rank 0's figures, in every rank: the others wait here, not in a collective of devices.

        Stopped meanwhile, it leaves a checkpoint in which this validation is due.
        """
        self.model.eval()
        try:
            with torch.no_grad(), self.accelerator.autocast():
                figures = self.trainable.validate(self.ranks) or {}
            return self.ranks.gather(figures)[0]
        except Stopped:
            self.state.due = True
            self._save()
            raise Stopped(f"training stopped at step {self.state.step}, before its validation") from None

    def _compare(self, figures: dict[str, float]) -> None:
        """Keep the model where it is better than the best before."""
        if self.best is None:
            return
        if self.best not in figures:
            raise BuildError(
                f"select: best needs the figure {self.best!r}, and on these held-out examples only "
                f"{', '.join(figures) or 'no figure'} can be told; name another in select_by"
            )
        value = figures[self.best]
        if self.state.best_value is None or value > self.state.best_value:
            self.state.best_step, self.state.best_value = self.state.step, value
            self.checkpoints.save_best(self.state.step, _on_cpu(self.trainable.model.state_dict()))

    def _best_model(self) -> dict[str, Tensor]:
        try:
            return self.checkpoints.best(self.state.best_step)
        except DamagedCheckpoint as error:
            raise BuildError(
                f"the best model, of step {self.state.best_step}, is damaged ({error}); run again"
            ) from None

    def _save(self) -> None:
        if self.job.rank == 0:
            optimizer = _on_cpu(optimizer_tensors(self.optimizer))
            parts = {"model": _on_cpu(self.trainable.model.state_dict()), "optimizer": optimizer}
            self.checkpoints.save(self.state, parts | ({"mined": self.mined} if self.mined else {}))
            self.job.kept(self.state.step, self.schedule.steps)

    def _load(self, tensors: dict[str, Tensor]) -> None:
        self.trainable.model.load_state_dict(tensors)

    def _loader(self, first: int, last: int, workers: int) -> DataLoader[Any]:
        batches = GlobalBatchSampler(
            size=self.trainable.size(),
            seed=self.seed,
            batch_size=self.schedule.batch_size,
            first=first,
            last=last,
            rank=self.job.rank,
            world=self.job.world,
            parts=self.schedule.accumulate,
        )
        return DataLoader(
            IndexDataset(),  # type: ignore[arg-type]
            batch_sampler=batches,
            collate_fn=self.trainable.collate,
            num_workers=workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=die_with_parent,
            multiprocessing_context="fork" if workers else None,  # memory maps and tables are shared, not pickled
            generator=torch.Generator(),  # or it would draw from the global state
        )


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
