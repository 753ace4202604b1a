"""A bucket's keys and bytes: the few requests a store in one needs, each tried again while the server is away.

One client library (obstore) speaks to every kind of object store; another kind is a line in KINDS and its tests.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cached_property, wraps
from pathlib import Path
from threading import BoundedSemaphore
from typing import IO, Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

from vbert.artifacts.store.files import FileInfo
from vbert.errors import BuildError, UserError, nearest

log = logging.getLogger("vbert.store")

KINDS = {"s3": "S3Store"}  # scheme → class of obstore.store
PIECE = 16 << 20  # bytes of one ranged read: what a dropped connection costs
PART = 8 << 20  # bytes of one part of an upload; smaller files go in one request
MOST_PARTS = 10_000  # of one upload (S3's own limit)
REQUEST = timedelta(seconds=60)  # for one request, body included
TRANSFERS = BoundedSemaphore(8)  # uploads and pieces on their way in this process, whoever asks: bounds its memory
PATIENCE = "VBERT_STORE_PATIENCE"  # seconds that a server which does not answer is waited for
# Statuses that a second try gets again: the server understood. 408, 409 and 429 ask to come again.
REFUSED = re.compile(r"status code: (4(?!08|09|29)\d\d|501)")

P = ParamSpec("P")
T = TypeVar("T")
Method = Callable[Concatenate["S3Client", P], T]

_forked = False  # in a process that was forked the client's threads are missing: its calls would wait for ever


def _note_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_note_fork)


def _apart(method: Method[P, T]) -> Method[P, T]:
    """In a forked process (a loader's worker) the method runs in a fresh process of its own."""

    @wraps(method)
    def call(self: S3Client, /, *arguments: P.args, **named: P.kwargs) -> T:
        if not _forked:
            return method(self, *arguments, **named)
        asked = pickle.dumps((self.url, method.__name__, arguments, named, sys.path))
        done = subprocess.run([sys.executable, "-m", __name__], input=asked, stdout=subprocess.PIPE)
        if done.returncode:
            raise BuildError(f"{self.url}: the process for `{method.__name__}` ended with exit code {done.returncode}")
        kind, value = pickle.loads(done.stdout)
        if kind == "failed":
            raise value
        return value  # type: ignore[no-any-return]

    return call


def _answer() -> None:
    """The fresh process: one call from standard input, its result or exception to standard output."""
    url, method, arguments, named, path = pickle.load(sys.stdin.buffer)
    sys.path[:] = path
    try:
        answer = "done", getattr(S3Client(url), method)(*arguments, **named)
    except Exception as error:
        answer = "failed", error
    sys.stdout.buffer.write(pickle.dumps(answer))


def _patient(method: Method[P, T]) -> Method[P, T]:
    """The method is tried again, with growing pauses, while the server does not answer."""

    @wraps(method)
    def call(self: S3Client, /, *arguments: P.args, **named: P.kwargs) -> T:
        from vbert.retry import attempts

        what, began = f"{method.__name__.strip('_')} {arguments[0]}", time.monotonic()

        def again(error: Exception) -> bool:
            waited = time.monotonic() - began
            cause = self._recoverable(what, error, waited)
            log.warning("%s does not answer (%s); trying again for %.0f s", self.url, cause, self.patience - waited)
            return True

        for attempt in attempts(again):
            with attempt:
                result = method(self, *arguments, **named)
        return result

    return _apart(call)


class NotAllowed(UserError):
    """The server knows who asks, and that one may not do this."""


class S3Client:
    """The objects below `scheme://bucket/prefix`. Credentials, region and endpoint are the environment's (AWS_…).

    Every operation raises UserError for a missing bucket, NotAllowed for a missing right, and BuildError where the
    server stays away for longer than `$VBERT_STORE_PATIENCE` seconds (300).
    """

    def __init__(self, url: str, patience: float | None = None) -> None:
        parts = urlsplit(url)
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(
                f"the store's URL {parts.scheme}://{parts.hostname}… holds more than bucket and prefix; secrets belong "
                "in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN)"
            )
        if parts.scheme not in KINDS:
            raise UserError(f"store {url!r}: unknown scheme {parts.scheme!r}; {nearest(parts.scheme, KINDS)}")
        prefix = parts.path.strip("/")
        if not parts.hostname or any(part in (".", "..") or (prefix and not part) for part in prefix.split("/")):
            raise UserError(f"store {url!r}: give {parts.scheme}://bucket/prefix")
        self.patience = float(os.environ.get(PATIENCE) or 300) if patience is None else patience
        self.scheme, self.bucket, self.prefix = parts.scheme, parts.netloc, prefix
        self.url = f"{parts.scheme}://{parts.netloc}" + (f"/{prefix}" if prefix else "")

    @cached_property
    def _api(self) -> Any:
        try:
            import obstore
        except ModuleNotFoundError:
            raise UserError(f"the store {self.url} needs the package obstore: `pip install 'vbert[s3]'`") from None
        return obstore

    @cached_property
    def _client(self) -> Any:
        endpoint = _endpoint()
        return getattr(self._api.store, KINDS[self.scheme])(
            self.bucket,
            prefix=self.prefix or None,
            config={"checksum_algorithm": "SHA256"} | ({"endpoint": endpoint} if endpoint else {}),
            client_options={"allow_http": bool(endpoint and endpoint.startswith("http://")), "timeout": REQUEST},
            # The long wait is `_patient`'s, which says so; these few spare the other parts of an upload.
            retry_config={"max_retries": 2, "retry_timeout": REQUEST, "backoff": {"init_backoff": REQUEST / 600}},
        )

    # ------------------------------------------------------------------ operations

    @_patient
    def get(self, key: str) -> tuple[bytes, str] | None:
        """The bytes of a small object and its tag; None where there is none."""
        try:
            answer = self._api.get(self._client, key)
        except FileNotFoundError as error:
            self._look_at_bucket(error)
            return None
        return bytes(answer.bytes()), str(answer.meta["e_tag"])

    @_patient
    def size(self, key: str) -> int | None:
        """Bytes of the object; None where there is none."""
        try:
            return int(self._api.head(self._client, key)["size"])
        except FileNotFoundError as error:
            self._look_at_bucket(error)
            return None

    @_patient
    def claim(self, key: str) -> tuple[int, str] | None:
        """Size of the object and the sha256 that its uploader gave; None where there is none."""
        try:
            answer = self._api.get(self._client, key, options={"head": True})
        except FileNotFoundError as error:
            self._look_at_bucket(error)
            return None
        return int(answer.meta["size"]), str(answer.attributes.get("sha256", ""))

    @_patient
    def put(self, key: str, data: bytes) -> None:
        self._api.put(self._client, key, data, use_multipart=False)

    def create(self, key: str, data: bytes) -> str | None:
        """Put the object unless there is one (`If-None-Match: *`): its tag, or None where other bytes stand there."""
        return self._conditional(key, data, "create")

    def replace(self, key: str, data: bytes, tag: str) -> str | None:
        """Put the object if the one there has this tag (`If-Match`): the new tag, or None where it has not."""
        return self._conditional(key, data, {"e_tag": tag})

    def _conditional(self, key: str, data: bytes, mode: Any) -> str | None:
        if (tag := self._put_if(key, data, mode)) is not None:
            return tag
        there = self.get(key)  # a try whose answer was lost may have been the one that wrote it
        return there[1] if there is not None and there[0] == data else None

    @_patient
    def _put_if(self, key: str, data: bytes, mode: Any) -> str | None:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            return str(self._api.put(self._client, key, data, mode=mode, use_multipart=False)["e_tag"])
        except (AlreadyExistsError, PreconditionError):
            return None
        except FileNotFoundError as error:  # a replacement of what is gone
            self._look_at_bucket(error)
            return None

    @_patient
    def upload(self, key: str, path: Path, sha256: str) -> None:
        """Put a file, in parts where it is large; the object appears whole or not at all."""
        size = path.stat().st_size
        more: dict[str, Any] = {"use_multipart": size > PART, "chunk_size": part_size(size), "max_concurrency": 2}
        with TRANSFERS:
            self._api.put(self._client, key, path, attributes={"sha256": sha256}, **more)

    @_patient
    def copy(self, source: str, target: str) -> bool:
        """A copy made by the server, of what it copies in one request (see `S3Files`); False without a source."""
        try:
            self._api.copy(self._client, source, target)
        except FileNotFoundError as error:
            self._look_at_bucket(error)
            return False
        return True

    @_patient
    def stream(self, source: str, target: str, size: int) -> None:
        """A copy of an object of any size, by way of this machine, a piece at a time."""
        with self._api.open_writer(self._client, target, buffer_size=part_size(size), max_concurrency=2) as out:
            for start in range(0, size, PIECE):
                piece = self._piece(source, start, min(start + PIECE, size))
                if piece is None:
                    break
                out.write(bytes(piece))

    def delete(self, keys: Sequence[str]) -> None:
        """Delete the objects; those that are gone already are fine."""
        for first in range(0, len(keys), 1000):  # as many as one request may name
            self._delete(list(keys[first : first + 1000]))

    @_patient
    def _delete(self, keys: list[str]) -> None:
        self._api.delete(self._client, keys)

    @_patient
    def list(self, prefix: str) -> list[FileInfo]:
        """Every object in the folder `prefix` and below, sorted by key."""
        answer = self._api.list(self._client, prefix).collect()
        entries = (FileInfo(each["path"], each["size"], each["last_modified"].timestamp()) for each in answer)
        return sorted(entries, key=lambda entry: entry.name)

    @_patient
    def folders(self, prefix: str) -> Sequence[str]:
        """The names of the folders in the folder `prefix`, sorted."""
        answer = self._api.list_with_delimiter(self._client, prefix)["common_prefixes"]
        return sorted(str(each).rpartition("/")[2] for each in answer)

    @_apart
    def fetch(self, key: str, size: int, path: Path) -> str:
        """Write `size` bytes of the object to a new file; returns the sha256 of what came (it may be less)."""
        with open(path, "xb") as out:
            return self._read(key, size, out)

    @_apart
    def digest(self, key: str, size: int) -> str:
        """The sha256 of `size` bytes of the object (of fewer where it is shorter)."""
        return self._read(key, size, None)

    def _read(self, key: str, size: int, out: IO[bytes] | None) -> str:
        """In pieces, each asked for again by itself: a dropped connection costs one piece, whatever the file's size."""
        digest = hashlib.sha256()
        for start in range(0, size, PIECE):
            piece = self._piece(key, start, min(start + PIECE, size))
            if piece is None:
                break
            digest.update(piece)
            if out is not None:
                out.write(piece)
        return digest.hexdigest()

    @_patient
    def _piece(self, key: str, start: int, end: int) -> memoryview | None:
        """Bytes `start` to `end`, or those of them that there are; None where there are none."""
        try:
            with TRANSFERS:
                return memoryview(self._api.get_range(self._client, key, start=start, end=end))
        except FileNotFoundError as error:
            self._look_at_bucket(error)
            return None
        except Exception as error:
            if "status code: 416" in str(error):  # it ends before `start`
                return None
            raise

    # ------------------------------------------------------------------ failures

    def _look_at_bucket(self, error: FileNotFoundError) -> None:
        if "NoSuchBucket" in str(error):
            raise UserError(
                f"there is no bucket {self.bucket!r} for {self.url}; make it first, or give another --store"
            )

    def _recoverable(self, what: str, error: Exception, waited: float) -> str:
        """The cause of what another try may mend; else raises a sentence, or the error where it is not the server's."""
        from obstore import exceptions as known

        if isinstance(error, FileNotFoundError):
            self._look_at_bucket(error)
        if not isinstance(error, known.BaseError):
            raise error
        message, cause = str(error), _cause(error)
        if "169.254.169.254" in message:
            raise UserError(f"{self.url}: no credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
        if isinstance(error, known.PermissionDeniedError | known.UnauthenticatedError):
            remedy = "look at the rights of AWS_ACCESS_KEY_ID or of the machine's role"
            raise NotAllowed(f"{self.url}: `{what}` is not allowed ({cause}); {remedy}") from None
        if REFUSED.search(message):
            raise BuildError(f"{self.url}: the server refused `{what}` ({cause})") from None
        if waited >= self.patience:
            raise BuildError(
                f"{self.url}: `{what}` failed for {waited:.0f} s ({cause}); finished work is kept, run the same "
                "command when the server answers again"
            ) from None
        return cause


def part_size(size: int) -> int:
    """Bytes of a part in the upload of `size` bytes: a server takes MOST_PARTS of them."""
    return max(PART, -(-size // MOST_PARTS))


def _endpoint() -> str | None:
    """The server's address where the environment names one. Raises UserError: the client would crash over it."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        given = os.environ.get(name)
        if given is not None:
            if not re.match(r"https?://[^/]", given):
                raise UserError(f"{name}={given!r} is no http(s) address; mend it, or unset it for Amazon's own")
            return given
    return None


def _cause(error: Exception) -> str:
    """The cause in few words: the client's messages go over many lines."""
    message = str(error)
    status, code = re.search(r"status code: (\d+ [\w ]+)", message), re.search(r"<Code>(\w+)</Code>", message)
    if status:
        return status[1].strip() + (f" {code[1]}" if code else "")
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    known = [line for line in lines if re.search(r"(?i)refused|reset|timed? ?out|closed|dns|connect|incomplete", line)]
    line = (known or lines or [type(error).__name__])[-1]
    quoted = re.search(r'"([^"]+)"', line)
    return (quoted[1] if quoted else line)[:160]


if __name__ == "__main__":
    from vbert.artifacts.store import s3_client

    s3_client._answer()  # not this module's own copy, `__main__`: errors must be of the same classes
