"""Trying again: stamina's back-off with jitter, for what a disk or a server refuses for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from stamina import Attempt, retry_context
from stamina.instrumentation import set_on_retry_hooks

set_on_retry_hooks([])  # its own warnings would break the progress line; `again` logs what a user should know


def attempts(
    again: type[Exception] | Callable[[Exception], bool | float],
    tries: int | None = None,
    first: float = 0.25,
    longest: float = 15.0,
    jitter: float = 0.25,
) -> Iterator[Attempt]:
    """Attempts, each to be entered by `with`, until one succeeds; the last one's exception is raised.

    `again` says what is tried again, or after how many seconds. Pauses in seconds: `first`, doubled each time up to
    `longest`, and up to `jitter` more. There are at most `tries` attempts.
    """
    pauses = {"wait_initial": first, "wait_max": longest, "wait_jitter": jitter}
    return iter(retry_context(again, attempts=tries, timeout=None, **pauses))
