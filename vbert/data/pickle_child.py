"""The child of `pickles.py`: it reads pickles under limits and answers with plain data.

Nothing named in a pickle is ever imported or called: exact (module, name) pairs stand for functions of this file, which
rebuild what numpy and torch write, and check it. Everything else is refused before it does anything.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import pickletools
import re
import resource
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}|O8?|\?)")
DEEPEST = 100  # containers in containers
FORBIDDEN = ("EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER", "INST", "OBJ")
OF_CLASSES = ("NEWOBJ", "NEWOBJ_EX")  # for those that are merely named
PERSISTENT = ("PERSID", "BINPERSID")
STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
    "BFloat16Storage": "bfloat16",  # no dtype of numpy's: only its place is told
}


class Refused(Exception):
    """The pickle holds something else than arrays and plain containers."""


class Call:
    """Stands for a function or class named in a pickle. A pickle can call it and do nothing else with it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise Refused("it changes a function that it names")


class Unknown:
    """Stands for any class or function that is not known, where it may be named: it takes everything and keeps nothing.

    Each has a class of its own, made by `unknown`, because a pickle makes objects by classes.
    """

    __slots__ = ()
    told = ""

    def __new__(cls, *_: Any, **__: Any) -> Unknown:
        return super().__new__(cls)

    def __call__(self, *_: Any, **__: Any) -> Unknown:
        return self

    def __setstate__(self, _: Any) -> None:
        return

    def __setitem__(self, _: Any, __: Any) -> None:
        return

    def append(self, _: Any) -> None:
        return

    extend = add = append


def unknown(module: str, name: str) -> type[Unknown]:
    return type("Unknown", (Unknown,), {"__slots__": (), "told": f"{module}.{name}"[:200]})


class DType:
    """A numpy dtype as pickled: `dtype("f4", False, True)`, then its state, of which the byte order counts."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("ascii", "replace") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not DTYPE.fullmatch(text):
            raise Refused(f"it has an array of type {text!s:.40}; numbers, booleans and text are read")
        self.code, self.order = text, ""

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, sub-array, field names, fields, item size, alignment, flags[, metadata])
        if not isinstance(state, tuple) or len(state) < 8 or any(part is not None for part in state[2:5]):
            raise Refused("it has an array of records or of a damaged type")
        order = state[1].decode("ascii", "replace") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise Refused("it has an array of a damaged type")
        self.order = order

    def real(self) -> np.dtype[Any]:
        return np.dtype(self.code if self.code[0] in "<>|=" else self.order + self.code)


class Array:
    """A numpy array as pickled: an empty one, then its state."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("it has an array without a proper state")
        _, shape, dtype, fortran, raw = state
        self.value = array(shape, dtype, raw, "F" if fortran else "C")


class Objects:
    """An array of objects: its shape, and the objects in order."""

    __slots__ = ("items", "shape")

    def __init__(self, shape: tuple[int, ...], items: list[Any]) -> None:
        self.shape, self.items = shape, items


class Storage:
    __slots__ = ("dtype", "key", "size")

    def __init__(self, dtype: str, key: str, size: int) -> None:
        self.dtype, self.key, self.size = dtype, key, size


class Tensor:
    """A torch tensor: which elements of which storage, not their values."""

    __slots__ = ("by_rows", "offset", "shape", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> None:
        if not isinstance(storage, Storage) or not _sizes((offset,)) or not _sizes(shape) or not _sizes(stride):
            raise Refused("it has a damaged tensor")
        if offset + prod(shape) > storage.size:
            raise Refused(f"it has a tensor of {prod(shape):,} elements over a storage of {storage.size:,}")
        if len(shape) != len(stride):
            raise Refused("it has a damaged tensor")
        if all(shape) and offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) >= storage.size:
            raise Refused(f"it has a tensor of strides {stride!r:.80} over a storage of {storage.size:,}")
        rows = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
        self.by_rows = not any(n > 1 and a != b for n, a, b in zip(shape, stride, rows, strict=True))
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride


class Mapping(dict[Any, Any]):
    """An OrderedDict; torch hangs attributes on it, which are dropped."""

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        return


