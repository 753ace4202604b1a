"""Agreement between the processes of one training, beside gradients: whether to stop, and gathered values.

Messages go over the hosts (gloo), not the devices: asking every step waits for no kernel, and a rank can wait for
another's validation as long as it takes, where a collective on devices would end the run after ten minutes.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed

from vbert.artifacts.steps.stage import Job, Stopped

LONGEST = timedelta(days=30)  # a parent notices the end of a process, and ends the others

T = TypeVar("T")


class Ranks:
    """Made by every process of a job at the same point, once torch.distributed is ready."""

    def __init__(self, job: Job) -> None:
        self.job, self.rank, self.world = job, job.rank, job.world
        self._group: Any = None
        if job.world > 1:
            self._group = torch.distributed.new_group(backend="gloo", timeout=LONGEST)

    def stopping(self) -> bool:
        """Whether SIGTERM came to any process; the same answer in all of them."""
        if self._group is None:
            return self.job.stopping
        flag = torch.tensor([float(self.job.stopping)])
        torch.distributed.all_reduce(flag, group=self._group)
        return bool(flag > 0)

    def gather(self, value: T) -> list[T]:
        """Every process's value, in the order of ranks. Raises Stopped, in all, where SIGTERM came to any."""
        values: list[T] = [value]
        if self._group is not None:
            values = [value] * self.world
            torch.distributed.all_gather_object(values, value, group=self._group)
        if self.stopping():
            raise Stopped("stopped between two steps")
        return values
