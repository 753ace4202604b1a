"""Whether sources still answer: one request each, sizes compared, dead ones told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from data.http_script import Request, serving

from vbert.data.alive import ask
from vbert.data.source import Source


def ranged(total: int) -> Callable[[Request], None]:
    def reply(request: Request) -> None:
        assert request.headers["Range"] == "bytes=0-0"
        request.head(206, Content_Range=f"bytes 0-0/{total}", Content_Length=1)
        request.give(b"x")

    return reply


def whole(total: int) -> Callable[[Request], None]:
    return lambda request: request.head(200, Content_Length=total)


@pytest.mark.parametrize(
    ("reply", "fault", "size"),
    [
        (ranged(70), None, 70),
        (whole(70), None, 70),
        (ranged(71), "has 71 bytes, the spec says 70", None),
        (lambda request: request.head(404), "HTTP 404", None),
        (lambda request: request.head(200, Content_Type="text/html"), "a web page comes in place of the file", None),
        (
            lambda request: request.head(302, Location="ftp://h"),
            "redirects to 'ftp://h', which is not http(s)",
            None,
        ),
    ],
)
def test_one_byte_is_asked_for(reply: Callable[[Request], None], fault: str | None, size: int | None) -> None:
    with serving(reply) as server:
        (answer,) = ask([("mine", "photos", Source(url=server.url(), size=70))])
    assert (answer.fault, answer.size, answer.data_set, answer.source) == (fault, size, "mine", "photos")
    assert len(server.seen) == 1


def test_a_server_that_is_gone_is_told_and_the_others_are_asked(tmp_path: Path) -> None:
    with serving(whole(3)) as server:
        gone = Source(url="http://127.0.0.1:9/x.zip", mirrors=(server.url(),), sha256="ab" * 32)
        sources = [("a", "one", gone), ("b", "two", Source(path=str(tmp_path))), ("b", "three", Source(path="/none"))]
        first, mirror, here, nowhere = ask(sources, seconds=5)
    assert (first.fault or "").startswith("ConnectError")
    assert mirror.fault is here.fault is None
    assert nowhere.fault == "is not there"
