"""The desk: requests wait in turn, one is worked on at a time, in a child process that may die without harm."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any

from vbert.artifacts.making.workers import ChildDied, Overdue, Workers
from vbert.serve.limits import Limits
from vbert.serve.refused import Refused
from vbert.serve.worker import Job, Opened, open_model, work

LOADING = 120.0  # seconds more for a request that comes when the child must load the model again


class Desk:
    def __init__(self, opened: Opened, limits: Limits) -> None:
        self._opened, self._limits = opened, limits
        self._child = Workers(1)
        self._turn = asyncio.Lock()
        self._inside = 0  # waiting, or worked on
        self._usual = 0.5  # seconds that a job takes, a moving mean
        self._fresh = False  # whether the child has yet to load the model

    def open(self) -> dict[str, Any]:
        """Loads the model in the child; what it can. Raises UserError or BuildError, as loading does."""
        about: dict[str, Any] = self._child.run(open_model, self._opened)
        return about

    async def ask(self, job: Job, gone: Callable[[], Awaitable[object]]) -> dict[str, Any]:
        """The child's answer to `job`, when its turn comes. gone: returns when the client has left: a job that still
        waits is then dropped. Raises Refused."""
        if self._inside > self._limits.waiting:
            wait = math.ceil(self._usual * self._inside)
            raise Refused(503, f"{self._inside} requests wait already: try again in {wait} s", wait)
        self._inside += 1
        leaving = asyncio.ensure_future(gone())
        try:
            turn = asyncio.ensure_future(self._turn.acquire())
            try:
                await asyncio.wait({turn, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if not turn.done():
                    raise Refused(499, "the client left")  # its reply reaches nobody
            except BaseException:
                if not turn.cancel():
                    self._turn.release()
                raise
            # Whatever happens to this request, the next one's turn comes when the child is free, and no sooner.
            return await asyncio.shield(asyncio.ensure_future(self._work(job)))
        finally:
            leaving.cancel()
            self._inside -= 1

    async def _work(self, job: Job) -> dict[str, Any]:
        try:
            began = time.monotonic()
            outcome = await asyncio.to_thread(self._run, job)
            self._usual += 0.2 * (time.monotonic() - began - self._usual)
        finally:
            self._turn.release()
        if isinstance(outcome, Refused):
            raise outcome
        return outcome

    def _run(self, job: Job) -> dict[str, Any] | Refused:
        seconds = self._limits.seconds + (LOADING if self._fresh else 0)
        try:
            outcome: dict[str, Any] | Refused = self._child.run(work, self._opened, job, timeout=seconds)
        except Overdue:
            self._fresh = True
            return Refused(504, f"this took longer than {self._limits.seconds:g} seconds and was given up")
        except ChildDied:
            self._fresh = True
            return Refused(500, "the process that worked on this ended without an answer; another takes its place")
        self._fresh = False
        return outcome

    def close(self) -> None:
        self._child.close()
