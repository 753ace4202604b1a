"""Fetching the photos of a list of links: politely, within bounds of bytes and seconds, each fault with its reason.

At most AT_ONCE links of a unit are fetched at a time, and PER_HOST of one host; a host that answered none of HOPELESS
links in a row is not asked again within the unit. A link is an address that a stranger wrote: addresses of one's own
network are not fetched, and what comes is a photo by its header, or dropped.
"""

from __future__ import annotations

import io
import ipaddress
import json
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from vbert.data.download import TRANSIENT, Unservable, open_source
from vbert.data.links import Link, LinkList, LinkSettings
from vbert.data.raw import RawWriter
from vbert.data.source import Source, without_secrets
from vbert.errors import BuildError

if TYPE_CHECKING:
    import httpx

    from vbert.artifacts.steps.stage import Job

AT_ONCE, PER_HOST = 16, 4
AHEAD = 64  # photos that may wait in memory for an earlier one
HOPELESS = 10
PAUSE, LONGEST_PAUSE = 1.0, 10.0  # seconds before another attempt
BUSY = ("HTTP 429", "HTTP 503")
# Formats as Pillow calls them → endings that readers take for photos.
ENDINGS = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2", "MPO": "jpg"}


class DeadLink(Exception):
    """A link that leads to no photo. `answered`: whether a server said so, or none needs to be asked."""

    def __init__(self, reason: str, answered: bool) -> None:
        super().__init__(reason)
        self.reason, self.answered = reason, answered


class _Busy(Exception):
    """A fault that may pass."""

    def __init__(self, dead: DeadLink, pause: float) -> None:
        super().__init__(dead.reason)
        self.dead, self.pause = dead, pause


