"""Shares of a data set by ids: what a hold-out or a limit takes, whatever the order and the number of the others."""

from __future__ import annotations

from hashlib import sha256


def share_of(image_id: str) -> float:
    """A uniform number in [0, 1) that depends on the id alone."""
    return int.from_bytes(sha256(image_id.encode()).digest()[:6]) / 2**48
