"""Each format that is read, on miniatures written as its system writes them: every number, and ways to be broken."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from refused import refused
from regions import interop_files as files
from regions.interop_files import Image
from regions.interop_table import RECORDED, WRITTEN, read_all

from vbert.data.pickles import UnsafePickle
from vbert.errors import UserError
from vbert.regions import interop
from vbert.regions.interop.boxes_in import in_pixels
from vbert.regions.interop.npy_bytes import read_npz
from vbert.regions.interop.raw_regions import BadEntry

GIVEN = files.images()


@pytest.mark.parametrize("kind", WRITTEN)
def test_every_number_is_read(kind: str, tmp_path: Path) -> None:
    written = WRITTEN[kind]
    path = written.write(tmp_path, GIVEN)
    assert interop.recognised(path) == written.format
    regions = read_all(path)
    assert set(regions) == {written.name(one) for one in GIVEN}
    for one in GIVEN:
        assert written.differences(one, regions[written.name(one)]) == []
        assert regions[written.name(one)].features.dtype == (np.float16 if written.half else np.float32)


def test_every_format_is_in_the_table() -> None:
    assert set(RECORDED) == {written.format for written in WRITTEN.values()} == set(interop.FORMATS)


def test_a_format_can_be_named_and_is_refused_where_none_fits(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing of the kind\n")
    with pytest.raises(UserError, match=r"notes\.txt: none of the formats that can be read; name the one") as caught:
        interop.recognised(tmp_path / "notes.txt")
    assert "lxmert_tsv     LXMERT TSV (10 columns)" in caught.value.details
    with refused("'lxmert'", "'lxmert_tsv'", error=UserError):
        interop.recognised(tmp_path / "notes.txt", "lxmert")
    with refused("absent.tsv", error=UserError):
        interop.recognised(tmp_path / "absent.tsv")


def cut(path: Path, keep: float) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    return path


@pytest.mark.parametrize("kind", ["lxmert", "bottom-up", "oscar without lineidx"])
@pytest.mark.parametrize("keep", [0.95, 0.82])
def test_a_truncated_table_names_file_and_line(kind: str, keep: float, tmp_path: Path) -> None:
    path = cut(WRITTEN[kind].write(tmp_path, GIVEN), keep)
    module = interop.load(interop.recognised(path))
    local = module.files(path)
    *whole, (key, place) = module.index(local)
    with module.opened(local) as read:
        for before in whole:
            read(*before)
        with refused(f"{path}:{len(whole) + 1}", error=BadEntry):
            read(key, place)


def test_a_lineidx_of_another_table_is_refused(tmp_path: Path) -> None:
    path = files.oscar_tsv(tmp_path / "a.tsv", GIVEN)
    module = interop.load("oscar_tsv")
    offsets = path.with_suffix(".lineidx")
    for text, named in (("0\n17\n", ("a.lineidx:2", "17")), ("0\nx\n", ("a.lineidx",))):
        offsets.write_text(text)
        with refused(*named, error=UserError):
            list(module.index(module.files(path)))


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    path = files.lxmert_tsv(tmp_path / "a.tsv", GIVEN)
    rows = [line.split(b"\t") for line in path.read_bytes().splitlines()]
    rows[1][7] = b"5" if rows[1][7] != b"5" else b"4"  # num_boxes
    rows[2][8] = b"!" + rows[2][8][1:]
    rows[3][1] = b"-4"
    path.write_bytes(b"\n".join(b"\t".join(row) for row in rows))
    module = interop.load("lxmert_tsv")
    local = module.files(path)
    entries = list(module.index(local))
    with module.opened(local) as read:
        read(*entries[0])
        for at, field in ((1, "attrs_id"), (2, "boxes"), (3, "img_h")):
            with refused(f"a.tsv:{at + 1}", field, error=BadEntry):
                read(*entries[at])


CUT = {  # way of writing → the file that is cut off
    "uniter": "data.mdb",
    "mmf lmdb": "data.mdb",
    "vilbert": "data.mdb",
    "ban": "train.hdf5",
    "visualbert": "a.th",
    "visualbert's older form": "a.th",
    "pythia": f"{GIVEN[0].name}.npy",
    "mcan": f"{GIVEN[0].name}.jpg.npz",
    "arrow": "data-00000-of-00001.arrow",
}


@pytest.mark.parametrize("kind", CUT)
def test_what_is_cut_off_is_refused_by_the_file_s_name(kind: str, tmp_path: Path) -> None:
    path = WRITTEN[kind].write(tmp_path, GIVEN)
    (file,) = tmp_path.rglob(CUT[kind])
    cut(file, 0.6)
    with refused(file.name):
        read_all(path, WRITTEN[kind].format)


def test_an_npy_of_128_bytes_that_claims_a_tebibyte(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    with path.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": (2**38, 1)})
    with refused("a.npy", error=BadEntry):
        read_all(path)
    path.write_bytes(path.read_bytes().replace(b"), }", b"(, }"))  # numpy's tokenizer has an error of its own
    with refused("a.npy", "header", error=BadEntry):
        read_all(path)


def test_companions_must_be_there(tmp_path: Path) -> None:
    path = files.ban_hdf5(tmp_path / "train.hdf5", GIVEN)
    (tmp_path / "train_imgid2idx.pkl").unlink()
    with refused("train.hdf5", "train_imgid2idx.pkl", error=UserError):
        read_all(path)


class Shell:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("touch ran",)


def test_hostile_pickles_inside_the_formats_run_nothing(tmp_path: Path, monkeypatch) -> None:
    import lmdb
    import torch

    monkeypatch.chdir(tmp_path)
    ban = files.ban_hdf5(tmp_path / "train.hdf5", GIVEN)
    (tmp_path / "train_imgid2idx.pkl").write_bytes(pickle.dumps(Shell()))
    with pytest.raises(UnsafePickle, match=r"train_imgid2idx\.pkl: this pickle is not read.*names (posix|os)\.system"):
        read_all(ban)
    torch.save({"a.png": Shell()}, tmp_path / "a.th")
    with pytest.raises(UnsafePickle, match=r"a\.th/data\.pkl: .*names (posix|os)\.system"):
        read_all(tmp_path / "a.th")
    mmf = files.mmf_lmdb(tmp_path / "x.lmdb", GIVEN)
    key = f"train2014/{GIVEN[0].name}"
    with lmdb.open(str(mmf)) as env, env.begin(write=True) as txn:
        txn.put(key.encode(), pickle.dumps({"features": Shell()}))
    with refused(key, "unsafe pickle", "system", error=BadEntry):
        read_all(mmf)
    npy = files.mmf_npy(tmp_path / "npy", GIVEN)
    np.save(npy / f"{GIVEN[0].name}_info.npy", np.array(Shell(), dtype=object), allow_pickle=True)
    with refused("_info.npy", "unsafe pickle", error=BadEntry):
        read_all(npy)
    assert not (tmp_path / "ran").exists()


def test_hdf5_that_points_to_other_files(tmp_path: Path) -> None:
    import h5py

    path = files.ban_hdf5(tmp_path / "train.hdf5", GIVEN)
    shutil.copy(path, tmp_path / "other.hdf5")
    with h5py.File(path, "a") as out:
        del out["image_bb"]
        out["image_bb"] = h5py.ExternalLink("other.hdf5", "/image_bb")
    with refused("train.hdf5", "'image_bb'", error=UserError):
        read_all(path)


def test_msgpack_with_a_pickle_inside(tmp_path: Path) -> None:
    """msgpack_numpy's own decoder unpickles where `kind` is O."""
    import lmdb
    import msgpack

    path = files.uniter_lmdb(tmp_path / "x", GIVEN, compressed=False)
    key = f"coco_{GIVEN[0].name.removeprefix('COCO_')}.npz".encode()
    hostile = {b"nd": True, b"type": "|O", b"kind": b"O", b"shape": (1,), b"data": pickle.dumps(Shell())}
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        txn.put(key, msgpack.dumps({"features": hostile, "norm_bb": hostile}))
    with refused("x", "msgpack", error=BadEntry):
        read_all(path)
    assert not Path("ran").exists()


