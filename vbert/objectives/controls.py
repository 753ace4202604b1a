"""Controls of either side of an example: other images' regions, other examples' texts, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from vbert.training.sampler import generator


def shuffled_images(image_ids: Sequence[str]) -> dict[str, str]:
    """Each image mapped to another one of `image_ids`, in one cycle in a fixed random order."""
    order = generator("other images' features").permutation(sorted(image_ids)).tolist()
    return dict(zip(order, order[1:] + order[:1], strict=True))


def with_texts(table: pa.Table, text: str) -> pa.Table:
    """The table with its own texts, with those of other examples of the same kind, or without."""
    if text == "own":
        return table
    columns: dict[str, list[Any]] = {name: table[name].to_pylist() for name in ("text", "text_b")}
    if text == "none":
        empty: dict[str, list[Any]] = {"text": [""] * table.num_rows, "text_b": [None] * table.num_rows}
        return _replaced(table, empty)
    of_kind: dict[str, list[int]] = {}
    for i, kind in enumerate(table["kind"].to_pylist()):
        of_kind.setdefault(str(kind), []).append(i)
    source = list(range(table.num_rows))
    for kind, rows in of_kind.items():
        order = [rows[k] for k in generator("other examples' texts", kind).permutation(len(rows)).tolist()]
        for i, j in zip(order, order[1:] + order[:1], strict=True):
            source[i] = j
    exchanged = {name: [values[j] for j in source] for name, values in columns.items()}
    if "phrases" in of_kind:
        exchanged["phrases"] = table["phrases"].to_pylist()
        for i in of_kind["phrases"]:
            places = table["phrases"][source[i]].as_py()
            for k, phrase in enumerate(exchanged["phrases"][i] if places else ()):
                phrase |= {name: places[k % len(places)][name] for name in ("start", "end")}
    return _replaced(table, exchanged)


def _replaced(table: pa.Table, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    return table
