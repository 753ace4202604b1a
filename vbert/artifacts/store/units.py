"""Units: what is committed whole of an artifact that is still being made. The first commit of a key stands."""

from __future__ import annotations

import errno
import json
import stat
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from vbert.artifacts.steps.fingerprint import sha256
from vbert.artifacts.steps.stage import Figures
from vbert.artifacts.store import durable
from vbert.artifacts.store.contents import gathered
from vbert.artifacts.store.manifest import FileEntry, environment, used_device
from vbert.artifacts.store.owner import SUFFIX, Owner, clear_dead
from vbert.artifacts.store.store import Store
from vbert.errors import BuildError

RECORD = "unit.json"


def is_key(key: str) -> bool:
    """Whether a unit may be called so: letters, digits, - and _."""
    return key.replace("-", "").replace("_", "").isalnum()


def make_and_share(
    store: Store, stage: str, fingerprint: str, key: str, make: Callable[[Path, Any], Figures], argument: Any
) -> Figures:
    """Make and commit a unit, and bring it to where other machines can see it."""
    figures = make_unit(store.unfinished(stage, fingerprint), key, make, argument)
    store.share_unit(stage, fingerprint, key)
    return figures


def make_unit(unfinished: Path, key: str, make: Callable[[Path, Any], Figures], argument: Any) -> Figures:
    """Make one unit in a directory of its own and commit it whole; the first commit of a key stands."""
    target = unfinished / "units" / key
    if (target / RECORD).exists():
        return unit_record(target)["figures"]  # type: ignore[no-any-return]
    making = making_directory(unfinished, key)
    try:
        began = time.monotonic()
        figures = make(making, argument)
        entries = gathered(making, f"unit {key}", RECORD, {})
        record = {
            "key": key,
            "files": [entry.model_dump() for entry in entries],
            "figures": figures,
            "seconds": round(time.monotonic() - began, 3),
            "environment": environment() | {"device": used_device()},
        }
        commit(making, unfinished, key, _sealed(record))
        return unit_record(target)["figures"]  # type: ignore[no-any-return]
    finally:
        done_with(making)


def making_directory(unfinished: Path, key: str) -> Path:
    """A fresh directory for the files of a unit, of its maker alone."""
    base = durable.make_directories(unfinished / "making", sync=False)
    clear_dead(base, key)
    making = durable.make_fresh(base / f"{key}.{uuid.uuid4().hex}")
    with suppress(OSError):
        Owner.current().write(making.with_name(making.name + SUFFIX))
    return making


def done_with(making: Path) -> None:
    """What is left of a directory in which a unit was made goes."""
    durable.remove_tree(making)
    making.with_name(making.name + SUFFIX).unlink(missing_ok=True)


def commit(making: Path, unfinished: Path, key: str, record: bytes) -> None:
    """Make `making`, whose files are synced, the unit of `key`, unless one stands there."""
    target = unfinished / "units" / key
    durable.write_file(making / RECORD, record)
    durable.sync_tree(making)
    durable.make_directories(target.parent, sync=False)
    try:
        durable.move(making, target)
    except OSError as error:
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else another one stands there already
            raise
    durable.settle(target, unfinished.parents[2])
    durable.sync_directory(making.parent)
    durable.acknowledge(target)


def _sealed(record: dict[str, Any]) -> bytes:
    """The record's bytes, closed by a digest of themselves: JSON alone would not show a flipped digit."""
    body = json.loads(json.dumps(record))
    return json.dumps(body | {"digest": sha256(json.dumps(body, sort_keys=True))}).encode()


def opened(data: bytes, key: str) -> dict[str, Any]:
    """The record of the unit `key` in these bytes. Raises ValueError where they are not what was written."""
    record = json.loads(data)
    if not isinstance(record, dict):
        raise ValueError("it is not what was written")
    claimed = record.pop("digest", None)
    if claimed != sha256(json.dumps(record, sort_keys=True)) or record["key"] != key:
        raise ValueError("it is not what was written")
    return record


def files_of(record: dict[str, Any]) -> list[FileEntry]:
    return [FileEntry.model_validate(entry) for entry in record["files"]]


def unit_record(directory: Path, contents: bool = False) -> dict[str, Any]:
    """The record of a committed unit; its files' sizes are compared, with `contents` their sha256 too.

    Raises BuildError, naming the file, where it is not whole.
    """
    at = RECORD
    try:
        record = opened((directory / RECORD).read_bytes(), directory.name)
        for entry in record["files"]:
            at = entry["name"]
            info = (directory / at).lstat()
            if not stat.S_ISREG(info.st_mode) or info.st_size != entry["size"]:
                raise ValueError(f"{info.st_size} bytes where the record says {entry['size']}")
            if contents and durable.sha256_file(directory / at) != entry["sha256"]:
                raise ValueError("its sha256 is not the record's")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise BuildError(f"{directory.name}/{at} is damaged: {error}") from None
    return record


def set_aside(unfinished: Path, key: str) -> Path:
    """Move a committed unit out of the way, so that it is made again. Returns where it went."""
    moved = durable.make_directories(unfinished / "broken") / uuid.uuid4().hex
    durable.rename(unfinished / "units" / key, moved)
    return moved


def committed(
    unfinished: Path, contents: bool = False, say: Callable[[str], None] = lambda _: None
) -> dict[str, dict[str, Any]]:
    """Key → record of the units committed so far; one that is not whole is moved away, to be made again."""

    def read(directory: Path) -> dict[str, Any] | None:
        try:
            return unit_record(directory, contents)
        except BuildError as error:
            say(f"unit {error}; moved to {set_aside(unfinished, directory.name)}, making it again")
            return None

    directories = sorted((unfinished / "units").glob("*"))
    with ThreadPoolExecutor(4) as threads:
        records = zip(directories, threads.map(read, directories), strict=True)
        return {directory.name: record for directory, record in records if record is not None}
