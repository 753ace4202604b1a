"""The torch device of `Machine.device` on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vbert.errors import UserError

if TYPE_CHECKING:
    import torch


def device_of(wanted: str) -> Literal["cpu", "cuda"]:
    """The device of `auto`, `cpu` or `cuda` on this machine. Raises UserError for a GPU where torch sees none."""
    import torch

    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError("--machine device=cuda: torch sees no GPU here; say device=auto or device=cpu")
    return "cuda"


def of_rank(device: str, rank: int, count: int | None = None) -> torch.device:
    """The device of a process of several: the GPUs in turns, of which there are `count` (by default, those torch sees).

    For work without collectives: training needs a GPU a process, which accelerate assigns.
    """
    import torch

    if device == "cpu":
        return torch.device("cpu")
    return torch.device(device, rank % (torch.cuda.device_count() if count is None else count))


def device_name(device: str) -> str:
    """`cpu`, or the name of the GPU, on which features' bits depend."""
    import torch

    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)
