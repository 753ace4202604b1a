"""A Prefect server of this process alone: started when a run needs one, ended with the process, however that ends."""

from __future__ import annotations

import atexit
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import httpx
from prefect.context import refresh_global_settings_context
from prefect.settings import PREFECT_HOME, get_current_settings

from flows.on_prefect import profiles
from vbert.artifacts.errors import UserError

PATIENCE, LONGEST = 20.0, 120.0  # seconds of waiting until a line says so, and until it is given up
ENDING = 5.0  # seconds that the server has to write down what it was told last

SERVER = """
import os, socket, sys, threading, uvicorn

def watch():
    os.read(0, 1)  # returns when the other end is gone
    os._exit(1)

threading.Thread(target=watch, daemon=True).start()
config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
uvicorn.Server(config).run([socket.socket(fileno=int(sys.argv[1]))])
"""


def start(say: Callable[[str], None]) -> None:
    """Have a server answer, and Prefect in this process speak to it. Raises UserError where none comes up.

    (Prefect's own way asks through a proxy, is ended by the Ctrl-C that a run must still report, and outlives a kill.)
    """
    _check_home()
    with socket.socket() as listening, tempfile.TemporaryFile() as said:
        listening.bind(("127.0.0.1", 0))
        listening.listen()  # from here on requests wait until it answers
        environment = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
        server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(listening.fileno())],
            env=os.environ | environment | get_current_settings().to_environment_variables(exclude_unset=True),
            pass_fds=(listening.fileno(),),
            stdin=subprocess.PIPE,  # its end tells the server that this process is gone
            stdout=said,
            stderr=said,
            start_new_session=True,  # Ctrl-C is this process's to obey
        )
        atexit.register(_end, server)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        listening.close()
        try:
            _wait(url, server, say)
        except UserError as error:
            _end(server)
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            raise UserError(f"{error} ({lines[-1][:300]})" if lines else str(error), "\n".join(lines[-20:])) from None
    os.environ["PREFECT_API_URL"] = url
    refresh_global_settings_context()


def _check_home() -> None:
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
