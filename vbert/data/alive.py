"""Whether the sources of data sets still answer: one byte of each is asked for, and its size compared."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from vbert.data.source import Source, without_secrets
from vbert.errors import UserError

AT_ONCE = 16  # requests
SECONDS = 30.0  # for each


@dataclass(frozen=True)
class Answer:
    """What a source answers. `fault`: why it is dead; None where it is alive. `where`: its URL, package or path."""

    data_set: str
    source: str
    where: str
    fault: str | None
    size: int | None = None


def ask(sources: Iterable[tuple[str, str, Source]], seconds: float = SECONDS) -> list[Answer]:
    """Asks each (data set, name, source) once, in parallel, mirrors too. Those fetched by hand have nothing to ask."""
    asked = [
        (data_set, name, where, source)
        for data_set, name, source in sources
        for where in (
            [source.url, *source.mirrors] if source.url else filter(None, [source.python_package, source.path])
        )
    ]

    def answer(one: tuple[str, str, str, Source]) -> Answer:
        data_set, name, where, source = one
        try:
            size = _size(where, source, seconds)
        except _Dead as dead:
            return Answer(data_set, name, without_secrets(where), str(dead))
        if None not in (size, source.size) and size != source.size:
            return Answer(data_set, name, without_secrets(where), f"has {size:,} bytes, the spec says {source.size:,}")
        return Answer(data_set, name, without_secrets(where), None, size)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return list(threads.map(answer, asked))


class _Dead(Exception):
    """A source doesn't answer as it should."""


def _size(where: str, source: Source, seconds: float) -> int | None:
    """Bytes of the whole file, where that is said. Raises _Dead."""
    if source.path is not None:
        if not Path(where).exists():
            raise _Dead("is not there")
        return None
    if source.python_package is not None:
        _ask_pip(where, seconds)
        return None
    return _url(where, source, seconds)


def _url(url: str, source: Source, seconds: float) -> int | None:
    import httpx

    from vbert.data.download import Unservable, open_source

    try:
        with httpx.Client(timeout=seconds, follow_redirects=False) as client:
            response = open_source(client, url, {"Range": "bytes=0-0", "Accept-Encoding": "identity"}, source)
            response.close()
    except (Unservable, UserError) as error:
        raise _Dead(str(error)[:200]) from None
    except httpx.HTTPError as error:
        raise _Dead(f"{type(error).__name__}: {error}"[:200]) from None
    if response.status_code not in (200, 206):
        raise _Dead(f"HTTP {response.status_code}")
    if "text/html" in response.headers.get("content-type", "") and "htm" not in source.file.lower():
        raise _Dead("a web page comes in place of the file")
    whole = re.fullmatch(r"bytes 0-0/(\d+)", response.headers.get("content-range", ""))
    length = response.headers.get("content-length", "")
    if response.status_code == 206:
        return int(whole[1]) if whole else None
    return int(length) if length.isdecimal() else None


def _ask_pip(package: str, seconds: float) -> None:
    """Asks pip, with the user's own configuration, whether it finds that version. Raises _Dead."""
    name, _, version = package.partition("==")
    command = [sys.executable, "-m", "pip", "index", "versions", name, "--disable-pip-version-check", "--no-input"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=4 * seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise _Dead(f"pip said nothing for {4 * seconds:.0f} s") from None
    if done.returncode:
        raise _Dead(f"pip: {(done.stderr.strip().splitlines() or ['failed'])[-1][:200]}")
    if version not in re.findall(r"[^\s,()]+", done.stdout):
        raise _Dead(f"pip finds other versions only: {done.stdout.splitlines()[0][:200]}")
