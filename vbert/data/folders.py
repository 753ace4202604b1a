"""Local folders and files, identified by content: relative names and sha256, remembered so that planning stays fast."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from vbert.data.names import IMAGE_ENDINGS, MACOSX, count_of, is_image, is_odd, kinds, safe_name
from vbert.errors import UserError

RACY_NS = 2_000_000_000  # a file younger than this may change again within its time stamp: its digest isn't remembered
MAX_WAYS = 1000  # names under which links may show one folder: links to and fro multiply


def memory_folder() -> Path:
    """Where digests are remembered: `$XDG_CACHE_HOME/vbert/digests`, by default under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vbert" / "digests"


def folder_digest(path: Path, memory: Path | None = None, images_only: bool = False) -> str:
    """The identity of a local file (its sha256) or folder (sha256 of its files' names and sha256).

    images_only: of a folder, files of other kinds count for nothing.

    Files whose size, mtime_ns and inode are as remembered in the folder `memory` are not read again. Raises UserError.
    """
    return digest_of(path, file_digests(path, memory, images_only))


def digest_of(path: Path, digests: Mapping[str, tuple[int, str]]) -> str:
    """The identity of `path`, from the result of `file_digests`."""
    if path.is_file():
        return next(iter(digests.values()))[1]
    lines = [f"{sha256} {name}\n" for name, (_, sha256) in sorted(digests.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_digests(path: Path, memory: Path | None = None, images_only: bool = False) -> dict[str, tuple[int, str]]:
    """name → (bytes, hex sha256) of every file below the folder `path`, or of the file `path` itself.

    Links are followed. Left out are hidden files (see `names.is_hidden`), those that `unusable_names` names, a store or
    region features below the folder, and the file that this process's own output goes to. Raises UserError where there
    is nothing, or it can't be read.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; mend the path")
    root = str(path.resolve())
    cache_key = hashlib.sha256(os.fsencode(root) + b"\0images" * images_only).hexdigest()[:32]
    note = (memory or memory_folder()) / f"{cache_key}.json"
    known = _remembered(note)
    unusable: list[str] = []
    stats = dict(_files(root, unusable)) if path.is_dir() else {path.name: (root, _key(os.stat(root)))}
    if images_only and path.is_dir():
        others = [name for name in stats if not is_image(name)]
        stats = {name: stat for name, stat in stats.items() if is_image(name)}
        if others and not stats:
            content = f"no image, but {count_of(others, 'file')} of other kinds: {kinds(others)}"
            raise UserError(
                f"{path}: the folder holds {content}. Images are files that end in {' '.join(IMAGE_ENDINGS)}"
            )
    if not stats:
        for name in unusable:
            safe_name(name)  # raises a UserError of its own
        raise UserError(f"{path}: the folder holds no files; mend the path")
    now = time.time_ns()
    digests = {name: known[name][1] for name, (_, key) in stats.items() if name in known and known[name][0] == key}
    fresh = [name for name in stats if name not in digests]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        digests |= dict(zip(fresh, threads.map(_sha256, (stats[name][0] for name in fresh)), strict=True))
    if fresh or len(known) != len(stats):
        new = set(fresh)
        kept = {n: (key, digests[n]) for n, (_, key) in stats.items() if n not in new or now - key[1] > RACY_NS}
        _remember(note, kept)
    return {name: (stats[name][1][0], digests[name]) for name in sorted(stats)}


def names_below(root: Path) -> Iterator[str]:
    """The names of the files below a folder, as `file_digests` has them, in no order."""
    return (name for name, _ in _files(str(root.resolve()), []))


def unusable_names(path: Path) -> list[str]:
    """The files below the folder `path` that can't be taken for their names (see `names.is_odd`), sorted."""
    names: list[str] = []
    if path.is_dir():
        dict(_files(str(path.resolve()), names))
    return sorted(names)


def last_changed(path: Path, images_only: bool = False) -> str:
    """The name of the file below the folder `path` (or of `path` itself) that changed last, for errors."""
    root = str(path.resolve())
    files = _files(root, []) if path.is_dir() else ()
    stats = {name: stat for name, stat in files if not images_only or is_image(name)}
    return max(stats, key=lambda name: stats[name][1][1], default=path.name)


def _files(root: str, unusable: list[str]) -> Iterator[tuple[str, tuple[str, list[int]]]]:
    """(name, (path, key)) of the files below `root`; names of those set aside are appended to `aside`.

    Uses strings and scandir, not paths: planning calls it at every run.
    """
    ways: Counter[tuple[int, int]] = Counter()
    own = _output_files()
    folders: list[tuple[str, str, frozenset[tuple[int, int]]]] = [(root, "", frozenset())]
    while folders:
        folder, prefix, above = folders.pop()
        try:
            status = os.stat(folder)
        except OSError as error:
            raise UserError(f"{folder}: can't be read: {error.strerror}") from error
        this = (status.st_dev, status.st_ino)
        if this in above:  # a link to a parent folder; the same folder under another name counts as another
            continue
        ways[this] += 1
        if ways[this] > MAX_WAYS:
            raise UserError(f"{folder}: links lead to it in more than {MAX_WAYS} ways; take some away")
        inside = above | {this}
        try:
            with os.scandir(folder) as scanned:
                entries = list(scanned)
            if prefix and _is_store_or_shards({entry.name for entry in entries}):
                continue
            for entry in entries:
                if entry.name.startswith(".") or entry.name == MACOSX:
                    continue
                name = prefix + entry.name
                is_folder, is_file = _kind(entry)
                if is_folder:
                    folders.append((entry.path, f"{name}/", inside))
                elif is_odd(name):
                    unusable.append(name)
                elif is_file:
                    status = entry.stat()
                    if (status.st_dev, status.st_ino) not in own:
                        yield name, (entry.path, _key(status))
                elif entry.is_symlink():  # leads nowhere: an empty file, so that it is accounted for
                    yield name, (entry.path, [0, 0, 0])
        except OSError as error:
            raise UserError(f"{folder}: can't be read: {error.strerror}") from error


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Whether an entry is a folder, and whether a file; a link that leads nowhere, or to itself, is neither."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False, False


def _is_store_or_shards(names: set[str]) -> bool:
    """Whether a folder of these files is a store or exported shards, which often lie inside the folder that is read
    (`cd photos; vbert preprocess . --out features`)."""
    return names >= {"store.json", "artifacts"} or names >= {"contract.json", "offsets.parquet"}


def _output_files() -> set[tuple[int, int]]:
    """(device, inode) of the files that receive our and our parent's stdout and stderr: they grow while they are
    read."""
    paths = set()
    for process in ("self", os.getppid()):
        for descriptor in (1, 2):
            with suppress(OSError):
                status = os.stat(f"/proc/{process}/fd/{descriptor}")
                if stat.S_ISREG(status.st_mode):
                    paths.add((status.st_dev, status.st_ino))
    return paths


def _key(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _sha256(file: str) -> str:
    if not os.path.exists(file):
        return hashlib.sha256().hexdigest()
    try:
        with open(file, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{file}: can't be read: {error.strerror}") from error


def _remembered(note: Path) -> dict[str, tuple[list[int], str]]:
    try:
        return {name: (key, sha256) for name, (key, sha256) in json.loads(note.read_text()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _remember(note: Path, entries: dict[str, tuple[list[int], str]]) -> None:
    """Save `entries`; where that fails (read-only home), the files are read again next time."""
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_name(f"{note.name}.{uuid4().hex}")
        part.write_text(json.dumps(entries))
        part.replace(note)
    except OSError:
        return
