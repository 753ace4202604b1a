"""Overlapping work, bounded: threads that prepare results ahead, and a generator that runs ahead of its reader."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_END = object()


def prepared_ahead(function: Callable[[T], R], items: Iterable[T], threads: int, depth: int) -> Iterator[R]:
    """`function` of each item, in order, at most `depth` of them ready or in the making."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def run_ahead(items: Generator[T, None, None], depth: int) -> Generator[T, None, None]:
    """The items, made by a thread of their own, at most `depth` ahead. Raises the errors of their making."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
    left = threading.Event()

    def put(item: Any, error: BaseException | None = None) -> bool:
        while not left.is_set():
            try:
                ready.put((item, error), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            with closing(items):
                for item in items:
                    if not put(item):
                        return
            put(_END)
        except BaseException as error:
            put(_END, error)

    thread = threading.Thread(target=make, name="run_ahead")
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        left.set()
        thread.join()
