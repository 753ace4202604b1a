"""Which device `Machine.device` means here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vbert.errors import UserError

if TYPE_CHECKING:
    import torch


def device_of(wanted: str) -> Literal["cpu", "cuda"]:
    """What `auto`, `cpu` or `cuda` means on this machine. Raises UserError for a GPU where torch sees none."""
    import torch

    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError("--machine device=cuda: torch sees no GPU here; say device=auto or device=cpu")
    return "cuda"


def of_rank(device: str, rank: int, count: int | None = None) -> torch.device:
    """The device of a process of several: the GPUs in turns, of which there are `count` (by default, those torch sees).

    For work that is not shared in collectives: training wants a GPU a process, and accelerate gives it one.
    """
    import torch

    if device == "cpu":
        return torch.device("cpu")
    return torch.device(device, rank % (torch.cuda.device_count() if count is None else count))


def device_name(device: str) -> str:
    """`cpu`, or the name of the GPU: part of what features' bits depend on."""
    import torch

    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)
