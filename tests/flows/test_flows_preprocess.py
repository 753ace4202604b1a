"""`vbert preprocess`: a plain folder to shards; run again after changes, with broken images, after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import until
from regions.regions_tiny import encoded, picture, small_spec, untrained

from vbert.regions.shards import Shards

Vbert = Callable[..., dict[str, Any]]
SHARDS = "regions.images_per_shard=5"


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`--detector` and `--weights` of a small untrained detector."""
    folder = tmp_path_factory.mktemp("detector")
    untrained(folder / "weights", small_spec())
    fields = small_spec().model_dump(mode="json") | {"backend": "torchvision", "title": "Small", "licence": "none"}
    boxes = {"rule": "adaptive", "minimum": 1, "maximum": 5, "score": 0.6}
    (folder / "small.yaml").write_text(json.dumps(fields | {"boxes": boxes}))
    return ["--detector", str(folder / "small.yaml"), "--weights", str(folder / "weights")]


@pytest.fixture
def preprocess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, detector: list[str]) -> Iterator[Vbert]:
    """Run the command in this process; returns its last line as JSON, or {"code", "error"} where it fails."""
    from flows import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    terminated, mask = signal.getsignal(signal.SIGTERM), os.umask(0o022)

    def call(folder: Path, out: Path, *more: str) -> dict[str, Any]:
        options = ["--out", str(out), "--local", "--json", "--set", SHARDS, *detector, *more]
        monkeypatch.setattr(sys, "argv", ["vbert", "preprocess", str(folder), *options])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        if ended.value.code:
            return {"code": ended.value.code, "error": said.err}
        last: dict[str, Any] = json.loads(said.out.splitlines()[-1])
        return last

    yield call
    signal.signal(signal.SIGTERM, terminated)
    os.umask(mask)


def fill(folder: Path, numbers: range) -> None:
    for i in numbers:
        path = folder / ("sub" if i % 3 == 0 else ".") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(i, 40 + i % 7, 48)))


def contents(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def reused(store: Path) -> list[int]:
    """Images copied from earlier shards, of each `regions` artifact, in the order they were made."""
    manifests = sorted((store / "artifacts" / "regions").glob("*/manifest.json"), key=lambda p: p.stat().st_mtime_ns)
    return [json.loads(path.read_text())["figures"]["reused"] for path in manifests]


def test_a_folder_becomes_shards(preprocess: Vbert, tmp_path: Path) -> None:
    fill(tmp_path / "photos", range(12))
    said = preprocess(tmp_path / "photos", tmp_path / "out")
    assert "code" not in said, said
    assert {k: said[k] for k in ("images", "quarantined", "shards", "out")} == {
        "images": 12, "quarantined": 0, "shards": 3, "out": str(tmp_path / "out"),
    }  # fmt: skip
    assert said["images_per_second"] > 0
    tars = [f"{i:06d}.tar" for i in range(3)]
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        *tars, "contract.json", "offsets.parquet", "quarantine.parquet",
    ]  # fmt: skip
    shards = Shards.at(tmp_path / "out")
    assert shards.image_ids() == sorted(f"sub/{i:03d}" if i % 3 == 0 else f"{i:03d}" for i in range(12))
    assert said["regions"] == sum(len(shards.read(i).features) for i in shards.image_ids())
    again = preprocess(tmp_path / "photos", tmp_path / "out")
    assert again == said, "nothing was built again"


