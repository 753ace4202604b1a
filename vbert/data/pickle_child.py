"""The child of `pickles.py`: it reads pickles under limits and answers with plain data.

Nothing named in a pickle is ever imported or called: exact (module, name) pairs stand for functions of
`pickle_stand_ins.py`, which rebuild what numpy and torch write, and check it. Everything else is refused before it does
anything.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import resource
import sys
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from vbert.data.pickle_stand_ins import (
    NUMPY,
    STORAGES,
    TORCH,
    ObjectArray,
    PickledArray,
    PickledStorage,
    PickledTensor,
    RefusedPickle,
    UnknownClass,
    are_sizes,
    unknown,
)

DEEPEST = 100  # containers in containers
FORBIDDEN = ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "INST", "OBJ")
OF_CLASSES = ("NEWOBJ", "NEWOBJ_EX")  # allowed for classes that are only named
PERSISTENT = ("PERSID", "BINPERSID")
# Python 2's quoted text is read as bytes when scanned, since it need not be ASCII.
pickletools.stringnl.reader = partial(pickletools.read_stringnl, decode=False)


class RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], torch: bool, named: bool) -> None:
        super().__init__(file, encoding="latin-1")  # of Python 2's text and bytes, which don't state it
        self._names, self._named = TORCH if torch else NUMPY, named
        self.storages: dict[str, PickledStorage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._names:
            return self._names[module, name]
        if not self._named:
            raise RefusedPickle(f"it names {module}.{name}")
        return unknown(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """A torch storage: ("storage", type, key, device, elements[, view])."""
        if self._named and isinstance(pid, tuple) and len(pid) > 1 and _is_unknown(pid[1]):
            return pid[1]()
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or pid[1] not in STORAGES:
            raise RefusedPickle(f"it has a storage that is not of numbers: {pid!r:.80}")
        key, size = pid[2], pid[4]
        if not isinstance(key, str) or not are_sizes((size,)) or (len(pid) > 5 and pid[5] is not None):
            raise RefusedPickle("it has a damaged storage")
        return self.storages.setdefault(key, PickledStorage(STORAGES[pid[1]], key, size))


def _is_unknown(value: Any) -> bool:
    return isinstance(value, UnknownClass) or (isinstance(value, type) and issubclass(value, UnknownClass))


def scan(file: IO[bytes], operations: int, torch: bool, named: bool) -> int:
    """Counts the operations of one pickle and refuses those that arrays and containers don't need."""
    count = 0
    names = TORCH if torch else NUMPY
    for operation, argument, _ in pickletools.genops(file):
        count += 1
        name = operation.name
        if count > operations:
            raise RefusedPickle(f"it takes more than {operations:,} operations")
        if name in FORBIDDEN or (name in PERSISTENT and not torch) or (name in OF_CLASSES and not named):
            raise RefusedPickle(f"it has an operation that plain data doesn't need ({name})")
        if name == "GLOBAL" and not named and tuple(str(argument).split(" ", 1)) not in names:
            raise RefusedPickle(f"it names {str(argument).replace(' ', '.'):.120}")
        if name.endswith("PUT") and isinstance(argument, int) and argument > operations:
            raise RefusedPickle("it remembers more than it holds")
    return count


