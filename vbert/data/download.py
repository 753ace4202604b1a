"""Downloads that survive drops, stalls, restarts and wrong servers; the digest decides in the end.

httpx, since it sends Range and If-Range where told and raises on a short body; stamina for back-off with jitter. Bytes
go to `download.part` with a note of the URL and strong ETag they belong to; only a 206 that fits both is appended.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from vbert.data.source import Source, without_secrets
from vbert.errors import BuildError, UserError

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("vbert.download")

Progress = Callable[[int, int], None]  # (bytes so far, bytes in all)

MAX_BYTES = 2**41  # of a source whose size the spec doesn't say
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
REDIRECTS = (301, 302, 303, 307, 308)


@dataclass(frozen=True)
class RetryPolicy:
    """How long a server is retried. All in seconds; `slowest` in bytes a second over `window`."""

    connect: float = 15.0
    read: float = 60.0
    attempts: int = 6
    wait: float = 1.0
    wait_max: float = 60.0
    retry_after_max: float = 300.0
    slowest: float = 1024.0
    window: float = 60.0


class _Retryable(Exception):
    """A fault that may pass; `after`: seconds to wait, if the server said."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Unservable(Exception):
    """This URL won't serve the file."""


def fetch(source: Source, scratch: Path, progress: Progress, patience: RetryPolicy | None = None) -> tuple[Path, str]:
    """Fetch the file of `source` into `scratch`, going on where an earlier attempt stopped. Returns (path, sha256).

    Tries `url`, then the mirrors. Raises UserError for what the spec must mend (a digest that differs, a token that is
    not set), BuildError where no server serves it.
    """
    if source.python_package is not None:
        return fetch_package(source, scratch, progress)
    assert source.url is not None
    patience = patience or RetryPolicy()
    part, faults, wrong = _PartialFile(scratch), list[str](), False
    for url in (source.url, *source.mirrors):
        try:
            _fetch_url(url, source, part, progress, patience)
            return part.path, part.digest()
        except _WrongDigest as error:
            wrong = True
            faults.append(str(error))
        except Unservable as error:
            faults.append(f"{without_secrets(url)}: {error}")
    message = f"{source.file} can't be downloaded: {'; '.join(faults)}"
    if wrong:
        raise UserError(f"{message}. Compare with the publisher's digest, then mend sha256 or url in the spec")
    raise BuildError(
        f"{message}; run again when it answers, or fetch it by other means and name the file: `weights` of a detector, "
        "`data.NAME.files` of a data set"
    )


class _WrongDigest(Unservable):
    pass


class _PartialFile:
    """The bytes received so far, their URL and ETag, and their running sha256, which a new process computes once from
    them."""

    def __init__(self, scratch: Path) -> None:
        self.path = scratch / "download.part"
        self._note = scratch / "download.json"
        self.url, self.etag, self.total = "", "", 0
        self.size, self._sha256 = 0, hashlib.sha256()
        try:
            note = json.loads(self._note.read_text())
            self.url, self.etag, self.total = str(note["url"]), str(note["etag"]), int(note["total"])
            with self.path.open("rb") as file:
                while block := file.read(1 << 20):
                    self._sha256.update(block)
                    self.size += len(block)
        except (OSError, ValueError, KeyError):
            self.begin("", "", 0)

    def begin(self, url: str, etag: str, total: int) -> None:
        """Forget the bytes; the next ones belong to `url` at its strong `etag` ("": can't be resumed)."""
        self.url, self.etag, self.total = url, etag, total
        self.size, self._sha256 = 0, hashlib.sha256()
        self.path.write_bytes(b"")
        self._note.write_text(json.dumps({"url": url, "etag": etag, "total": total}))

    def resumable(self, url: str) -> bool:
        return self.size > 0 and bool(self.etag) and self.url == url

    def count(self, block: bytes) -> None:
        self._sha256.update(block)
        self.size += len(block)

    def digest(self) -> str:
        return self._sha256.hexdigest()


