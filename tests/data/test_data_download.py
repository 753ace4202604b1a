from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import zipfile
from functools import cache
from io import BytesIO
from pathlib import Path

import pytest
from data.http_script import (
    BODY,
    ETAG,
    Reply,
    garbage,
    good,
    no_length,
    part,
    reset,
    serving,
    slow,
    stall,
    status,
    trickle,
)
from processes import until
from pytest_httpserver import HTTPServer

from vbert.data.download import RetryPolicy, fetch
from vbert.data.source import Source
from vbert.errors import BuildError, UserError

SHA256 = hashlib.sha256(BODY).hexdigest()
QUICK = RetryPolicy(
    connect=1.0, read=0.3, attempts=4, wait=0.0, wait_max=0.01, retry_after_max=2.0, slowest=20_000, window=0.2
)


def got(url: str, scratch: Path, *, sha256: str | None = SHA256, **fields: object) -> tuple[bytes, str]:
    source = Source.model_validate({"url": url, "sha256": sha256, **fields})
    path, digest = fetch(source, scratch, lambda done, total: None, QUICK)
    return path.read_bytes(), digest


WRONG = bytes(len(BODY))

# Servers that misbehave, and in the end give what is needed.
SURVIVED: dict[str, list[Reply]] = {
    "drops twice": [good(upto=60_000), good(upto=150_000), good()],
    "drops before the first byte": [reset, reset, good()],
    "drops behind the headers": [good(upto=0), good()],
    "ignores Range": [good(upto=60_000), good(etag='"two"', upto=90_000), good(etag='"three"')],
    "changes the file midway": [good(WRONG, etag='"old"', upto=60_000), good()],
    "206 of another offset": [good(upto=60_000), part(0, BODY), good()],
    "206 of another file": [good(upto=60_000), part(60_000, WRONG[60_000:], etag='"two"'), good()],
    "206 of another length": [good(upto=60_000), part(60_000, BODY[60_000:], total=999_999), good()],
    "206 unasked": [part(10, BODY[10:]), good()],
    "other bytes under the same ETag": [good(WRONG, upto=60_000), good(), good()],
    "416": [good(upto=60_000), status(416), good()],
    "429 with Retry-After": [status(429, Retry_After=0), good()],
    "503 with a date": [status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), good()],
    "500 and 502": [status(500), status(502), good()],
    "weak ETag": [good(etag='W/"one"', upto=60_000), good(etag='W/"one"')],
    "no length, cut off": [no_length(BODY[:70_000]), no_length(BODY)],
    "stalls": [stall(60_000), good()],
    "trickles": [trickle(60_000), good()],
    "no HTTP": [garbage, good()],
    "packed on the way": [good(Content_Encoding="gzip")],
}


# Only a digest tells these.
DIGEST_ONLY = {"other bytes under the same ETag", "packed on the way"}


@pytest.mark.parametrize(
    ("name", "sha256"), [(n, SHA256) for n in SURVIVED] + [(n, None) for n in SURVIVED if n not in DIGEST_ONLY]
)
@pytest.mark.timeout(20)  # some of these servers would keep us for a minute
def test_survives_server_that(name: str, sha256: str | None, tmp_path: Path) -> None:
    with serving(*SURVIVED[name]) as server:
        body, digest = got(server.url(), tmp_path, size=len(BODY), sha256=sha256)
    assert body == BODY
    assert digest == SHA256
    assert len(server.seen) == len(SURVIVED[name])
    assert all(request["accept-encoding"] == "identity" for request in server.seen)


