"""An S3 server on loopback (moto's), made to misbehave where a test asks, and a proxy that drops and refuses."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from vbert.artifacts.making import workers

KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
Environ = dict[str, Any]
SIGNED = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request"  # moto looks no further
App = Callable[[Environ, Any], Any]


class S3Server:
    """moto behind one lock for conditional requests: it looks and writes in two steps, a real server in one.

    `around(environ, answer)` may look at a request, change it, or answer it in moto's place; `answer()` is moto's.
    """

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *_: Any) -> None: ...

        self._app: App = DomainDispatcherApplication(create_backend_app)
        self._one = threading.Lock()
        self.requests: list[tuple[str, str]] = []
        self.around: Callable[[Environ, Callable[[], Any]], Any] = lambda environ, answer: answer()
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=Quiet)
        self.port = int(self._server.server_port)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _serve(self, environ: Environ, start: Any) -> Any:
        self.requests.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))

        def answer() -> Any:
            if "HTTP_IF_NONE_MATCH" in environ or "HTTP_IF_MATCH" in environ:
                with self._one:
                    return self._app(environ, start)
            return self._app(environ, start)

        environ["start"] = start
        return self.around(environ, answer)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request(method, path, body, {"Authorization": SIGNED})
        response = connection.getresponse()
        return response.status, response.read()

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """Keys of the bucket, read from the server itself."""
        import re

        _, body = self.ask("GET", f"/{bucket}?list-type=2&prefix={prefix}")
        return re.findall(r"<Key>(.*?)</Key>", body.decode())

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        return {key: self.ask("GET", f"/{bucket}/{key}")[1] for key in self.keys(bucket, prefix)}

    def put(self, bucket: str, key: str, body: bytes) -> None:
        assert self.ask("PUT", f"/{bucket}/{key}", body)[0] == 200

    def delete(self, bucket: str, key: str) -> None:
        self.ask("DELETE", f"/{bucket}/{key}")

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class Proxy:
    """A TCP proxy before the server. `down` cuts all connections and refuses new ones; `cut_at` cuts single ones."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self.cut_at: list[int] = []  # the next connection whose client has sent so many bytes is cut
        self.cuts = 0
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.up()

    def up(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def down(self) -> None:
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for connection in list(self._open):
            self._cut(connection)

    def _cut(self, connection: socket.socket) -> None:
        self._open.discard(connection)
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            self._open |= {client, server}
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=(source, target, source is client), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, sent: bool) -> None:
        given = 0
        with suppress(OSError):
            while data := source.recv(1 << 14):
                given += len(data)
                if sent and self.cut_at and given > self.cut_at[0]:
                    self.cut_at.pop(0)
                    self.cuts += 1
                    break
                target.sendall(data)
        for connection in (source, target):
            self._cut(connection)
            with suppress(OSError):
                connection.close()


class Site:
    """A bucket of its own on the server, and machines that know it: each has a working directory of its own."""

    _count = 0

    def __init__(self, server: S3Server, base: Path, patch: pytest.MonkeyPatch) -> None:
        Site._count += 1
        self.server, self.base, self._patch = server, base, patch
        self.bucket = f"bucket{os.getpid()}n{Site._count}"
        self.url = f"s3://{self.bucket}/the store"
        assert server.ask("PUT", f"/{self.bucket}")[0] == 200
        self.machine("here")

    def environment(self, machine: str, port: int | None = None) -> dict[str, str]:
        cache = self.base / machine
        endpoint = f"http://127.0.0.1:{port or self.server.port}"
        return {**KEYS, "AWS_ENDPOINT_URL": endpoint, "VBERT_CACHE": str(cache), "VBERT_STORE_PATIENCE": "20"}

    def machine(self, name: str, port: int | None = None) -> None:
        """From here on, this process is another machine."""
        for variable, value in self.environment(name, port).items():
            self._patch.setenv(variable, value)
        for pool in workers._pools.values():
            pool.close()  # children have the environment they were started with

    def keys(self, folder: str = "") -> list[str]:
        return [key.removeprefix("the store/") for key in self.server.keys(self.bucket, f"the%20store/{folder}")]

    def key(self, name: str) -> str:
        return f"the%20store/{name}"

    def artifacts(self) -> dict[str, bytes]:
        """Every file of every artifact but the manifests, which record times: `stage/fingerprint/name` → bytes."""
        return whole_files(self.keys("artifacts/"), lambda name: self.read(name))

    def read(self, name: str) -> bytes:
        return self.server.ask("GET", f"/{self.bucket}/{self.key(name)}")[1]

    def age(self, name: str, seconds: float) -> None:
        """Have the object, or all in the folder, written so much earlier."""
        from moto.core import DEFAULT_ACCOUNT_ID
        from moto.s3.models import s3_backends

        objects = s3_backends[DEFAULT_ACCOUNT_ID]["aws"].buckets[self.bucket].keys
        for key, found in objects.items():
            if f"{key}/".startswith(f"the store/{name}/"):
                found.last_modified -= timedelta(seconds=seconds)


def whole_files(names: Iterable[str], read: Callable[[str], bytes]) -> dict[str, bytes]:
    """`stage/fingerprint/name` → bytes of names `artifacts/<stage>/<fingerprint>/<content>/<name>`."""
    found = {}
    for name in names:
        _, stage, mark, *rest = name.split("/")
        if rest != ["manifest.json"]:
            plain = f"{stage}/{mark}/{'/'.join(rest[1:])}"
            assert plain not in found, f"two contents of {plain}"
            found[plain] = read(name)
    return found


@contextmanager
def serving() -> Iterator[S3Server]:
    server = S3Server()
    try:
        yield server
    finally:
        server.close()
