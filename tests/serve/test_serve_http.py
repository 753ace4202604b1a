"""The server as clients meet it: right and wrong requests, hostile ones, and its end."""

from __future__ import annotations

import re
import signal
import time
from io import BytesIO
from typing import Any

import httpx
import pytest
from processes import until
from serve.fake_model import TASKS
from serve.hostile import animation, bomb
from serve.serving import CLIENT, FORM, Running, heard, photo, running


def test_each_task_has_an_address_and_a_reply(server: Running) -> None:
    one = {"image": photo()}
    answered = server.ask(top=2).json()
    assert [each["text"] for each in answered["answers"]] == ["yes", "no"]
    (seen,) = answered["photos"]
    assert (seen["width"], seen["height"], len(seen["regions"])) == (64, 48, 2)
    assert (seen["regions"][0]["name"], seen["regions"][1]["name"]) == ("red square", "square")
    both = {"left": photo(), "right": photo(32, 32)}
    assert server.post("true", both, statement="both are red").json()["true"] is False
    assert server.post("match", one, text="a square").json()["score"] == 0.8
    assert server.post("caption", one).json()["caption"] == "a red square"
    assert server.post("ground", one, text="the square").json()["found"][0]["region"] == 1
    assert [each["text"] for each in server.post("choose", one, choices=["a", "b"]).json()["answers"]] == ["a", "b"]
    assert server.post("sentiment", one, text="fine").json()["answers"][0]["text"] == "positive"
    assert "answers" not in server.post("regions", one).json()
    why = server.post("explain", {"image": photo(), "right": photo()}, text="both are red").json()
    assert [word["text"] for word in why["words"]] == ["both", "are", "red"]
    assert [(one["photo"], one["region"]) for one in why["regions"]] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    about = server.get("api/model").json()
    assert about["title"] == "fake"  # not where it lies
    assert len(about["examples"]) > 10


