"""The kind of a file by its first bytes, whatever its name: for errors that refuse it."""

from __future__ import annotations

import re

ENOUGH = 512  # first bytes that `file_kind` looks at
LFS = b"version https://git-lfs"

# First bytes of files → the kind in words.
BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (LFS, "a Git LFS pointer in place of the file (`git lfs pull` fetches it)"),
    (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\0\5\x16\7", "what macOS keeps beside a file (AppleDouble)"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"8BPS", "a Photoshop picture (PSD)"),
    (b"%PDF", "a PDF"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "an array of numpy (.npy)"),
    (b"PAR1", "a Parquet table"),
    (b"ARROW1", "an Arrow table"),
    (b"GGUF", "a GGUF file (llama.cpp)"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1f\x8b", "packed by gzip"),
    (b"BZh", "packed by bzip2"),
    (b"\xfd7zXZ\0", "packed by xz"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"SQLite format 3", "an SQLite database"),
)
BRANDS = (  # of an ISO media file, after `ftyp`
    ((b"avif", b"avis"), "an AVIF picture"),
    ((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"), "a HEIC picture (convert it to JPEG)"),
)
MARKUP = re.compile(rb"\s*(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|head|body)", re.IGNORECASE)


def file_kind(head: bytes) -> str | None:
    """The kind of a file that begins with `head`, with an article, as in "it is a web page"; None where it isn't
    recognised."""
    if not head:
        return "empty"
    if head[4:8] == b"ftyp":
        return next((title for brands, title in BRANDS if head[8:12] in brands), "a video in an MP4 container")
    if head[:4] == b"RIFF":
        return "a WebP picture" if head[8:12] == b"WEBP" else "a WAV or AVI file"
    if head[257:262] == b"ustar":
        return "a tar archive"
    for beginning, title in BEGINNINGS:
        if head.startswith(beginning):
            return title
    if MARKUP.match(head):
        return "a web page (sign-in, quota or error?) in place of the file"
    if not head.strip(b"\0"):
        return "nothing but zeros"
    return _text(head)


def _text(head: bytes) -> str | None:
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a character that `head` cuts
            return None
        text = head[: error.start].decode()
    if any(ord(c) < 32 and c not in "\t\r\n\f" for c in text):
        return None
    kind = "XML" if text.lstrip().startswith("<?xml") else "JSON" if text.lstrip()[:1] in ("{", "[") else "text"
    return f"{kind} that begins with {text.strip()[:40]!r}"
