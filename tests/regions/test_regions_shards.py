from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from regions.regions_tiny import CONTRACT

from vbert.errors import BuildError
from vbert.regions.shards import RegionSample, Shards, sample_key, shard_name, write_contents, write_shard

IDS = ["train/17", "a.b.c", "Straße 7", "这是一只猫", "x" * 300, "plain", "%41", "-_"]


def samples(dim: int = 256, boxes: bool = True) -> list[RegionSample]:
    rng = np.random.default_rng(0)
    out = []
    for number, image_id in enumerate(sorted(IDS)):
        n = number % 4
        out.append(
            RegionSample(
                image_id,
                f"{number:064x}",
                80 + number,
                60,
                rng.normal(size=(n, dim)).astype(np.float16),
                rng.random((n, 4), dtype=np.float32) if boxes else None,
                [0.5] * n,
                ["circle"] * n,
                [["red", "größer"]] * n,
            )
        )
    return out


def made(directory: Path, **options: object) -> Shards:
    everything = samples(**options)
    rows = [write_shard(directory, 0, everything[:5]), write_shard(directory, 1, everything[5:])]
    bad = {"image_id": ["broken"], "path": ["raw/b.png"], "reason": ["empty"], "detail": ["0 bytes"]}
    assert write_contents(directory, rows, [bad], CONTRACT) == {
        "images": 8,
        "regions": sum(len(s.features) for s in everything),
        "quarantined": 1,
        "shards": 2,
    }
    return Shards.at(directory)


@pytest.mark.parametrize("boxes", [True, False])
def test_reading_gives_what_was_written(tmp_path: Path, boxes: bool) -> None:
    shards = pickle.loads(pickle.dumps(made(tmp_path, boxes=boxes)))
    for sample in samples(boxes=boxes):
        read = shards.read(sample.image_id)
        assert read.features.dtype == np.float16
        assert (read.features == sample.features).all()
        assert (read.boxes is None) if not boxes else (read.boxes == sample.boxes).all()
        assert (read.width, read.height) == (sample.width, sample.height)
        assert (read.scores, read.classes, read.attributes) == (sample.scores, sample.classes, sample.attributes)
    pickle.loads(pickle.dumps(shards)).read("plain")  # after maps are open
    assert shards.image_ids() == sorted(IDS)
    assert shards.dim == 256
    assert shards.contract() == CONTRACT
    assert shards.quarantine().to_pylist()[0]["reason"] == "empty"
    with pytest.raises(KeyError):
        shards.read("nowhere")


def test_offsets_point_at_the_raw_arrays_behind_the_npy_headers(tmp_path: Path) -> None:
    shards = made(tmp_path)
    for row in shards.table().to_pylist():
        key = sample_key(row["image_id"])
        with tarfile.open(tmp_path / shard_name(row["shard"])) as tar:
            members = {
                m.name.removeprefix(f"{key}."): tar.extractfile(m).read() for m in tar if m.name.startswith(f"{key}.")
            }
        data = (tmp_path / shard_name(row["shard"])).read_bytes()
        features = np.load(BytesIO(members["features.npy"]), allow_pickle=False)
        assert data[row["features_offset"] :].startswith(features.tobytes())
        boxes = np.load(BytesIO(members["boxes.npy"]), allow_pickle=False)
        assert data[row["boxes_offset"] :].startswith(boxes.tobytes())
        assert data[row["json_offset"] :][: row["json_size"]] == members["json"]
        assert json.loads(members["json"])["image_id"] == row["image_id"]
        assert len(features) == row["n"]


def test_webdataset_reads_the_shards_with_explicit_decoders(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WDS_SECURE", "1")
    import webdataset as wds

    made(tmp_path)
    urls = [str(tmp_path / shard_name(i)) for i in (0, 1)]

    def npy(data: bytes) -> np.ndarray:
        return np.load(BytesIO(data), allow_pickle=False)

    decoders = [wds.handle_extension("features.npy", npy), wds.handle_extension("boxes.npy", npy)]
    decoders.append(wds.handle_extension("json", json.loads))
    read = list(wds.WebDataset(urls, shardshuffle=False).decode(*decoders, only=["features.npy", "boxes.npy", "json"]))
    assert [one["json"]["image_id"] for one in read] == sorted(IDS)
    for one, sample in zip(read, samples(), strict=True):
        assert one["__key__"] == sample_key(sample.image_id)
        assert (one["features.npy"] == sample.features).all()
        assert (one["boxes.npy"] == sample.boxes).all()


def test_tar_lists_members_in_order_with_fixed_owner_and_time(tmp_path: Path) -> None:
    made(tmp_path)
    listed = subprocess.run(
        ["tar", "tvf", tmp_path / "000000.tar", "--utc"], capture_output=True, text=True, check=True
    )
    lines = listed.stdout.splitlines()
    assert listed.stderr == ""
    assert len(lines) == 15
    assert all("vbert/vbert" in line and "1970-01-01 00:00" in line for line in lines)
    endings = [line.rpartition("/")[2].partition(".")[2] for line in lines]
    assert endings == ["features.npy", "boxes.npy", "json"] * 5


def test_equal_samples_are_equal_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for directory in (first, second):
        directory.mkdir()
        made(directory)
    for path in sorted(first.iterdir()):
        assert path.read_bytes() == (second / path.name).read_bytes(), path.name


def test_keys_hold_no_dot_or_slash_and_stay_apart() -> None:
    keys = [sample_key(image_id) for image_id in IDS]
    assert len(set(keys)) == len(IDS)
    assert all(len(key) <= 200 and not set(key) & set("./ ") and key.isascii() for key in keys)
    assert sample_key("train/17.x") == "train%2F17%2Ex"
    assert sample_key("y" * 200) == "y" * 200
    assert sample_key("é" * 40) != sample_key("é" * 41)


def test_distributions_are_a_member_of_their_own_where_there_are_any(tmp_path: Path) -> None:
    """Imported features may have them for some images; without any, the index has no such columns."""
    first, second = samples()[1:3]
    shares = np.random.default_rng(1).random((len(first.features), 7)).astype(np.float16)
    rows = [write_shard(tmp_path, 0, [dataclasses.replace(first, distributions=shares)])]
    rows.append(write_shard(tmp_path, 1, [dataclasses.replace(second, width=None, height=None, image_sha256=None)]))
    write_contents(tmp_path, rows, [], CONTRACT)
    shards = Shards.at(tmp_path)
    read = shards.read(first.image_id)
    assert read.distributions.dtype == np.float16
    assert (read.distributions == shares).all()
    assert shards.read(second.image_id).distributions is None
    with pytest.raises(BuildError, match="imported without the image's size; import them again"):
        _ = shards.read(second.image_id).width
    with tarfile.open(tmp_path / shard_name(0)) as tar:
        names = [name.partition(".")[2] for name in tar.getnames()]
    assert names == ["features.npy", "boxes.npy", "classes.npy", "json"]
    (tmp_path / "without").mkdir()
    assert "classes_offset" not in made(tmp_path / "without").table().column_names
