"""Shards written for other systems: read by those systems' own way of reading, and back again without loss."""

from __future__ import annotations

import csv
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from regions import interop_files as files
from regions.interop_imports import imported
from regions.regions_tiny import CONTRACT

from vbert.data.pickles import load
from vbert.errors import UserError
from vbert.regions.interop.comparing import FeatureComparison, compare
from vbert.regions.interop.exporting import export
from vbert.regions.interop.feature_sets import opened
from vbert.regions.interop.raw_regions import BadEntry
from vbert.regions.shards import RegionSample, Shards, write_contents, write_shard

GIVEN = sorted(files.images(), key=lambda one: one.name)
KINDS, COLOURS = ("circle", "square", "triangle"), ("red", "größer")


def shards(folder: Path, boxes: bool = True, named: bool = True, distributions: bool = True) -> Path:
    """Our own shards of the miniatures; classes by name, or numbered as in an import without a vocabulary."""
    folder.mkdir()
    samples = [
        RegionSample(
            image_id=one.name,
            image_sha256=None,
            width=one.width,
            height=one.height,
            features=one.features.astype(np.float16),
            boxes=one.boxes if boxes else None,
            scores=[float(score) for score in one.conf],
            classes=[KINDS[i % 3] if named else str(i) for i in one.objects],
            attributes=[[COLOURS[i % 2]] if named else [str(i)] for i in one.attrs],
            attribute_scores=[[float(score)] for score in one.attrs_conf],
            distributions=one.probabilities.astype(np.float16) if distributions else None,
        )
        for one in GIVEN
    ]
    rows = [write_shard(folder, 0, samples[:3]), write_shard(folder, 1, samples[3:])]
    write_contents(folder, rows, [], CONTRACT.model_copy(update={"dim": 16}))
    return folder


def exported(source: Path, format: str, target: Path) -> dict[str, object]:
    with opened(source) as features:
        return export(features, format, target)


def lxmert_rows(path: Path) -> dict[str, dict[str, object]]:
    """As LXMERT's loader does it: DictReader, base64, frombuffer, reshape."""
    import base64

    names = ["img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes"]
    csv.field_size_limit(2**31 - 1)
    out = {}
    with path.open() as file:
        for row in csv.DictReader(file, [*names, "features"], delimiter="\t"):
            n = int(row["num_boxes"])
            shapes = {"objects_id": (n,), "objects_conf": (n,), "attrs_id": (n,), "attrs_conf": (n,)}
            item: dict[str, object] = {"img_h": int(row["img_h"]), "img_w": int(row["img_w"])}
            for name, shape in (shapes | {"boxes": (n, 4), "features": (n, -1)}).items():
                dtype = np.int64 if name.endswith("_id") else np.float32
                item[name] = np.frombuffer(base64.b64decode(row[name]), dtype=dtype).reshape(shape)
            out[row["img_id"]] = item
    return out


@pytest.mark.parametrize("named", [True, False])
def test_lxmert_tsv(named: bool, tmp_path: Path) -> None:
    made = exported(shards(tmp_path / "shards", named=named), "lxmert_tsv", tmp_path / "out" / "a.tsv")
    regions = sum(len(one.boxes) for one in GIVEN)
    assert made == {"images": 5, "regions": regions, "zeros": [], "unreadable": 0, "first_unreadable": None}
    rows = lxmert_rows(tmp_path / "out" / "a.tsv")
    assert list(rows) == [one.name for one in GIVEN]
    words = tmp_path / "out" / "a_objects_vocab.txt"
    assert words.exists() == named
    for one in GIVEN:
        row = rows[one.name]
        assert (row["img_w"], row["img_h"]) == (one.width, one.height)
        assert (row["features"] == one.features.astype(np.float16)).all()
        assert (row["boxes"] == one.boxes).all()
        assert np.abs(row["objects_conf"] - one.conf).max() < 1e-6
        assert np.abs(row["attrs_conf"] - one.attrs_conf).max() < 1e-6
        if named:
            vocabulary = words.read_text().splitlines()
            assert [vocabulary[i] for i in row["objects_id"]] == [KINDS[i % 3] for i in one.objects]
        else:
            assert row["objects_id"].tolist() == one.objects.tolist()
            assert row["attrs_id"].tolist() == one.attrs.tolist()
    with opened(tmp_path / "out" / "a.tsv") as again:
        assert again.format == "lxmert_tsv"
        assert again.read(GIVEN[0].name).width == GIVEN[0].width


