"""Pickles as plain data. Foreign files hold them (features, indices, published weights), and a pickle is a program.

A child process (`pickle_child.py`) reads them under limits of time, memory and operations. It knows numpy arrays, torch
tensors and plain containers by exact names, and returns only JSON and raw bytes.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

from vbert.errors import UserError

ROOT = Path(__file__).parents[2]  # the last place on sys.path, for a vbert that is not installed
CHILD = f"import sys; sys.path.append({str(ROOT)!r}); from vbert.data.pickle_child import main; main()"


@dataclass(frozen=True)
class PickleLimits:
    """Limits for one pickle: `memory` in bytes beyond six times the pickle's size."""

    seconds: float = 30.0
    memory: int = 256 * 2**20
    operations: int = 10_000_000
    size: int = 8 * 2**30


class UnsafePickle(UserError):
    """A pickle that holds more than arrays and plain containers, or exceeds its limits. No part of it was run.

    reason: why, as in "is not read, because …"; empty where the message says it in other words.
    """

    reason = ""


@dataclass(frozen=True)
class StoredTensor:
    """Where a torch tensor's numbers lie: elements of storage `key` from `offset` on, with `stride` elements from one
    index of an axis to the next (row-major, unless read with `named`). `bfloat16` is the one dtype that is not
    numpy's."""

    dtype: str
    key: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class UnreadObject:
    """An object of an unknown class, of which only the class's module and name were read."""

    name: str


@dataclass(frozen=True)
class TorchPickle:
    """A torch pickle: `value` with StoredTensor for tensors; `sizes`: key → (dtype, elements); `end`: byte behind
    it."""

    value: Any
    sizes: Mapping[str, tuple[str, int]]
    end: int


def load(source: bytes | Path, name: str, limits: PickleLimits | None = None, named: bool = False) -> Any:
    """The pickled object: None, numbers, text, bytes, lists, tuples, sets, dicts and numpy arrays.

    An array of objects becomes the object (no dimension) or a list (one). `name`: of the file, for errors. `named`:
    other objects appear as `UnreadObject`. Raises UnsafePickle.
    """
    return _shared.ask(source, name, limits or PickleLimits(), named=named).value


def load_torch(
    source: bytes | Path, name: str, count: int = 1, limits: PickleLimits | None = None, named: bool = False
) -> TorchPickle:
    """The objects of `count` consecutive torch pickles (a list, if more than one), tensors as StoredTensor."""
    return _shared.ask(source, name, limits or PickleLimits(), torch=True, count=count, named=named)


class PickleProcess:
    """A child process that reads one pickle after another, replaced when it dies."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def ask(
        self,
        source: bytes | Path,
        name: str,
        limits: PickleLimits,
        torch: bool = False,
        count: int = 1,
        named: bool = False,
    ) -> TorchPickle:
        given = source if isinstance(source, bytes) else b""
        size = len(given) if isinstance(source, bytes) else source.stat().st_size
        if size > limits.size and not torch:
            raise UnsafePickle(f"{name}: a pickle of {size:,} bytes; at most {limits.size:,} are read")
        request = {
            "path": None if isinstance(source, bytes) else os.path.abspath(source),
            "size": len(given),
            "count": count,
            "torch": torch,
            "named": named,
            "seconds": limits.seconds,
            "memory": limits.memory,
            "operations": limits.operations,
        }
        with self._lock:
            process = self._started()
            overdue = threading.Timer(3 * limits.seconds + 10, process.kill)
            overdue.start()
            try:
                return self._exchange(process, request, given, name)
            except BaseException:
                self._end()
                raise
            finally:
                overdue.cancel()

    def _exchange(
        self, process: subprocess.Popen[bytes], request: Mapping[str, Any], given: bytes, name: str
    ) -> TorchPickle:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.write(given)
            process.stdin.flush()
            line = process.stdout.readline()
            response = json.loads(line) if line.endswith(b"\n") else None
            blobs = [] if response is None or "refused" in response else _blobs(process.stdout, response["blobs"])
        except OSError:
            response = None
        if response is None:
            raise _refusal(name, "reading it takes too long or too much memory")
        if "refused" in response:
            raise _refusal(name, response["refused"])
        try:
            values = [_plain(value, blobs) for value in response["values"]]
        except TypeError:  # arrays have no hash
            raise _refusal(name, "arrays or lists are keys in it, or members of a set") from None
        sizes = {str(key): (str(dtype), int(size)) for key, (dtype, size) in response["storages"].items()}
        return TorchPickle(values[0] if request["count"] == 1 else values, sizes, int(response["end"]))

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            keep = ("PATH", "LD_LIBRARY_PATH", "LANG")
            environment = {name: os.environ[name] for name in keep if name in os.environ}
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", CHILD],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        return self._process

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):
                    if pipe is not None:
                        pipe.close()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        with self._lock:
            self._end()


_shared = PickleProcess()
atexit.register(_shared.close)


def _refusal(name: str, reason: str) -> UnsafePickle:
    error = UnsafePickle(
        f"{name}: this pickle is not read, because {reason}; plain arrays and containers are. Where you trust it, save "
        "its arrays with numpy.save(..., allow_pickle=False) or as safetensors and give those"
    )
    error.reason = reason
    return error


def _blobs(source: IO[bytes], about: Sequence[Any]) -> list[Any]:
    """The bytes and arrays that follow an answer's line."""
    import numpy as np

    arrays: list[Any] = []
    for size, array in about:
        data = source.read(int(size))
        if len(data) != int(size):
            raise OSError("the child died")
        if array is None:
            arrays.append(data)
        else:
            dtype, shape = np.dtype(array[0]), tuple(array[1])
            if dtype.hasobject or prod(shape) * dtype.itemsize != len(data):
                raise OSError("the child's answer is damaged")
            arrays.append(np.frombuffer(data, dtype).reshape(shape))
    return arrays


def _plain(tree: Any, blobs: Sequence[Any]) -> Any:
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind in ("a", "b"):
        return blobs[content]
    if kind == "d":
        return {_plain(key, blobs): _plain(value, blobs) for key, value in content}
    if kind == "o":
        shape, items = content[0], [_plain(item, blobs) for item in content[1]]
        return items[0] if not shape else items
    if kind == "x":
        dtype, key, offset, shape, stride = content
        return StoredTensor(dtype, key, offset, tuple(shape), tuple(stride))
    if kind == "n":
        return UnreadObject(content)
    items = [_plain(item, blobs) for item in content]
    return items if kind == "l" else tuple(items) if kind == "t" else set(items)
