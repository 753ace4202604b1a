"""Local folders: identified by content, with digests remembered so that unchanged files are not read again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vbert.artifacts.store.store import Store
from vbert.data import folders
from vbert.data.folders import folder_digest
from vbert.errors import UserError
from vbert.regions.interop import npy_files

pytestmark = pytest.mark.usefixtures("own_memory")


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.txt").write_text(str(number))
        os.utime(folder / f"{number}.txt", (1e9, 1e9))
    read: list[str] = []
    real = folders._sha256
    monkeypatch.setattr(folders, "_sha256", lambda path: [read.append(Path(path).name), real(path)][1])
    first = folder_digest(folder, tmp_path / "memory")
    assert len(read) == 5
    assert folder_digest(folder, tmp_path / "memory") == first
    assert len(read) == 5
    (folder / "3.txt").write_text("x")
    assert folder_digest(folder, tmp_path / "memory") != first
    assert read[5:] == ["3.txt"]
    # Just written: it may change again within its time stamp, so its digest isn't remembered yet.
    folder_digest(folder, tmp_path / "memory")
    assert read[6:] == ["3.txt"]


def test_same_content_under_other_names_is_another_folder(tmp_path: Path) -> None:
    for name, file in (("a", "x"), ("b", "x"), ("c", "y")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("1")
    a, b, c = (folder_digest(tmp_path / name, tmp_path / "m") for name in "abc")
    assert a == b != c


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "x").write_text("1")
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "images").symlink_to(tmp_path / "big")
    (tmp_path / "big" / "up").symlink_to(tmp_path / "f")
    assert list(folders.file_digests(tmp_path / "f", tmp_path / "m")) == ["images/x"]


def test_what_the_run_itself_makes_in_the_folder_is_not_of_it(tmp_path: Path) -> None:
    """`cd photos; vbert preprocess . --out features > log`: the store, the shards, the log."""
    photos, memory = tmp_path / "photos", tmp_path / "m"
    (photos / "sub").mkdir(parents=True)
    (photos / "sub" / "1.png").write_text("1")
    before = folder_digest(photos, memory)
    store = Store(photos / "sub" / "store")
    store.prepare()
    store.record_run("run", {})
    out = photos / "features"
    out.mkdir()
    for name in ("000000.tar", "offsets.parquet", "contract.json", "quarantine.parquet"):
        (out / name).touch()
    assert folder_digest(photos, memory) == before
    assert list(folders.file_digests(out, memory)) == sorted(path.name for path in out.iterdir())
    code = "import sys, pathlib, vbert.data.folders as f; print(f.folder_digest(*map(pathlib.Path, sys.argv[1:])))"
    with (photos / "log").open("w") as log:
        subprocess.run([sys.executable, "-c", code, str(photos), str(memory)], stdout=log, check=True)
    assert (photos / "log").read_text().strip() == before
    assert folder_digest(photos, memory) != before  # another's file


def test_one_folder_under_two_names_is_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`train → x` and `val → x`: both are there, as two copies would be."""
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.npy").write_text("1")
    for name in ("train", "val"):
        (tmp_path / "links" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "links" / name).symlink_to(tmp_path / "x")
        (tmp_path / "copies" / name).mkdir(parents=True)
        (tmp_path / "copies" / name / "1.npy").write_text("1")
    links, copies = (folders.file_digests(tmp_path / name, tmp_path / "m") for name in ("links", "copies"))
    assert list(links) == ["train/1.npy", "val/1.npy"]
    assert links == copies
    assert [name for name, _ in npy_files.index({"features": tmp_path / "links"})] == ["train/1", "val/1"]
    monkeypatch.setattr(folders, "MAX_WAYS", 3)
    for one in "abcd":
        (tmp_path / "maze" / one).mkdir(parents=True)
        for other in "abcd":
            (tmp_path / "maze" / one / other).symlink_to(tmp_path / "maze" / other)
    with pytest.raises(UserError, match="in more than 3 ways"):
        folders.file_digests(tmp_path / "maze", tmp_path / "m")


def test_a_damaged_or_unwritable_memory_only_costs_time(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "x").write_text("1")
    first = folder_digest(tmp_path / "f", tmp_path / "m")
    for note in (tmp_path / "m").iterdir():
        note.write_text("{")
    assert folder_digest(tmp_path / "f", tmp_path / "m") == first
    (tmp_path / "file").write_text("")
    assert folder_digest(tmp_path / "f", tmp_path / "file" / "m") == first
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no files"):
        folder_digest(tmp_path / "empty")