# Servers that never give it: (replies, fields of the source, what the error must say).
REFUSED: dict[str, tuple[list[Reply], dict[str, object], str]] = {
    "another file": ([good(WRONG)], {}, f"sha256 {hashlib.sha256(WRONG).hexdigest()}, the spec says {SHA256}"),
    "404": ([status(404)], {}, "HTTP 404"),
    "403": ([status(403)], {}, "auth: env:NAME"),
    "500 for ever": ([status(500)], {}, "HTTP 500 (4 attempts)"),
    "Retry-After an hour": ([status(503, Retry_After=3600)], {}, "to be tried again in 3600 s"),
    "another size": ([good(BODY[:-1])], {"size": len(BODY)}, "offers 199,999 bytes, the spec says 200,000"),
    "more than the size": ([no_length(BODY + b"x")], {"size": len(BODY)}, "more than 200,000 bytes came"),
    "too few without a length": ([no_length(BODY[:9])], {"size": len(BODY)}, "ended after 9 of 200,000 bytes"),
    "redirect to a file": ([status(302, Location="file:///etc/hostname")], {}, "not http(s)"),
    "redirect for ever": ([status(302, Location="/again")], {}, "more than 10 times"),
    "a login page": ([good(b"<html>", Content_Type="text/html")], {"sha256": None}, "a web page came"),
    "packed, unchecked": ([good(Content_Encoding="gzip")], {"sha256": None}, "packed on the way (gzip)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_server_that_gives(name: str, tmp_path: Path) -> None:
    replies, fields, said = REFUSED[name]
    with serving(*replies) as server, pytest.raises((BuildError, UserError)) as error:
        got(server.url(), tmp_path, **fields)
    assert said in str(error.value)
    assert "data.bin can't be downloaded" in str(error.value)


def test_no_server_is_told(tmp_path: Path) -> None:
    with serving(good()) as server:
        url = server.url()
    with pytest.raises(BuildError, match=r"ConnectError.*\(4 attempts\); run again when it answers, or fetch"):
        got(url, tmp_path)


def test_resumes_with_range_and_if_range_and_fetches_nothing_twice(tmp_path: Path) -> None:
    with serving(good(upto=60_000), good(upto=150_000), good()) as server:
        got(server.url(), tmp_path)
    first, second, third = server.seen
    assert "range" not in first
    assert (second["range"], second["if-range"]) == ("bytes=60000-", ETAG)
    assert (third["range"], third["if-range"]) == ("bytes=150000-", ETAG)
    assert server.sent == len(BODY)


@pytest.mark.parametrize("etag", ['W/"one"', "", "one"])
def test_without_strong_etag_nothing_is_appended(etag: str, tmp_path: Path) -> None:
    with serving(good(etag=etag, upto=60_000), good(etag=etag)) as server:
        got(server.url(), tmp_path)
    assert "range" not in server.seen[1]


def test_mirrors_are_tried_in_order(tmp_path: Path) -> None:
    with serving(good(WRONG)) as wrong, serving(status(404)) as gone, serving(good()) as right:
        body, _ = got(wrong.url(), tmp_path, mirrors=(gone.url(), right.url()))
    assert body == BODY


def test_without_digest_the_one_found_is_told(tmp_path: Path) -> None:
    with serving(good()) as server:
        assert got(server.url(), tmp_path, sha256=None)[1] == SHA256


def test_wrong_digest_is_the_users_to_mend_and_keeps_no_bytes(tmp_path: Path) -> None:
    with serving(good(WRONG)) as server, pytest.raises(UserError, match="mend sha256 or url"):
        got(server.url(), tmp_path)
    with serving(good()) as server:
        assert got(server.url(), tmp_path)[0] == BODY


def test_finished_file_is_not_asked_for_again(tmp_path: Path) -> None:
    with serving(good()) as server:
        got(server.url(), tmp_path)
        got(server.url(), tmp_path)
        assert len(server.seen) == 1


def test_bytes_spoilt_on_disk_are_fetched_again(tmp_path: Path) -> None:
    with serving(good(upto=60_000), status(404), good()) as server:
        with pytest.raises(BuildError):
            got(server.url(), tmp_path)
        kept = tmp_path / "download.part"
        kept.write_bytes(bytes(1000) + kept.read_bytes()[1000:])
        assert got(server.url(), tmp_path)[0] == BODY


def test_token_goes_to_the_named_host_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_TOKEN", "secret")
    with serving(good()) as other, serving(status(302, Location=other.url())) as first:
        got(first.url(), tmp_path, auth="env:DATA_TOKEN")
    assert first.seen[0]["authorization"] == "Bearer secret"
    assert "authorization" not in other.seen[0]


def test_token_not_set_is_the_users_to_mend(tmp_path: Path) -> None:
    with serving(good()) as server, pytest.raises(UserError, match="variable NO_SUCH_TOKEN is not set"):
        got(server.url(), tmp_path, auth="env:NO_SUCH_TOKEN")


def test_full_disk_is_told_before_it_is_full(tmp_path: Path) -> None:
    def huge(request: object) -> None:
        request.head(200, Content_Length=10**17)  # type: ignore[attr-defined]

    with serving(huge) as server, pytest.raises(BuildError, match="are free"):
        got(server.url(), tmp_path, sha256=None)


def test_progress_grows_to_the_whole(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with serving(good(upto=60_000), good()) as server:
        source = Source(url=server.url(), sha256=SHA256)
        fetch(source, tmp_path, lambda done, total: seen.append((done, total)), QUICK)
    assert seen[-1] == (len(BODY), len(BODY))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


CHILD = """
import sys
from pathlib import Path
from vbert.data.download import fetch
from vbert.data.source import Source
fetch(Source(url=sys.argv[1], sha256=sys.argv[2]), Path(sys.argv[3]), lambda done, total: None)
"""


def test_killed_download_goes_on_where_it_was(tmp_path: Path) -> None:
    with serving(slow) as server:
        child = subprocess.Popen([sys.executable, "-c", CHILD, server.url(), SHA256, str(tmp_path)])
        kept = tmp_path / "download.part"
        until(lambda: kept.exists() and kept.stat().st_size > 40_000)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        size = kept.stat().st_size
        assert got(server.url(), tmp_path)[0] == BODY
    assert server.seen[1]["range"] == f"bytes={size}-"
    assert size > 40_000


@cache
def wheel() -> bytes:
    out = BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("tiny_data/a.txt", "hello")
        archive.writestr("tiny_data-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-data\nVersion: 1.0\n")
        archive.writestr(
            "tiny_data-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_data-1.0.dist-info/RECORD", "")
    return out.getvalue()


@pytest.fixture
def index(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package index with one wheel; its sha256."""
    data = wheel()
    name = "tiny_data-1.0-py3-none-any.whl"
    httpserver.expect_request("/simple/tiny-data/").respond_with_data(
        f'<a href="/files/{name}">{name}</a>', content_type="text/html"
    )
    httpserver.expect_request(f"/files/{name}").respond_with_data(data)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", httpserver.url_for("/simple/"))
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    return hashlib.sha256(data).hexdigest()


def test_package_comes_by_pip_as_its_wheel(index: str, tmp_path: Path) -> None:
    source = Source(python_package="tiny-data==1.0", sha256=index)
    path, sha256 = fetch(source, tmp_path, lambda done, total: None)
    assert (path.name, sha256) == ("tiny_data-1.0-py3-none-any.whl", index)
    assert path.read_bytes() == wheel()


def test_package_with_another_digest_is_refused(index: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"has sha256 {index}, the spec says {'0' * 64}"):
        fetch(Source(python_package="tiny-data==1.0", sha256="0" * 64), tmp_path, lambda done, total: None)


def test_package_version_that_is_not_there(index: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no wheel tiny-data==2\.0"):
        fetch(Source(python_package="tiny-data==2.0", sha256=index), tmp_path, lambda done, total: None)


def test_note_beside_the_part_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_TOKEN", "secret")
    with serving(good()) as server:
        got(server.url(), tmp_path, auth="env:DATA_TOKEN")
    assert json.loads((tmp_path / "download.json").read_text())["etag"] == ETAG
    assert "secret" not in (tmp_path / "download.json").read_text()
