"""Stages `links` and `fetch_links`: a list of links as a table, and the photos that they lead to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from vbert.artifacts.steps.stage import Build, Cost, Figures, stage
from vbert.data.links import LinkedFiles, LinkList, LinkListSettings, LinkSettings
from vbert.data.raw import RawFiles


@stage("links", makes=LinkList, version=1, through=False)
def links(build: Build, raws: Mapping[str, RawFiles], settings: LinkListSettings) -> Figures:
    """The lists of `raws` as one table."""
    from vbert.data.links import write_links

    return dict(write_links(build.directory, raws, settings))


@stage(
    "fetch_links",
    makes=LinkedFiles,
    version=1,
    retries=2,
    tags=("network",),
    through=False,
    same_bits=False,
    cost=Cost(seconds_by=("links.links",), bytes_by=("links.links",)),
)
def fetch_links(build: Build, links: LinkList, settings: LinkSettings) -> Figures:
    """The photos behind the links; a unit is a row group of the table. The web changes: what a unit fetched is kept,
    and another build may find other photos."""
    from vbert.data.link_fetch import fetch_unit
    from vbert.data.links import dead_links
    from vbert.data.raw import RawMember, write_index

    first, plan = 0, list[tuple[str, tuple[int, int]]]()
    for number, count in enumerate(counts := links.groups()):
        plan.append((f"{number:06}", (number, first)))
        first += count
    build.each(plan, partial(fetch_unit, links, settings), lambda unit: counts[unit[0]])
    units = list(build.unit_figures().values())
    reasons: dict[str, list[Any]] = {}
    for unit in units:
        for reason, (count, *where) in unit["reasons"].items():
            reasons.setdefault(reason, [0, *where])[0] += count
    members = (
        RawMember(name, unit["archive"], offset, size, size) for unit in units for name, offset, size in unit["members"]
    )
    files = write_index(build.directory, members)
    photos, total = (sum(unit[key] for unit in units) for key in ("photos", "links"))
    return {"files": files, "links": total, "photos": photos, **dead_links(reasons, total)}
