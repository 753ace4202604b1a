"""From foreign files to shards: boxes in pixels of the original image, refused files, entries in quarantine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from refused import refused
from regions import interop_files as files
from regions.interop_files import Image, real_features
from regions.interop_imports import GIVEN, boxes_of, imported, step, table

from vbert.artifacts.making.engine import Engine, build_here
from vbert.artifacts.steps.stage import Machine
from vbert.artifacts.store.store import Store
from vbert.errors import BuildError, NotAccepted, UserError
from vbert.regions.interop.boxes_in import BoxesIn, refuse_other_corners
from vbert.regions.interop.feature_sets import opened
from vbert.regions.interop.importing import Provenance, capped
from vbert.regions.interop.raw_regions import BadEntry, RawRegions


def test_an_import_is_shards_like_extracted_ones(tmp_path: Path) -> None:
    """Same layout, sorted ids, a contract; the same bytes from any order of lines and with one child or two."""
    words = ("zero", "one", "two", "three", "four", "five", "six")
    settings = {"classes": words, "attributes": words}
    shards = imported(tmp_path / "store", files.lxmert_tsv(tmp_path / "a.tsv", GIVEN), **settings)
    tars = [f"{i:06d}.tar" for i in range(3)]
    assert shards.names() == [*tars, "contract.json", "offsets.parquet", "quarantine.parquet"]
    assert shards.image_ids() == sorted(one.name for one in GIVEN)
    regions = sum(len(one.boxes) for one in GIVEN)
    assert shards.figures == {"images": 9, "regions": regions, "quarantined": 0, "shards": 3, "dim": 16}
    boxes_of(shards, GIVEN)
    read = shards.read(GIVEN[0].name)
    assert read.classes == [words[i] for i in GIVEN[0].objects]
    assert read.attributes == [[words[i]] for i in GIVEN[0].attrs]
    assert read.details["attribute_scores"] == [[round(float(score), 6)] for score in GIVEN[0].attrs_conf]
    assert read.scores == [round(float(score), 6) for score in GIVEN[0].conf]
    contract = shards.contract()
    assert (contract.detector, contract.layer, contract.dim, contract.dtype) == ("unknown", "res5_pool", 16, "float16")
    assert (contract.weights, contract.boxes, contract.preprocessing) == (None, None, None)
    (tmp_path / "other").mkdir()
    again = step(files.lxmert_tsv(tmp_path / "other" / "b.tsv", GIVEN[::-1]), **settings)
    (two,) = build_here([again], tmp_path / "two", Machine(units_at_once=2))
    for name in shards.names():
        assert shards.file(name).read_bytes() == two.file(name).read_bytes(), name


def test_the_same_file_elsewhere_is_the_same_import(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first = step(files.lxmert_tsv(tmp_path / "a.tsv", GIVEN))
    assert step(files.lxmert_tsv(tmp_path / "b" / "a.tsv", GIVEN)).fingerprint == first.fingerprint
    assert step(tmp_path / "a.tsv", cap=3).fingerprint != first.fingerprint
    files.lxmert_tsv(tmp_path / "a.tsv", GIVEN[1:])
    assert step(tmp_path / "a.tsv").fingerprint != first.fingerprint


def test_a_known_detector_states_its_contract(tmp_path: Path) -> None:
    from vbert.regions.detector import detector_file

    given = files.images(4, dim=256)
    path = files.bottom_up_tsv(tmp_path / "a.tsv", given)
    contract = imported(tmp_path / "store", path, statement=Provenance.of("shapes_cnn", weights="ab" * 32)).contract()
    spec = detector_file("shapes_cnn").spec()
    assert (contract.detector, contract.backend, contract.layer) == ("shapes_cnn", spec.backend, "fc7")
    assert (contract.weights, contract.preprocessing) == ("ab" * 32, spec.preprocessing)
    with refused("16", "'shapes_cnn'", "256", error=UserError):
        imported(tmp_path / "s", files.lxmert_tsv(tmp_path / "b.tsv", GIVEN), statement=Provenance.of("shapes_cnn"))
    with refused("--layer fc6", "'shapes_cnn'", "fc7", error=UserError):
        Provenance.of("shapes_cnn", layer="fc6")
    with refused("'shapes_cn'", "'shapes_cnn'", error=UserError):
        Provenance.of("shapes_cn")


def test_a_format_without_boxes_says_so_in_the_contract(tmp_path: Path) -> None:
    shards = imported(tmp_path / "store", files.mmf_npy(tmp_path / "npy", GIVEN, info=False))
    assert shards.contract().coordinates == "none"
    read = shards.read(GIVEN[0].name)
    assert read.boxes is None
    assert (read.features == GIVEN[0].features.astype(np.float16)).all()
    assert read.classes == [""] * len(GIVEN[0].features)
    with refused("boxes", error=UserError):
        shards.contract().with_box_input("append6")
    with refused("--boxes-in", error=UserError):
        imported(tmp_path / "s", tmp_path / "npy", boxes_in=BoxesIn.parse("resized:800"))
    with refused("--cap 3", error=UserError):
        imported(tmp_path / "s", tmp_path / "npy", cap=3)


def test_sizes_that_a_format_lacks_are_asked_for(tmp_path: Path) -> None:
    path = files.uniter_lmdb(tmp_path / "coco_val2014", GIVEN, counts=False)
    with refused("--images", "--sizes", "--boxes-in", error=UserError):
        imported(tmp_path / "store", path)
    shards = imported(tmp_path / "store", path, table(tmp_path / "sizes.csv"), ids="coco_(.*)")

    def called(name: str) -> str:
        return name.removeprefix("COCO_")

    for one in GIVEN:
        read = shards.read(called(one.name) + ".npz")
        assert np.abs(read.boxes - one.boxes).max() < 0.5  # UNITER's boxes are float16 shares
        assert (read.distributions == one.probabilities.astype(np.float16)).all()
    bare = imported(tmp_path / "store", path, boxes_in=BoxesIn.parse("none"))
    assert bare.contract().coordinates == "none"
    assert bare.read(bare.image_ids()[0]).details["width"] is None


def resized(one: Image, short: int, long: int) -> Image:
    factor = min(short / min(one.width, one.height), long / max(one.width, one.height))
    return Image(**{**vars(one), "boxes": one.boxes * np.float32(factor)})


def test_boxes_in_pixels_of_a_resized_image(tmp_path: Path) -> None:
    """Told, they are brought back; untold, they are refused as soon as one lies outside."""
    given = [resized(one, 800, 1333) for one in GIVEN]
    path = files.lxmert_tsv(tmp_path / "a.tsv", given)
    shards = imported(tmp_path / "store", path, boxes_in=BoxesIn.parse("resized:800,1333"))
    boxes_of(shards, GIVEN)
    with refused("a.tsv", "boxes", "--boxes-in", error=BuildError):
        imported(tmp_path / "s", path)


def test_sizes_of_the_resized_image_in_the_file(tmp_path: Path) -> None:
    """The file's own sizes are those of the resized image; the images say what theirs are."""
    given = []
    for one in GIVEN:
        big = resized(one, 800, 1333)
        factor = 800 / min(one.width, one.height)
        big.width, big.height = round(one.width * factor), round(one.height * factor)
        given.append(big)
    path, sizes = files.bottom_up_tsv(tmp_path / "a.tsv", given), table(tmp_path / "sizes.csv")
    with refused("×800", "--boxes-in recorded", error=BuildError):
        imported(tmp_path / "store", path, sizes)
    shards = imported(tmp_path / "store", path, sizes, boxes_in=BoxesIn.parse("recorded"))
    for one in GIVEN:
        read = shards.read(str(int(one.name.rpartition("_")[2])))
        assert (read.width, read.height) == (one.width, one.height)
        assert np.abs(read.boxes - one.boxes).max() < 0.7  # recorded sizes are rounded