REFUSED: dict[str, tuple[Any, int, str]] = {
    "empty": (b"", 422, "the file is empty"),
    "text": (b"hello, I am no photo", 415, "not an image"),
    "html": (b"<svg onload=alert(1)>", 415, "not an image"),
    "truncated": (photo(90, 90, kind="JPEG")[:-300], 422, "damaged"),
    "header alone": (photo()[:30], 415, "header is broken"),
    "gif": (lambda: animation("GIF"), 415, "animated"),
    "apng": (lambda: animation("PNG"), 415, "animated"),
    "webp": (lambda: animation("WEBP"), 415, "animated"),
    "pages": (lambda: animation("TIFF"), 415, "several pictures"),
    "many pixels": (lambda: photo(1100, 1000), 413, "1100 × 1000"),
    "bomb": (bomb, 413, "too large"),
    "many bytes": (b"\x89PNG\r\n\x1a\n" + bytes(3_500_000), 413, "at most 3 MB"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_uploads_that_are_no_photo_are_refused_with_a_sentence(server: Running, what: str) -> None:
    data, status, said = REFUSED[what]
    reply = server.ask(image=data() if callable(data) else data)
    assert (reply.status_code, said in reply.json()["error"]) == (status, True), reply.text
    assert server.ask().status_code == 200


def test_a_phone_s_jpeg_with_a_second_picture_is_a_photo(server: Running) -> None:
    assert server.ask(image=animation("MPO")).status_code == 200


def test_fields_that_are_missing_or_wrong_are_named(server: Running) -> None:
    one = {"image": photo()}
    cases = [
        (server.post("answer", one), 422, "question: field required"),
        (server.post("answer", None, question="what?"), 422, "image: "),
        (server.ask("x" * 2001), 422, "question: string should have at most 2000 characters"),
        (server.ask(top=0), 422, "top: "),
        (server.post("choose", one, choices=["a"]), 422, "choices: "),
        (server.ask("refuse"), 422, "the model: it can't read that"),
        (server.post("fill", one, text="a [MASK]"), 404, "no such page"),
        (server.get("api/answer"), 405, "POST"),
        (CLIENT.post(f"{server.url}api/answer", json={"question": "what?"}), 415, "multipart/form-data"),
        (server.get("../etc/passwd"), 404, "no such page"),
        (server.get("static/..%2fapi.py"), 404, "no such page"),
    ]
    for reply, status, said in cases:
        assert (reply.status_code, said in reply.json()["error"]) == (status, True), reply.text


def test_other_names_and_other_pages_are_turned_away(server: Running) -> None:
    """DNS rebinding, and forms that another site's page sends to this machine."""
    for name in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "10.0.0.1", ""):
        assert server.get(host=name).status_code in (400, 421), name
    for name in (f"localhost:{server.port}", "127.0.0.1", f"[::1]:{server.port}"):
        assert server.get(host=name).status_code == 200, name
    files = {"image": ("a.png", photo())}
    for other in ({"origin": "http://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
        reply = CLIENT.post(f"{server.url}api/regions", files=files, headers=other)
        assert (reply.status_code, "another site" in reply.json()["error"]) == (403, True)
    own = {"origin": server.url.rstrip("/"), "sec-fetch-site": "same-origin"}
    assert CLIENT.post(f"{server.url}api/regions", files=files, headers=own).status_code == 200


def test_every_reply_forbids_scripts_and_requests_elsewhere(server: Running) -> None:
    for path in ("", "docs", "api/model", "static/page.js", "nowhere"):
        heads = server.get(path).headers
        assert "default-src 'none'" in heads["content-security-policy"]
        assert (heads["x-content-type-options"], heads["cache-control"]) == ("nosniff", "no-store")
    for path in ("", "docs", "static/page.js", "static/page.css"):
        elsewhere = re.findall(r"https?://(?!127\.0\.0\.1)[^\s\"]+", server.get(path).text)
        assert set(elsewhere) <= {"http://www.w3.org/2000/svg"}


def test_the_reference_shows_every_address_with_a_command(server: Running) -> None:
    described = server.get("openapi.json").json()
    page = server.get("docs").text
    assert {f"/api/{name}" for name in TASKS} <= set(described["paths"])
    for path in described["paths"]:
        assert f"curl {server.url}{path[1:]}" in page
    assert "-F left=@left.jpg -F right=@right.jpg" in page


def test_one_broken_request_ends_nothing(server: Running) -> None:
    reply = server.ask("raise")
    assert (reply.status_code, "4711" in reply.text, "ValueError" in reply.text) == (500, False, True)
    assert server.ask().status_code == 200
    reply = server.ask("die")
    assert (reply.status_code, "another takes its place" in reply.json()["error"]) == (500, True)
    assert server.ask().status_code == 200
    reply = server.ask("sleep 60")
    assert (reply.status_code, "given up" in reply.json()["error"]) == (504, True)
    assert server.ask().status_code == 200


def test_a_full_queue_says_when_to_come_again(server: Running) -> None:
    connections = [server.asked("sleep 1") for _ in range(7)]
    replies = [heard(each) for each in connections]
    assert sorted(each[9:12] for each in replies) == [b"200"] * 3 + [b"503"] * 4  # one is worked on, two wait
    for full in (each for each in replies if each[9:12] == b"503"):
        assert re.search(rb"retry-after: [1-9]", full)
        assert b"try again in" in full


def test_who_leaves_while_waiting_takes_no_turn(server: Running) -> None:
    """Two wait behind one that sleeps; both leave. The next is not kept waiting for them."""
    first = server.asked("sleep 1")
    waiting = [server.asked("sleep 1.9") for _ in range(2)]
    assert server.get().status_code == 200  # so they have arrived
    for each in waiting:
        each.close()
    began = time.monotonic()
    assert until(lambda: server.ask().status_code == 200)  # 503 until the server sees that they left
    assert time.monotonic() - began < 3.5
    assert heard(first)[9:12] == b"200"


def test_malformed_requests_end_their_connection_alone(server: Running) -> None:
    part = b"--b\r\nContent-Disposition: form-data; name=question\r\n\r\nwhat\r\n"
    cases = {
        b"no http at all\r\n\r\n": b"400",
        b"GET / HTTP/1.1\r\n\r\n": b"400",  # no Host
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 400_000 + b"\r\n\r\n": b"400",
        server.head(FORM, b"Content-Length: 5\r\nContent-Length: 7\r\nConnection: close\r\n") + b"12345": b"400",
        server.head(FORM, b"Content-Length: -1\r\n"): b"400",
        server.head(FORM, b"Content-Length: 99999999999\r\n"): b"413",
        server.head(FORM, b"Content-Length: 300\r\n") + part: b"408",  # less than it says
        server.head(FORM, b"Content-Length: 3\r\nConnection: close\r\n") + part: b"4",  # more than it says
        server.head(b"Content-Type: multipart/form-data\r\nContent-Length: 2\r\nConnection: close\r\n") + b"--": b"400",
        server.head(FORM, b"Content-Length: 4\r\nConnection: close\r\n") + b"\xff\xfe\x00\x00": b"4",
        server.head(FORM, b"Transfer-Encoding: chunked\r\n") + b"zz\r\n": b"400",
        b"POST /api/answer HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n": b"4",
    }
    for sent, status in cases.items():
        said = heard(server.send(sent))
        assert said.startswith(b"HTTP/1.1 " + status), (sent[:200], said[:300])
    assert server.ask().status_code == 200


def test_clients_that_hang_are_let_go(server: Running) -> None:
    """Nothing sent; half a head; a head and half a body; a keep-alive connection that begins a second head."""
    whole = b"GET /api/model HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    for sent in (b"", b"GET / HTTP/1.1\r\nHo", server.head(FORM, b"Content-Length: 900\r\n") + b"--b", whole + b"GET"):
        began = time.monotonic()
        said = heard(server.send(sent))
        assert time.monotonic() - began < 8
        assert b"408" in said or sent == whole + b"GET" or said == b""
    assert server.ask().status_code == 200


def test_nothing_of_an_upload_is_written(server: Running) -> None:
    """A photo of more than the megabyte that parsers of forms keep in memory: the server's processes can't write a byte
    into any file (`serving.main` forbids it), and answer."""
    from PIL import Image

    target = BytesIO()
    Image.effect_noise((900, 900), 80).convert("RGB").save(target, "PNG")
    data = target.getvalue()
    assert len(data) > 1_500_000
    assert server.ask(image=data).status_code == 200


def test_a_rate_is_kept_and_a_line_a_request_holds_nothing_of_it() -> None:
    with running(rate=3) as one:
        replies = [one.ask("my secret question") for _ in range(5)]
        assert [each.status_code for each in replies] == [200, 200, 200, 429, 429]
        assert 1 <= int(replies[-1].headers["retry-after"]) <= 20
        assert one.get("%1b[31m/secret%0aline").status_code == 404  # no request to the model
        assert one.end(signal.SIGINT) == 0
        assert one.process.stderr is not None
        said = one.process.stderr.read()
    assert said.count("POST /api/answer 200") == 3
    assert "question" not in said
    assert "\x1b" not in said
    assert len(said.splitlines()) == 6


def test_share_nothing_has_a_secret_address_and_sigterm_finishes_what_is_there() -> None:
    with running(share_nothing=True, waiting=4) as one:
        key = one.url.rstrip("/").rpartition("/")[2]
        assert len(key) >= 32
        assert one.get("static/page.js").status_code == 200
        base = f"http://127.0.0.1:{one.port}/"
        for path in ("", "api/model", "docs", key, f"{key[:-1]}/", f"x{key}/"):
            reply = CLIENT.get(base + path)
            assert (reply.status_code, "whole address" in reply.text) == (404, True), path
        connections = [one.asked("sleep 0.5") for _ in range(2)]
        assert one.get().status_code == 200  # so they have arrived
        assert one.end() == 0
        assert [heard(each)[9:12] for each in connections] == [b"200", b"200"]
        with pytest.raises(httpx.ConnectError):
            one.get()
        assert one.process.stderr is not None
        assert one.process.stderr.read() == ""


def test_a_taken_port_is_told(server: Running) -> None:
    from vbert.errors import UserError
    from vbert.serve.http import bind

    with pytest.raises(UserError, match=f"port {server.port}: Address already in use; --port 0 takes a free port"):
        bind("127.0.0.1", server.port)
    until(lambda: server.ask().status_code == 200)
