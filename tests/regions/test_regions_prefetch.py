from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator

import pytest
from processes import until

from vbert.regions.prefetch import prepared_ahead, run_ahead


def numbers(taken: list[int]) -> Generator[int, None, None]:
    for number in range(100):
        taken.append(number)
        yield number


def test_prepared_in_order_and_never_more_than_asked_for() -> None:
    taken: list[int] = []

    def slowly(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number

    for at, number in enumerate(prepared_ahead(slowly, numbers(taken), threads=4, depth=6)):
        assert number == at
        assert len(taken) <= at + 6


def test_run_ahead_overlaps_and_is_bounded() -> None:
    taken: list[int] = []
    coming = run_ahead(numbers(taken), 3)
    assert next(coming) == 0
    until(lambda: len(taken) >= 5, 60)
    time.sleep(0.05)  # for one more than there may be: what never comes can't be waited for
    assert len(taken) == 5, "one taken, three waiting, one that waits for room"
    assert list(coming) == list(range(1, 100))


def test_a_failure_reaches_the_reader() -> None:
    def failing() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    coming = run_ahead((number for number in failing()), 2)
    assert next(coming) == 1
    with pytest.raises(ValueError, match="broken"):
        next(coming)


def test_left_early_nothing_runs_on() -> None:
    closed: list[bool] = []

    def endless() -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    coming = run_ahead(endless(), 2)
    next(coming)
    coming.close()
    assert closed == [True]
    assert not [thread for thread in threading.enumerate() if thread.name == "run_ahead"]
