"""Names of files: endings of images, other systems' spellings, lists, odd names."""

from __future__ import annotations

import io
import os
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
from data.coco_world import photo, read, written
from data.data_steps import built
from data.own_world import png
from data.voc_world import devkit, item, xml
from data.voc_world import read as read_voc
from PIL import Image
from refused import refused

from tasks.download import download
from tasks.images import images
from vbert.artifacts.store.store import Store
from vbert.data import readers
from vbert.data.decode import FORMATS
from vbert.data.folders import file_digests, folder_digest
from vbert.data.names import IMAGE_ENDINGS, FileNames, is_hidden, is_image, is_odd, kinds
from vbert.data.source import Source
from vbert.data.spec import HoldOut, ReaderOptions
from vbert.errors import BuildError, UserError

CAFE = unicodedata.normalize("NFC", "café.jpg")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def index(store: Path, reader: str, path: Path, **options: Any) -> Any:
    raws = {"data": download(Source(path=str(path)).pinned())}
    return built(Store(store), images(raws, readers.reader(reader), None, ReaderOptions(options=options)))[0]


def ids(found: Any) -> list[str]:
    return [row["image_id"] for row in found.table().to_pylist()]


def test_image_endings_are_those_of_the_formats_that_are_decoded() -> None:
    Image.init()
    known = {end for end, kind in Image.registered_extensions().items() if kind in FORMATS}
    assert known - {".pfm"} == set(IMAGE_ENDINGS)  # .pfm: floats of no known range
    assert is_image("a/B.JFIF")
    assert not is_image("a.jpg.txt")


def test_names_as_others_write_them() -> None:
    names = FileNames(["cats/1.jpg", "cats/2.JPEG", CAFE, "a.png", "A.png", "b.jpg", "b.webp"])
    for said, meant in {
        "cats\\1.jpg": "cats/1.jpg",
        "./cats//1.jpg": "cats/1.jpg",
        unicodedata.normalize("NFD", CAFE): CAFE,
        "CATS/1.JPG": "cats/1.jpg",
        "cats/2.png": "cats/2.JPEG",
        "cats/2": "cats/2.JPEG",
        "a.png": "a.png",
        "b.jpg": "b.jpg",
    }.items():
        assert names.find(said, "f:1", "image") == meant
    for said in ("a.PNG", "b"):
        with pytest.raises(UserError, match=r"f:1: the image .* may be '.*' or '"):
            names.find(said, "f:1", "image")
    with refused("f:1", "'cats/3.jpg'", "'cats/1.jpg'", error=UserError):
        names.find("cats/3.jpg", "f:1", "image")


@pytest.mark.parametrize(
    ("said", "member"),
    [
        ("images\\a.jpg", "a.jpg"),
        ("C:\\Users\\me\\photos\\a.jpg", "photos/a.jpg"),
        ("./a.jpg", "photos/a.jpg"),
        (unicodedata.normalize("NFD", CAFE), CAFE),
        ("A.JPG", "photos/a.jpg"),
        ("a.png", "a.jpg"),
    ],
)
def test_photos_of_annotations_are_found(tmp_path: Path, said: str, member: str) -> None:
    (tmp_path / "data" / member).parent.mkdir(parents=True)
    (tmp_path / "data" / member).write_bytes(photo(8, 8))
    written(tmp_path / "data", "instances_train.json", [{"id": 1, "file_name": said}], [])
    assert [row["path"] for row in read(tmp_path / "data", tmp_path / "store")[0]] == [f"files/{member}"]