def test_a_folder_of_files_is_one_import(tmp_path: Path) -> None:
    """VisualBERT's features of several splits; an id may be more than what a file calls the image."""
    (tmp_path / "features").mkdir()
    for name, part in {"features_train_150.th": GIVEN[:5], "features_dev_150.th": GIVEN[5:]}.items():
        files.visualbert_th(tmp_path / "features" / name, part, numpy=name.startswith("features_dev"))
    settings = {"boxes_in": BoxesIn.parse("none"), "ids": r"_0*(\d+)\.png", "id_form": "img/{}.png"}
    shards = imported(tmp_path / "store", tmp_path / "features", **settings)
    named = {f"img/{int(one.name.rpartition('_')[2])}.png": one for one in GIVEN}
    assert shards.image_ids() == sorted(named)
    for image_id, one in named.items():
        assert (shards.read(image_id).features == one.features.astype(np.float16)).all()


@real_features
def test_the_features_of_a_real_detector(tmp_path: Path) -> None:
    """Their boxes are in pixels of the resized image; the photos are here, and say how large they are."""
    given = files.detected(resized=True)
    assert len(given) >= 3
    photos = tmp_path / "photos"
    photos.mkdir()
    for folder in ("vqa_v2/images", "flickr30k_entities/images"):
        for path in (files.SHARED / folder).glob("*.jpg"):
            (photos / path.name).write_bytes(path.read_bytes())
    thousand = [one for one in given if one.features.shape[1] == 1024]
    path = files.visualbert_th(tmp_path / "features_150.th", thousand)
    shards = imported(tmp_path / "store", path, photos, ids=r"(.*)\.png", boxes_in=BoxesIn.parse("resized:800,1333"))
    by_name = {one.name: one for one in files.detected()}
    assert shards.image_ids() == sorted(one.name for one in thousand)
    digests = {row["image_id"]: row["image_sha256"] for row in shards.table().to_pylist()}
    for one in thousand:
        read = shards.read(one.name)
        assert (read.width, read.height) == (one.width, one.height)
        limits = np.float32([one.width, one.height] * 2)
        assert np.abs(read.boxes - np.clip(by_name[one.name].boxes, 0, limits)).max() < 1e-3
        assert np.abs(read.features - one.features).max() <= 1e-3 * np.abs(one.features).max()
        assert len(digests[one.name]) == 64  # of the photo
    with refused("--boxes-in resized:SHORT,LONG", error=BuildError):
        imported(tmp_path / "s", path, photos, ids=r"(.*)\.png")


