"""Files below one root, on a disk or in a bucket: the whole surface between the rules of a store and what keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, field_validator

Say = Callable[[str], None]
T = TypeVar("T")
R = TypeVar("R")

AT_ONCE = 8  # reads and transfers side by side


def no_words(_: str) -> None: ...


class FileEntry(BaseModel):
    """A file of an artifact or a unit: its name with `/`, size in bytes, hex sha256."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    size: int
    sha256: str

    @field_validator("name")
    @classmethod
    def _inside(cls, name: str) -> str:
        """A record may come from elsewhere: no name leads out of its artifact."""
        if not name or "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise ValueError(f"{name!r} is no name of a file in an artifact")
        return name


@dataclass(frozen=True)
class FileInfo:
    """A file's name below the root, its size in bytes and when it was last written (seconds since 1970)."""

    name: str
    size: int
    modified: float


class Wrong(Exception):
    """A file is not what its record says; the message says how, `file` which one of a folder."""

    def __init__(self, message: str, file: str = "") -> None:
        super().__init__(message)
        self.file = file


class Files(Protocol):
    """Names are relative, with `/`. Whatever returns lasts; every name is whole or absent at every moment.

    Methods raise Wrong where a file is lost or not what its entry says, OSError or BuildError where it can't be had.
    """

    location: str  # for people, and to open it by: a path or a URL

    def prepare(self, folders: Sequence[str]) -> None:
        """Make the root. Raises UserError where it can't be made, or its server can't be relied on."""

    def share(self) -> None:
        """Let the group of the root build in it. Raises UserError where that is not this user's to say."""

    def read_only(self) -> bool: ...

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None where there is none."""

    def version(self, name: str) -> Any:
        """A value that differs between two files of this name; None where it is gone, or where names are for ever."""

    def walk(self, folder: str) -> list[FileInfo]:
        """Every file in the folder and below, sorted by name."""

    def folders(self, folder: str) -> list[str]:
        """Names of the folders in the folder, sorted."""

    def create(self, name: str, data: bytes) -> bool:
        """Put a file unless there is one of this name: False."""

    def replace(self, name: str, data: bytes) -> None:
        """Put a file in the place of what has this name, if anything."""

    def add_folder(self, folder: str, directory: Path, files: Sequence[FileEntry]) -> None:
        """Have the files of a local directory, synced, as `folder`. The directory is theirs to take."""

    def folder(self, base: str, content: str) -> str:
        """Where the files of the thing `base` lie."""

    def compare_sizes(self, folder: str, files: Sequence[FileEntry]) -> None:
        """Raises Wrong, naming the file, where one is gone or of another size."""

    def check(self, name: str, entry: FileEntry) -> None:
        """Read a file where it lies."""

    def local(self, name: str, entry: FileEntry) -> Path:
        """The path of a local file with these bytes."""

    def quarantine(self, folder: str, target: str, worth: Sequence[str]) -> None:
        """Take a folder away to `target`; of one in a bucket only the files `worth` it."""

    def remove(self, folder: str) -> None:
        """Delete a folder; killed meanwhile, nothing is left that looks whole."""

    def lock(self, name: str, waiting: Say | None) -> AbstractContextManager[None]:
        """Hold a lock; `waiting(who)` is called once where another builder holds it."""

    def at_work(self, grace: float) -> set[str]:
        """Names of the locks that a live (or not provably dead) builder other than this process holds."""


def each(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`function` of every item, several at a time; the first failure is raised when those that run have ended."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        futures = [threads.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise
