"""Trying again: stamina's back-off with jitter, for what a disk or a server refuses for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from stamina import Attempt, retry_context
from stamina.instrumentation import set_on_retry_hooks

set_on_retry_hooks([])  # its own warnings would break the progress line; `again` logs what a user should know


def attempts(
    again: type[Exception] | Callable[[Exception], bool | float],
    tries: int | None = None,
    seconds: float | None = None,
    first: float = 0.25,
    longest: float = 15.0,
    jitter: float = 0.25,
) -> Iterator[Attempt]:
    """Attempts, each to be entered by `with`, until one succeeds; the last one's exception is raised.

    `again` says what is tried again, or after how many seconds. Pauses in seconds: `first`, doubled each time up to
    `longest`, and up to `jitter` more. No attempt begins after `tries` attempts, or `seconds` after the first began.
    """
    limits: dict[str, Any] = {"attempts": tries, "timeout": seconds}
    return iter(retry_context(again, **limits, wait_initial=first, wait_max=longest, wait_jitter=jitter))
