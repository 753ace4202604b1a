"""A server in a process of its own, and requests to it. As a script: the server, of the fake model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import httpx

ROOT = Path(__file__).parents[2]
# One for all: making one reads the system's certificates.
CLIENT = httpx.Client(timeout=60, verify=False, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
FORM = b"Content-Type: multipart/form-data; boundary=b\r\n"


def photo(width: int = 64, height: int = 48, colour: str = "red", kind: str = "PNG", **options: Any) -> bytes:
    from PIL import Image

    target = BytesIO()
    Image.new("RGB", (width, height), colour).save(target, kind, **options)
    return target.getvalue()


class Running(NamedTuple):
    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.split(":")[2].split("/")[0])

    def post(self, task: str, files: dict[str, bytes] | None = None, **fields: Any) -> httpx.Response:
        sent = {name: (f"{name}.png", data) for name, data in (files or {}).items()}
        return CLIENT.post(f"{self.url}api/{task}", files=sent or None, data=fields)

    def ask(self, question: str = "what is it?", image: bytes | None = None, **fields: Any) -> httpx.Response:
        return self.post("answer", {"image": photo() if image is None else image}, question=question, **fields)

    def get(self, path: str = "", **heads: str) -> httpx.Response:
        return CLIENT.get(f"{self.url}{path}", headers=heads)

    def head(self, *lines: bytes) -> bytes:
        """The beginning of a request for an answer."""
        key = self.url.split("/", 3)[3].encode()
        start = b"POST /%sapi/answer HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % (key, self.port)
        return start + b"".join(lines) + b"\r\n"

    def send(self, *parts: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        for part in parts:
            connection.sendall(part)
        return connection

    def asked(self, question: str) -> socket.socket:
        """A connection on which a question was sent whole."""
        body = b"--b\r\nContent-Disposition: form-data; name=question\r\n\r\n" + question.encode()
        body += b'\r\n--b\r\nContent-Disposition: form-data; name=image; filename="a"\r\n\r\n' + photo()
        body += b"\r\n--b--\r\n"
        return self.send(self.head(FORM, b"Connection: close\r\n", b"Content-Length: %d\r\n" % len(body)), body)

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


def heard(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    said = b""
    with connection, suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            said += piece
    return said


@contextmanager
def running(**settings: Any) -> Iterator[Running]:
    """Settings of `ServeSettings` and `Limits`, and constants of `vbert.serve.limits` by name."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "serve.serving", json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    try:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Running(process, json.loads(line)["url"])
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    import resource

    from serve.fake_model import load

    from vbert.serve import limits

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file can be written, in its child neither

    settings = {"port": 0, **json.loads(sys.argv[1])}
    for name in [name for name in settings if name.isupper()]:
        setattr(limits, name, settings.pop(name))
    bounds = {name: settings.pop(name) for name in list(settings) if name in limits.Limits.__dataclass_fields__}
    from vbert.serve.server import ServeSettings, serve
    from vbert.serve.worker import Opened

    its = limits.Limits(**{"rate": 100_000, **bounds})
    opened = Opened(load, "fake", pixels=its.pixels, forget=settings.get("share_nothing", False))

    def ready(address: str, about: dict[str, Any]) -> None:
        print(json.dumps({"url": address, "can": about["can"]}), flush=True)

    serve(ServeSettings(opened, its, **settings), ready)


if __name__ == "__main__":
    main()
