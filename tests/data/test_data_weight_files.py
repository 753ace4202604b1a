"""Weight files of training scripts and broken ones: the tensors, or an error that names the kind of file."""

from __future__ import annotations

import argparse
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from vbert.data.weight_files import read_weights
from vbert.errors import UserError
from vbert.regions.backends.bottom_up_weights import names

NAMESPACE = argparse.Namespace(lr=0.02, dataset="coco")
TENSORS = {
    "backbone.weight": torch.arange(24.0).reshape(2, 3, 2, 2),
    "head.bias": torch.tensor([0.5, -1.0]),
    "norm.num_batches_tracked": torch.tensor(7),
}


def before(prefix: str, tensors: dict[str, Tensor] = TENSORS) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in tensors.items()}


class Settings(dict[str, Any]):
    """What Lightning and mmcv put into checkpoints: a class of their own."""


# What writes it → what torch.save is given.
WRITTEN: dict[str, Any] = {
    "plain": TENSORS,
    "torchvision's reference": {"model": TENSORS, "optimizer": {"state": {}}, "args": NAMESPACE, "epoch": 25},
    "numpy scalars": {"model": TENSORS, "best_map": np.float64(0.31)},
    "DataParallel": {"state_dict": before("module.")},
    "Lightning": {
        "state_dict": before("model.") | {"criterion.weight": torch.ones(2)},
        "hyper_parameters": Settings(lr=1e-3),
        "callbacks": {"x": nn.Linear},
    },
    "model_state_dict": {"model_state_dict": TENSORS, "epoch": 3},
    "torch.compile": before("_orig_mod."),
    "compiled in part": {name.replace("backbone.", "backbone._orig_mod."): t for name, t in TENSORS.items()},
    "DDP of a compiled one": {"model": before("module._orig_mod.")},
    "parameters": {name: nn.Parameter(t) if t.is_floating_point() else t for name, t in TENSORS.items()},
    "channels last": TENSORS | {"backbone.weight": TENSORS["backbone.weight"].to(memory_format=torch.channels_last)},
    "bfloat16": {name: t.bfloat16() if t.is_floating_point() else t for name, t in TENSORS.items()},
    "half": {name: t.half() if t.is_floating_point() else t for name, t in TENSORS.items()},
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("by", WRITTEN)
def test_what_training_scripts_write_is_unwrapped(tmp_path: Path, by: str, old: bool) -> None:
    torch.save(WRITTEN[by], tmp_path / "w.pth", _use_new_zipfile_serialization=not old)
    found = read_weights(tmp_path / "w.pth")
    found.pop("criterion.weight", None)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name].to(tensor.dtype), tensor), name


def test_other_forms_under_other_names(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "named.pth")
    torch.save(TENSORS, tmp_path / "named.safetensors")
    arrays = {name: tensor.numpy() for name, tensor in TENSORS.items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "somebody", "cfg": NAMESPACE}))
    for name in ("named.pth", "named.safetensors", "zoo.pkl"):
        found = read_weights(tmp_path / name)
        assert all(torch.equal(found[key], tensor) for key, tensor in TENSORS.items()), name


def test_parts_of_one_storage_are_read_where_they_are(tmp_path: Path) -> None:
    whole = torch.arange(12.0)
    torch.save({"a": whole[2:6].reshape(2, 2), "b": whole[6:], "c": whole.reshape(3, 4).t()}, tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth")
    assert found["a"].tolist() == [[2, 3], [4, 5]]
    assert found["b"].tolist() == [6, 7, 8, 9, 10, 11]
    assert torch.equal(found["c"], whole.reshape(3, 4).t())


def cut(path: Path) -> None:
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-500])


def zipped(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), a=np.zeros(3))
    path.with_suffix(".npz").rename(path)


def torn(path: Path) -> None:
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-3])


