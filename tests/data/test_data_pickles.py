"""Pickles as plain data: those of numpy and torch are read, hostile ones are refused and run nothing."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import alive, until

from vbert.data import pickles
from vbert.data.pickles import PickleLimits, StoredTensor, UnsafePickle

QUICK = PickleLimits(seconds=1, memory=200 * 2**20)


class Named:
    """Pickles as a call of `name` in `module`, whatever that is."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.function, self.arguments


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def stack_global(module: str, name: str) -> bytes:
    return short(module) + short(name) + b"\x93"


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers_of_every_protocol(protocol: int) -> None:
    given = {
        "c": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "text": np.array(["ab", "c"]),
        "half": np.float16([1.5]),
        "scalars": (np.float32(2.5), np.int64(-3), np.bool_(True)),
        "plain": [1, 2.5, None, True, "größer", b"\x00\xff", {1, 2}, float("inf")],
        "info": np.array({"bbox": np.zeros((2, 4)), "num_boxes": 2}, dtype=object),
        "ordered": collections.OrderedDict(b=1, a=2),
        7: (1, (2, (3,))),
    }
    read = pickles.load(pickle.dumps(given, protocol), "x.pkl")
    for name in ("c", "fortran", "big", "text", "half"):
        assert (read[name] == given[name]).all()
        assert read[name].dtype == given[name].dtype
    assert read["scalars"] == (2.5, -3, True)
    assert read["plain"] == given["plain"]
    assert read["info"]["bbox"].shape == (2, 4)
    assert list(read["ordered"]) == ["b", "a"]
    assert read[7] == given[7]


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_both_names_of_numpys_core(core: str) -> None:
    given = pickle.dumps(np.arange(3.0), 2).replace(b"numpy._core", core.encode()).replace(b"numpy.core", core.encode())
    assert pickles.load(given, "x").tolist() == [0, 1, 2]


def test_the_layout_of_published_detector_weights() -> None:
    """detectron2's model zoo: {"model": {name: float32 array}, "__author__": …}, by Python 3 or by Python 2."""
    weights = {
        "model": {"backbone.w": np.ones((64, 3, 7, 7), np.float32)},
        "__author__": "x",
        "matching_heuristics": True,
    }
    read = pickles.load(pickle.dumps(weights), "model_final.pkl")
    assert (read["model"]["backbone.w"] == 1).all()
    assert read["matching_heuristics"] is True
    # As Python 2 wrote it: bytes are SHORT_BINSTRING.
    python2 = (
        b"\x80\x02}U\x05blobscnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + np.float32([1, -2]).tobytes() + b"tbs."
    )
    assert pickles.load(python2, "weights.pkl")["blobs"].tolist() == [1, -2]


def test_a_file_is_read_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "train_imgid2idx.pkl"
    path.write_bytes(pickle.dumps({458752: 0, 458755: 1}))
    assert pickles.load(path, path.name) == {458752: 0, 458755: 1}


def reconstruct(shape: str) -> bytes:
    return b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + shape.encode() + b"tcbuiltins\nbytes\n)RtR."


def doubling(levels: int) -> bytes:
    """A key of tuples in tuples: its hash takes 2**levels steps."""
    return b"}(" + b"K\x01" + b"2\x86" * levels + b"K\x01u."


def doubled(levels: int) -> list[object]:
    return [] if levels == 0 else [held := doubled(levels - 1), held]


SYSTEM = b"\x80\x04" + stack_global("posix", "system") + short("touch ran") + b"\x85R."
EVAL = b"\x80\x04" + stack_global("builtins", "eval") + short("open('ran', 'w')") + b"\x85R."
FROMBUFFER = b"\x80\x05" + stack_global("numpy._core.numeric", "_frombuffer") + b"(C\x04abcd"
FROMBUFFER += stack_global("numpy", "dtype") + short("f4") + b"\x89\x88\x87RM\x00\x10\x85" + short("C") + b"tR."
TO_FILE = b"\x80\x04" + stack_global("numpy", "ndarray.tofile") + b"."
DIGITS = b"\x80\x02\x8b" + struct.pack("<i", 500_000) + b"\x01" * 500_000 + b"."

