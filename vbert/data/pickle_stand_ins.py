"""Stand-ins for the classes and functions that a pickle of arrays names: none of those is ever imported or called.

They rebuild arrays and tensors as numpy and torch write them, and check that no array is larger than its bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248]|c8|c16|[SU]\d{1,6}|O8?|\?)")

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
    "BFloat16Storage": "bfloat16",  # no dtype of numpy's: only its place is recorded
}


class RefusedPickle(Exception):
    """The pickle holds something else than arrays and plain containers."""


class AllowedCall:
    """Replaces a function or class that a pickle names. A pickle can call it and do nothing else with it."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def __setstate__(self, _: Any) -> None:
        raise RefusedPickle("it changes a function that it names")


class UnknownClass:
    """Replaces an unknown class or function, where it may be named: accepts all arguments and keeps none.

    Each has a class of its own, made by `unknown`, because a pickle makes objects by classes.
    """

    __slots__ = ()
    qualified_name = ""

    def __new__(cls, *_: Any, **__: Any) -> UnknownClass:
        return super().__new__(cls)

    def __call__(self, *_: Any, **__: Any) -> UnknownClass:
        return self

    def __setstate__(self, _: Any) -> None:
        return

    def __setitem__(self, _: Any, __: Any) -> None:
        return

    def append(self, _: Any) -> None:
        return

    extend = add = append


def unknown(module: str, name: str) -> type[UnknownClass]:
    return type("Unknown", (UnknownClass,), {"__slots__": (), "qualified_name": f"{module}.{name}"[:200]})


class PickledDtype:
    """A numpy dtype as pickled: `dtype("f4", False, True)`, then its state, of which the byte order counts."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any, *_: Any) -> None:
        text = code.decode("ascii", "replace") if isinstance(code, bytes) else code
        if not isinstance(text, str) or not DTYPE.fullmatch(text):
            raise RefusedPickle(f"it has an array of type {text!s:.40}; numbers, booleans and text are read")
        self.code, self.order = text, ""

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, sub-array, field names, fields, item size, alignment, flags[, metadata])
        if not isinstance(state, tuple) or len(state) < 8 or any(part is not None for part in state[2:5]):
            raise RefusedPickle("it has an array of records or of a damaged type")
        order = state[1].decode("ascii", "replace") if isinstance(state[1], bytes) else state[1]
        if order not in ("<", ">", "|", "="):
            raise RefusedPickle("it has an array of a damaged type")
        self.order = order

    def real(self) -> np.dtype[Any]:
        return np.dtype(self.code if self.code[0] in "<>|=" else self.order + self.code)


class PickledArray:
    """A numpy array as pickled: an empty one, then its state."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise RefusedPickle("it has an array without a proper state")
        _, shape, dtype, fortran, raw = state
        self.value = array(shape, dtype, raw, "F" if fortran else "C")


class ObjectArray:
    """An array of objects: its shape, and the objects in order."""

    __slots__ = ("items", "shape")

    def __init__(self, shape: tuple[int, ...], items: list[Any]) -> None:
        self.shape, self.items = shape, items


class PickledStorage:
    __slots__ = ("dtype", "key", "size")

    def __init__(self, dtype: str, key: str, size: int) -> None:
        self.dtype, self.key, self.size = dtype, key, size


class PickledTensor:
    """A torch tensor: which elements of which storage, not their values."""

    __slots__ = ("by_rows", "offset", "shape", "storage", "stride")

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> None:
        if (
            not isinstance(storage, PickledStorage)
            or not are_sizes((offset,))
            or not are_sizes(shape)
            or not are_sizes(stride)
        ):
            raise RefusedPickle("it has a damaged tensor")
        if offset + prod(shape) > storage.size:
            raise RefusedPickle(f"it has a tensor of {prod(shape):,} elements over a storage of {storage.size:,}")
        if len(shape) != len(stride):
            raise RefusedPickle("it has a damaged tensor")
        if all(shape) and offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) >= storage.size:
            raise RefusedPickle(f"it has a tensor of strides {stride!r:.80} over a storage of {storage.size:,}")
        rows = [prod(shape[axis + 1 :]) for axis in range(len(shape))]
        self.by_rows = not any(n > 1 and a != b for n, a, b in zip(shape, stride, rows, strict=True))
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride


