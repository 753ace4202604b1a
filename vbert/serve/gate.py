"""The gate before the interface: who may ask, how much, how fast. It reads a request's body itself, within bounds."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import math
import socket
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vbert.serve.limits import BODY_SECONDS, READING, Limits
from vbert.serve.rate import Rates
from vbert.serve.refused import Refused

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Nothing is fetched from elsewhere, framed, or sent anywhere but here. `blob:` are the photos that the page shows
# before they are sent, `data:` the pictures in answers.
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")


@dataclass(frozen=True)
class Rules:
    """host: the address that the server is bound to. key: the first part of every path, where there is one. log: takes
    one line a request, which holds nothing of its content."""

    limits: Limits
    host: str = "127.0.0.1"
    key: str = ""
    log: Callable[[str], None] = field(default=lambda line: None)


class Gate:
    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app, self._rules = app, rules
        self._rates = Rates(rules.limits.rate)
        self._reading = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began, status = time.monotonic(), 0

        async def reply(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                added = [(n.encode(), v.encode()) for n, v in HEADERS.items() if n.encode() not in given]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        read = False
        try:
            scope = self._admitted(scope)
            if scope["method"] == "POST":
                self._reading, read = self._reading + 1, True
                receive = await self._body(scope, receive)
            await self._app(scope, receive, reply)
        except Refused as refused:
            await send_refusal(reply, refused)
        except _Gone:
            pass
        except Exception as error:
            self._rules.log(f"{type(error).__name__} in the server itself")
            if not status:
                await send_refusal(reply, Refused(500, "the server failed at this request; it goes on with the next"))
        finally:
            self._reading -= read
            path = ascii(scope["path"])[1:-1][:60]
            seconds = time.monotonic() - began
            self._rules.log(f"{scope['method'][:10]} {path} {status or 'gone'} {seconds:.2f} s")

    def _admitted(self, scope: Scope) -> Scope:
        """The request, its path without the key. Raises Refused."""
        heads = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = heads.get("host", "")
        if not host_allowed(host, self._rules.host):
            raise Refused(421, "this server is not called that: use the address that `vbert serve` printed")
        scope = dict(scope)
        if self._rules.key:
            first, slash, rest = scope["path"].removeprefix("/").partition("/")
            scope["path"] = "/" + rest if slash else ""
            if not hmac.compare_digest(first.encode(), self._rules.key.encode()) or not slash:
                raise Refused(404, "there is no such page: use the whole address that `vbert serve` printed")
            scope["raw_path"] = scope["path"].encode()
        if scope["method"] != "POST":
            return scope
        site, origin = heads.get("sec-fetch-site", "none"), heads.get("origin")
        if site not in ("same-origin", "none") or (origin is not None and origin.partition("://")[2] != host):
            raise Refused(403, "a page of another site can't ask here: send the request without an Origin")
        if heads.get("content-type", "").partition(";")[0].strip().lower() not in FORMS:
            raise Refused(415, f"send a form ({FORMS[0]}), as `curl -F image=@cat.jpg` does")
        declared = heads.get("content-length", "0")
        if declared.isdecimal() and int(declared) > 8 * self._rules.limits.bytes:
            raise self._too_large()
        if self._reading >= READING:
            raise Refused(503, "too many requests arrive at once: try again in a moment", 1)
        if wait := self._rates.take(scope["client"][0] if scope.get("client") else ""):
            raise Refused(
                429, f"more than {self._rules.limits.rate} requests in a minute: try again later", math.ceil(wait)
            )
        return scope

    async def _body(self, scope: Scope, receive: Receive) -> Receive:
        """Reads the body whole, then plays it to the interface. One that is too large is read on for a while, thrown
        away, so that the client gets to see why it is refused. Raises Refused, _Gone."""
        most, chunks, size = self._rules.limits.bytes, list[bytes](), 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    size += len(message.get("body", b""))
                    chunks.append(message.get("body", b""))
                    if size > most:
                        chunks.clear()
                    if not message.get("more_body", False):
                        break
                    if size > 8 * most:
                        raise self._too_large()
        except TimeoutError:
            raise Refused(408, f"the request did not arrive whole within {BODY_SECONDS:.0f} seconds") from None
        if size > most:
            raise self._too_large()
        played = False

        async def body() -> MutableMapping[str, Any]:
            nonlocal played
            if played:
                return await receive()
            played = True
            whole = b"".join(chunks)
            chunks.clear()
            return {"type": "http.request", "body": whole, "more_body": False}

        return body

    def _too_large(self) -> Refused:
        return Refused(413, f"a request has at most {self._rules.limits.bytes / 1e6:g} MB: make the photo smaller")


class _Gone(Exception):
    """The client left before its request was whole."""


def host_allowed(header: str, bound: str) -> bool:
    """Whether a Host header names this server, and not a name that somebody made to point here (DNS rebinding): the
    loopback's addresses and `localhost`; of a server that is bound elsewhere any address, and the machine's names."""
    name = header.rpartition("]")[0].removeprefix("[") if header.startswith("[") else header.partition(":")[0]
    name = name.lower().removesuffix(".")
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        names = {bound.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        return not is_loopback(bound) and name in names
    return address.is_loopback or not is_loopback(bound)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def send_refusal(send: Send, refused: Refused) -> None:
    body = json.dumps({"error": refused.sentence}, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if refused.retry_after is not None:
        headers.append((b"retry-after", str(refused.retry_after).encode()))
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
