"""A Prefect server of this process alone: started when a run needs one, ended with the process, however that ends."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from flows.on_prefect import profiles
from vbert.errors import UserError

PATIENCE, LONGEST = 20.0, 120.0  # seconds of waiting until a line is printed, and until giving up
ENDING = 5.0  # seconds for the server to store its last events

# Most of its start is imports, a seventh of them garbage collection that finds no garbage.
SERVER = """
import gc
gc.disable()
import os, socket, sys, threading, uvicorn

def watch():
    os.read(0, 1)  # returns when the other end is gone
    os._exit(1)

threading.Thread(target=watch, daemon=True).start()
import prefect.server.api.server
gc.freeze()
gc.enable()
config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
uvicorn.Server(config).run([socket.socket(fileno=int(sys.argv[1]))])
"""


@dataclass(frozen=True)
class StartingServer:
    """A server that may not answer yet: its process, its URL and its output."""

    process: subprocess.Popen[bytes]
    url: str
    output: IO[bytes]


_ahead: StartingServer | None = None  # started before it was known to be needed


def start_early() -> None:
    """Start the server that a run will need while this process imports Prefect; does nothing where Prefect is imported
    already or may be configured with a running server."""
    global _ahead
    if "prefect" not in sys.modules and not _may_have_another_server():
        with suppress(OSError):  # `start` raises the error
            _ahead = _begin({})


def stop_unneeded() -> None:
    """End the server of `start_early`, where Prefect turns out to have another."""
    if _ahead is not None:
        _end(_ahead.process)


def start(say: Callable[[str], None]) -> None:
    """Wait for a server and connect Prefect in this process to it. Raises UserError where none starts.

    (Prefect's own way asks through a proxy, is ended by the Ctrl-C that a run must still report, and outlives a kill.)
    """
    from prefect.context import refresh_global_settings_context
    from prefect.settings import get_current_settings

    _check_home()
    server = _ahead or _begin(get_current_settings().to_environment_variables(exclude_unset=True))
    try:
        _wait(server.url, server.process, say)
    except UserError as error:
        _end(server.process)
        server.output.seek(0)
        lines = server.output.read().decode(errors="replace").strip().splitlines()
        raise UserError(f"{error} ({lines[-1][:300]})" if lines else str(error), "\n".join(lines[-20:])) from None
    os.environ["PREFECT_API_URL"] = server.url
    refresh_global_settings_context()


def _begin(settings: Mapping[str, str]) -> StartingServer:
    output = tempfile.TemporaryFile()  # noqa: SIM115  read where it does not come up
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # from here on requests wait until it answers
        environment = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(listening.fileno())],
            env={**os.environ, **environment, **settings},
            pass_fds=(listening.fileno(),),
            stdin=subprocess.PIPE,  # closing it tells the server that this process has ended
            stdout=output,
            stderr=output,
            start_new_session=True,  # only this process obeys Ctrl-C
        )
        atexit.register(_end, server)
        return StartingServer(server, f"http://127.0.0.1:{listening.getsockname()[1]}/api", output)


def _may_have_another_server() -> bool:
    """Whether a variable or a file that Prefect reads could name a server, found out without importing it."""
    if "PREFECT_API_URL" in os.environ or "PREFECT_PROFILE" in os.environ or Path("prefect.toml").exists():
        return True
    named = {profiles(): "PREFECT_API_URL", Path(".env"): "PREFECT_", Path("pyproject.toml"): "tool.prefect"}
    return any(path.is_file() and word in path.read_text(errors="replace") for path, word in named.items())


def _check_home() -> None:
    from prefect.settings import PREFECT_HOME

    home = PREFECT_HOME.value()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise UserError(
            f"Prefect's own server needs a folder that it can write, and {home} is none ({error.strerror}); set "
            "PREFECT_HOME to another, or give --local"
        ) from None


def _wait(url: str, server: subprocess.Popen[bytes], say: Callable[[str], None]) -> None:
    import httpx

    began = time.monotonic()
    while time.monotonic() - began < LONGEST:
        try:
            httpx.get(f"{url}/health", timeout=PATIENCE, trust_env=False).raise_for_status()
            return
        except httpx.TimeoutException:
            say(f"the Prefect server has not answered for {time.monotonic() - began:.0f} s: still waiting")
        except httpx.HTTPError:
            if server.poll() is not None:
                break
            time.sleep(0.1)
    raise UserError(f"Prefect's own server did not come up; see the settings in {profiles()}, or give --local")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(ENDING)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()