class PickledDict(dict[Any, Any]):
    """An OrderedDict; torch hangs attributes on it, which are dropped."""

    __slots__ = ()

    def __setstate__(self, _: Any) -> None:
        return


def are_sizes(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= 32 and all(type(v) is int and 0 <= v < 2**62 for v in values)


def array(shape: Any, dtype: Any, raw: Any, order: Any) -> Any:
    """A numpy array over the pickle's own bytes, or an ObjectArray; never larger than those bytes."""
    if not are_sizes(shape) or not isinstance(dtype, PickledDtype) or order not in ("C", "F"):
        raise RefusedPickle("it has an array without a proper shape and type")
    if dtype.code.startswith("O"):
        if not isinstance(raw, list) or len(raw) != prod(shape):
            raise RefusedPickle("it has an array of objects that are not there")
        return ObjectArray(shape, raw)
    data = raw.encode("latin-1") if isinstance(raw, str) else raw  # Python 2's bytes
    kind = dtype.real()
    if not isinstance(data, bytes | bytearray) or len(data) != prod(shape) * kind.itemsize:
        raise RefusedPickle(f"it has an array of shape {shape!r:.80} whose bytes are not there")
    return np.frombuffer(data, kind).reshape(shape, order=order)


def _reconstruct(_kind: Any, shape: Any, _code: Any) -> PickledArray:
    if shape != (0,):
        raise RefusedPickle(f"it asks for an array of shape {shape!r:.80} without bytes")
    return PickledArray()


def _frombuffer(raw: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    made = PickledArray()
    made.value = array(shape, dtype, raw, order)
    return made


def _scalar(dtype: Any, raw: Any = None) -> Any:
    value = array((), dtype, raw, "C")
    if isinstance(value, ObjectArray):
        raise RefusedPickle("it has a scalar object")
    return value.item()


def _encode(text: Any, encoding: Any) -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedPickle("it encodes what is no bytes")
    return text.encode("latin-1")


def _ordered(items: Any = ()) -> PickledDict:
    return PickledDict(items)


def _tensor(storage: Any, *about: Any) -> Any:
    return storage if isinstance(storage, UnknownClass) else PickledTensor(storage, *about)


def _parameter(tensor: Any, *_: Any) -> Any:
    if isinstance(tensor, UnknownClass):
        return tensor
    if not isinstance(tensor, PickledTensor):
        raise RefusedPickle("it has a parameter that is no tensor")
    return tensor


def _not_called(*_: Any) -> None:
    raise RefusedPickle("it makes an array of its own")


NUMPY: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): AllowedCall(_not_called),
    ("numpy", "dtype"): AllowedCall(PickledDtype),
    ("collections", "OrderedDict"): AllowedCall(_ordered),
    ("_codecs", "encode"): AllowedCall(_encode),
}
for _module in ("builtins", "__builtin__"):
    NUMPY |= {(_module, "set"): AllowedCall(set), (_module, "frozenset"): AllowedCall(frozenset)}
for _core in ("numpy.core", "numpy._core"):
    NUMPY[_core + ".multiarray", "_reconstruct"] = AllowedCall(_reconstruct)
    NUMPY[_core + ".multiarray", "scalar"] = AllowedCall(_scalar)
    NUMPY[_core + ".numeric", "_frombuffer"] = AllowedCall(_frombuffer)
TORCH: dict[tuple[str, str], Any] = NUMPY | {("torch._utils", "_rebuild_tensor_v2"): AllowedCall(_tensor)}
TORCH["torch._utils", "_rebuild_parameter"] = AllowedCall(_parameter)
TORCH |= {("torch", name): name for name in STORAGES}
