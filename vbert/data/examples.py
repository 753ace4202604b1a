"""Examples: texts and questions about images, with their answers. One row an example, one schema for all data sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vbert.artifacts.steps.artifact import Artifact
from vbert.data.acceptance import objection
from vbert.data.spec import SPLITS
from vbert.errors import BuildError

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["caption", "question", "pair", "phrases", "sentiment", "choice"]
KINDS: tuple[Kind, ...] = get_args(Kind)


class Examples(Artifact):
    """`examples.parquet`, sorted by example_id: texts and questions about images.

    >>> examples = vbert.run("demo").artifact("examples[easy_vqa]", vbert.Examples)
    >>> row = examples.table().to_pylist()[0]
    >>> row["image_ids"], row["text"], row["answers"]
    (['test/...'], '...?', [{'answer': '...', 'score': 1.0}])
    """

    def objection(self) -> str | None:
        """Refuses more unusable boxes of phrases than the data set accepts."""
        return objection(self)

    def table(self) -> pa.Table:
        """All examples, as EXAMPLES_SCHEMA says."""
        from vbert.data.schemas import EXAMPLES_SCHEMA, read_table

        return read_table(self.file("examples.parquet"), EXAMPLES_SCHEMA)


def write_examples(directory: Path, rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """Write `examples.parquet` into `directory`; returns the number of examples of each split.

    Raises BuildError, naming the example, where ids repeat, a split or kind is unknown, or a row doesn't fit.
    """
    from vbert.data.schemas import EXAMPLES_SCHEMA, as_table, first_duplicate, sorted_table, write_table

    try:
        table = sorted_table(as_table(map(_checked, rows), EXAMPLES_SCHEMA), "example_id")
    except ValueError as error:
        raise BuildError(f"examples: {error}; mend the reader or its file") from error
    if (repeated := first_duplicate(table, "example_id")) is not None:
        raise BuildError(f"examples: the id {repeated!r} occurs twice; ids must be unique in a data set")
    write_table(directory / "examples.parquet", table)
    counts = Counter(str(split) for split in table.column("split").to_pylist())
    return {split: counts[split] for split in SPLITS if split in counts}


def _checked(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row, if its values are valid. Raises ValueError, naming the example, otherwise."""
    name, text = row.get("example_id"), row.get("text")
    if row.get("kind") not in KINDS:
        raise ValueError(f"example {name!r}: kind {row.get('kind')!r} is none of {', '.join(KINDS)}")
    if row.get("split") not in SPLITS:
        raise ValueError(f"example {name!r}: split {row.get('split')!r} is none of {', '.join(SPLITS)}")
    if not row.get("image_ids"):
        raise ValueError(f"example {name!r}: no image_ids")
    if row.get("changed") is not None and len(row["changed"]) != len(row.get("negatives") or ()):
        raise ValueError(f"example {name!r}: changed has {len(row['changed'])} entries, one for each of negatives")
    if both := set(row.get("false_of") or ()) & set(row["image_ids"]):
        raise ValueError(f"example {name!r}: false_of names its own image {min(both)!r}")
    for answer in row.get("answers") or ():
        if not 0.0 <= answer["score"] <= 1.0:
            raise ValueError(f"example {name!r}: answer {answer['answer']!r} has the score {answer['score']}, not 0–1")
    if any(len(box) != 4 for box in row.get("boxes") or ()):
        raise ValueError(f"example {name!r}: one of its boxes is not x1, y1, x2, y2")
    _check_phrases(f"example {name!r}", row.get("phrases"), text)
    choices = row.get("choices") or ()
    for at, choice in enumerate(choices):
        if not choice["text"]:
            raise ValueError(f"example {name!r}: choices[{at}] has no text")
        _check_phrases(f"example {name!r}: choices[{at}]", choice.get("phrases"), choice["text"])
    if row["kind"] == "choice":
        numbers = [str(at) for at in range(len(choices))]
        if len(choices) < 2:
            raise ValueError(f"example {name!r}: a choice is among two or more `choices`, not {len(choices)}")
        if row.get("label") is not None and row["label"] not in numbers:
            raise ValueError(
                f"example {name!r}: label {row['label']!r} is the number of none of its choices, 0–{numbers[-1]}"
            )
    return row


def _check_phrases(where: str, phrases: Iterable[Mapping[str, Any]] | None, text: str | None) -> None:
    """Raises ValueError where a phrase is no part of `text`, or a box is none."""
    for phrase in phrases or ():
        if not 0 <= phrase["start"] < phrase["end"] <= len(text or ""):
            raise ValueError(
                f"{where}: phrase {phrase['start']}–{phrase['end']} is outside its text of {len(text or '')}"
            )
        if any(len(box) != 4 for box in phrase["boxes"]):
            raise ValueError(f"{where}: a phrase's box is x1, y1, x2, y2")
        if not all(phrase.get("types") or ["-"]):
            raise ValueError(f"{where}: a type of phrase {phrase['start']}–{phrase['end']} is empty")
