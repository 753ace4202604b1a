"""One real Prefect server for a test run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

# Ends the server when the test run is gone, also after kill -9 of it.
WATCH = 'trap "" HUP INT; "$@" & server=$!; while kill -0 "$0" 2>/dev/null; do sleep 1; done; kill $server; wait'


def start(home: Path, lives_with: int) -> str:
    """Start a server with its own data under `home` that ends with the process `lives_with`. Returns its API's URL."""
    home.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    environment = {
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_API_PORT": port,
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    with open(home / "server.log", "w") as log:
        subprocess.Popen(
            ["sh", "-c", WATCH, str(lives_with), *command],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}/api"
    for _ in range(600):
        try:
            if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                return url
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError((home / "server.log").read_text())