def test_what_a_tsv_must_have(tmp_path: Path) -> None:
    """No boxes is an error; no confidences are zeros, and said."""
    bare = shards(tmp_path / "bare", boxes=False)
    with pytest.raises(
        UserError, match="has no boxes in pixels or no size, which LXMERT's TSV must have; export as npy"
    ):
        exported(bare, "lxmert_tsv", tmp_path / "a.tsv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare"]
    source = files.bottom_up_tsv(tmp_path / "b.tsv", GIVEN)
    made = exported(source, "lxmert_tsv", tmp_path / "a.tsv")
    assert made["zeros"] == ["attrs_conf", "attrs_id, attrs_conf", "objects_conf", "objects_id"]
    rows = lxmert_rows(tmp_path / "a.tsv")
    assert (rows[str(int(GIVEN[0].name.rpartition("_")[2]))]["boxes"] == GIVEN[0].boxes).all()


def test_npy_with_info(tmp_path: Path) -> None:
    exported(shards(tmp_path / "shards", named=False), "npy", tmp_path / "npy")
    for one in GIVEN:
        features = np.load(tmp_path / "npy" / f"{one.name}.npy", allow_pickle=False)
        assert features.dtype == np.float32
        assert (features == one.features.astype(np.float16)).all()
        info = np.load(tmp_path / "npy" / f"{one.name}_info.npy", allow_pickle=True).item()  # as MMF does
        assert (info["bbox"] == one.boxes).all()
        assert (info["num_boxes"], info["image_width"], info["image_height"]) == (len(one.boxes), one.width, one.height)
        assert info["objects"].tolist() == one.objects.tolist()
        assert (info["cls_prob"] == one.probabilities.astype(np.float16)).all()
    with opened(tmp_path / "npy") as again:  # contract.json beside the arrays doesn't make it shards
        assert again.format == "npy"
        assert (again.read(GIVEN[0].name).boxes == GIVEN[0].boxes).all()


def test_the_pickle_in_an_info_file_names_what_numpy_1_knows(tmp_path: Path) -> None:
    exported(shards(tmp_path / "shards"), "npy", tmp_path / "npy")
    data = (tmp_path / "npy" / f"{GIVEN[0].name}_info.npy").read_bytes()
    assert b"numpy.core.multiarray" in data
    assert b"numpy._core" not in data
    body = data[128:] if data[128:129] == b"\x80" else data[data.index(b"\x80\x03") :]
    assert body[:2] == b"\x80\x03"  # a protocol that Python 3.6 reads
    assert load(body, "info")["num_boxes"] == len(GIVEN[0].boxes)
    assert pickle.loads(body).item()["image_width"] == GIVEN[0].width


LOADED = """
import sys, json
from datasets import load_from_disk
held = load_from_disk(sys.argv[1])
row = held[0]
print(json.dumps([held.num_rows, held.column_names, row["image_id"], row["width"], row["boxes"], row["classes"],
    row["features"], row.get("distributions")]))
"""


