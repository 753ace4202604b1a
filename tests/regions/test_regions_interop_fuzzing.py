"""Mutated files of others: an entry is read, or refused by the readers' own errors; nothing else leaves a reader."""

from __future__ import annotations

import csv
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
from regions import interop_files as files
from regions.interop_table import WRITTEN

from vbert.errors import UserError
from vbert.regions import interop
from vbert.regions.interop import hf_arrow
from vbert.regions.interop.comparing import FeatureComparison, compare
from vbert.regions.interop.feature_sets import FolderFiles, opened
from vbert.regions.interop.npz_files import _parse as read_npz
from vbert.regions.interop.raw_regions import BadEntry
from vbert.regions.interop.sizes import ImageSizes
from vbert.regions.interop.vilbert_lmdb import _regions as of_vilbert

GIVEN = files.images(2)
ODD = (
    None,
    -1,
    0,
    3.5,
    2**70,
    "4",
    b"!",
    "",
    [1],
    {"a": 1},
    np.zeros(3),
    np.zeros((2, 2), np.int8),
    np.float64("nan"),
    True,
)


def broken(data: bytes, chance: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        kind, at = chance.randrange(4), chance.randrange(max(1, len(out)))
        out = out or bytearray(b"\0")
        if kind == 0:
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[at : at + chance.randint(1, 40)]
        elif kind == 2:
            out[at:at] = bytes(chance.choices(b"\0\t\n=A1\xff", k=chance.randint(1, 8)))
        else:
            del out[max(1, at) :]
    return bytes(out) or b"\0"


TABLES = ("lxmert", "bottom-up", "oscar without lineidx")
OFTEN = pytest.mark.parametrize("times", [300, pytest.param(2000, marks=pytest.mark.slow)])


@OFTEN
@pytest.mark.parametrize("kind", TABLES)
def test_a_mutated_table(kind: str, times: int, tmp_path: Path) -> None:
    module, chance = interop.load(WRITTEN[kind].format), random.Random(WRITTEN[kind].format)
    whole = WRITTEN[kind].write(tmp_path, GIVEN).read_bytes()
    refused = 0
    for _ in range(times):
        (tmp_path / "a.tsv").write_bytes(broken(whole, chance))
        local = module.files(tmp_path / "a.tsv")
        try:
            with module.opened(local) as read:
                for entry in module.index(local):
                    read(*entry)
        except (UserError, BadEntry):
            refused += 1
    assert refused > times // 4


@OFTEN
def test_a_mutated_npz(times: int, tmp_path: Path) -> None:
    chance, refused = random.Random(1), 0
    folder = files.mcan_npz(tmp_path / "npz", GIVEN, by_rows=True)
    whole = next(folder.iterdir()).read_bytes()
    arrays = dict(np.load(next(folder.iterdir()), allow_pickle=True))
    for at in range(times):
        data = broken(whole, chance)
        if at % 4 == 0:
            name = chance.choice([name for name in arrays if name != "info"])
            np.savez(tmp_path / "x.npz", **(arrays | {name: np.asarray(chance.choice(ODD[1:9]))}))
            data = (tmp_path / "x.npz").read_bytes()
        try:
            read_npz(data, "x")
        except BadEntry:
            refused += 1
    assert refused > times // 4


@OFTEN
def test_a_mutated_dict_of_vilbert(times: int, tmp_path: Path) -> None:
    import lmdb

    with lmdb.open(str(files.vilbert_lmdb(tmp_path / "x", GIVEN, volta=True))) as env, env.begin() as txn:
        held = pickle.loads(txn.get(GIVEN[0].name.encode()))
    chance, refused = random.Random(2), 0
    for _ in range(times):
        about = dict(held)
        for name in chance.sample(sorted(about), 2):
            about[name] = chance.choice(ODD)
        try:
            of_vilbert(about, None, "x")
        except BadEntry:
            refused += 1
    assert refused > times // 4


ARRAYS = {"features": GIVEN[0].features, "boxes": GIVEN[0].boxes, "image_w": 640, "image_h": 480}
N = len(GIVEN[0].boxes)


def test_arrays_in_place_of_base64_say_what_they_are() -> None:
    held = ARRAYS | {"num_boxes": np.array([N]), "cls_prob": GIVEN[0].probabilities, "objects_id": GIVEN[0].objects}
    for dtype in (None, "float16"):  # which is of base64
        found = of_vilbert(held, dtype, "x")  # type: ignore[arg-type]
        assert np.array_equal(found.features, GIVEN[0].features)
        assert found.classes == [str(number) for number in GIVEN[0].objects]
        assert found.distributions is not None
    for name, value, said in (
        ("features", GIVEN[0].features.T.copy(), rf"features is float32 \(16, {N}\), not numbers \[{N}, d\]"),
        ("boxes", np.array(["a"]), "boxes is <U1"),
        ("features", "\ud800", "features is not whole base64"),
    ):
        with pytest.raises(BadEntry, match=said):
            of_vilbert(held | {name: value}, None, "x")


def test_keys_that_no_lmdb_has(tmp_path: Path) -> None:
    import lmdb

    path = files.mmf_lmdb(tmp_path / "x", GIVEN)
    for key, said in ((b"", "'keys' lists it"), (b"k" * 600, "'keys' lists it"), ("\ud800", "is no text")):
        with lmdb.open(str(path)) as env, env.begin(write=True) as txn:
            txn.put(b"keys", pickle.dumps([key]))
        with pytest.raises((UserError, BadEntry), match=said), opened(path) as held:
            held.read(held.ids[0])


@pytest.mark.parametrize("name", ["features", "boxes", "scores", "distributions", "attribute_scores"])
def test_nan_is_no_number_of_any_kind(name: str, tmp_path: Path) -> None:
    given = files.images(2)
    kind = {"boxes": "boxes", "scores": "conf", "distributions": "probabilities", "attribute_scores": "attrs_conf"}
    getattr(given[1], kind.get(name, "features"))[0] = np.nan
    folder = files.mcan_npz(tmp_path / "x", given, by_rows=True)
    if name == "distributions":
        path = folder / f"{given[1].name}.jpg.npz"
        np.savez(path, **np.load(path, allow_pickle=True), cls_prob=given[1].probabilities)
    total = FeatureComparison()
    with opened(folder) as held:
        with pytest.raises(BadEntry, match=f"not finite: {name} hold NaN or infinite numbers"):
            held.read(f"{given[1].name}.jpg")
        held.read(f"{given[0].name}.jpg")
        list(compare(held, held, lambda done, of: None, total))
    assert total.causes == {"unreadable": 1, "same": 1}


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("s.json", b'[{"image_id": "a", "width": Infinity, "height": 1}]', "OverflowError"),
        ("s.json", b'[{"image_id": "a", "width": 640.7, "height": 1}]', "640.7 × 1 are no whole numbers"),
        ("s.csv", b"image_id,width,height\n" + b"a" * 200_000 + b",1,2\n", "field larger than"),
        ("s.csv", b"image_id,width,height\na,1,2\na,3,4\n", "two sizes of 'a'"),
    ],
)
def test_tables_of_sizes_that_are_none(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    csv.field_size_limit(1 << 17)  # Python's own, which other tests change
    with pytest.raises(UserError, match=rf"no table of image_id, width and height \(.*{said}"):
        ImageSizes(FolderFiles(tmp_path / name))


def test_arrow_of_any_numbers_is_read_where_it_lies(tmp_path: Path) -> None:
    """One image cost 40 ms by way of Python's lists, and costs 0.2 ms."""
    import pyarrow as pa

    rng = np.random.default_rng(0)
    cells = [rng.random((n, 3)).astype(np.float16) for n in (2, 0, 4)]
    fixed, loose = pa.list_(pa.list_(pa.float16(), 3)), pa.large_list(pa.list_(pa.float64()))
    for number, kind in enumerate((fixed, loose, pa.list_(pa.list_(pa.int32())))):
        folder = tmp_path / str(number)
        folder.mkdir()
        whole = number == 2
        rows = [[list(map(int, row)) if whole else row.tolist() for row in cell] for cell in cells]
        if kind is fixed:
            rows = [[list(row) for row in cell] for cell in cells]
        table = pa.table(
            {"image_id": ["a", "b", "c"], "features": pa.array(rows, kind), "scores": [[1.0], None, [2.0]]}
        )
        with pa.ipc.new_stream(str(folder / "x.arrow"), table.schema) as stream:
            stream.write_table(table.slice(0, 1))
            stream.write_table(table.slice(1))
        for mark in hf_arrow.REQUIRED:
            (folder / mark).write_text("{}")
        local = hf_arrow.files(folder)
        with hf_arrow.opened(local) as read:
            places = dict(hf_arrow.index(local))
            for name, cell in zip("ac", cells[::2], strict=True):
                with pytest.raises(BadEntry, match="scores has 1 entries"):
                    read(name, places[name])
                batch, row = hf_arrow._batches(local["features"])[places[name][1]], places[name][2]
                held = hf_arrow._numbers(batch, "features", row, "x")
                assert np.array_equal(held, cell.astype(np.int32) if whole else cell)
                assert not held.flags.owndata
            assert len(read("b", places["b"]).features) == 0