def _sizes(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= 32 and all(type(v) is int and 0 <= v < 2**62 for v in values)


def array(shape: Any, dtype: Any, raw: Any, order: Any) -> Any:
    """A numpy array of bytes that are there, or Objects; never larger than what the pickle brought along."""
    if not _sizes(shape) or not isinstance(dtype, DType) or order not in ("C", "F"):
        raise Refused("it has an array without a proper shape and type")
    if dtype.code.startswith("O"):
        if not isinstance(raw, list) or len(raw) != prod(shape):
            raise Refused("it has an array of objects that are not there")
        return Objects(shape, raw)
    data = raw.encode("latin-1") if isinstance(raw, str) else raw  # Python 2's bytes
    kind = dtype.real()
    if not isinstance(data, bytes | bytearray) or len(data) != prod(shape) * kind.itemsize:
        raise Refused(f"it has an array of shape {shape!r:.80} whose bytes are not there")
    return np.frombuffer(data, kind).reshape(shape, order=order)


def _reconstruct(_kind: Any, shape: Any, _code: Any) -> Array:
    if shape != (0,):
        raise Refused(f"it asks for an array of shape {shape!r:.80} without bytes")
    return Array()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> Array:
    made = Array()
    made.value = array(shape, dtype, raw, order)
    return made


def _scalar(dtype: Any, raw: Any = None) -> Any:
    value = array((), dtype, raw, "C")
    if isinstance(value, Objects):
        raise Refused("it has a scalar object")
    return value.item()


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("it encodes what is no bytes")
    return text.encode("latin-1")


def _ordered(items: Any = ()) -> Mapping:
    return Mapping(items)


def _tensor(storage: Any, *about: Any) -> Any:
    return storage if isinstance(storage, Unknown) else Tensor(storage, *about)


def _parameter(tensor: Any, *_: Any) -> Any:
    if isinstance(tensor, Unknown):
        return tensor
    if not isinstance(tensor, Tensor):
        raise Refused("it has a parameter that is no tensor")
    return tensor


def _not_called(*_: Any) -> None:
    raise Refused("it makes an array of its own")


NUMPY: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): Call(_not_called),
    ("numpy", "dtype"): Call(DType),
    ("collections", "OrderedDict"): Call(_ordered),
    ("_codecs", "encode"): Call(_encode),
}
for _module in ("builtins", "__builtin__"):
    NUMPY |= {(_module, "set"): Call(set), (_module, "frozenset"): Call(frozenset)}
for _core in ("numpy.core", "numpy._core"):
    NUMPY[_core + ".multiarray", "_reconstruct"] = Call(_reconstruct)
    NUMPY[_core + ".multiarray", "scalar"] = Call(_scalar)
    NUMPY[_core + ".numeric", "_frombuffer"] = Call(_frombuffer)
TORCH: dict[tuple[str, str], Any] = NUMPY | {("torch._utils", "_rebuild_tensor_v2"): Call(_tensor)}
TORCH["torch._utils", "_rebuild_parameter"] = Call(_parameter)
TORCH |= {("torch", name): name for name in STORAGES}


