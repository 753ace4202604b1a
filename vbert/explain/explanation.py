"""An explanation of one answer, drawn and as numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.data.names import given_path
from vbert.errors import UserError
from vbert.explain.relevant import Relevances

if TYPE_CHECKING:
    import os

ENDINGS = (".png", ".svg", ".json")


@dataclass(frozen=True)
class Explanation(Relevances):
    """
    >>> why = vbert.VisualBert.load("exported/vqa").explain("cat.jpg", "What colour is the cat?")  # doctest: +SKIP
    >>> why.save("why.png")  # doctest: +SKIP
    """

    def numbers(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "text": self.text,
            "answer": self.answer,
            "score": self.score,
            "explained": self.explained,
            "method": self.method,
            "words": [
                {"text": one.text, "relevance": one.relevance, "regions": list(one.regions)} for one in self.words
            ],
            "regions": [
                {
                    "region": one.region,
                    "image": one.image,
                    "box": None if one.box is None else list(one.box),
                    "name": one.name,
                    "relevance": one.relevance,
                }
                for one in self.regions
            ],
        }

    def svg(self) -> str:
        """A picture of itself: pointing at a word, or reaching it by the keyboard, shows its regions."""
        from vbert.explain.picture import standalone

        return standalone(self)

    def png(self) -> bytes:
        from vbert.explain.raster import png

        return png(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """By the ending of the name: .png, .svg or .json. Raises UserError for another."""
        target = Path(given_path(path, "the picture"))
        ending = check_name(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        if ending == ".png":
            target.write_bytes(self.png())
        else:
            written = self.svg() if ending == ".svg" else json.dumps(self.numbers(), indent=1, ensure_ascii=False)
            target.write_text(f"{written}\n", "utf-8")
        return target


def check_name(target: Path) -> str:
    """Its ending. Raises UserError for another than these."""
    ending = target.suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"{target}: give a name that ends in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    return ending