HOSTILE = {
    "os.system": (b"cos\nsystem\n(S'touch ran'\ntR.", "names os.system"),
    "posix.system by STACK_GLOBAL": (SYSTEM, "names posix.system"),
    "a dotted name": (
        b"\x80\x04" + stack_global("numpy.testing._private.utils", "os.getpid") + b")R.",
        "names numpy.testing._private.utils.os.getpid",
    ),
    "a shell in torch": (
        b"\x80\x04" + stack_global("torch.utils.collect_env", "run") + short("touch ran") + b"\x85R.",
        "names torch.utils.collect_env.run",
    ),
    "builtins.eval": (EVAL, "names builtins.eval"),
    "getattr": (b"cbuiltins\ngetattr\n(I1\nI2\ntR.", "names builtins.getattr"),
    "an attribute of an allowed one": (TO_FILE, "names numpy.ndarray.tofile"),
    "an array of 2 GiB from 71 bytes": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I2147483648\ntS'b'\ntR.",
        "without bytes",
    ),
    "an array of 8 TiB": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I8796093022208\ntS'b'\ntR.",
        "without bytes",
    ),
    "a shape without its bytes": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I1099511627776\ntcnumpy\ndtype\n(S'f4'\nI00\nI01\ntRI00\nS''\ntb.",
        "whose bytes are not there",
    ),
    "a made-up item size": (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
        b"(I1\n(I1\ntcnumpy\ndtype\n(S'V2147483647'\nI00\nI01\ntRI00\nS''\ntb.",
        "of type V2147483647",
    ),
    "_frombuffer beyond its buffer": (FROMBUFFER, "whose bytes are not there"),
    "an array that changes numpy": (b"cnumpy\nndarray\n(dS'x'\nI1\nsb.", "is damaged|changes a function"),
    "an array that is called": (b"cnumpy\nndarray\n(I99999999\ntR.", "makes an array of its own"),
    "a key of doubled tuples": (doubling(60), "takes too long"),
    "lists that double": (pickle.dumps(doubled(40)), "without end"),
    "a memo of 2**32": (b"N" + b"r\xff\xff\xff\xff.", "remembers more than it holds"),
    "a text of 4 GiB": (b"X\xff\xff\xff\xff" + b"a.", "damaged"),
    "an extension": (b"\x82\x01.", "EXT1"),
    "a persistent id": (b"Px\n.", "PERSID"),
    "an object of a class": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "a number of a million digits": (DIGITS, "damaged"),
    "nothing": (b"", "damaged"),
    "cut short": (pickle.dumps(np.arange(100))[:-30], "damaged"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_are_refused_and_run_nothing(kind: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, reason = HOSTILE[kind]
    with pytest.raises(UnsafePickle, match=reason) as refused:
        pickles.load(data, "features/hostile.pkl", QUICK)
    assert refused.value.message.startswith("features/hostile.pkl: ")
    assert not list(tmp_path.iterdir())
    assert pickles.load(pickle.dumps({"after": 1}), "good.pkl") == {"after": 1}


def test_a_class_of_this_process_is_refused() -> None:
    with pytest.raises(UnsafePickle, match=r"names posix\.system|names os\.system"):
        pickles.load(pickle.dumps(Named(os.system, "touch ran")), "x")
    with pytest.raises(UnsafePickle, match="at most 10"):
        pickles.load(pickle.dumps(list(range(100))), "x", PickleLimits(size=10))
    with pytest.raises(UnsafePickle, match="more than 50 operations"):
        pickles.load(pickle.dumps(list(range(100))), "x", PickleLimits(operations=50))


def test_memory_is_bounded_by_what_the_pickle_brings_along() -> None:
    """A list of 1 GiB from a few bytes: the child is told no, this process never sees it."""
    rows = b"\x80\x02]" + b"q\x00" + b"(" + b"J\xff\xff\xff\x7f" * 100_000 + b"e."
    assert len(pickles.load(rows, "x", PickleLimits(memory=300 * 2**20))) == 100_000
    nested = b"(" * 3_000_000 + b"t."
    with pytest.raises(UnsafePickle, match=r"memory|damaged"):
        pickles.load(nested, "x", PickleLimits(memory=2**20))


def test_arrays_where_only_what_has_a_hash_can_be() -> None:
    array = pickle.dumps(np.zeros(3), 2)[2:-1]
    for data in (b"\x80\x04\x8f(" + array + b"\x90.", b"\x80\x04}(" + array + b"\x85K\x01u."):  # a set; a tuple as key
        with pytest.raises(UnsafePickle, match="arrays or lists are keys in it, or members of a set"):
            pickles.load(data, "x")


def saved(given: object, legacy: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(given, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def test_torch_tensors_are_places_in_storages() -> None:
    given = {"a.png": (torch.arange(6.0).reshape(2, 3), torch.zeros(2, 4, dtype=torch.float16))}
    archive = zipfile.ZipFile(io.BytesIO(saved(given)))
    name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
    found = pickles.load_torch(archive.read(name), "x.th")
    features, boxes = found.value["a.png"]
    assert isinstance(features, StoredTensor)
    assert (features.shape, features.dtype, boxes.dtype) == ((2, 3), "<f4", "<f2")
    assert found.sizes[features.key] == ("<f4", 6)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(1).expand(2**33), "8,589,934,592 elements over a storage of 1"),
        (torch.zeros(4, 4).t(), "row by row"),
        (torch.zeros(2, dtype=torch.complex64), "names torch.ComplexFloatStorage"),
    ],
)
def test_tensors_that_are_not_what_they_seem(tensor: torch.Tensor, reason: str) -> None:
    archive = zipfile.ZipFile(io.BytesIO(saved({"x": tensor})))
    name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
    with pytest.raises(UnsafePickle, match=reason):
        pickles.load_torch(archive.read(name), "x.th", limits=QUICK)


def test_the_child_ends_with_its_process() -> None:
    code = """
import os
from vbert.data import pickles
pickles.load(b"N.", "x")
print(pickles._shared._process.pid, flush=True)
os._exit(1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    pid = int(done.stdout)
    until(lambda: not alive(pid), 30)
