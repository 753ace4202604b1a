"""Examples and regions in memory, as objectives read those of artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vbert.errors import UnknownImage, near

if TYPE_CHECKING:
    import pyarrow as pa

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
