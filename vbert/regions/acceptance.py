"""Whether shards are accepted, by their share of unusable images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from vbert.artifacts.steps.settings import least
from vbert.data.acceptance import whole
from vbert.errors import BuildError

if TYPE_CHECKING:
    import pyarrow as pa

    from vbert.artifacts.steps.artifact import Artifact
    from vbert.artifacts.store.store import Store
    from vbert.data.images import Images


def objection(shards: Artifact, store: Store, quarantine: Callable[[], pa.Table]) -> str | None:
    """Why the shards of a step are refused, or will be: files that the index could not open are known before.

    Names the first image, the table of all, and the setting that would accept them; None where they are accepted.
    quarantine: reads that table of finished shards.
    """
    assert shards.step is not None
    given = shards.step.arguments
    accepted: float = given["settings"].quarantine
    images: Images | None = given["images"].bound(store) if "images" in given else None
    if (made := whole(shards, store)) is not None:
        bad, total = made.figures["quarantined"], made.figures["quarantined"] + made.figures["images"]
        first = partial(_first_quarantined, quarantine)
        table = store.where(made, "quarantine.parquet")
    elif images is not None and (index := whole(images, store)) is not None:
        bad, total = index.figures["broken"], index.figures["images"]
        table, first = f"{store.where(index, 'images.parquet')} (width 0)", partial(_first_broken, images)
    else:
        return None
    if not bad or bad / total <= accepted:
        return None
    setting = f"`--set regions.quarantine={least(bad, total)}`"
    if images is None:
        setting = f"`--quarantine {least(bad, total)}` (in a recipe: `quarantine` of its `features`)"
    share, most = 100 * bad / total, 100 * accepted
    return (
        f"{shards.title}: {bad:,} of {total:,} images can't be used ({share:.3g} %), more than the accepted "
        f"{most:.3g} %{_reason(first)} (all of them: {table}); nothing made is lost: mend them, or "
        f"accept them with {setting}, which makes nothing again"
    )


def _reason(first: Callable[[], str]) -> str:
    """`; the first is NAME: REASON`, where the quarantine can be read."""
    with suppress(BuildError, OSError):
        return f"; the first is {first()}"
    return ""


def _first_quarantined(quarantine: Callable[[], pa.Table]) -> str:
    row = quarantine().slice(0, 1).to_pylist()[0]
    return f"{row['path']}: {row['detail']}"


def _first_broken(images: Images) -> str:
    index = images.table()
    path = index.column("path")[index.column("width").to_pylist().index(0)].as_py()
    return f"{path}: it can't be opened"