def test_keys_that_lead_nowhere(tmp_path: Path) -> None:
    import lmdb

    path = files.uniter_lmdb(tmp_path / "x", GIVEN)
    with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
        txn.put(b"__keys__", json.dumps(["gone.npz"]).encode())
    with refused("gone.npz", error=BadEntry):
        read_all(path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_any_broken_byte_of_an_npz_costs_its_entry_alone(method: int) -> None:
    whole, array = io.BytesIO(), io.BytesIO()
    np.save(array, np.arange(12.0))
    with zipfile.ZipFile(whole, "w", method) as archive:
        archive.writestr("ü.npy", array.getvalue())
        archive.writestr("features.npy", array.getvalue())
    refused = 0
    for place, byte in enumerate(whole.getvalue()):
        for other in (0, 255, byte ^ 128):
            broken = bytearray(whole.getvalue())
            broken[place] = other
            try:
                read_npz(bytes(broken), ["features"], "a")
            except BadEntry:
                refused += 1
    assert refused > 100


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_broken_bytes_of_a_torch_archive_are_told_in_a_sentence(method: int, tmp_path: Path) -> None:
    whole, path = io.BytesIO(), tmp_path / "x.th"
    with zipfile.ZipFile(whole, "w", method) as archive:
        archive.writestr("ü/byteorder", b"little")
        archive.writestr("ü/data.pkl", pickle.dumps({"a": 1}, protocol=2))
    refused = 0
    for place in range(len(whole.getvalue())):
        broken = bytearray(whole.getvalue())
        broken[place] = 255
        path.write_bytes(broken)
        try:
            read_all(path, "visualbert_th")
        except (UserError, BadEntry):
            refused += 1
    assert refused > 50


def test_an_npz_entry_beyond_all_files_is_refused() -> None:
    """Its place needs more than 63 bits, which a zip with large offsets can say."""
    name, extra = b"features.npy", struct.pack("<HHQQQ", 1, 24, 5, 5, 2**63)
    fields = (45, 3, 45, 0, 0, 0, 0, 33, 0, 2**32 - 1, 2**32 - 1, len(name), len(extra), 0, 0, 0, 0, 2**32 - 1)
    listed = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", *fields) + name + extra
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(listed), 0, 0)
    with pytest.raises(BadEntry, match=r"no whole \.npz"):
        read_npz(listed + end, ["features"], "a")