def _fetch_url(url: str, source: Source, part: _PartialFile, progress: Progress, patience: RetryPolicy) -> None:
    """Fetch the whole file into `part` and check its digest. Raises Unservable."""
    import httpx

    from vbert.retry import attempts

    def again(error: Exception) -> bool | float:
        if not isinstance(error, _Retryable):
            return False
        log.info("%s: %s; trying again", without_secrets(url), error)
        if error.after is not None and error.after > patience.retry_after_max:
            raise Unservable(f"{error}, to be tried again in {error.after:.0f} s") from None
        return True if error.after is None else error.after

    if url == part.url and 0 < part.total == part.size and source.sha256 in (None, part.digest()):
        return
    timeout = httpx.Timeout(patience.read, connect=patience.connect)
    # Start once more from nothing if the digest is wrong and the bytes came in several responses, or in one that didn't
    # state its length and so may have been cut.
    for last in (False, True):
        resumed = part.resumable(url)
        with httpx.Client(timeout=timeout, follow_redirects=False) as client:
            while True:
                before = part.size
                try:
                    for attempt in attempts(
                        again, patience.attempts, first=patience.wait, longest=patience.wait_max, jitter=patience.wait
                    ):
                        with attempt:
                            resumed |= _stream(client, url, source, part, progress, patience)
                    break
                except _Retryable as error:
                    if part.size - before < 1 << 20:  # a server that drops connections but makes progress is retried
                        raise Unservable(f"{error} ({patience.attempts} attempts)") from None
        if source.sha256 is None or part.digest() == source.sha256:
            return
        got, size, sure = part.digest(), part.size, part.total > 0 and not resumed
        part.begin("", "", 0)
        if last or sure:
            raise _WrongDigest(
                f"{without_secrets(url)} served {size:,} bytes with sha256 {got}, the spec says {source.sha256}"
            )


def _stream(
    client: httpx.Client, url: str, source: Source, part: _PartialFile, progress: Progress, patience: RetryPolicy
) -> bool:
    """Make one request and append its body to `part`; returns whether it continued earlier bytes. Raises _Retryable or
    Unservable."""
    import httpx

    headers = {"Accept-Encoding": "identity", "User-Agent": "vbert"}
    resume = part.resumable(url)
    if resume:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.etag}
    try:
        response = open_source(client, url, headers, source)
        try:
            whole = _begin(response, url, source, part, resume)
            _receive(response, source, part, whole, progress, patience)
        finally:
            response.close()
    except httpx.TimeoutException:
        raise _Retryable(f"nothing came for {patience.read:.0f} s, after {part.size:,} bytes") from None
    except httpx.HTTPError as error:
        raise _Retryable(f"{type(error).__name__} after {part.size:,} bytes: {error}") from None
    except OSError as error:
        raise BuildError(f"{source.file} can't be written after {part.size:,} bytes: {error}") from error
    if whole and part.size != whole:
        raise _Retryable(f"the body ended after {part.size:,} of {whole:,} bytes")
    return resume


def open_source(client: httpx.Client, url: str, headers: dict[str, str], source: Source) -> httpx.Response:
    """The response behind redirects, to http(s) only; a token goes to the first host alone."""
    import httpx

    place = first = httpx.URL(url)
    for _ in range(10):
        same = (place.scheme, place.host, place.port) == (first.scheme, first.host, first.port)
        token = _token(source, first) if same else {}
        response = client.send(client.build_request("GET", place, headers=headers | token), stream=True)
        if response.status_code not in REDIRECTS:
            return response
        location = response.headers.get("location", "")
        response.close()
        place = place.join(location)
        if place.scheme not in ("http", "https") or not place.host:
            raise Unservable(f"redirects to {without_secrets(location)!r}, which is not http(s)")
        if first.scheme == "https" and place.scheme == "http" and source.sha256 is None:
            raise Unservable("redirects from https to http, and the spec has no sha256 to check what comes")
    raise Unservable("redirects more than 10 times")


def _token(source: Source, url: httpx.URL) -> dict[str, str]:
    if source.auth is None:
        return {}
    name = source.auth.removeprefix("env:")
    if not os.environ.get(name):
        raise UserError(f"{source.file}: auth: the environment variable {name} is not set; set it to your token")
    if url.scheme != "https" and url.host not in ("localhost", "127.0.0.1", "::1"):
        raise UserError(f"{source.file}: auth: a token is sent over https only; mend the url")
    return {"Authorization": f"Bearer {os.environ[name]}"}


