"""Prints the facts and the comparison of `vbert features`."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.regions.interop.comparing import ImageComparison


def facts_as_text(facts: dict[str, Any]) -> str:
    """The facts of `inspect` in lines."""
    low, middle, high = facts["regions_per_image"]
    counts = facts["with"]
    lines = [
        f"{facts['path']}: {facts['title']}",
        f"images     {facts['images']:,}" + (f", {facts['quarantined']:,} quarantined" if facts["quarantined"] else ""),
        f"regions    {facts['regions']:,}: {low} to {high} an image, {middle} in the middle",
        f"features   {' and '.join(facts['dims']) or '0'} numbers, norm about {facts['norm']}"
        + (", some below 0 (before a ReLU)" if facts["negative"] else ", none below 0 (after a ReLU)"),
        "with       "
        + (", ".join(_with(name, counts[name], facts["read"]) for name in counts if counts[name]) or "no more"),
        "without    " + (", ".join(name for name in counts if not counts[name]) or "nothing"),
    ]
    if facts["unreadable"]:
        lines.append(f"unreadable {facts['unreadable']:,}: {facts['first_unreadable'][0]}")
    lines += _contract(facts["contract"])
    for sample in facts["samples"]:
        size = f"{sample['width']}×{sample['height']}" if sample["width"] else "of unknown size"
        unit = {"pixels": "", "normalised": ", boxes as shares of the image"}.get(sample["boxes_in"], ", no boxes")
        lines.append(f"\n{sample['image_id']}  {size}, {sample['regions']} regions{unit}")
        for region in sample["first"]:
            corners = "-" if region["box"] is None else "  ".join(f"{side:8.2f}" for side in region["box"])
            score = "" if region["score"] is None else f"  {region['score']:.3f}"
            lines.append(f"  {corners}{score}  {region['name']}".rstrip())
    return "\n".join(lines)


def _with(name: str, count: int, images: int) -> str:
    return name if count == images else f"{name} (of {count:,} images)"


def _contract(contract: dict[str, Any] | None) -> list[str]:
    if contract is None:
        return ["contract   none: nothing in the file says what made the features"]
    lines: list[str] = []
    for field, value in contract.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {part}" for name, part in value.items() if name != "version")
        lines.append(f"{'contract' if not lines else '':<10} {field}: {'not stated' if value is None else value}")
    return lines


def comparison_as_text(facts: dict[str, Any]) -> str:
    """The table, the counts by cause and the verdict."""
    lines = [f"{'image':<28} {'A':>4} {'B':>4} {'matched':>7} {'IoU':>7} {'cosine':>8} {'norm B/A':>9}  what"]
    for row in facts["rows"]:
        figures = [_number(row[name], digits) for name, digits in (("iou", 7), ("cosine", 8), ("norm_ratio", 9))]
        name = row["image_id"] if len(row["image_id"]) <= 28 else f"…{row['image_id'][-27:]}"
        what = row["cause"] + (f": {row['detail']}" if row["detail"] else "")
        lines.append(f"{name:<28} {row['a']:>4} {row['b']:>4} {row['matched']:>7} {' '.join(figures)}  {what}")
    if len(facts["rows"]) < facts["images"]:
        lines.append(f"… {facts['images'] - len(facts['rows']):,} more images (--table FILE.csv lists all)")
    lines.append("")
    lines += [f"{count:>8,}  {cause}" for cause, count in facts["causes"].items()]
    for field, (one, other) in facts["contract"].items():
        lines.append(f"contract  {field} is {one!r} for A, {other!r} for B")
    return "\n".join([*lines, facts["verdict"]])


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.4f}"


def rows_as_csv(rows: Iterable[ImageComparison], table: Path | None, most: int) -> list[ImageComparison]:
    """Writes every row to `table`, if given, and returns the `most` rows to show, differing ones first."""
    different: list[ImageComparison] = []
    same: list[ImageComparison] = []
    with _writer(table) if table is not None else nullcontext() as writer:
        for row in rows:
            if writer is not None:
                writer.writerow(["" if value is None else value for value in vars(row).values()])
            cells = same if row.cause == "same" else different
            if len(cells) < most:
                cells.append(row)
    return (different + same)[:most]


@contextmanager
def _writer(table: Path) -> Iterator[Any]:
    from vbert.regions.interop.comparing import ImageComparison

    try:
        file = table.open("w", newline="", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--table {table}: can't be written ({error.strerror})") from None
    with file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(ImageComparison)])
        yield writer
