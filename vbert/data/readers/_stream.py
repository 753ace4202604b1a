"""For readers of JSON files of hundreds of MB: the items of one long list, a few at a time in memory."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from vbert.data.readers._rows import Openable, checked
from vbert.errors import UserError

BLOCK = 1 << 20  # bytes read at once
LONGEST_ITEM = 1 << 24  # characters
BLANKS = re.compile("[ \t\r\n]*")


def items(raw: Openable, name: str, kind: Any) -> Iterator[tuple[str, Any]]:
    """(`file: [number]`, item) of every item of the list that the file `name` holds, checked against `kind`.

    Raises UserError, with the item's number, for what is no list, and for an item that doesn't fit or is longer than
    LONGEST_ITEM.
    """
    decoder, text = json.JSONDecoder(), _Text(raw, name)
    if text.next() != "[":
        raise UserError(f"{name}: is no list: it must begin with [")
    text.skip()
    number = 0
    if text.next() == "]":
        text.skip()
    else:
        while True:
            where = f"{name}: [{number}]"
            text.next()
            yield where, checked(text.item(decoder, where).encode(), kind, where)
            number += 1
            between = text.next()
            text.skip()
            if between == "]":
                break
            if between != ",":
                raise UserError(f"{name}: after [{number - 1}]: must be , or ], not {between!r}")
    if rest := text.next():
        raise UserError(f"{name}: {rest!r} follows the list")


class _Text:
    """The file's text from a place on, which is read as far as it is needed."""

    def __init__(self, raw: Openable, name: str) -> None:
        self._file, self._name = raw.open(name), name
        self._decode = codecs.getincrementaldecoder("utf-8-sig")()
        self._held, self._at, self._ended = "", 0, False

    def next(self) -> str:
        """The next sign that is no blank, which stays; "" at the end."""
        while True:
            self._at = BLANKS.match(self._held, self._at).end()  # type: ignore[union-attr]  # it matches nothing too
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._more():
                return ""

    def skip(self) -> None:
        self._at += 1

    def item(self, decoder: json.JSONDecoder, where: str) -> str:
        """The JSON value that begins here."""
        while True:
            try:
                _, end = decoder.raw_decode(self._held, self._at)
            except RecursionError:
                raise UserError(f"{where}: not JSON: nested too deep") from None
            except ValueError as error:  # its end may not be read yet
                if len(self._held) - self._at > LONGEST_ITEM:
                    raise UserError(f"{where}: is longer than {LONGEST_ITEM:,} signs, or not JSON") from None
                if not self._more(len(self._held) - self._at):
                    raise UserError(f"{where}: not JSON: {error}") from None
                continue
            if end < len(self._held) or not self._more():  # a number may go on
                found = self._held[self._at : end]
                self._at = end
                return found

    def _more(self, least: int = 0) -> bool:
        """Reads on, as many bytes as are held already, so that a long item is not tried again for every block."""
        if self._ended:
            return False
        data = self._file.read(max(BLOCK, least))
        self._ended = not data
        try:
            self._held = self._held[self._at :] + self._decode.decode(data, self._ended)
        except UnicodeDecodeError as error:
            raise UserError(f"{self._name}: is not in UTF-8 ({error.reason}); save it as UTF-8") from None
        self._at = 0
        if self._ended:
            self._file.close()
        return True
