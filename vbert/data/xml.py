"""XML of strangers: documents without a document type, and so without entities."""

from __future__ import annotations

import codecs
import re
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from vbert.errors import UserError

XML_BYTES = 4 << 20  # at most; annotations of one image are below 100 KB
ENCODING = re.compile(rb"""^\s*<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")
OURS = ("utf-8", "utf-16", "iso-8859-1", "us-ascii")  # encodings that expat reads itself
# Python's own encodings of names and literals, which no data file has. One of them takes minutes for a megabyte.
PYTHONS = ("idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape")


def parsed(data: bytes, where: str) -> Element:
    """The tree of an XML document without a document type. Raises UserError for one, for broken XML and for more than
    XML_BYTES."""
    if len(data) > XML_BYTES:
        raise UserError(f"{where}: is XML of {len(data):,} bytes; at most {XML_BYTES:,} are read")
    builder = TreeBuilder()
    data, encoding = _in_utf8(data, where)
    parser = expat.ParserCreate(encoding)
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: Any) -> None:
        raise UserError(f"{where}: has a document type (<!DOCTYPE …>), which may hold entities; take it out")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise UserError(f"{where}: not XML: {error}") from None


def _in_utf8(data: bytes, where: str) -> tuple[bytes, str | None]:
    """(document as expat can read it, encoding to pass to expat)"""
    declaration = ENCODING.match(data)
    encoding = declaration.group(1).decode().lower() if declaration else OURS[0]
    if encoding in OURS:
        return data, None
    try:
        if codecs.lookup(encoding).name in PYTHONS:
            raise LookupError(encoding)
        return data.decode(encoding).encode(), OURS[0]
    except LookupError:
        raise UserError(
            f"{where}: says that it is in {encoding!r}, which is no known encoding; save it as UTF-8"
        ) from None
    except ValueError as error:
        raise UserError(f"{where}: is not in {encoding!r}, as it says: {error}") from None