def whole_numbers(path: Path, kind: str) -> Path:
    """Boxes as int64, ids as int32, confidences as float64: what scripts of one's own write."""
    given = [replace(one, boxes=np.round(one.boxes)) for one in GIVEN]
    if kind == "lxmert":
        files.lxmert_tsv(path / "a.tsv", given)
        lines = [line.split("\t") for line in (path / "a.tsv").read_text().splitlines()]
        for row, one in zip(lines, given, strict=True):
            row[3], row[4] = files.b64(one.objects, "<i4"), files.b64(one.conf, "<f8")
            row[8] = files.b64(one.boxes, "<i8")
        (path / "a.tsv").write_text("\n".join("\t".join(row) for row in lines))
        return path / "a.tsv"
    if kind == "bottom-up":
        files.bottom_up_tsv(path / "a.tsv", given)
        lines = [line.split("\t") for line in (path / "a.tsv").read_text().splitlines()]
        for row, one in zip(lines, given, strict=True):
            row[4] = files.b64(one.boxes, "<i4")
        (path / "a.tsv").write_text("\n".join("\t".join(row) for row in lines))
        return path / "a.tsv"
    given = [replace(one, boxes=one.boxes.astype(np.int32)) for one in given]
    return files.mmf_npy(path / "npy", given) if kind == "mmf" else files.mcan_npz(path / "npz", given)


@pytest.mark.parametrize("kind", ["lxmert", "bottom-up", "mmf", "mcan"])
def test_whole_numbers_are_boxes(kind: str, tmp_path: Path) -> None:
    found = list(read_all(whole_numbers(tmp_path, kind)).values())
    boxes = {tuple(map(tuple, np.round(one.boxes).tolist())) for one in GIVEN}
    assert {tuple(map(tuple, one.boxes.tolist())) for one in found} == boxes  # type: ignore[union-attr]
    assert all(one.boxes.dtype == np.float32 for one in found)  # type: ignore[union-attr]


def with_features(path: Path, dtype: str) -> Path:
    files.bottom_up_tsv(path, GIVEN)
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    for row, one in zip(lines, GIVEN, strict=True):
        row[5] = files.b64(one.features, dtype)
    path.write_text("\n".join("\t".join(row) for row in lines))
    return path


@pytest.mark.parametrize(("dtype", "code"), [("float16", "<f2"), ("float64", "<f8")])
def test_bytes_of_another_type_are_refused_or_read_as_stated(dtype: str, code: str, tmp_path: Path) -> None:
    path = with_features(tmp_path / "a.tsv", code)
    module = interop.load("bottom_up_tsv")
    local = module.files(path)
    entries = list(module.index(local))
    with module.opened(local) as read:
        for entry in entries:
            with pytest.raises(
                BadEntry, match=rf"are no features: .*; as {dtype} they are 16 numbers .*--dtype {dtype}"
            ):
                read(*entry)
    with interop.reading(module, local, dtype) as read:  # type: ignore[arg-type]
        for entry, one in zip(entries, GIVEN, strict=True):
            assert (read(*entry).features == one.features.astype(code)).all()
    said = r"--dtype float16: .* says the type of its numbers itself; leave it out"
    with pytest.raises(UserError, match=said), interop.reading(interop.load("npy"), {}, "float16"):
        pass


