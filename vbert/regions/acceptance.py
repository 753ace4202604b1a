"""Whether shards are accepted: the share of images that can't be used, from the figures of what is there."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vbert.artifacts.steps.settings import least
from vbert.data.acceptance import whole
from vbert.errors import BuildError

if TYPE_CHECKING:
    from vbert.artifacts.store.store import Store
    from vbert.data.images import Images
    from vbert.regions.shards import Shards


def objection(shards: Shards, store: Store) -> str | None:
    """Why shards made by a step are not accepted, or won't be: files that the index could not open are known before.

    Says the first of them, the table of all, and the setting under which they are accepted; None where they are.
    """
    assert shards.step is not None
    given = shards.step.arguments
    accepted: float = given["settings"].quarantine
    images: Images | None = given["images"].bound(store) if "images" in given else None
    if (made := whole(shards, store)) is not None:
        bad, total = made.figures["quarantined"], made.figures["quarantined"] + made.figures["images"]
        held: Shards | Images = shards
        table = store.where(made, "quarantine.parquet")
    elif images is not None and (index := whole(images, store)) is not None:
        bad, total = index.figures["broken"], index.figures["images"]
        table, held = f"{store.where(index, 'images.parquet')} (width 0)", images
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
        f"{most:.3g} %{_first(held)} (all of them: {table}); nothing made is lost: mend them, or "
        f"accept them with {setting}, which makes nothing again"
    )


def _first(table: Shards | Images) -> str:
    """`; the first is NAME: what is wrong with it`, where that can be read."""
    from vbert.regions.shards import Shards

    with suppress(BuildError, OSError):
        if isinstance(table, Shards):
            row = table.quarantine().slice(0, 1).to_pylist()[0]
            return f"; the first is {row['path']}: {row['detail']}"
        index = table.table()
        path = index.column("path")[index.column("width").to_pylist().index(0)].as_py()
        return f"; the first is {path}: it can't be opened"
    return ""
