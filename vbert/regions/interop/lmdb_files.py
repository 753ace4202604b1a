"""Reads foreign LMDB files, for all LMDB formats."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

from vbert.errors import UserError
from vbert.regions.interop.npy_files import unpickled
from vbert.regions.interop.raw_regions import BadEntry, missing_library

MAGIC = 0xBEEFC0DE  # mdb.c: MDB_MAGIC, in the meta page behind a page header of 16 bytes
NAME = "data.mdb"


def data_file(path: Path) -> Path | None:
    """The file that holds the data of the LMDB `path` (a folder, or the file itself); None where it is none.

    Not `lock.mdb` beside it, which changes with every reader.
    """
    file = path / NAME if path.is_dir() else path
    try:
        with file.open("rb") as source:
            head = source.read(20)
    except OSError:
        return None
    return file if len(head) == 20 and struct.unpack("<I", head[16:])[0] == MAGIC else None


@contextmanager
def opened_lmdb(path: Path) -> Iterator[Any]:
    """A read transaction on the file `path`. Raises UserError where it isn't whole: LMDB itself would crash."""
    with _environment(path.resolve()) as environment:
        pages = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
        if pages > path.stat().st_size:
            short = pages - path.stat().st_size
            raise UserError(f"{path}: an LMDB that is cut off, {short:,} bytes are missing; fetch or copy it again")
        with environment.begin(buffers=True) as transaction:
            yield transaction


_environments: dict[Path, tuple[Any, int]] = {}  # and its users: LMDB opens no file twice in a process
_lock = Lock()


@contextmanager
def _environment(path: Path) -> Iterator[Any]:
    try:
        import lmdb
    except ImportError:
        raise UserError(missing_library("lmdb", f"{path}: an LMDB")) from None
    with _lock:
        environment, users = _environments.get(path, (None, 0))
        if environment is None:
            try:
                options = {"subdir": False, "readonly": True, "lock": False, "readahead": False, "create": False}
                environment = lmdb.open(str(path), **options)
            except lmdb.Error as error:
                raise UserError(f"{path}: can't be opened as an LMDB: {error}") from None
        _environments[path] = environment, users + 1
    try:
        yield environment
    finally:
        with _lock:
            users = _environments[path][1] - 1
            _environments[path] = environment, users
            if not users:
                del _environments[path]
                environment.close()


def value_of(transaction: Any, key: bytes) -> bytes | None:
    """The bytes of an entry; None where there is none. Raises UserError where the pages that lead to it are damaged."""
    import lmdb

    try:
        value = transaction.get(key)
    except lmdb.BadValsizeError:  # an empty key, or one that is longer than LMDB's
        return None
    except lmdb.Error as error:
        raise UserError(f"an LMDB that is damaged ({error}); fetch or copy it again") from None
    return None if value is None else bytes(value)


def entry(transaction: Any, key: str, path: Path) -> dict[Any, Any]:
    """The pickled dict of an image that `keys` lists. Raises BadEntry."""
    where = f"{path}: {key}"
    data = value_of(transaction, key.encode())
    if data is None:
        raise BadEntry(where, "missing", "'keys' lists it, but there is no such entry")
    about = unpickled(data, where)
    if not isinstance(about, dict):
        raise BadEntry(where, "damaged", f"it holds a {type(about).__name__} where a dict is wanted")
    return about


def has_key(path: Path, key: bytes) -> bool:
    try:
        with opened_lmdb(path) as transaction:
            return value_of(transaction, key) is not None
    except UserError:
        return False


def first_value(path: Path, but: bytes) -> bytes | None:
    """The value of the first entry whose key is not `but`; None where there is none, or no whole LMDB."""
    try:
        with opened_lmdb(path) as transaction, transaction.cursor() as cursor:
            return next((bytes(value) for key, value in cursor if bytes(key) != but), None)
    except UserError:
        return None
