"""`vbert runs`, `keep` and `gc`: the runs of a store, and the removal of artifacts that none of them needs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flows.options import JsonOption, StoreOption
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.artifacts.store.store import Store


def existing_store(root: str | None) -> Store:
    """An existing store, for commands about its contents. Raises UserError where there is none."""
    from vbert.artifacts.store.store import Store, default_root

    store = Store(root or default_root())
    if not store.exists():
        raise UserError(f"no store in {store.location}; give one with --store or VBERT_STORE (`vbert run` makes it)")
    return store


def runs(
    recipe: str | None = None,
    /,
    *,
    diff: Annotated[tuple[str, str] | None, Parameter(negative=())] = None,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """The runs of a store: recipe, changes, time, metrics, whether kept; or the differences between two of them.

    Example: `vbert runs demo`, then `vbert runs --diff 20261126-114245-demo-25757 20261127-090112-demo-311`

    Parameters
    ----------
    recipe
        only runs of this recipe, by its name.
    diff
        two runs: their settings, artifacts and metrics compared.
    """
    from flows.runs import difference, difference_lines, row_lines, rows

    at = existing_store(store)
    if diff is not None:
        if recipe is not None:
            raise UserError("--diff takes two runs, and no recipe")
        differences = difference(at, *diff)
        print(
            json.dumps({"a": diff[0], "b": diff[1], **differences})
            if json_
            else "\n".join(difference_lines(differences))
        )
        return
    listed = rows(at, recipe)
    if json_:
        print(json.dumps({"store": at.location, "runs": listed}))
        return
    for row in listed:
        print("\n".join(row_lines(row)))
    if not listed:
        print(f"no run in {at.location} yet")


def keep(run_id: str, /, *, store: StoreOption = None) -> None:
    """Protect the artifacts of a run from `vbert gc`. Example: `vbert keep 20261124-101500-demo-25757` (`vbert runs`
    lists them)

    Parameters
    ----------
    run_id
        the run's name, as `vbert run` ends with.
    """
    from vbert.artifacts.upkeep.gc import keep as mark

    mark(existing_store(store), run_id)
    print(f"kept {run_id}")


def gc(
    *,
    delete: Annotated[bool, Parameter(negative=())] = False,
    days: float = 30,
    grace: float = 7,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """List artifacts that no kept or recent run, nor the last run of any recipe and changes, needs; --delete removes
    them.

    Example: `vbert gc`, then `vbert gc --delete`

    Parameters
    ----------
    delete
        remove them; without it they are only listed.
    days
        runs of the last DAYS days keep all they need.
    grace
        days for which other artifacts stay after they were made or touched.
    """
    from flows.terminal import size
    from vbert.artifacts.upkeep.gc import DAY
    from vbert.artifacts.upkeep.gc import gc as collect

    if days < 0 or grace < 0:
        raise UserError("--days and --grace are numbers of days, 0 or more")
    swept = collect(existing_store(store), dry_run=not delete, grace=grace * DAY, recent=days * DAY)
    if json_:
        print(json.dumps(swept.as_json()))
        return
    for line in swept.lines():
        print(line)
    print(f"{'removed' if delete else 'would remove'} {size(swept.bytes)}" + ("" if delete else "; --delete does it"))
