"""Leases: the lock of a fingerprint on an object store, so that two machines do not make the same thing for hours.

A lease is an object that its holder writes anew every few seconds. One whose object has not changed for LIFE seconds on
a waiter's own clock is taken over. Truth does not rest on it: publishing is first-wins.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from vbert.artifacts.store.owner import Owner
from vbert.artifacts.store.s3_client import S3Client
from vbert.errors import BuildError, UserError

log = logging.getLogger("vbert.store")

BEAT = 10.0  # seconds between two signs of life
LIFE = 45.0  # seconds without one after which a holder counts as gone
LOOK = 2.0  # seconds between two looks of a waiter


class Lease:
    """Held inside `with`; entering waits for another holder, telling `waiting(who)` once."""

    def __init__(self, client: S3Client, key: str, waiting: Callable[[str], None] | None = None) -> None:
        self._client, self._key, self._waiting = client, key, waiting
        self._once = S3Client(client.url, patience=0)  # a sign of life is not worth a long wait: the next one follows
        self._tag: str | None = None
        self._beats = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"lease {key}", daemon=True)

    def __enter__(self) -> Self:
        seen, since, told = "", time.monotonic(), False
        while (tag := self._client.create(self._key, self._body())) is None:
            there = self._client.get(self._key)
            if there is None:
                continue
            body, now = there
            if now != seen:
                seen, since = now, time.monotonic()
            holder = parse(body)
            if holder is None or holder.dead() or time.monotonic() - since >= LIFE:
                if (tag := self._client.replace(self._key, self._body(), now)) is not None:
                    break
                continue
            if self._waiting is not None and not told:
                self._waiting(holder.sentence())
                told = True
            time.sleep(LOOK)
        self._tag = tag
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._tag is not None:
            with suppress(BuildError, UserError):  # an unreachable server lets it run out
                self._once.replace(self._key, b"free", self._tag)

    def _body(self) -> bytes:
        self._beats += 1
        return json.dumps(asdict(Owner.current()) | {"beat": self._beats}).encode()

    def _live(self) -> None:
        while self._tag is not None and not self._over.wait(BEAT):
            try:
                self._tag = self._once.replace(self._key, self._body(), self._tag) or self._mine()
            except (BuildError, UserError) as error:
                log.warning("the lease %s could not be renewed: %s", self._key, error)
                continue
            if self._tag is None:
                log.warning("the lease %s was taken over by another builder; both go on, the first one wins", self._key)

    def _mine(self) -> str | None:
        """The tag of the object where it is this process's after all: a sign of life whose answer was lost."""
        there = self._once.get(self._key)
        holder = parse(there[0]) if there is not None else None
        return there[1] if there is not None and holder is not None and holder.is_current() else None


def parse(body: bytes) -> Owner | None:
    """Who holds a lease of this content; None where it is free."""
    try:
        fields: dict[str, Any] = json.loads(body)
        fields.pop("beat")
        return Owner(**fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
