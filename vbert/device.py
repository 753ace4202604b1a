"""Which device `Machine.device` means here."""

from __future__ import annotations

from typing import Literal

from vbert.artifacts.errors import UserError


def device_of(wanted: str) -> Literal["cpu", "cuda"]:
    """What `auto`, `cpu` or `cuda` means on this machine. Raises UserError for a GPU where torch sees none."""
    import torch

    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise UserError("machine.device is cuda, but torch sees none: set it to auto or cpu")
    return "cuda"


def device_name(device: str) -> str:
    """`cpu`, or the name of the GPU: part of what features' bits depend on."""
    import torch

    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)
