from __future__ import annotations

import hashlib
import io
import pickle
import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from vbert.data.decode import MAX_PIXELS, size
from vbert.data.images import BadImage, Images, decode, write_images
from vbert.data.raw import RawFiles, RawWriter
from vbert.errors import BuildError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

REAL = Path(__file__).parents[3] / "shared" / "data"


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(mode: str = "RGB") -> Image.Image:
    """7×5, every pixel another colour."""
    values = np.arange(7 * 5 * 3, dtype=np.uint8).reshape(5, 7, 3) * 2
    return Image.fromarray(values).convert(mode)


def png(width: int, height: int, depth: int = 8, colour: int = 0, data: bytes = b"") -> bytes:
    """A PNG by hand: any header, any data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


LOSSLESS: dict[str, Callable[[], bytes]] = {
    "png": lambda: file_of(picture()),
    "bmp": lambda: file_of(picture(), "BMP"),
    "tiff": lambda: file_of(picture(), "TIFF"),
    "webp": lambda: file_of(picture(), "WEBP", lossless=True),
    "png 16-bit colours": lambda: png(
        7, 5, 16, 2, b"".join(b"\0" + np.asarray(picture())[y].astype(">u2").__mul__(257).tobytes() for y in range(5))
    ),
    "apng": lambda: file_of(picture(), save_all=True, append_images=[Image.new("RGB", (7, 5))]),
}


@pytest.mark.parametrize("kind", LOSSLESS)
def test_colours_come_as_they_are(kind: str) -> None:
    image = decode(LOSSLESS[kind]())
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), np.asarray(picture()))


def test_palettes_and_gifs_come_in_colour() -> None:
    palette = picture().quantize(35)
    for kind in ("PNG", "GIF"):
        image = decode(file_of(palette, kind))
        assert np.array_equal(np.asarray(image), np.asarray(palette.convert("RGB")))


def test_first_picture_of_a_gif() -> None:
    red, blue = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")
    assert decode(file_of(red, "GIF", save_all=True, append_images=[blue])).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_is_repeated_in_three_channels(mode: str) -> None:
    grey = picture(mode)
    values = np.asarray(decode(file_of(grey)))
    assert np.array_equal(values, np.repeat(np.asarray(grey.convert("L"))[..., None], 3, 2))


def test_16_bit_greys_keep_their_high_byte() -> None:
    values = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1800
    expected = np.repeat((values >> 8).astype(np.uint8)[..., None], 3, 2)
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(np.asarray(decode(file_of(Image.fromarray(values), kind))), expected)


def test_transparent_pixels_lie_over_white() -> None:
    red = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    red.putpixel((1, 0), (255, 0, 0, 255))
    half = Image.new("RGBA", (1, 1), (0, 0, 0, 128))
    for kind in ("PNG", "TIFF"):
        assert [decode(file_of(red, kind)).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (255, 0, 0)]
    assert decode(file_of(half)).getpixel((0, 0)) == (127, 127, 127)
    assert decode(file_of(half.convert("LA"))).getpixel((0, 0)) == (127, 127, 127)
    key = picture("P")
    key.info["transparency"] = key.getpixel((0, 0))
    assert decode(file_of(key)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(file_of(picture(), transparency=(0, 2, 4))).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_comes_in_its_colours() -> None:
    pixel = decode(file_of(Image.new("RGB", (16, 16), (250, 20, 30)).convert("CMYK"), "JPEG", quality=100))
    assert np.abs(np.asarray(pixel, np.int16) - (250, 20, 30)).max() < 8


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
def test_exif_orientation_is_applied_to_pixels_and_size(
    orientation: int, kind: str, options: dict[str, object]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = file_of(picture(), kind, exif=exif, **options)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert np.array_equal(np.asarray(decode(data)), np.asarray(shown))
    assert size(data) == decode(data).size == ((5, 7) if orientation >= 5 else (7, 5))


def test_exif_of_a_jpeg_and_broken_exif() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = file_of(picture(), "JPEG", exif=exif)
    assert size(data) == decode(data).size == (5, 7)
    for broken in (data.replace(b"MM\x00*", b"XX\x00*"), data.replace(b"\x01\x12\x00\x03", b"\x01\x12\x00\x07")):
        assert broken != data
        assert size(broken) == decode(broken).size == (7, 5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_small_and_thin_images(shape: tuple[int, int]) -> None:
    data = file_of(Image.new("L", shape, 9))
    assert decode(data).size == size(data) == shape


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"this is not a picture, whatever its name says", "not an image"),
    "web page": (lambda: b"<!doctype html><html>404</html>", "not an image"),
    "postscript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "svg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "not an image"),
    "header alone": (lambda: file_of(picture())[:20], "damaged"),
    "cut PNG": (lambda: file_of(picture())[:50], "damaged"),
    "cut JPEG": (lambda: file_of(picture().resize((64, 64)), "JPEG")[:-200], "damaged"),
    "cut GIF": (lambda: file_of(picture(), "GIF")[:-30], "damaged"),
    "flipped PNG": (lambda: file_of(picture())[:50] + b"\xff\xff\xff" + file_of(picture())[53:], "damaged"),
    "bomb": (lambda: png(20_000, 20_000), "too large"),
    "just too large": (lambda: png(MAX_PIXELS + 1, 1), "too large"),
    "no width": (lambda: png(0, 5), "not an image"),
    "huge numbers": (lambda: png(2**31 - 1, 2**31 - 1), "too large"),
    "floats": (lambda: file_of(Image.new("F", (3, 3), 0.5), "TIFF"), "unsupported"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_image_is_refused_with_its_reason(case: str) -> None:
    data, reason = BROKEN[case]
    with pytest.raises(BadImage) as found:
        decode(data())
    assert found.value.reason == reason
    assert found.value.detail


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (lambda: b"<!doctype html><html>404</html>", "a web page"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (lambda: b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC picture"),
        (lambda: png(0, 5), "a PNG picture whose header is broken"),
        (
            lambda: file_of(picture().resize((64, 64)), "JPEG")[:-200],
            "a JPEG picture that ends in the middle of its pix",
        ),
    ],
)
def test_a_reason_says_what_is_wrong(case: Callable[[], bytes], said: str) -> None:
    with pytest.raises(BadImage) as found:
        decode(case())
    assert found.value.detail.startswith(said)


JPEGS: dict[str, dict[str, object]] = {
    "baseline": {},
    "full colours": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
}


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", JPEGS)
def test_a_jpeg_that_lacks_its_end_mark_alone_is_whole(kind: str, mode: str) -> None:
    noise = Image.fromarray(np.random.default_rng(6).integers(0, 255, (50, 70, 3), np.uint8)).convert(mode)
    whole = file_of(noise, "JPEG", **JPEGS[kind])
    wanted = decode(whole)
    for without in (whole[:-2], whole[:-1]):
        assert size(without) == wanted.size
        assert decode(without).tobytes() == wanted.tobytes()
    for cut in range(3, 60):  # a pixel that is not there is not made up
        with suppress(BadImage):
            assert decode(whole[:-cut]).tobytes() == wanted.tobytes()
    with pytest.raises(BadImage):
        decode(whole[:-60])


def test_a_progressive_jpeg_without_its_last_scan_is_not_whole() -> None:
    whole = file_of(Image.effect_noise((70, 50), 60).convert("RGB"), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    tables = whole.rindex(b"\xff\xc4", 0, last)
    for end in (tables, last):
        with pytest.raises(BadImage, match="a JPEG picture that ends in the middle of its pixels"):
            decode(whole[:end])


def with_chunk(data: bytes, kind: bytes, body: bytes, at_end: bool, crc: int | None = None) -> bytes:
    """A PNG with one more chunk, behind its header or before its end."""
    checked = zlib.crc32(kind + body) if crc is None else crc
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checked)
    at = len(data) - 12 if at_end else 33
    return data[:at] + chunk + data[at:]


@pytest.mark.parametrize("at_end", [False, True])
def test_what_a_png_holds_beside_its_picture_costs_no_pixel(at_end: bool) -> None:
    wanted = decode(file_of(picture()))
    packed = zlib.compress(bytes(2**21))
    exif = Image.Exif()
    exif[0x0112] = 6
    for data in (
        with_chunk(file_of(picture()), b"zTXt", b"Comment\0\0" + packed, at_end),
        with_chunk(file_of(picture()), b"iTXt", b"Comment\0\1\0\0\0" + packed, at_end),
        with_chunk(file_of(picture()), b"tEXt", b"Comment\0hello", at_end, crc=1),
        with_chunk(file_of(picture()), b"iCCP", b"profile\0\0" + packed, at_end),
    ):
        assert size(data) == wanted.size
        assert decode(data).tobytes() == wanted.tobytes()
    turned = with_chunk(file_of(picture(), exif=exif), b"zTXt", b"Comment\0\0" + packed, at_end)
    assert size(turned) == decode(turned).size == (5, 7)
    assert (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY) == (2**20, 2**26)


def test_any_damage_gives_a_picture_or_a_reason() -> None:
    chance = random.Random(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    texture = Image.effect_noise((40, 30), 60).convert("RGB")
    files = [file_of(texture, kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")]
    files.append(file_of(texture, "JPEG", exif=exif))
    refused = 0
    for _ in range(600):
        bad = bytearray(chance.choice(files))
        if chance.random() < 0.5:
            del bad[chance.randrange(len(bad)) :]
        for _ in range(chance.randrange(1, 8)):
            if bad:
                bad[int(len(bad) * chance.random() ** 3)] = chance.randrange(256)
        try:
            shown = decode(bytes(bad))
            assert shown.size == size(bytes(bad))
        except BadImage:
            refused += 1
    assert 200 < refused < 600


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photos (../shared/data) are not here")
def test_real_photos_are_decoded_as_shown() -> None:
    photos = sorted(path for path in REAL.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    assert len(photos) > 300
    chosen = [path for path in photos if path.parts[-2] == "val2017"] + photos[::20]
    modes = set()
    for path in chosen:
        data = path.read_bytes()
        with Image.open(path) as image:
            modes.add(image.mode)
            shown = ImageOps.exif_transpose(image)
            assert size(data) == shown.size
            white = Image.new("RGBA", shown.size, "white")
            expected = Image.alpha_composite(white, shown.convert("RGBA")).convert("RGB")
            assert np.array_equal(np.asarray(decode(data)), np.asarray(expected))
    assert {"RGB", "RGBA"} <= modes


# The table and its reader


@pytest.fixture
def raw(tmp_path: Path) -> RawFiles:
    (tmp_path / "raw").mkdir()
    with RawWriter(tmp_path / "raw") as writer:
        writer.add("p/1.png", file_of(picture()))
        writer.add("p/2.png", b"broken")
    return RawFiles.at(tmp_path / "raw")


def row(raw: RawFiles, image_id: str, member: str, width: int = 7, height: int = 5) -> dict[str, object]:
    return {
        "image_id": image_id,
        "path": f"photos/{member}",
        "sha256": raw.sha256(member),
        "width": width,
        "height": height,
        "split": "train",
    }


def box(image_id: str) -> dict[str, object]:
    return {"image_id": image_id, "x1": 0, "y1": 0, "x2": 3, "y2": 2, "class": "square", "attributes": ["red"]}


def test_images_are_opened_through_their_raw_files_also_in_another_process(raw: RawFiles, tmp_path: Path) -> None:
    rows = [row(raw, "b", "p/2.png", 0, 0), row(raw, "a", "p/1.png")]
    figures = write_images(tmp_path, rows, [box("a"), box("a")])
    assert figures == {"images": 2, "broken": 1, "boxes": 2}
    images = pickle.loads(pickle.dumps(Images.at(tmp_path).over({"photos": raw})))
    assert images.table().column("image_id").to_pylist() == ["a", "b"]
    assert np.array_equal(np.asarray(images.open("a")), np.asarray(picture()))
    assert hashlib.sha256(images.read("a")).hexdigest() == rows[1]["sha256"]
    assert images.boxes() is not None
    assert images.boxes().num_rows == 2
    assert images.left_out() == set()
    with pytest.raises(BadImage, match="not an image"):
        images.open("b")
    with pytest.raises(KeyError):
        images.open("c")


def test_order_of_the_rows_changes_no_bits(raw: RawFiles, tmp_path: Path) -> None:
    rows = [row(raw, name, "p/1.png") for name in "badc"]
    for name, given in (("one", rows), ("two", rows[::-1])):
        (tmp_path / name).mkdir()
        write_images(tmp_path / name, given, left_out=["y", "x"] if name == "one" else ["x", "y"])
    for file in ("images.parquet", "left_out.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert Images.at(tmp_path / "one").left_out() == {"x", "y"}
    assert Images.at(tmp_path / "one").boxes() is None


def test_image_changed_since_it_was_indexed_is_refused(raw: RawFiles, tmp_path: Path) -> None:
    write_images(tmp_path, [row(raw, "a", "p/1.png") | {"sha256": "0" * 64}])
    with pytest.raises(BuildError, match=r"'a': photos/p/1\.png has changed since it was indexed"):
        Images.at(tmp_path).over({"photos": raw}).read("a")


def test_wrong_rows_are_named(raw: RawFiles, tmp_path: Path) -> None:
    good = row(raw, "a", "p/1.png")
    for rows, boxes, said in [
        ([good, good], None, "the id 'a' occurs twice"),
        ([good | {"widht": 3}], None, "unknown column 'widht'"),
        ([good | {"width": "x"}], None, "images: "),
        ([{k: v for k, v in good.items() if k != "sha256"}], None, "no 'sha256'"),
        ([good], [box("z")], "boxes: image 'z' is not in the collection"),
    ]:
        with pytest.raises(BuildError, match=said):
            write_images(tmp_path, rows, boxes)
