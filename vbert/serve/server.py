"""A server of one model, from its start to its end."""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from vbert.serve.gate import is_loopback
from vbert.serve.limits import Limits
from vbert.serve.worker import Opened

PORT = 8643


@dataclass(frozen=True)
class ServeSettings:
    """share_nothing: for a machine that others use too. The address has a secret part, the port is a free one unless it
    is given, only this machine's loopback is listened on, nothing is written of a request, and nothing of one stays in
    memory when it has its answer."""

    opened: Opened
    limits: Limits = field(default_factory=Limits)
    host: str = "127.0.0.1"
    port: int | None = None
    share_nothing: bool = False


def serve(settings: ServeSettings, ready: Callable[[str, dict[str, Any]], None]) -> None:
    """Serves until SIGTERM or Ctrl-C. ready: told the address and what the model can, before the first request.

    Raises UserError for a model that can't be served, and an address that can't be bound.
    """
    from vbert.serve.api import Served, interface
    from vbert.serve.desk import Desk
    from vbert.serve.gate import Gate, Rules
    from vbert.serve.http import bind, listen

    alone = settings.share_nothing
    port = settings.port if settings.port is not None else 0 if alone else PORT
    listening = bind(settings.host, port)  # before the model is loaded: a taken port is told at once
    desk = Desk(settings.opened, settings.limits)
    try:
        about = desk.open()
        key = secrets.token_urlsafe(24) if alone else ""
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        address = f"http://{host}:{listening.getsockname()[1]}/{key}{'/' if key else ''}"
        app = interface(Served(desk, settings.limits, about))
        log = _quiet if alone else _line
        gate = Gate(app, Rules(settings.limits, settings.host, key, log))
        ready(address, about)
        listen(gate, listening, settings.limits)
    finally:
        listening.close()
        desk.close()


def reachable_by_others(settings: ServeSettings) -> bool:
    return not is_loopback(settings.host)


def _line(said: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {said}", file=sys.stderr, flush=True)


def _quiet(said: str) -> None:
    """Of a request nothing is written."""
