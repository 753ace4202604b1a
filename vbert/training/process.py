"""The process of a training: its device and precision, its random state, and the signals that end it."""

from __future__ import annotations

import ctypes
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import is_tensorboard_available

from vbert.artifacts.steps.settings import Numerics
from vbert.artifacts.steps.stage import Job
from vbert.device import device_of
from vbert.errors import UserError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def make_accelerator(job: Job, numerics: Numerics) -> Accelerator:
    cpu = device_of(job.machine.device) == "cpu"
    if not cpu and job.world > torch.cuda.device_count():
        raise UserError(
            f"numerics: processes {job.world} want a GPU each and there are {torch.cuda.device_count()}; lower it, or "
            "set machine.device=cpu"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(numerics.threads))  # or accelerate chooses, and warns
    if not torch.distributed.is_initialized():
        AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier run in this process
    if not cpu:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision="bf16" if numerics.precision == "bf16" else "no",
        log_with="tensorboard" if is_tensorboard_available() else None,
        project_dir=str(job.scratch),
    )
    if is_tensorboard_available():
        accelerator.init_trackers("tensorboard")
    return accelerator


def seed_process(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def blocked(number: signal.Signals) -> Iterator[None]:
    """Blocks the signal in this context, and for ever in processes that are started in it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent(_: int) -> None:
    """Ends a loader worker at once when its trainer is killed (Linux), before torch's watchdog would."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
