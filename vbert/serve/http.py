"""The HTTP server: uvicorn, with deadlines for clients that send or read slowly, and a quiet end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vbert.errors import UserError
from vbert.serve.limits import CONNECTIONS, HEADER_SECONDS, Limits

if TYPE_CHECKING:
    from starlette.types import ASGIApp

HEAD = 16_384  # bytes of a request's head, at most


class DeadlineProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, whose connections end when the head of a request, or the whole of an exchange, takes too
    long: uvicorn itself waits without end for a client that sends a byte now and then."""

    whole = 60.0  # seconds; set for a server by `listen`
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._until(HEADER_SECONDS)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and not self.cycle.response_complete:
            self._until(self.whole)

    def on_response_complete(self) -> None:
        self._until(HEADER_SECONDS)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        super().connection_lost(exc)

    def _until(self, seconds: float) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self._overdue)

    def _overdue(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UserError where the address is taken or is none of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(CONNECTIONS)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{host}, port {port}: {reason}; --port 0 takes a free port") from None
    return listening


def listen(app: ASGIApp, listening: socket.socket, limits: Limits) -> None:
    """Serves until SIGTERM or Ctrl-C; requests that have begun get their answers."""
    logging.getLogger("uvicorn").addHandler(logging.NullHandler())  # the gate writes the lines that there are
    logging.getLogger("uvicorn").propagate = False
    protocol = type("Protocol", (DeadlineProtocol,), {"whole": limits.longest_connection})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        loop="asyncio",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=CONNECTIONS,
        h11_max_incomplete_event_size=HEAD,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=int(limits.longest_connection),
    )
    server = uvicorn.Server(config)

    def ended(*_: Any) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):  # uvicorn takes them over, and raises them again when it has ended
        signal.signal(number, ended)
    server.run(sockets=[listening])