class Reader(pickle.Unpickler):
    def __init__(self, file: IO[bytes], torch: bool, named: bool) -> None:
        super().__init__(file, encoding="latin-1")  # Python 2's text and bytes; others say what they are
        self._names, self._named = TORCH if torch else NUMPY, named
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._names:
            return self._names[module, name]
        if not self._named:
            raise Refused(f"it names {module}.{name}")
        return unknown(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """A torch storage: ("storage", type, key, device, elements[, view])."""
        if self._named and isinstance(pid, tuple) and len(pid) > 1 and _is_unknown(pid[1]):
            return pid[1]()
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or pid[1] not in STORAGES:
            raise Refused(f"it has a storage that is not of numbers: {pid!r:.80}")
        key, size = pid[2], pid[4]
        if not isinstance(key, str) or not _sizes((size,)) or (len(pid) > 5 and pid[5] is not None):
            raise Refused("it has a damaged storage")
        return self.storages.setdefault(key, Storage(STORAGES[pid[1]], key, size))


def _is_unknown(value: Any) -> bool:
    return isinstance(value, Unknown) or (isinstance(value, type) and issubclass(value, Unknown))


def scan(file: IO[bytes], operations: int, torch: bool, named: bool) -> int:
    """Counts the operations of one pickle and refuses those that arrays and containers don't need."""
    count = 0
    names = TORCH if torch else NUMPY
    for operation, argument, _ in pickletools.genops(file):
        count += 1
        name = operation.name
        if count > operations:
            raise Refused(f"it takes more than {operations:,} operations")
        if name in FORBIDDEN or (name in PERSISTENT and not torch) or (name in OF_CLASSES and not named):
            raise Refused(f"it has an operation that plain data doesn't need ({name})")
        if name == "GLOBAL" and not named and tuple(str(argument).split(" ", 1)) not in names:
            raise Refused(f"it names {str(argument).replace(' ', '.'):.120}")
        if name.endswith("PUT") and isinstance(argument, int) and argument > operations:
            raise Refused("it remembers more than it holds")
    return count


class Writer:
    """Plain data as a JSON tree and blobs; a thing met twice is a blob once, and counts each time."""

    def __init__(self, nodes: int, characters: int, named: bool) -> None:
        self.nodes, self.characters, self.named = nodes, characters, named
        self.blobs: list[memoryview] = []
        self.about: list[Any] = []
        self._known: dict[int, int] = {}

    def tree(self, value: Any, depth: int = 0) -> Any:
        self.nodes -= 1
        if self.nodes < 0 or depth > DEEPEST:
            raise Refused("it repeats or nests its containers without end")
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            self.characters -= len(value)
            if self.characters < 0:
                raise Refused("it repeats its text without end")
            return value
        if isinstance(value, bytes | bytearray):
            return {"b": self._blob(value, None, memoryview(value))}
        if isinstance(value, Array):
            value = value.value
        if isinstance(value, Objects):
            return {"o": [list(value.shape), [self.tree(item, depth + 1) for item in value.items]]}
        if isinstance(value, np.ndarray):
            flat = np.ascontiguousarray(value)
            about = [flat.dtype.str, list(value.shape)]
            return {"a": self._blob(value, about, memoryview(flat.tobytes()))}
        if isinstance(value, Tensor):
            if not value.by_rows and not self.named:
                raise Refused("it has a tensor that is not stored row by row")
            return {"x": [value.storage.dtype, value.storage.key, value.offset, list(value.shape), list(value.stride)]}
        if _is_unknown(value):
            return {"n": value.told}
        if isinstance(value, dict):
            return {"d": [[self._key(k, depth), self.tree(v, depth + 1)] for k, v in value.items()]}
        for mark, kind in (("l", list), ("t", tuple), ("s", (set, frozenset))):
            if isinstance(value, kind):
                return {mark: [self.tree(item, depth + 1) for item in value]}
        raise Refused(f"it holds a {type(value).__name__}")

    def _key(self, key: Any, depth: int) -> Any:
        if isinstance(key, str | bytes | int | float | tuple) or key is None or _is_unknown(key):
            return self.tree(key, depth + 1)
        raise Refused(f"it has a key that is a {type(key).__name__}")

    def _blob(self, value: Any, about: Any, data: memoryview) -> int:
        if id(value) not in self._known:
            self._known[id(value)] = len(self.blobs)
            self.blobs.append(data)
            self.about.append([len(data), about])
        return self._known[id(value)]


def answer(request: dict[str, Any], given: bytes) -> tuple[dict[str, Any], list[memoryview]]:
    """The `count` pickles of the request, which stand at the beginning of `given` or of a file."""
    torch, named = bool(request["torch"]), bool(request["named"])
    with open(request["path"], "rb") if request["path"] else io.BytesIO(given) as file:
        operations = sum(scan(file, request["operations"], torch, named) for _ in range(request["count"]))
        size = file.tell()
        _limit(request["memory"] + 6 * size)
        file.seek(0)
        reader = Reader(file, torch, named)
        values = [reader.load()]
        storages = dict(reader.storages)
        for _ in range(request["count"] - 1):
            reader = Reader(file, torch, named)
            values.append(reader.load())
            storages |= reader.storages
        writer = Writer(2 * operations + 100, 4 * size + 1000, named)
        found = {
            "values": [writer.tree(value) for value in values],
            "storages": {key: [one.dtype, one.size] for key, one in storages.items()},
            "end": file.tell(),
            "blobs": writer.about,
        }
    return found, writer.blobs


def _limit(memory: int) -> None:
    """At most so many bytes of address space more than this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if os.path.exists("/proc/self/statm") else 0
    if pages:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, hard))


def _limit_time(seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 1, hard))


def serve(source: IO[bytes], target: IO[bytes]) -> None:
    """One request after another: a line of JSON, then `size` bytes; answers likewise; until the other end closes."""
    while line := source.readline():
        request = json.loads(line)
        given = source.read(request["size"])
        blobs: list[memoryview] = []
        _limit_time(request["seconds"])
        _limit(request["memory"] + 2 * len(given))
        try:
            found, blobs = answer(request, given)
            text = json.dumps(found)
        except Refused as refusal:
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


if __name__ == "__main__":
    serve(sys.stdin.buffer, os.fdopen(os.dup(1), "wb"))