def test_a_mask_is_not_taken_for_a_missing_photo(tmp_path: Path) -> None:
    for name in ("photos/b.jpg", "masks/a.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True)
        (tmp_path / "data" / name).write_bytes(photo(8, 8))
    written(tmp_path / "data", "instances_train.json", [{"id": 1, "file_name": "a.jpg"}], [])
    with refused("images[0]", "'a.jpg'", error=UserError):
        read(tmp_path / "data", tmp_path / "store")


def test_what_a_folder_holds_beside_images_is_counted(tmp_path: Path) -> None:
    for name in ("a.jfif", "b.JPE", "c.avif", "notes.txt", "x.txt", "d.pdf", "README", "__MACOSX/._a.jpg", ".DS_Store"):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "data" / name).write_bytes(photo(8, 8))
    found = index(tmp_path / "store", "folder", tmp_path / "data")
    assert ids(found) == ["a", "b", "c"]
    assert found.figures["other_files"] == 4
    assert found.figures["notes"] == ["4 files of other kinds: .txt 2, .pdf 1, no ending 1"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.heic").write_bytes(b"x")
    with pytest.raises(BuildError, match=r"finds no image in data \(1 file of other kinds: \.heic 1\).*\.jpg \.jpeg"):
        index(tmp_path / "store", "folder", tmp_path / "other")
    assert kinds([f"x.{i}" for i in range(9)]).endswith("…")


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_skip_what_folders_skip(tmp_path: Path, kind: str) -> None:
    names = ["photos/a.png", "__MACOSX/photos/._a.png", "photos/._b.png", "photos/.DS_Store", ".hidden/c.png"]
    assert [is_hidden(name) for name in names] == [False, True, True, True, True]
    path = tmp_path / f"p.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name in names:
                archive.writestr(name, png(1))
    else:
        import tarfile

        with tarfile.open(path, "w") as tar:
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(png(1))
                tar.addfile(info, io.BytesIO(png(1)))
    found = index(tmp_path / "store", "folder", path)
    assert ids(found) == ["photos/a"]
    assert "notes" not in found.figures


ODD = [b"a\\b.txt", b"tab\t.png", b"line\n.png", b"latin-\xf1.png"]


def test_an_odd_name_sets_that_file_aside(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "good.png").write_bytes(png(1))
    alone = folder_digest(tmp_path / "d")
    for name in ODD:
        with open(os.path.join(os.fsencode(tmp_path / "d"), name), "wb") as file:
            file.write(png(1))
    assert folder_digest(tmp_path / "d") == alone
    raw = download(Source(path=str(tmp_path / "d")).pinned())
    (found,) = built(Store(tmp_path / "store"), raw)
    assert found.members() == ["good.png"]
    assert found.figures["set_aside"] == 4
    assert r"'a\\b.txt'" in found.figures["notes"][0]
    (tmp_path / "d" / "good.png").unlink()
    with pytest.raises(UserError, match=r"file name '.*' (holds a backslash|is not UTF-8)"):
        file_digests(tmp_path / "d")


def test_a_link_to_itself_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "b.png").symlink_to("b.png")
    (tmp_path / "c.png").symlink_to("gone.png")
    assert {name: size for name, (size, _) in file_digests(tmp_path).items()} == {
        **{"a.png": len(png(1)), "b.png": 0, "c.png": 0},
    }


def test_odd_names_in_archives(tmp_path: Path) -> None:
    """A zip made on Windows may part folders by a backslash; elsewhere that is part of a name, which is set aside."""
    for system, members in ((0, ["good.png", "photos/a.png"]), (3, ["good.png"])):
        path = tmp_path / f"{system}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for name in ("good.png", "photos\\a.png", "b\t.png"):
                info = zipfile.ZipInfo(name)
                info.create_system = system
                archive.writestr(info, png(1))
        (found,) = built(Store(tmp_path / "store"), download(Source(path=str(path)).pinned()))
        assert found.members() == members
        assert found.figures["set_aside"] == 3 - len(members)
    assert is_odd("x" * 1025)
    assert not is_odd("ä" * 500)


# Lists of splits


