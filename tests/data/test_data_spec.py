from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from refused import refused

from vbert.artifacts.steps.fingerprint import digest
from vbert.data import readers, spec
from vbert.data.shares import share_of
from vbert.data.source import Source
from vbert.data.spec import DatasetSpec, HoldOut, ReaderOptions, dataset, dataset_names
from vbert.data.yaml import load_yaml
from vbert.errors import UserError

SHA256 = "ab" * 32
TEXT = f"""\
name: mine
title: Mine
licence: MIT
sources:
  photos:
    url: https://example.org/photos.zip
    sha256: {SHA256}
images: {{reader: jsonl}}
"""


def load(text: str) -> DatasetSpec:
    return load_yaml(text, "s.yaml", DatasetSpec)


@pytest.mark.parametrize("name", dataset_names())
def test_every_shipped_spec_loads_and_names_its_readers(name: str) -> None:
    loaded = dataset(name)
    assert loaded.name == name
    assert loaded.collection().reader("images").version >= 1
    assert loaded.licence


@pytest.mark.parametrize("name", readers.names())
def test_every_reader_has_a_version_and_its_parts(name: str) -> None:
    module = readers.load(name)
    assert readers.reader(name).version == module.VERSION >= 1
    assert hasattr(module, "images") or hasattr(module, "examples")
    assert hasattr(module, "examples") != (name == "folder")


def test_a_reader_of_images_alone_says_so() -> None:
    with refused("'folder'", "examples", error=UserError):
        readers.call(readers.load("folder"), "examples", {}, [], options={})


def test_unknown_names_give_the_nearest() -> None:
    with refused("'easy_vqa'", error=UserError):
        dataset("easyvqa")
    with refused("'easy_vqa'", error=UserError):
        readers.load("easy_vqaa")


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("licence", "license", "s.yaml:3:1: license: there is no such key; did you mean 'licence'?"),
        ("reader: jsonl", "reader: jsonn", "s.yaml:8:18: images.reader: no reader 'jsonn'; did you mean 'jsonl'?"),
        ("https:", "ftp:", "s.yaml:6:10: sources.photos.url: 'ftp://example.org/photos.zip' is not an http"),
        ("//ex", "//me:pw@ex", "s.yaml:6:10: sources.photos.url: the URL of example.org holds a user or password"),
        (
            "photos.zip",
            "p?X-Amz-Signature=aa",
            "s.yaml:6:10: sources.photos.url: the URL of example.org holds a secret",
        ),
        ("photos.zip", "p?access_token=aa", "s.yaml:6:10: sources.photos.url: the URL of example.org holds a secret"),
        ("url: https://example.org/photos.zip", "size: 3", "s.yaml:6:5: sources.photos: give exactly one of url"),
        ("url: https:", "path: x\n    url: https:", "s.yaml:6:5: sources.photos: give exactly one of url"),
        (SHA256, "abc", "s.yaml:7:13: sources.photos.sha256: 'abc' is not a sha256"),
        ("url: https://example.org/photos.zip", "python_package: a>=1", "s.yaml:6:21: sources.photos.python_package:"),
        ("reader: jsonl", "reader: jsonl, from: easy_vqa", "s.yaml:8:9: images: give either a reader, or `from`"),
        (
            "reader: jsonl",
            "reader: jsonl, sources: [fotos]",
            "s.yaml:1:1: the file: there is no source 'fotos'; did",
        ),
        (f"    sha256: {SHA256}\n", "    mirrors: [https://b.org/x]\n", "s.yaml:6:5: sources.photos: mirrors need a"),
    ],
)
def test_wrong_specs_say_where(old: str, new: str, error: str) -> None:
    with pytest.raises(UserError) as found:
        load(TEXT.replace(old, new, 1))
    assert found.value.message.startswith(error)


def test_secrets_are_not_repeated_in_errors() -> None:
    for secret in ("https://me:hunter2@h.org/x", "https://h.org/x?sig=hunter2"):
        with pytest.raises(UserError) as found:
            load(TEXT.replace("https://example.org/photos.zip", secret))
        assert "hunter2" not in str(found.value)
        assert "auth: env:NAME" in str(found.value)


def test_where_is_not_hashed_beside_a_digest_but_the_name_is() -> None:
    here = Source(url="https://a.org/x.zip", sha256=SHA256)
    assert digest(here) == digest(Source(url="https://b.org/y/x.zip", sha256=SHA256, mirrors=("https://c.org/x.zip",)))
    assert digest(here) != digest(Source(url="https://a.org/x.tar", sha256=SHA256))
    assert digest(Source(url="https://a.org/x.zip")) != digest(Source(url="https://b.org/x.zip"))


def test_local_paths_are_pinned_by_content(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.txt").write_text("1")
    one = Source(path=str(tmp_path / "a")).pinned()
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest(Source(path=str(tmp_path / "b"), file="a").pinned()) == digest(one)
    (tmp_path / "b" / "x.txt").write_text("22")
    assert Source(path=str(tmp_path / "b")).pinned().sha256 != one.sha256
    with pytest.raises(UserError, match="mend one of them"):
        Source(path=str(tmp_path / "b"), sha256=SHA256).pinned()
    with pytest.raises(UserError, match="no such file or folder"):
        Source(path=str(tmp_path / "c")).pinned()


def test_own_specs_are_given_by_path_and_their_paths_are_relative_to_them(tmp_path: Path) -> None:
    text = TEXT.replace("url: https://example.org/photos.zip", "path: photos").replace(f"    sha256: {SHA256}\n", "")
    (tmp_path / "mine.yaml").write_text(text)
    assert dataset(str(tmp_path / "mine.yaml")).sources["photos"].path == str(tmp_path / "photos")
    (tmp_path / "other.yaml").write_text(text)
    assert dataset(str(tmp_path / "other.yaml")).name == "mine", "a file may be called otherwise than what it names"
    (tmp_path / "texts.yaml").write_text(text.replace("images: {reader: jsonl}", "images: {from: ./mine.yaml}"))
    assert dataset(str(tmp_path / "texts.yaml")).collection() == dataset(str(tmp_path / "mine.yaml"))


def test_two_specs_may_name_one_collection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(spec.DATASETS), "folder", tmp_path)
    (tmp_path / "mine.yaml").write_text(TEXT)
    for name, of in (("texts", "mine"), ("chain", "texts")):
        text = TEXT.replace("name: mine", f"name: {name}").replace("reader: jsonl", f"from: {of}")
        (tmp_path / f"{name}.yaml").write_text(text)
    assert dataset("texts").collection() == dataset("mine")
    with pytest.raises(UserError, match="name that one"):
        dataset("chain").collection()


def test_validation_is_a_share_of_the_image_ids() -> None:
    reading = ReaderOptions(validation=HoldOut(of="train", share=0.1))
    splits = [reading.split("train", f"train/{i}") for i in range(10_000)]
    assert 900 < splits.count("val") < 1100
    assert all(reading.split("test", f"train/{i}") == "test" for i in range(100))
    # sha256 of the id, so that any other program can tell the split.
    assert share_of("train/0") == int(sha256(b"train/0").hexdigest()[:12], 16) / 16**12


def test_specs_load_without_heavy_libraries() -> None:
    code = (
        "import sys; from vbert.data.spec import *;"
        "[dataset(n).collection().reader('images') for n in dataset_names()];"
        "print([m for m in ('torch', 'pyarrow', 'PIL', 'numpy', 'httpx', 'prefect') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
