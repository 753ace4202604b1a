"""Scores of NLVR2 and NLVR."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from vbert.errors import UserError
from vbert.metrics import nlvr
from vbert.metrics.means import mean, mean_by, smallest
from vbert.scoring import formats
from vbert.scoring.files import check_ids, lines, pairs, text_of
from vbert.scoring.formats import otherwise
from vbert.scoring.score import Figures, Matched, Missing, Score, match

LABELS = ("true", "false")


@with_config(ConfigDict(strict=True))
class Example(TypedDict):
    identifier: str
    label: str
    sentence: NotRequired[str]


def score_nlvr2(
    annotations: Path,
    predictions: Path,
    subset: Path | None = None,
    categories: Path | None = None,
    missing: Missing = "error",
) -> Score:
    """Accuracy and consistency; accuracy on the examples of `subset`, and by linguistic phenomenon of the sentences in
    `categories` (an example counts as often as its sentence lists the phenomenon, as in the official code).

    Raises UserError for a file that isn't of NLVR2's formats, IdsDiffer for ids that don't agree.
    """
    examples = _examples(annotations, 4, formats.NLVR2_EXAMPLES)
    labels = {row["identifier"]: row["label"] for _, row in examples}
    given = _predictions(predictions, formats.NLVR2_PREDICTIONS)
    check_ids(predictions, formats.NLVR2_PREDICTIONS, labels, [name for name, _ in given])
    matched = match(
        [row["identifier"] for _, row in examples], [name for name, _ in given], missing, annotations, predictions
    )
    each = _each(matched, dict(given), labels)
    figures = _figures(list(each.values()), [nlvr.nlvr2_group(name) for name in each])
    if subset is not None:
        figures["subset"] = _subset(subset, annotations, labels, each)
    if categories is not None:
        phenomena = _categories(categories)
        sentences = {row["identifier"]: row.get("sentence", "") for _, row in examples}
        found = [(each[name], kind) for name in each for kind in phenomena.get(sentences[name], ())]
        if not found:
            otherwise(categories, text_of(categories, formats.NLVR2_CATEGORIES), formats.NLVR2_CATEGORIES)
            raise UserError(f"{categories}: none of its {len(phenomena):,} sentences is one of {annotations}")
        figures["per_category"] = mean_by([value for value, _ in found], [kind for _, kind in found])
    return matched.score(figures)


def score_nlvr(annotations: Path, predictions: Path, missing: Missing = "error") -> Score:
    """Accuracy over all pictures, six an example, and consistency. `scored` and `of` count pictures."""
    examples = _examples(annotations, 2, formats.NLVR_EXAMPLES)
    labels = {name: row["label"] for _, row in examples for name in nlvr.nlvr_pictures(row["identifier"])}
    given = [(nlvr.nlvr_picture(name), value) for name, value in _predictions(predictions, formats.NLVR_PREDICTIONS)]
    check_ids(predictions, formats.NLVR_PREDICTIONS, labels, [name for name, _ in given])
    pictures = [name for _, row in examples for name in nlvr.nlvr_pictures(row["identifier"])]
    matched = match(pictures, [name for name, _ in given], missing, annotations, predictions)
    each = _each(matched, dict(given), labels)
    return matched.score(_figures(list(each.values()), [nlvr.nlvr_group(name.rpartition("-")[0]) for name in each]))


def _each(matched: Matched, given: dict[str, str], labels: dict[str, str]) -> dict[str, float]:
    return {name: nlvr.right(given[name], labels[name]) if name in given else 0.0 for name in matched.scored}


def _figures(each: Sequence[float], groups: Sequence[str]) -> Figures:
    return {"accuracy": mean(each), "consistency": mean(list(smallest(each, groups).values()))}


def _examples(path: Path, parts: int, wanted: formats.Format) -> list[tuple[str, Example]]:
    """`parts`: of an identifier, joined by `-`."""
    rows = lines(path, Example, wanted)
    for where, row in rows:
        if len(row["identifier"].split("-")) != parts:
            otherwise(path, text_of(path, wanted), wanted)
            raise UserError(f"{where}: identifier: must be {parts} parts joined by `-`, not {row['identifier']!r:.80}")
        _check_label(row["label"], f"{where}: label")
    return rows


def _predictions(path: Path, wanted: formats.Format) -> list[tuple[str, str]]:
    rows = pairs(path, wanted)
    for where, name, value in rows:
        if value.lower() not in LABELS:
            otherwise(path, text_of(path, wanted), wanted)
        _check_label(value, f"{where}: prediction of {name!r:.80}")
    return [(name, value) for _, name, value in rows]


def _check_label(label: str, where: str) -> None:
    if label.lower() not in LABELS:
        raise UserError(f"{where}: must be True or False, not {label!r:.80}")


def _subset(path: Path, annotations: Path, labels: dict[str, str], each: dict[str, float]) -> float:
    rows = _examples(path, 4, formats.NLVR2_EXAMPLES)
    names = [row["identifier"] for _, row in rows]
    match(labels, names, "skip", annotations, path)
    for where, row in rows:
        if not nlvr.right(row["label"], labels[row["identifier"]]):
            raise UserError(f"{where}: label: is {row['label']}, in {annotations} it is the other")
    counted = [each[name] for name in names if name in each]
    if not counted:
        raise UserError(f"{path}: none of its {len(names):,} examples has a prediction")
    return mean(counted)


def _categories(path: Path) -> dict[str, list[str]]:
    """Sentence → its phenomena, from blocks of a sentence and lines `* phenomenon`, parted by empty lines; of equal
    sentences the last block counts."""
    wanted = formats.NLVR2_CATEGORIES
    text = text_of(path, wanted)
    found: dict[str, list[str]] = {}
    sentence = None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.rstrip("\r")
        if not line.strip():
            sentence = None
        elif sentence is None:
            sentence = line
            found[sentence] = []
        elif line.startswith("* "):
            found[sentence].append(line[2:])
        else:
            otherwise(path, text, wanted)
            raise UserError(f"{path}:{number}: must be `* phenomenon` or an empty line, not {line!r:.80}")
    return found