def _begin(response: httpx.Response, url: str, source: Source, part: _PartialFile, resume: bool) -> int:
    """Prepare `part` for the body; returns the size of the whole file in bytes, 0 where the server doesn't state it."""
    status, got = response.status_code, response.headers
    problem = f"HTTP {status}"
    if status in TRANSIENT:
        raise _Retryable(problem, _retry_after(got.get("retry-after", "")))
    if status == 416:
        part.begin("", "", 0)
        raise _Retryable(f"{problem}: the file became shorter", 0.0)
    if status in (401, 403, 407):
        raise Unservable(f"{problem}: not allowed" + ("" if source.auth else "; if it needs a token: `auth: env:NAME`"))
    if status not in (200, 206):
        raise Unservable(problem)
    length = int(got["content-length"]) if got.get("content-length", "").isdecimal() else None
    if status == 206:
        content_range = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", got.get("content-range", ""))
        fits = (
            resume
            and content_range is not None
            and int(content_range[1]) == part.size
            and content_range[3] in ("*", str(part.total))
            and (length is None or int(content_range[2]) - int(content_range[1]) + 1 == length)
            and got.get("etag", part.etag) == part.etag
        )
        if not fits:
            part.begin("", "", 0)
            raise _Retryable(f"{problem}: another part than was asked for ({got.get('content-range')})", 0.0)
        return part.total
    if source.sha256 is None and got.get("content-encoding", "identity") not in ("", "identity"):
        raise Unservable(f"packed on the way ({got['content-encoding']}); without a sha256 what it is can't be told")
    if source.sha256 is None and "text/html" in got.get("content-type", "") and "htm" not in source.file.lower():
        raise Unservable("a web page came instead of the file: does it want a login? If so: `auth: env:NAME`")
    if source.size is not None and length is not None and length != source.size:
        raise Unservable(f"offers {length:,} bytes, the spec says {source.size:,}")
    free = shutil.disk_usage(part.path.parent).free
    if length is not None and length > free:
        raise BuildError(f"{source.file} has {length:,} bytes, {free:,} are free at {part.path.parent}; make room")
    etag = got.get("etag", "")
    strong = etag if re.fullmatch(r'"[\x21\x23-\x7e]*"', etag) and length is not None else ""
    part.begin(url, strong, length or 0)
    return length or 0


def _receive(
    response: httpx.Response, source: Source, part: _PartialFile, whole: int, progress: Progress, patience: RetryPolicy
) -> None:
    """Append the body to `part` as it arrives."""
    most = source.size or whole or MAX_BYTES
    window, counted = time.monotonic(), part.size
    with part.path.open("r+b") as file:
        file.seek(part.size)
        for block in response.iter_raw():
            if part.size + len(block) > most:
                part.begin("", "", 0)
                raise Unservable(f"more than {most:,} bytes came")
            file.write(block)
            part.count(block)
            progress(part.size, most if most < MAX_BYTES else part.size)
            if (passed := time.monotonic() - window) > patience.window:
                if part.size - counted < patience.slowest * passed:
                    raise _Retryable(f"below {patience.slowest:,.0f} bytes a second for {passed:.0f} s")
                window, counted = time.monotonic(), part.size
    if source.size is not None and part.size < source.size:
        raise _Retryable(f"the body ended after {part.size:,} of {source.size:,} bytes")


def _retry_after(text: str) -> float | None:
    """Seconds of a Retry-After header: a number or a date."""
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def fetch_package(source: Source, scratch: Path, progress: Progress, seconds: float = 3600.0) -> tuple[Path, str]:
    """The wheel of `python_package`, by pip with the user's own configuration; no code of it runs.

    Raises UserError where there is no such package or its sha256 differs, BuildError where pip fails otherwise.
    """
    assert source.python_package is not None
    assert source.sha256 is not None
    folder = scratch / "package"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{source.python_package} --hash=sha256:{source.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--quiet"]
    progress(0, source.size or 1)
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), "--requirement", str(wanted)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"{source.python_package}: pip did not end within {seconds:.0f} s") from None
    if done.returncode:
        if digest := re.search(r"Got\s+([0-9a-f]{64})", done.stderr):
            raise UserError(
                f"{source.python_package} has sha256 {digest[1]}, the spec says {source.sha256}; compare with the "
                f"registry's page and mend the spec"
            )
        if "No matching distribution" in done.stderr and "(from versions: none)" not in done.stderr:
            raise UserError(f"no wheel {source.python_package} for this Python; mend python_package in the spec")
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or [done.stderr.strip()]
        raise BuildError(f"{source.python_package} can't be downloaded by pip: {lines[-1].removeprefix('ERROR: ')}")
    wheel = next(path for path in folder.iterdir() if path.suffix == ".whl")
    with wheel.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != source.sha256:
        raise UserError(f"{source.python_package} has sha256 {got}, the spec says {source.sha256}; mend the spec")
    progress(wheel.stat().st_size, wheel.stat().st_size)
    return wheel, got
