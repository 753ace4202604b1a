"""A real HTTP server that misbehaves as told: one reply a request, the last one for all that follow."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

BODY = bytes(i * 7919 % 251 for i in range(200_000))
ETAG = '"one"'


class Request(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.seen.append({key.lower(): value for key, value in self.headers.items()})
        at = min(len(self.server.seen), len(self.server.replies)) - 1
        with suppress(BrokenPipeError, ConnectionResetError):
            self.server.replies[at](self)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def begins(self) -> int:
        """Where the range asked for begins, if it is asked for on the condition of our ETag."""
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(found[1]) if found and self.headers.get("If-Range") == ETAG else 0

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def give(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()
        self.server.sent += len(data)


Reply = Callable[[Request], None]


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, replies: Sequence[Reply]) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.replies, self.seen, self.sent = list(replies), list[dict[str, str]](), 0

    def url(self, path: str = "/data.bin") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"


@contextmanager
def serving(*replies: Reply) -> Iterator[Server]:
    server = Server(replies)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def good(body: bytes = BODY, etag: str = ETAG, upto: int | None = None, **headers: object) -> Reply:
    """As a good server does: 206 where asked on our ETag, else 200. `upto`: the connection drops at that byte."""

    def reply(request: Request) -> None:
        begin = request.begins() if etag == ETAG else 0
        if begin:
            span = f"bytes {begin}-{len(body) - 1}/{len(body)}"
            request.head(206, Content_Length=len(body) - begin, Content_Range=span, ETag=etag, **headers)
        else:
            request.head(200, Content_Length=len(body), ETag=etag, **headers)
        request.give(body[begin:upto])

    return reply


def status(code: int, **headers: object) -> Reply:
    return lambda request: request.head(code, Content_Length=0, **headers)


def no_length(body: bytes) -> Reply:
    def reply(request: Request) -> None:
        request.head(200)
        request.give(body)

    return reply


def part(begin: int, body: bytes, total: int = len(BODY), etag: str = ETAG) -> Reply:
    """A 206 that says and gives what it likes."""

    def reply(request: Request) -> None:
        span = f"bytes {begin}-{begin + len(body) - 1}/{total}"
        request.head(206, Content_Length=len(body), Content_Range=span, ETag=etag)
        request.give(body)

    return reply


def stall(upto: int, seconds: float = 60.0) -> Reply:
    def reply(request: Request) -> None:
        request.head(200, Content_Length=len(BODY), ETag=ETAG)
        request.give(BODY[:upto])
        time.sleep(seconds)

    return reply


def trickle(upto: int, seconds: float = 60.0) -> Reply:
    """First bytes at once, then one every 20 ms."""

    def reply(request: Request) -> None:
        request.head(200, Content_Length=len(BODY), ETag=ETAG)
        request.give(BODY[:upto])
        for i in range(int(seconds / 0.02)):
            request.give(BODY[upto + i : upto + i + 1])
            time.sleep(0.02)

    return reply


def slow(request: Request) -> None:
    """A good server at 100 kB/s."""
    begin = request.begins()
    span = f"bytes {begin}-{len(BODY) - 1}/{len(BODY)}"
    more = {"Content_Range": span} if begin else {}
    request.head(206 if begin else 200, Content_Length=len(BODY) - begin, ETag=ETAG, **more)
    for at in range(begin, len(BODY), 2000):
        request.give(BODY[at : at + 2000])
        time.sleep(0.02)


def garbage(request: Request) -> None:
    request.wfile.write(b"\x00\xffnot http\r\n\r\n")


def reset(request: Request) -> None:
    """Closes without a word, by RST."""
    request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
