"""Weight files of any common format: recognised by their first bytes, read without running code, and unwrapped.

safetensors, both forms of torch.save, and pickles of arrays by name (detectron2's model zoo), under whatever name.
Wrappers around a state dict are removed: torchvision's references and detectron2 write `model`,
Lightning `state_dict` with names that begin with `model.`, DataParallel `module.`, torch.compile `_orig_mod.`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vbert.data.file_kinds import ENOUGH, file_kind
from vbert.data.pickles import PickleLimits, StoredTensor, UnreadObject, load
from vbert.data.torch_files import LEGACY, item_size, read_torch_file
from vbert.errors import UserError

log = logging.getLogger(__name__)

# Keys under which state dicts lie, in the order in which they are looked for.
WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "model_state",
    "network",
    "net",
    "weights",
    "model_ema",
)
AROUND = ("module.", "model.")  # before the names: a module that holds the network and nothing else of weight
BETWEEN = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")  # anywhere in the names
SHOWN = 3  # names in a message
SLOWEST = 600.0  # seconds for a pickle of a large network
CLASSES_BYTES = 1 << 20

DTYPES = {
    "<f8": torch.float64,
    "<f4": torch.float32,
    "<f2": torch.float16,
    "bfloat16": torch.bfloat16,
    "<i8": torch.int64,
    "<i4": torch.int32,
    "<i2": torch.int16,
    "|i1": torch.int8,
    "|u1": torch.uint8,
    "|b1": torch.bool,
}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors by name, as they are stored. Raises UserError for anything else, and for NaN or infinite numbers.

    Quantised tensors are refused: as floats their whole numbers would be other weights.
    """
    with path.open("rb") as file:
        head = file.read(ENOUGH)
    if _is_safetensors(head):
        tensors = read_safetensors(path)
    elif head.startswith(b"PK") or LEGACY.match(head) or head[257:262] == b"ustar":
        tensors = _torch(path)
    elif head.startswith(b"\x80"):
        content = load(path, path.name, PickleLimits(seconds=SLOWEST), named=True)
        tensors = {name: _of_array(value) for name, value in state_dict(content, path.name, np.ndarray).items()}
    else:
        what = file_kind(head) or f"no file of weights: it begins with {head[:8]!r}"
        raise UserError(f"{path.name}: is {what}; wanted is a state dict by torch.save, or safetensors")
    tensors = unwrapped(tensors)
    if small := [name for name, value in tensors.items() if value.dtype in (torch.int8, torch.uint8)]:
        raise UserError(
            f"{path.name}: {len(small)} tensors of whole numbers of 8 bits ({some_of(small)}): quantised weights are "
            "not read; give those they were made from"
        )
    refuse_not_finite(tensors, path.name)
    return tensors


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a whole safetensors file. Raises UserError."""
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # safetensors raises its own type and OSError
        raise UserError(f"{path.name}: not a whole safetensors file ({error!s:.200}); fetch or copy it again") from None


def refuse_not_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises UserError, naming the tensors, where a floating one holds NaN or an infinite number."""
    bad = [name for name, value in tensors.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise UserError(
            f"{where}: NaN or infinite numbers in {len(bad)} of {len(tensors)} tensors ({some_of(bad)}): the training "
            "that wrote them diverged, or the file is damaged; give an earlier checkpoint, or fetch it again"
        )


def unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the network's own names. A prefix is kept where removing it would give two tensors one name."""
    out = dict(tensors)
    for part in BETWEEN:
        out = _renamed(out, [name.replace(part, "") for name in out])
    while (before := next((b for b in AROUND if _most(out, b)), None)) is not None:
        bare = _renamed(out, [name.removeprefix(before) for name in out])
        if bare is out:
            break
        out = bare
    return out


def _renamed(tensors: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    return dict(zip(names, tensors.values(), strict=True)) if len(set(names)) == len(names) else tensors


def state_dict(content: Any, where: str, kind: type) -> Mapping[str, Any]:
    """The values of type `kind` by name, taken out of known wrappers. Raises UserError."""
    if isinstance(content, UnreadObject):
        raise _whole_model(where, content)
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{where}: holds {_kind(content)}, not a state dict of named tensors")
    inside = {key: content[key] for key in WRAPPERS if key in content and not isinstance(content[key], kind)}
    nested = {key: value for key, value in inside.items() if isinstance(value, Mapping) and value}
    if nested:
        (key, value), *others = nested.items()
        if others:
            log.info("%s: weights are those under %r; not read: %s", where, key, ", ".join(key for key, _ in others))
        return state_dict(value, where, kind)
    if not any(isinstance(value, kind) for value in content.values()):
        model = next((value for value in inside.values() if isinstance(value, UnreadObject)), None)
        if model is not None:
            raise _whole_model(where, model)
        listed = some_of([f"{str(key)[:60]} ({_kind(value)})" for key, value in content.items()])
        raise UserError(
            f"{where}: no tensors by name, nor such a state dict under {', '.join(WRAPPERS)}; it holds {listed}"
        )
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, kind):
            raise UserError(
                f"{where}: {str(name)[:80]!r} is {_kind(value)}, no named tensor, so the file is no state dict"
            )
    return content


def some_of(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def class_lines(path: Path) -> list[str]:
    """The lines of a text of class names that comes with weights, without empty ones. Raises UserError."""
    with path.open("rb") as file:
        data = file.read(CLASSES_BYTES + 1)
    try:
        if len(data) > CLASSES_BYTES:
            raise ValueError("too large")
        lines = [line.strip() for line in data.decode("utf-8-sig").splitlines()]
    except ValueError as error:
        raise UserError(f"{path.name}: must be a text in UTF-8 with a class name a line, not {error!s:.80}") from None
    return [line for line in lines if line]


def _most(tensors: Mapping[str, Tensor], before: str) -> bool:
    """Whether most names begin with the prefix: Lightning keeps metrics and losses beside the network."""
    return 2 * sum(name.startswith(before) for name in tensors) > len(tensors)


def _whole_model(where: str, model: UnreadObject) -> UserError:
    return UserError(
        f"{where}: holds a whole pickled object ({model.name}), which only its own code can read; where you trust it, "
        "save its state_dict() with torch.save and give that"
    )


def _kind(value: Any) -> str:
    if isinstance(value, UnreadObject):
        return f"a {value.name}"
    return "a tensor" if isinstance(value, StoredTensor) else f"a {type(value).__name__}"


def _is_safetensors(head: bytes) -> bool:
    """Whether `head` begins with the length of a JSON header (little-endian, below 100 MB by the format) and the
    header."""
    return len(head) > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 10**8


def _of_array(value: np.ndarray[Any, Any]) -> Tensor:
    if value.dtype.kind not in "fiub":
        raise UserError(f"an array of {value.dtype} among the weights: numbers are wanted")
    return torch.from_numpy(np.array(value, value.dtype.newbyteorder("=")))


def _torch(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by torch.save; a storage that several share is read once."""
    try:
        archive = read_torch_file(path, named=True)
    except UserError as error:
        raise UserError(error.message.replace(f"{path}", path.name), error.details) from None
    stored = state_dict(archive.value, path.name, StoredTensor)
    ends: dict[str, int] = {}
    for value in stored.values():
        last = sum((n - 1) * step for n, step in zip(value.shape, value.stride, strict=True))
        ends[value.key] = max(ends.get(value.key, 0), value.offset + (last + 1 if all(value.shape) else 0))
    storages: dict[str, Tensor] = {}
    out = {}
    with path.open("rb") as file:
        for name, value in stored.items():
            if value.key not in storages:
                storages[value.key] = _storage(file, value, archive.starts, ends[value.key], f"{path.name}: {name}")
            out[name] = storages[value.key].as_strided(value.shape, value.stride, value.offset)
    return out


def _storage(file: BinaryIO, one: StoredTensor, starts: Mapping[str, int], elements: int, where: str) -> Tensor:
    dtype = DTYPES.get(one.dtype)
    if dtype is None or one.key not in starts:
        raise UserError(f"{where}: its numbers are not stored plainly in the file; save it again with torch.save")
    size = elements * item_size(one.dtype)
    file.seek(starts[one.key])
    data = bytearray(file.read(size))
    if len(data) != size:
        raise UserError(f"{where}: the file ends {size - len(data):,} bytes early; fetch or copy it again")
    return torch.frombuffer(data, dtype=dtype) if size else torch.empty(0, dtype=dtype)
