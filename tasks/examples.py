"""Stage `examples`: the texts on an image collection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vbert.artifacts.steps.settings import Plugin
from vbert.artifacts.steps.stage import Build, Cost, Figures, stage
from vbert.data.examples import Examples
from vbert.data.images import Images
from vbert.data.raw import RawFiles
from vbert.data.spec import ReaderOptions
from vbert.errors import BuildError


@stage(
    "examples",
    makes=Examples,
    version=6,
    through=False,
    cost=Cost(seconds_by=("images.images",), bytes_by=("images.images",)),
)
def examples(
    build: Build, raws: Mapping[str, RawFiles], images: Images, reader: Plugin, reading: ReaderOptions | None = None
) -> Figures:
    """Every example whose images are all in `images`.

    Those of images that a limit left out are dropped; an image that the collection never had is an error. The split is
    the reader's, else that of the first image; `reading.validation` applies to both. Boxes of phrases are fitted to
    their images (see `vbert.data.boxes`). What is odd is counted, in the figures and in `notes`.
    """
    from vbert.data import readers
    from vbert.data.boxes import BoxConverter, PhotoHeader
    from vbert.data.examples import write_examples
    from vbert.data.oddities import Oddities

    reading = reading or ReaderOptions()
    module = readers.of(reader)
    table = images.table().select(["image_id", "split", "width", "height"]).to_pydict()
    splits: dict[str, str | None] = dict(zip(table["image_id"], table["split"], strict=True))
    sizes = zip(table["image_id"], table["width"], table["height"], strict=True)
    fitting = BoxConverter({image_id: PhotoHeader(width, height) for image_id, width, height in sizes})
    left_out = images.left_out()
    rows = readers.call(module, "examples", raws, splits.keys() | left_out, options=reading.options)
    dropped, odd = 0, Oddities(splits)
    notes: list[readers.ReaderNote] = []

    def fitted(row: Mapping[str, Any], phrases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        place = f"example {row['example_id']!r:.80}"
        return [{**p, "boxes": fitting.kept_of(row["image_ids"], p["boxes"], place)} for p in phrases]

    def kept() -> Iterator[dict[str, Any]]:
        nonlocal dropped
        for row in rows:
            if isinstance(row, readers.ReaderNote):
                notes.append(row)
                continue
            indexed = [image_id in splits for image_id in row["image_ids"]]
            if not all(indexed):
                lost = row["image_ids"][indexed.index(False)]
                if lost not in left_out:
                    raise BuildError(
                        f"examples: {row['example_id']!r} in {', '.join(raws)} speaks of the image {lost!r}, which "
                        f"{images.title} doesn't have; is it the collection that these texts are about?"
                    )
                dropped += 1
                continue
            odd.see(row)
            first = row["image_ids"][0]
            if row.get("phrases"):
                row = row | {"phrases": fitted(row, row["phrases"])}
            if row.get("boxes"):
                place = f"example {row['example_id']!r:.80}"
                row = row | {"boxes": fitting.kept_of(row["image_ids"], row["boxes"], place)}
            if row.get("choices"):
                row = row | {"choices": [c | {"phrases": fitted(row, c.get("phrases") or ())} for c in row["choices"]]}
            yield {**row, "split": reading.split(row.get("split"), first) or splits[first]}

    counts = write_examples(build.directory, kept())
    if not counts:
        raise BuildError(f"examples: reader {reader.name!r} finds none in {', '.join(raws)}; are they the right files?")
    figures: Figures = {"examples": sum(counts.values()), **counts}
    if dropped:
        figures["dropped"] = dropped
    if fitting.counts:
        figures |= {"boxes": fitting.kept, **fitting.figures(), "notes": fitting.sentences()}
    if notes := [*notes, *odd.notes()]:
        figures |= {note.figure: note.count for note in notes}
        figures |= readers.left_out(notes)
        figures["notes"] = [*figures.get("notes", []), *(note.sentence for note in notes)]
    return figures