@dataclass
class _Hosts:
    """What a unit's threads know of the hosts."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    places: dict[str, threading.Semaphore] = field(default_factory=dict)
    silent: Counter[str] = field(default_factory=Counter)

    def place(self, host: str) -> threading.Semaphore:
        with self.lock:
            return self.places.setdefault(host, threading.Semaphore(PER_HOST))

    def heard(self, host: str, answered: bool) -> None:
        with self.lock:
            self.silent[host] = 0 if answered else self.silent[host] + 1


def fetch_unit(links: LinkList, settings: LinkSettings, job: Job, unit: tuple[int, int]) -> dict[str, Any]:
    """Fetch the links of a unit, (its number, the number of its first link), into one tar, beside a row of each.

    Raises BuildError, so that the unit is fetched again later, where no host answered at all, or most of what was asked
    for was refused for the time being.
    """
    number, first = unit
    given = links.group(number)
    name = f"links-{number:06}"
    dead: dict[str, list[Any]] = {}
    rows, photos, answered = io.StringIO(), 0, False
    with RawWriter(job.directory, f"{name}.tar", index=False) as writer:
        for at, (link, came) in enumerate(zip(given, _all(given, settings), strict=True)):
            url, caption, split = link
            row = {"number": first + at, "url": url, "caption": caption, "split": split}
            if isinstance(came, DeadLink):
                answered |= came.answered
                dead.setdefault(came.reason, [0, first + at, without_secrets(url)])[0] += 1
                row |= {"photo": None, "fault": came.reason}
            else:
                data, ending = came
                answered, photos = True, photos + 1
                row |= {"photo": f"photos/{first + at:09}.{ending}", "fault": None}
                writer.add(str(row["photo"]), data)
            rows.write(json.dumps(row, ensure_ascii=False) + "\n")
            job.progress(at + 1, len(given), dead=at + 1 - photos)
        if not answered:
            raise BuildError(f"none of {len(given):,} links was answered by any host; is there a network?")
        if sum(dead[reason][0] for reason in BUSY if reason in dead) > len(given) / 2:
            raise BuildError(f"most of {len(given):,} links were refused for now ({', '.join(dead)}); run again later")
        writer.add(f"{name}.jsonl", rows.getvalue().encode())
    members = [[member.name, member.offset, member.size] for member in writer.members]
    counts = {"links": len(given), "photos": photos, "dead": len(given) - photos}
    return {**counts, "reasons": dead, "archive": f"{name}.tar", "members": members}


def _all(given: Sequence[Link], settings: LinkSettings) -> Iterator[tuple[bytes, str] | DeadLink]:
    """What came of each link, in their order."""
    import httpx

    hosts, waiting = _Hosts(), deque[Future[tuple[bytes, str] | DeadLink]]()
    hooks: Mapping[str, list[Any]] = {} if settings.private else {"request": [_refuse_private]}
    timeout = httpx.Timeout(min(settings.seconds, 15.0))
    limits = httpx.Limits(max_connections=2 * AT_ONCE)
    with (
        httpx.Client(
            timeout=timeout, limits=limits, follow_redirects=False, event_hooks=hooks, trust_env=True
        ) as client,
        ThreadPoolExecutor(AT_ONCE) as threads,
    ):
        coming = iter(given)
        for url, *_ in coming:
            waiting.append(threads.submit(_fetched, client, url, settings, hosts))
            if len(waiting) == AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _fetched(client: httpx.Client, url: str, settings: LinkSettings, hosts: _Hosts) -> tuple[bytes, str] | DeadLink:
    host = _host(url)
    if host is None:
        return DeadLink("bad address", answered=True)
    with hosts.place(host):
        if hosts.silent[host] >= HOPELESS:
            return DeadLink("silent host", answered=False)
        for last in (*[False] * (settings.attempts - 1), True):
            try:
                data = _received(client, url, settings)
                hosts.heard(host, True)
                return data, _ending(data)
            except DeadLink as dead:
                hosts.heard(host, dead.answered)
                return dead
            except _Busy as busy:
                if last:
                    hosts.heard(host, busy.dead.answered)
                    return busy.dead
                time.sleep(busy.pause)
    raise AssertionError("the last attempt returns")


def _host(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except ValueError:
        return None


def _received(client: httpx.Client, url: str, settings: LinkSettings) -> bytes:
    """The bytes behind a link. Raises DeadLink, or _Busy for what may pass."""
    import httpx

    end = time.monotonic() + settings.seconds
    source = Source.model_construct(url=url, sha256=None, auth=None, file="photo")
    headers = {"Accept-Encoding": "identity", "User-Agent": "vbert", "Accept": "image/*"}
    try:
        response = open_source(client, url, headers, source)
        try:
            return _body(response, settings.largest, end)
        finally:
            response.close()
    except Unservable:
        raise DeadLink("redirects", answered=True) from None
    except httpx.TimeoutException:
        raise _Busy(DeadLink("time-out", answered=False), PAUSE) from None
    except httpx.ConnectError:
        raise _Busy(DeadLink("no connection", answered=False), PAUSE) from None
    except httpx.HTTPError:
        raise _Busy(DeadLink("broken off", answered=True), PAUSE) from None
    except (httpx.InvalidURL, httpx.CookieConflict, ValueError):
        raise DeadLink("bad address", answered=True) from None


def _body(response: httpx.Response, largest: int, end: float) -> bytes:
    status, got = response.status_code, response.headers
    if status in TRANSIENT:
        after = got.get("retry-after", "")
        raise _Busy(DeadLink(f"HTTP {status}", True), min(float(after) if after.isdecimal() else PAUSE, LONGEST_PAUSE))
    if status != 200:
        raise DeadLink(f"HTTP {status}", answered=True)
    if got.get("content-encoding", "identity") not in ("", "identity"):
        raise DeadLink("packed", answered=True)
    length = got.get("content-length", "")
    if length.isdecimal() and int(length) > largest:
        raise DeadLink("too large", answered=True)
    held = bytearray()
    for block in response.iter_raw(1 << 16):
        held += block
        if len(held) > largest:
            raise DeadLink("too large", answered=True)
        if time.monotonic() > end:
            raise DeadLink("time-out", answered=True)
    return bytes(held)


def _ending(data: bytes) -> str:
    """The ending of the photo's format. Raises DeadLink for what is none, by its header."""
    from vbert.data.decode import BadImage, kind

    try:
        return ENDINGS.get(name := kind(data), name.lower())
    except BadImage as bad:
        raise DeadLink(bad.reason, answered=True) from None


def _refuse_private(request: httpx.Request) -> None:
    """Raises DeadLink for a host whose addresses are not all public ones."""
    host = request.url.host
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, request.url.port or 80, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        raise DeadLink("no connection", answered=False) from None
    if not all(ipaddress.ip_address(str(address).partition("%")[0]).is_global for address in found):
        raise DeadLink("private address", answered=True)
