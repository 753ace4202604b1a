"""`vbert datasets`: the data sets with a spec, and their size in the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flows.graph import sources_of
from vbert.artifacts.store.store import Store
from vbert.data.alive import Answer, ask
from vbert.data.raw import RawFiles
from vbert.data.spec import DatasetSpec, dataset, dataset_names
from vbert.errors import Damaged, UserError
from vbert.objectives import OBJECTIVES


def dataset_rows(store: Store) -> list[dict[str, Any]]:
    """A row a spec: name, title, images and examples as published, licence, downstream tasks, bytes present or None."""
    rows = []
    for name in dataset_names():
        spec = dataset(name)
        sizes: list[int] = []
        raws = _raws(spec)
        for raw in raws:
            try:
                manifest = store.find(raw.stage_name, raw.fingerprint)
            except Damaged:
                manifest = None
            if manifest is not None:
                sizes.append(manifest.size)
        rows.append(
            {
                "name": name,
                "title": spec.title,
                "images": sum(spec.images.counts.values()),
                "examples": sum(spec.examples.counts.values()) if spec.examples else 0,
                "size": _size(spec),
                "generated": spec.generate is not None,
                "licence": spec.licence,
                "tasks": [task for task in spec.tasks if task in OBJECTIVES],
                "present": 0 < len(raws) == len(sizes),
                "by_hand": sorted(key for key, source in spec.sources.items() if source.manual),
                "held": sum(sizes),
            }
        )
    return rows


def asked_sources(name: str | None) -> list[Answer]:
    """What the sources of the data set `name`, or of all, answer."""
    specs = [dataset(one) for one in ([name] if name is not None else dataset_names())]
    sources = [(spec.name, key, source) for spec in specs for key, source in spec.sources.items()]
    return ask(sources)


def print_answers(answers: Sequence[Answer]) -> None:
    """The dead ones, then how many there are."""
    dead = [answer for answer in answers if answer.fault]
    for answer in dead:
        print(f"{answer.data_set} {answer.source}: {answer.where}: {answer.fault}")
    print(f"{len(answers) - len(dead)} of {len(answers)} sources answer")


def _size(spec: DatasetSpec) -> int | None:
    """Bytes of the download; None where a source doesn't state its size."""
    sizes = [source.size for source in spec.sources.values()]
    return sum(filter(None, sizes)) if sizes and None not in sizes else None


def _how(row: Mapping[str, Any]) -> str:
    return "by hand" if row["by_hand"] else "generated" if row["generated"] else "not stated"


def _raws(spec: DatasetSpec) -> list[RawFiles]:
    """The raw files of a spec; none where files that a person must fetch aren't there."""
    try:
        return list(sources_of(spec).values())
    except UserError:
        return []


def print_datasets(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from flows.terminal import page, size

    table = Table(box=None, pad_edge=False)
    for title in ("data set", "images", "examples", "download", "licence", "downstream tasks", "in the store"):
        table.add_column(title, justify="right" if title in ("images", "examples", "download") else "left")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['images']:,}",
            f"{row['examples']:,}",
            size(row["size"]) if row["size"] else _how(row),
            row["licence"],
            ", ".join(row["tasks"]),
            f"yes, {size(row['held'])}" if row["present"] else "no",
        )
    page().print(table)