def test_broken_entries_go_to_the_quarantine(tmp_path: Path) -> None:
    """Named with file and line, counted, and above the allowed share an error that says where to look."""
    path = files.lxmert_tsv(tmp_path / "a.tsv", GIVEN)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(
        NotAccepted, match=r"1 of 9 images can't be used \(11.1 %\), more than the accepted 1 %; the first is a\.tsv:9"
    ) as failed:
        imported(tmp_path / "store", path)
    table = Path(str(failed.value).partition("(all of them: ")[2].partition(")")[0])
    assert table.name == "quarantine.parquet"
    before = table.stat().st_mtime_ns
    shards = imported(tmp_path / "store", path, quarantine=float(str(failed.value).partition("--quarantine ")[2][:5]))
    assert (shards.path, shards.path.joinpath(table.name).stat().st_mtime_ns) == (table.parent, before), "nothing again"
    (row,) = shards.quarantine().to_pylist()
    assert row["image_id"] == GIVEN[-1].name
    assert (row["path"], row["reason"]) == ("a.tsv:9", "truncated")
    assert str(tmp_path) not in json.dumps(row)
    boxes_of(shards, GIVEN[:-1])
    assert shards.figures["quarantined"] == 1


def test_a_whole_copy_after_a_broken_one_counts(tmp_path: Path) -> None:
    """As in bottom-up attention's published files: a line that was cut off, and the whole one at the end."""
    path = files.lxmert_tsv(tmp_path / "a.tsv", [*GIVEN, GIVEN[2], GIVEN[2]])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:-300] + b"\n"
    path.write_bytes(b"".join(lines))
    shards = imported(tmp_path / "store", path, quarantine=0.9)
    boxes_of(shards, GIVEN)
    rows = shards.quarantine().to_pylist()
    assert [(row["image_id"], row["reason"]) for row in rows] == [
        (GIVEN[2].name, "broken copy"),
        (GIVEN[2].name, "twice"),
    ]
    assert rows[0]["path"] == "a.tsv:3"
    assert rows[0]["detail"].startswith("truncated: ")
    assert rows[0]["detail"].endswith("one after it counts")
    with opened(path) as features:
        assert (features.read(GIVEN[2].name).features == GIVEN[2].features).all()


def test_numbers_of_another_type_stop_the_import_unless_stated(tmp_path: Path) -> None:
    path = files.bottom_up_tsv(tmp_path / "a.tsv", GIVEN)
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    for row, one in zip(lines, GIVEN, strict=True):
        row[5] = files.b64(one.features, "<f2")
    path.write_text("\n".join("\t".join(row) for row in lines))
    with refused("--dtype float16", error=UserError):
        imported(tmp_path / "store", path)
    shards = imported(tmp_path / "store", path, dtype="float16")
    boxes_of(shards, GIVEN, lambda name: str(int(name.rpartition("_")[2])))
    with refused("--dtype float16", error=UserError):
        imported(tmp_path / "store", files.mmf_npy(tmp_path / "npy", GIVEN), dtype="float16")