def pixels(kind: str) -> list[Image]:
    """Features of 256 numbers, and in `shares` what stands where Oscar's boxes do."""
    given = files.images(dim=256)
    for one in given:
        sides = one.boxes[:, 2:] - one.boxes[:, :2]
        six = np.concatenate([one.boxes, sides], 1)
        six = np.roll(six, 1, 1) if kind == "no box" else six
        one.features = np.concatenate([one.features, six], 1).astype(np.float32)
    return given


@pytest.mark.parametrize("kind", ["pixels", "no box"])
def test_the_last_six_of_oscars_numbers_are_never_taken_for_features(kind: str, tmp_path: Path) -> None:
    path = files.oscar_tsv(tmp_path / "a.tsv", pixels(kind), boxes=False)
    if kind == "no box":
        with refused("a.tsv:1", "262", "256", error=BadEntry):
            read_all(path)
        return
    for one, read in zip(pixels(kind), read_all(path).values(), strict=True):
        assert (read.features == one.features[:, :256]).all()
        assert (read.boxes == one.boxes).all()  # type: ignore[union-attr]
        assert read.unit == "pixels"
        with pytest.raises(
            BadEntry, match="the last six of its 262 numbers are boxes in pixels, and the image's size isn't"
        ):
            in_pixels(read, None, None, "a")


NPZ: dict[str, tuple[dict[str, object], str]] = {
    "no x": ({"features": np.zeros((3, 4), np.float32)}, "no float x of two axes"),
    "as many as long": ({"x": np.ones((4, 4), np.float32), "bbox": np.zeros((4, 4))}, "two readings: x is"),
    "neither axis": ({"x": np.ones((5, 7), np.float32), "bbox": np.zeros((4, 4))}, "there are 4 boxes"),
    "more than there are": ({"x": np.ones((4, 7), np.float32), "bbox": np.zeros((4, 4)), "num_bbox": 9}, "9 count"),
    "no count": ({"x": np.ones((4, 7), np.float32)}, "there are None boxes"),
    "half a box": ({"x": np.ones((4, 7), np.float32), "bbox": np.zeros((4, 4)), "num_bbox": 1.5}, "not a whole number"),
    "other ids": (
        {"x": np.ones((4, 7), np.float32), "bbox": np.zeros((4, 4)), "info": np.array({"objects_id": [1]}, object)},
        "objects_id is int64",
    ),
    "ragged": (
        {"x": np.ones((4, 7), np.float32), "bbox": np.zeros((4, 4)), "info": np.array({"attrs_id": [[1], []]}, object)},
        "attrs_id is no array",
    ),
    "shares in words": (
        {"x": np.ones((4, 7), np.float32), "bbox": np.zeros((4, 4)), "cls_prob": np.full((4, 2), "a")},
        "cls_prob is <U1",
    ),
    "code": (
        {"x": np.ones((4, 7), np.float32), "bbox": np.zeros((4, 4)), "info": np.array({"a": Path}, object)},
        "unsafe pickle",
    ),
}


@pytest.mark.parametrize("kind", NPZ)
def test_an_npz_that_can_not_be_understood_is_named(kind: str, tmp_path: Path) -> None:
    held, said = NPZ[kind]
    np.savez(tmp_path / "7.npz", **held)  # type: ignore[arg-type]
    with pytest.raises(BadEntry, match=said) as bad:
        read_all(tmp_path, "npz")
    assert bad.value.where.startswith(str(tmp_path / "7.npz"))


def test_an_npz_counts_its_boxes_and_leaves_the_rest(tmp_path: Path) -> None:
    x = np.arange(28, dtype=np.float32).reshape(7, 4)
    np.savez(tmp_path / "7.npz", x=x, bbox=np.zeros((4, 4)), num_bbox=np.array(3), image_w=10, image_h=0)
    (found,) = read_all(tmp_path, "npz").values()
    assert (found.features == x.T[:3]).all()
    assert (found.width, found.height) == (10, None)


def test_an_lmdb_of_tensorpack_is_named(tmp_path: Path) -> None:
    import lmdb

    with lmdb.open(str(tmp_path / "x")) as env, env.begin(write=True) as txn:
        txn.put(b"__keys__", b"\x92\xc4\x011\xc4\x012")
    with refused("x", "tensorpack", error=UserError):
        read_all(tmp_path / "x")