def saved(value: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


NONE: dict[str, tuple[Callable[[Path], object], str]] = {
    "LFS pointer": (text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\n"), "is a Git LFS pointer"),
    "web page": (text("\n <!DOCTYPE html><html>Quota exceeded</html>"), "is a web page"),
    "JSON": (text('{"error": "not found"}'), "is JSON that begins with"),
    "empty": (text(""), "is empty"),
    "picture": (lambda path: path.write_bytes(b"\xff\xd8\xff\xe0 1"), "is a JPEG picture"),
    "noise": (lambda path: path.write_bytes(b"\1\2\3\4\5"), r"is no file of weights: it begins with b'\\x01"),
    "cut archive": (cut, r"not a whole archive of torch, [\d,]+ bytes"),
    "cut safetensors": (torn, "not a whole safetensors file"),
    "arrays of numpy": (zipped, r"a zip without data\.pkl \(it holds a\.npy\)"),
    "whole model": (saved(nn.Linear(1, 1)), r"a whole pickled object \(torch\.nn\.modules\.linear\.Linear\)"),
    "whole model inside": (saved({"model": nn.Linear(1, 1), "epoch": 1}), r"object \(torch\.nn\.modules\.linear\.L"),
    "a list": (saved([torch.zeros(1)]), "holds a list, not a state dict"),
    "a tensor": (saved(torch.zeros(1)), "holds a tensor, not a state dict"),
    "features": (saved({"x": {"y": torch.zeros(1)}}), r"no tensors by name.* it holds x \(a dict\)"),
    "a number among them": (saved({"a": torch.zeros(1), "epoch": 3}), "'epoch' is a int, no named tensor"),
    "NaN": (saved({"a": torch.tensor([1.0, torch.nan])}), r"NaN or infinite numbers in 1 of 1 tensors \(a\)"),
    "infinite": (saved({"model": {"a": torch.tensor([torch.inf])}}), r"NaN or infinite numbers in 1 of 1 tensors"),
    "quantised": (saved({"a": torch.ones(3, dtype=torch.int8)}), "quantised weights are not read"),
    "complex numbers": (
        saved({"a": torch.zeros(2, dtype=torch.complex64)}),
        r"it holds a \(a torch\.ComplexFloatStorage\)",
    ),
}


@pytest.mark.parametrize("kind", NONE)
def test_what_it_is_instead_is_said(tmp_path: Path, kind: str) -> None:
    write, said = NONE[kind]
    write(tmp_path / "w.pth")
    with pytest.raises(UserError, match=said) as refused:
        read_weights(tmp_path / "w.pth")
    assert refused.value.message.startswith("w.pth: ")
    assert "\x1b" not in str(refused.value)
    assert "weights_only" not in str(refused.value)


@pytest.mark.parametrize("old", [False, True])
def test_any_broken_byte_is_told_in_a_sentence_or_costs_numbers_alone(tmp_path: Path, old: bool) -> None:
    torch.save(
        {"model": {"a": torch.zeros(2)}, "args": NAMESPACE}, tmp_path / "w.pth", _use_new_zipfile_serialization=not old
    )
    whole, refused = (tmp_path / "w.pth").read_bytes(), 0
    for place in range(0, len(whole), len(whole) // 60):
        broken = bytearray(whole)
        broken[place] ^= 0x55
        (tmp_path / "w.pth").write_bytes(broken)
        try:
            read_weights(tmp_path / "w.pth")
        except UserError:
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_the_older_form_in_any_protocol(tmp_path: Path, protocol: int) -> None:
    torch.save(TENSORS, tmp_path / "w.pth", _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    assert read_weights(tmp_path / "w.pth").keys() == TENSORS.keys()


def test_no_tensor_is_dropped_for_anothers_name(tmp_path: Path) -> None:
    for around in ("model.", "_orig_mod."):
        both = before(around) | {"head.bias": torch.zeros(3)}
        torch.save(both, tmp_path / "w.pth")
        assert read_weights(tmp_path / "w.pth").keys() == both.keys()


def rezipped(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in held.items():
            packed = zipfile.ZIP_DEFLATED if name.endswith("byteorder") else zipfile.ZIP_STORED
            archive.writestr(name, change(name.partition("/")[2], data), packed)


def test_no_more_memory_than_the_file_has_bytes(tmp_path: Path) -> None:
    """A pickle that speaks of a tebibyte was a MemoryError; a byte order of gigabytes was unpacked."""
    path, tebi = tmp_path / "w.pth", b"\x8a\x06" + (2**40).to_bytes(6, "little")
    torch.save({"a": torch.zeros(77)}, path)
    rezipped(path, lambda name, data: data.replace(b"KM", tebi) if name == "data.pkl" else data)
    with pytest.raises(UserError, match=r"says 1,099,511,627,776 numbers of storage '0', which has 308 bytes"):
        read_weights(path)
    torch.save({"a": torch.zeros(2)}, path)
    rezipped(path, lambda name, data: bytes(64 << 20) if name == "byteorder" else data)
    tracemalloc.start()
    with pytest.raises(UserError, match="big-endian"):
        read_weights(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 16 << 20


def test_names_of_classes_in_another_encoding(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_bytes(b"\xef\xbb\xbfCat,kitty\n\ndog\n")
    assert names(tmp_path / "c.txt") == ["cat", "dog"]
    (tmp_path / "c.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(UserError, match=r"c\.txt: must be a text in UTF-8 with a class name a line"):
        names(tmp_path / "c.txt")