class PlainDataWriter:
    """Plain data as a JSON tree and blobs; a value met twice becomes one blob and counts twice against the limits."""

    def __init__(self, nodes: int, characters: int, named: bool) -> None:
        self.nodes, self.characters, self.named = nodes, characters, named
        self.blobs: list[memoryview] = []
        self.about: list[Any] = []
        self._known: dict[int, int] = {}

    def tree(self, value: Any, depth: int = 0) -> Any:
        self.nodes -= 1
        if self.nodes < 0 or depth > DEEPEST:
            raise RefusedPickle("it repeats or nests its containers without end")
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            self.characters -= len(value)
            if self.characters < 0:
                raise RefusedPickle("it repeats its text without end")
            return value
        if isinstance(value, bytes | bytearray):
            return {"b": self._blob(value, None, memoryview(value))}
        if isinstance(value, PickledArray):
            value = value.value
        if isinstance(value, ObjectArray):
            return {"o": [list(value.shape), [self.tree(item, depth + 1) for item in value.items]]}
        if isinstance(value, np.ndarray):
            flat = np.ascontiguousarray(value)
            about = [flat.dtype.str, list(value.shape)]
            return {"a": self._blob(value, about, memoryview(flat.tobytes()))}
        if isinstance(value, PickledTensor):
            if not value.by_rows and not self.named:
                raise RefusedPickle("it has a tensor that is not stored row by row")
            return {"x": [value.storage.dtype, value.storage.key, value.offset, list(value.shape), list(value.stride)]}
        if _is_unknown(value):
            return {"n": value.qualified_name}
        if isinstance(value, dict):
            return {"d": [[self._key(k, depth), self.tree(v, depth + 1)] for k, v in value.items()]}
        for tag, kind in (("l", list), ("t", tuple), ("s", (set, frozenset))):
            if isinstance(value, kind):
                return {tag: [self.tree(item, depth + 1) for item in value]}
        raise RefusedPickle(f"it holds a {type(value).__name__}")

    def _key(self, key: Any, depth: int) -> Any:
        if isinstance(key, str | bytes | int | float | tuple) or key is None or _is_unknown(key):
            return self.tree(key, depth + 1)
        raise RefusedPickle(f"it has a key that is a {type(key).__name__}")

    def _blob(self, value: Any, about: Any, data: memoryview) -> int:
        if id(value) not in self._known:
            self._known[id(value)] = len(self.blobs)
            self.blobs.append(data)
            self.about.append([len(data), about])
        return self._known[id(value)]


def answer(request: dict[str, Any], given: bytes) -> tuple[dict[str, Any], list[memoryview]]:
    """Reads the `count` pickles of a request, at the beginning of `given` or of a file."""
    torch, named = bool(request["torch"]), bool(request["named"])
    with open(request["path"], "rb") if request["path"] else io.BytesIO(given) as file:
        operations = sum(scan(file, request["operations"], torch, named) for _ in range(request["count"]))
        size = file.tell()
        _limit(request["memory"] + 6 * size)
        file.seek(0)
        reader = RestrictedUnpickler(file, torch, named)
        values = [reader.load()]
        storages = dict(reader.storages)
        for _ in range(request["count"] - 1):
            reader = RestrictedUnpickler(file, torch, named)
            values.append(reader.load())
            storages |= reader.storages
        writer = PlainDataWriter(2 * operations + 100, 4 * size + 1000, named)
        response = {
            "values": [writer.tree(value) for value in values],
            "storages": {key: [one.dtype, one.size] for key, one in storages.items()},
            "end": file.tell(),
            "blobs": writer.about,
        }
    return response, writer.blobs


def _limit(memory: int) -> None:
    """Limit the address space to `memory` bytes more than this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc/self/statm") else 0
    if pages:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, hard))


def _limit_time(seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))


def serve(source: IO[bytes], target: IO[bytes]) -> None:
    """Serve requests (a line of JSON, then `size` bytes) with answers of the same form, until the other end closes."""
    while line := source.readline():
        request = json.loads(line)
        given = source.read(request["size"])
        blobs: list[memoryview] = []
        _limit_time(request["seconds"])
        _limit(request["memory"] + 2 * len(given))
        try:
            response, blobs = answer(request, given)
            text = json.dumps(response)
        except RefusedPickle as refusal:
            text, blobs = json.dumps({"refused": str(refusal)}), []
        except MemoryError:
            text, blobs = json.dumps({"refused": "it needs more memory than it is given"}), []
        except Exception as error:
            text, blobs = json.dumps({"refused": f"it is damaged ({type(error).__name__}: {error})"[:300]}), []
        target.write(text.encode() + b"\n")
        for blob in blobs:
            target.write(blob)
        target.flush()
        del given, blobs


def main() -> None:
    serve(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"))
