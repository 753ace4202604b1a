"""Examples and regions in memory, as objectives read those of artifacts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vbert.errors import UnknownImage, UserError, near
from vbert.inference.asked import Asked, check_length

if TYPE_CHECKING:
    import pyarrow as pa

    from vbert.objectives.batches import ExampleRows
    from vbert.regions.contract import Contract
    from vbert.regions.shards import Regions

SPLIT = "test"  # of examples that are asked about


@dataclass(frozen=True)
class AskedExamples:
    """Rows of EXAMPLES_SCHEMA; their ids are their numbers, zero-padded."""

    rows: Sequence[Mapping[str, Any]]

    def table(self) -> pa.Table:
        from vbert.data.schemas import EXAMPLES_SCHEMA, as_table

        numbered = ({"example_id": f"{k:09d}", "split": SPLIT, **row} for k, row in enumerate(self.rows))
        return as_table(numbered, EXAMPLES_SCHEMA)


@dataclass(frozen=True)
class RegionsInMemory:
    """Regions of images by id, under one contract; see `vbert.regions.shards.RegionSource`."""

    by_id: Mapping[str, Regions]
    made_by: Contract
    title: str = "the regions given"

    @property
    def dim(self) -> int:
        return self.made_by.dim

    def contract(self) -> Contract:
        return self.made_by

    def image_ids(self) -> list[str]:
        return sorted(self.by_id)

    def read(self, image_id: str) -> Regions:
        if image_id not in self.by_id:
            raise UnknownImage(f"{self.title} hold no image {image_id!r}; {near(image_id, self.by_id)}")
        return self.by_id[image_id]


def choice_row(text: str, choices: Sequence[str]) -> dict[str, Any]:
    """The example of a choice. Raises UserError for choices that are none."""
    if isinstance(choices, str) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise UserError("choices: give a list of two texts or more, none of them empty")
    check_length("choices", json.dumps(choices, ensure_ascii=False))
    return {"kind": "choice", "text": text, "choices": [{"text": one, "phrases": None} for one in choices]}


def phrase_row(text: str, phrase: str) -> dict[str, Any]:
    """The example of a phrase, where it stands first in the text; "": all of it. Raises UserError where it doesn't."""
    start = text.find(phrase)
    if start < 0:
        raise UserError(
            f"phrase {phrase!r:.80}: it is no part of the text {text!r:.80}; give its words as they stand there"
        )
    end = start + len(phrase) if phrase else len(text)
    return {"kind": "phrases", "text": text, "phrases": [{"start": start, "end": end, "boxes": []}]}


def read_rows(
    given: Asked, rows: Sequence[Mapping[str, Any]], contract: Contract, kinds: Sequence[str]
) -> tuple[ExampleRows, RegionsInMemory]:
    """Rows of EXAMPLES_SCHEMA beside the images that are asked about, and their regions."""
    from vbert.objectives.batches import ExampleRows

    pictured = [{**row, "image_ids": list(its)} for row, its in zip(rows, given.images, strict=True)]
    memory = RegionsInMemory(given.regions, contract)
    return ExampleRows(AskedExamples(pictured), memory, [SPLIT], kinds), memory