def test_in_the_folder_itself_the_store_and_the_output_are_not_of_it(
    preprocess: Vbert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cd photos; vbert preprocess . --out features`, twice: "has changed since it was planned" each time."""
    fill(tmp_path / "photos", range(3))
    monkeypatch.chdir(tmp_path / "photos")
    said = preprocess(Path("."), Path("features"))
    assert said.get("images") == 3, said
    Path("log.txt").write_text("of `| tee log.txt`")
    assert preprocess(Path("."), Path("features")) == said
    assert len(list(Path("store/artifacts/images").iterdir())) == 1, "what is no image makes no other index"


def test_added_changed_and_removed_images_cost_themselves(preprocess: Vbert, tmp_path: Path) -> None:
    """Only what is new is extracted, and the shards are those of an extraction from nothing, byte for byte."""
    photos = tmp_path / "photos"
    fill(photos, range(20))
    preprocess(photos, tmp_path / "out")
    fill(photos, range(20, 24))
    (photos / "002.png").write_bytes(encoded(picture(99, 50, 50)))
    (photos / "004.png").unlink()
    (photos / "005.png").rename(photos / "renamed.png")
    preprocess(photos, tmp_path / "out")
    assert reused(tmp_path / "store") == [0, 18]
    preprocess(photos, tmp_path / "whole", "--store", str(tmp_path / "other"))
    assert reused(tmp_path / "other") == [0]
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_other_settings_reuse_nothing(preprocess: Vbert, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    fill(photos, range(6))
    preprocess(photos, tmp_path / "out")
    for change in ("numerics.regions.threads=2", "regions.batch=2"):
        preprocess(photos, tmp_path / "out", "--set", change)
    preprocess(photos, tmp_path / "out", "--boxes", "3")
    assert reused(tmp_path / "store") == [0, 0, 0, 0]
    assert {len(Shards.at(tmp_path / "out").read(i).features) for i in ("001", "002")} == {3}
    preprocess(photos, tmp_path / "out", "--set", "regions.images_per_shard=2")
    assert reused(tmp_path / "store")[-1] == 6, "the size of shards changes no feature"


def broken_images(folder: Path) -> dict[str, str]:
    """Files that real folders hold; returns the image ids that can't be used, each with its reason."""
    folder.mkdir(parents=True)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8))

    def saved(kind: str, image: Image.Image = photo, **options: Any) -> bytes:
        out = BytesIO()
        image.save(out, kind, **options)
        return out.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    files = {
        "truncated.jpg": saved("JPEG")[:900],
        "bomb.png": _bomb(),
        "animated.gif": saved("GIF", save_all=True, append_images=[photo.rotate(90)]),
        "cmyk.jpg": saved("JPEG", photo.convert("CMYK")),
        "palette.png": saved("PNG", photo.convert("P")),
        "sixteen.png": saved("PNG", Image.fromarray(np.arange(3000, dtype=np.uint16).reshape(50, 60) * 20)),
        "empty.jpg": b"",
        "text.jpg": b"this is not an image\n",
        "thin.png": saved("PNG", photo.resize((5, 8000))),
        "turned.jpg": saved("JPEG", exif=exif),
        "a name with spaces – 猫.jpg": saved("JPEG"),
        "plain.jpg": saved("JPEG", quality=90),
        "plain.png": saved("PNG"),
        "notes.txt": b"no image by its name",
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    outside = folder.parent / "outside.png"
    outside.write_bytes(saved("PNG", photo.rotate(180)))
    (folder / "link.png").symlink_to(outside)
    (folder / "nowhere.png").symlink_to(folder.parent / "missing.png")
    (folder / "loop").symlink_to(folder, target_is_directory=True)
    return {
        "bomb": "too large", "empty": "empty", "nowhere": "empty", "text": "not an image", "truncated": "damaged",
    }  # fmt: skip


def _bomb() -> bytes:
    """A PNG of 20,000 × 20,000 pixels in its header, and no data."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("batch", [1, 3])
def test_no_image_stops_a_run_and_none_vanishes(batch: int, preprocess: Vbert, tmp_path: Path) -> None:
    broken = broken_images(tmp_path / "photos")
    options = ("--set", f"regions.batch={batch}")
    said = preprocess(tmp_path / "photos", tmp_path / "out", *options)
    shards = Shards.at(tmp_path / "out")
    table = shards.quarantine().to_pylist()
    assert {row["image_id"]: row["reason"] for row in table} == broken
    good = {
        "a name with spaces – 猫", "animated", "cmyk", "link", "palette", "plain.jpg", "plain.png", "sixteen", "thin",
        "turned",
    }  # fmt: skip
    assert set(shards.image_ids()) == good
    assert (said["images"], said["quarantined"]) == (len(good), len(broken))
    assert (shards.read("turned").width, shards.read("turned").height) == (60, 90)
    strict = preprocess(tmp_path / "photos", tmp_path / "other", *options, "--strict")
    assert (strict["code"], (tmp_path / "other" / "contract.json").exists()) == (1, True)
    assert f"5 of 15 images can't be used; {tmp_path / 'other' / 'quarantine.parquet'} says why" in strict["error"]
    refused = preprocess(tmp_path / "photos", tmp_path / "other", *options, "--set", "regions.quarantine=0.3")
    assert refused["code"] == 1
    assert "5 of 15 images can't be used (33.3 %), more than the accepted 30 %; the first is " in refused["error"]
    assert "accept them with `--set regions.quarantine=0.334`, which makes nothing again" in refused["error"]
    assert len(list((tmp_path / "store" / "artifacts" / "regions").iterdir())) == 1, "one extraction for all of these"


def test_a_folder_of_broken_images_alone_is_counted(preprocess: Vbert, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"no image")
    said = preprocess(tmp_path / "photos", tmp_path / "out")
    assert (said["images"], said["quarantined"]) == (0, 1)
    assert Shards.at(tmp_path / "out").quarantine().num_rows == 1


def test_a_directory_of_other_files_is_not_replaced(preprocess: Vbert, tmp_path: Path) -> None:
    fill(tmp_path / "photos", range(2))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    refused = preprocess(tmp_path / "photos", tmp_path / "out")
    assert refused["code"] == 2
    assert "holds other files than shards" in refused["error"]
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    preprocess(tmp_path / "photos", tmp_path / "shards")
    (tmp_path / "shards" / "thesis.txt").write_text("mine")  # beside them it went with the next run
    refused = preprocess(tmp_path / "photos", tmp_path / "shards")
    assert (refused["code"], "than shards (thesis.txt)" in refused["error"]) == (2, True)
    assert (tmp_path / "shards" / "thesis.txt").read_text() == "mine"
    (tmp_path / "shards" / "contract.json").unlink()
    (tmp_path / "shards" / "thesis.txt").unlink()
    assert preprocess(tmp_path / "photos", tmp_path / "shards")["code"] == 2, "tars of somebody's"


def test_a_look_at_what_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, detector: list[str]
) -> None:
    from flows import cli

    fill(tmp_path, range(1, 3))
    monkeypatch.chdir(tmp_path)

    def show(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["vbert", "features", "show", *arguments, *detector])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    assert show("001.png", "002.png", "-o", "found.png", "--json", "--boxes", "4") == 0
    assert json.loads(capsys.readouterr().out) == {"out": "found.png", "images": 2, "regions": 8}
    with Image.open("found.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or []}
    assert {(0xE6, 0x19, 0x4B), (0x3C, 0xB4, 0x4B)} <= colours, "the colours of the two best boxes"
    Path("text.jpg").write_text("no image")
    assert show("text.jpg", "-o", "found.png") == 2
    assert "text.jpg: not an image" in capsys.readouterr().err
    assert show("001.png", "-o", "found") == 2
    assert "a name that ends in .png or .jpg" in capsys.readouterr().err


def test_killed_and_run_again_it_goes_on(preprocess: Vbert, tmp_path: Path, detector: list[str]) -> None:
    fill(tmp_path / "photos", range(60))
    command = [sys.executable, "-m", "flows.cli", "preprocess", "photos", "--out", "out", "--local", "--set", SHARDS]
    process = subprocess.Popen([*command, *detector], cwd=tmp_path, start_new_session=True, stderr=subprocess.DEVNULL)
    units = tmp_path / "store" / "unfinished" / "regions"
    until(lambda: len(list(units.glob("*/units/*/unit.json"))) >= 2 or process.poll() is not None, pause=0.005)
    assert process.poll() is None
    done = list(units.glob("*/units/*/unit.json"))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    before = {path.parent.name: path.stat().st_mtime_ns for path in done}
    kept = {name: (next(units.iterdir()) / "units" / name / "unit.json").stat().st_mtime_ns for name in before}
    preprocess(tmp_path / "photos", tmp_path / "out")
    assert kept == before
    shutil.rmtree(tmp_path / "store")
    preprocess(tmp_path / "photos", tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