@pytest.mark.parametrize("boxes", [True, False])
def test_a_folder_that_load_from_disk_opens(boxes: bool, tmp_path: Path) -> None:
    import json

    source = shards(tmp_path / "shards", boxes=boxes, distributions=boxes)
    made = exported(source, "arrow", tmp_path / "arrow")
    assert made["images"] == 5
    offline = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", LOADED, tmp_path / "arrow"], capture_output=True, text=True, check=True, env=offline
    )
    rows, columns, image_id, width, read, classes, features, shares = json.loads(done.stdout)
    one = GIVEN[0]
    assert (rows, image_id, width) == (5, one.name, one.width)
    assert ("distributions" in columns) == boxes
    assert (read is not None) == boxes
    assert not boxes or np.float32(read).tolist() == one.boxes.tolist()
    assert classes == [KINDS[i % 3] for i in one.objects]
    assert (np.float16(features) == one.features.astype(np.float16)).all()
    assert not boxes or (np.float16(shares) == one.probabilities.astype(np.float16)).all()
    exported(source, "arrow", tmp_path / "again")
    for path in (tmp_path / "arrow").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_targets_are_made_whole_or_not_at_all(tmp_path: Path) -> None:
    source = shards(tmp_path / "shards")
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there is there already"):
        exported(source, "npy", tmp_path / "there")
    with pytest.raises(UserError, match="no format 'arow' that can be written; did you mean 'arrow'"):
        exported(source, "arow", tmp_path / "x")
    broken = files.lxmert_tsv(tmp_path / "a.tsv", GIVEN)
    broken.write_bytes(broken.read_bytes()[:-30])
    made = exported(broken, "npy", tmp_path / "npy")
    assert (made["images"], made["unreadable"]) == (4, 1)
    assert "a.tsv:5" in str(made["first_unreadable"])


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("format", ["arrow", "npy", "lxmert_tsv"])
def test_what_is_exported_compares_as_the_same(format: str, boxes: bool, tmp_path: Path) -> None:
    if format == "lxmert_tsv" and not boxes:
        return  # which it must have
    source = shards(tmp_path / "shards", boxes=boxes, distributions=boxes)
    exported(source, format, tmp_path / "there")
    total = FeatureComparison()
    with opened(source) as a, opened(tmp_path / "there") as b:
        assert b.format == format
        for row in compare(a, b, lambda done, of: None, total):
            assert row.cause == "same", row
        for image_id in b.ids if format == "arrow" else ():
            assert a.read(image_id).classes == b.read(image_id).classes
    assert total.same


def test_other_folders_of_arrow_are_told(tmp_path: Path) -> None:
    import datasets

    datasets.Dataset.from_dict({"picture": ["a"], "x": [[1.0]]}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(UserError, match="there is no column 'image_id', only picture, x"), opened(tmp_path / "other"):
        pass
    datasets.Dataset.from_dict({"image_id": ["a", "b"], "features": [[[1.0, 2.0]], None]}).save_to_disk(
        str(tmp_path / "mine")
    )
    with opened(tmp_path / "mine") as mine:
        assert mine.read("a").features.tolist() == [[1.0, 2.0]]
        with pytest.raises(BadEntry, match="features is null"):
            mine.read("b")
    (file,) = (tmp_path / "mine").glob("*.arrow")
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="no whole Arrow stream"), opened(tmp_path / "mine"):
        pass


CELLS = {
    "boxes": [[0.0, 0.0, 1.0, 1.0]],
    "boxes of three": [[0.0, 0.0, 1.0]] * 2,
    "scores": [1.0],
    "classes": ["cat"],
    "attributes": [None, ["red"]],
    "features": [[1.0, None], [1.0, 2.0]],
}


@pytest.mark.parametrize("cell", CELLS)
def test_cells_of_arrow_that_do_not_fit_together_are_bad_entries(cell: str, tmp_path: Path) -> None:
    import datasets

    row = {"image_id": ["a"], "features": [[[1.0, 2.0], [3.0, 4.0]]], cell.split()[0]: [CELLS[cell]]}
    datasets.Dataset.from_dict(row).save_to_disk(str(tmp_path / "x"))
    with opened(tmp_path / "x") as held, pytest.raises(BadEntry, match=cell.split()[0]):
        held.read("a")


def test_compressed_arrow_is_refused_unread(tmp_path: Path) -> None:
    """16 KB that would take half a gigabyte."""
    import pyarrow as pa

    source = shards(tmp_path / "shards")
    exported(source, "arrow", tmp_path / "there")
    (file,) = (tmp_path / "there").glob("*.arrow")
    table = pa.table({"image_id": ["a"], "features": [[[0.0] * 100_000]]})
    with pa.ipc.new_stream(str(file), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as stream:
        stream.write_table(table)
    before = pa.total_allocated_bytes()
    with pytest.raises(UserError, match="compressed"), opened(tmp_path / "there"):
        pass
    assert pa.total_allocated_bytes() - before < 100_000


def test_shards_imported_exported_and_imported_are_the_same(tmp_path: Path) -> None:
    first = imported(tmp_path / "store", files.lxmert_tsv(tmp_path / "a.tsv", GIVEN))
    exported(first.path, "lxmert_tsv", tmp_path / "b.tsv")
    second = imported(tmp_path / "store", tmp_path / "b.tsv")
    assert isinstance(second, Shards)
    assert [second.file(name).read_bytes() for name in second.names()] == [
        first.file(name).read_bytes() for name in first.names()
    ]
