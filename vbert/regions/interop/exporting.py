"""From any set of region features to a file or folder that other systems read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

from vbert.artifacts.store.owner import SUFFIX, Owner, clear_dead
from vbert.errors import UserError, nearest
from vbert.regions.interop import WRITERS
from vbert.regions.interop.feature_sets import FeatureSet
from vbert.regions.interop.raw_regions import BadEntry, RawRegions


def export(
    source: FeatureSet, format: str, target: Path, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Write `source` as `format` to `target`, whole or not at all, images by sorted id and one at a time in memory.

    Returns counts, `unreadable` among them. Raises UserError where `target` exists already.
    """
    if format not in WRITERS:
        raise UserError(f"no format {format!r} that can be written; {nearest(format, WRITERS)}")
    if target.exists():
        raise UserError(f"{target} is there already; give another --out, or remove it")
    module = import_module(f"vbert.regions.interop.{WRITERS[format]}")
    target.parent.mkdir(parents=True, exist_ok=True)
    making = target.with_name(f".{target.name}.{uuid4().hex}")
    record = making.with_name(making.name + SUFFIX)
    clear_dead(target.parent, f".{target.name}")
    Owner.current().write(record)
    making.mkdir()
    bad: list[BadEntry] = []

    def entries() -> Iterator[tuple[str, RawRegions]]:
        for done, image_id in enumerate(source.ids):
            progress(done, len(source.ids))
            try:
                yield image_id, source.read(image_id)
            except BadEntry as error:
                bad.append(error)

    try:
        inside = making / target.name
        if format != "lxmert_tsv":
            inside.mkdir()
        counts: dict[str, Any] = module.write(inside, entries())
        if source.contract is not None and inside.is_dir():
            source.contract.write(inside)
        for made in sorted(making.iterdir(), reverse=True):  # a table's vocabularies before the table
            if made != inside:
                made.replace(target.parent / made.name)
        inside.rename(target)
    finally:
        shutil.rmtree(making, ignore_errors=True)
        record.unlink(missing_ok=True)
    return {**counts, "unreadable": len(bad), "first_unreadable": str(bad[0]) if bad else None}