def test_entries_that_do_not_fit_the_others(tmp_path: Path) -> None:
    """Another length, a number beyond float16, an id twice."""
    given = files.images(6)
    given[1].features = np.concatenate([given[1].features] * 2, 1)
    given[2].features[0, 0] = 1e6
    given[3].features[0, 0] = np.nan
    shards = imported(tmp_path / "store", files.lxmert_tsv(tmp_path / "a.tsv", [*given, given[0]]), quarantine=0.9)
    reasons = {row["image_id"]: row["reason"] for row in shards.quarantine().to_pylist()}
    expected = {
        given[1].name: "length",
        given[2].name: "not finite",
        given[3].name: "not finite",
        given[0].name: "twice",
    }
    assert reasons == expected
    assert shards.image_ids() == sorted(one.name for one in (given[0], given[4], given[5]))


def test_an_image_without_regions_stays(tmp_path: Path) -> None:
    given = files.images(3)
    empty = Image(given[0].name, 9, 8, *(array[:0] for array in list(vars(given[0]).values())[3:]))
    shards = imported(tmp_path / "store", files.lxmert_tsv(tmp_path / "a.tsv", [empty, *given[1:]]))
    read = shards.read(empty.name)
    assert (read.features.shape, read.boxes.shape, read.classes) == ((0, 16), (0, 4), [])


def test_a_cap_takes_the_most_confident(tmp_path: Path) -> None:
    """The original takes the first ones of its unordered rows, whatever they score."""
    shards = imported(
        tmp_path / "store", files.visualbert_th(tmp_path / "a.th", GIVEN), table(tmp_path / "s.csv"), cap=3
    )
    for one in GIVEN:
        best = np.argsort(-one.conf, kind="stable")[:3]
        read = shards.read(f"{one.name}.png")
        assert (read.features == one.features[best].astype(np.float16)).all()
        assert read.scores == [round(float(score), 6) for score in one.conf[best]]
    tied = RawRegions(np.arange(4.0)[:, None], scores=np.float32([0.5, 0.9, 0.5, 0.9]))
    assert capped(tied, 3, "x").features[:, 0].tolist() == [1, 3, 0]


def test_a_file_that_changes_under_the_import(tmp_path: Path) -> None:
    path = files.lxmert_tsv(tmp_path / "a.tsv", GIVEN)
    target = step(path)
    files.lxmert_tsv(path, GIVEN[1:])
    with refused("a.tsv", error=(UserError, BuildError)):
        build_here([target], tmp_path / "store")


def test_a_killed_import_goes_on(tmp_path: Path) -> None:
    """Units that are committed stay: only the others are made, and the bytes are those of one go."""
    target = step(files.lxmert_tsv(tmp_path / "a.tsv", GIVEN))
    engine = Engine(Store(tmp_path / "store"), Machine())
    engine.ensure_all(target.inputs())
    made = engine.make_units(target, range(1, 2))
    assert (made.done, made.total) == (1, 3)
    engine.ensure_all([target])
    (whole,) = build_here([target], tmp_path / "whole")
    assert target.bound(engine.store).manifest.content == whole.manifest.content


def test_boxes_that_cannot_be_two_corners_are_refused_on_import(tmp_path: Path) -> None:
    said = np.asarray([[48.0, 15, 31, 32], [8, 0, 30, 31]])  # x, y, width, height
    for boxes, reason in ((said, "corners"), (said / 100, "units")):
        corners = boxes if reason == "corners" else np.c_[boxes[:, :2], boxes[:, :2] + boxes[:, 2:]]
        with pytest.raises(BadEntry, match=reason):
            refuse_other_corners(RawRegions(np.ones((2, 3)), corners, "pixels", 80, 60), None, "x")
    for boxes, unit, size in (
        (np.asarray([[48.0, 15, 79, 47], [5, 5, 4.2, 6]]), "pixels", (80, 60)),  # one inclusive corner
        (np.zeros((2, 4)), "pixels", (80, 60)),
        (np.asarray([[0.0, 0, 1, 1]]), "pixels", (1, 1)),
        (np.asarray([[0.2, 0.1, 0.9, 0.8]]), "normalised", (80, 60)),
    ):
        refuse_other_corners(RawRegions(np.ones((len(boxes), 3)), boxes, unit, *size), None, "x")
    swapped = [Image(**(vars(one) | {"boxes": one.boxes[:, [2, 3, 0, 1]]})) for one in GIVEN]
    with pytest.raises(NotAccepted, match="second corner"):
        imported(tmp_path / "store", files.lxmert_tsv(tmp_path / "f.tsv", swapped))