def test_lists_of_splits_are_understood(tmp_path: Path) -> None:
    content = {name: xml(item(1, 1, 2, 2)) for name in ("a", "b", "my photo 1", "d", "e")}
    root = devkit(tmp_path / "a", content)
    lists = root / "ImageSets" / "Main"
    (lists / "train.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\nmy photo 1\r\ngone\r\n")
    (lists / "val.txt").write_text("JPEGImages/b.jpg  1\n")
    (lists / "trainval.txt").write_text("a.jpg\nb\nd\n")
    raws = {"a": download(Source(path=str(tmp_path / "a")).pinned())}
    (found,) = built(Store(tmp_path / "s"), images(raws, readers.reader("voc")))
    splits = {row["image_id"]: row["split"] for row in found.table().to_pylist()}
    assert splits == {"a": "train", "my photo 1": "train", "b": "val", "d": "train", "e": None}
    assert found.figures["listed_but_missing"] == 1
    assert found.figures["no_split"] == 1
    assert "lists of splits name 1 image without an XML: 'gone'" in found.figures["notes"]
    assert any(
        "in no split, so neither trained on nor evaluated: 1 of 5 images" in note for note in found.figures["notes"]
    )


def test_lists_that_match_nothing_are_refused(tmp_path: Path) -> None:
    root = devkit(tmp_path / "a", {"a": xml(), "b": xml()}, {"train": ["x", "y"]})
    with refused("train.txt", "'x'", error=UserError):
        read_voc(tmp_path / "s", a=tmp_path / "a")
    for split in ("train", "val"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("a\n")
    with refused("val.txt", "'a'", "train", error=UserError):
        read_voc(tmp_path / "s", a=tmp_path / "a")


def test_splits_by_name_that_match_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "a.jpg").write_bytes(photo(8, 8))
    with refused("options.splits.test", "'tset/'", error=UserError):
        index(tmp_path / "store", "jsonl", tmp_path / "data", splits={"train": "train/", "test": "tset/"})
    written(tmp_path / "data", "all.json", [{"id": 1, "file_name": "a.jpg"}], [])
    with refused("options.splits.val", "'val.json'", error=UserError):
        read(tmp_path / "data", tmp_path / "store", splits={"train": "all.json", "val": "val.json"})
    raws = {"data": download(Source(path=str(tmp_path / "data")).pinned())}
    told = ReaderOptions(options={"splits": {"test": "train/"}}, validation=HoldOut(of="train"))
    (found,) = built(Store(tmp_path / "store"), images(raws, readers.reader("jsonl"), None, told))
    assert "validation takes a share of 'train', and no image is in that split" in found.figures["notes"]
    for splits, said in (
        ({"dev": "x"}, "'dev' is none of train, val, test"),
        (["x"], "must be a mapping"),
        (3, "must be"),
    ):
        with pytest.raises(UserError, match=said):
            index(tmp_path / "store", "jsonl", tmp_path / "data", splits=splits)


def test_xml_of_any_case_and_encoding(tmp_path: Path) -> None:
    root = devkit(tmp_path / "a", {"a": xml(item(1, 1, 2, 2))})
    (root / "Annotations" / "a.xml").rename(root / "Annotations" / "a.XML")
    text = xml(item(1, 1, 2, 2, name="猫"))
    (root / "Annotations" / "b.xml").write_bytes(('<?xml version="1.0" encoding="gbk"?>' + text).encode("gbk"))
    (root / "JPEGImages" / "b.jpg").write_bytes(photo(48, 32))
    rows, boxes = read_voc(tmp_path / "s", a=tmp_path / "a")
    assert [row["image_id"] for row in rows] == ["a", "b"]
    assert [box["class"] for box in boxes] == ["dog", "猫"]
    for encoding, said in (
        ("klingon", "no known encoding"),
        ("hex", "no known encoding"),
        ("ascii", "is not in 'ascii'"),
    ):
        (root / "Annotations" / "b.xml").write_bytes(
            f'<?xml version="1.0" encoding="{encoding}"?>'.encode() + text.encode()
        )
        with pytest.raises(UserError, match=rf"Annotations/b\.xml: .*{said}"):
            read_voc(tmp_path / "s", a=tmp_path / "a")
