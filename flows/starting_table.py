"""`vbert init --table`: writes a spec and a recipe for a folder of images and a table of the user's own."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from vbert.data.readers import _tables as tables
from vbert.data.readers.table import SPLITS, VALIDATION
from vbert.errors import UserError
from vbert.regions.detector import TRAINED_HERE, detector_file

LEARNT = ("answer", "label", "caption")
MANY = 200  # rows; of fewer, more are held out


@dataclass(frozen=True)
class LocalTable:
    """The table as readers open it."""

    path: Path

    def open(self, name: str) -> BinaryIO:
        return self.path.open("rb")


def start_table(
    table: Path, images: Path, columns: Mapping[str, str | None], detector: str, weights: str | None, folder: Path
) -> list[Path]:
    """Write NAME.yaml and recipe.yaml into a new or empty `folder`. Returns them.

    columns: the reader's options that name columns. Raises UserError for a column that the table doesn't have, with the
    nearest name, and for what can't be learnt from it.
    """
    given = {option: column for option, column in columns.items() if column is not None}
    if not table.is_file() or not table.name.lower().endswith(tables.ENDINGS):
        raise UserError(f"{table}: no table is there: give a file that ends in {', '.join(tables.ENDINGS)}")
    if not images.exists():
        raise UserError(f"{images}: no such folder of images; give it with --images")
    learnt = [option for option in LEARNT if option in given]
    if len(learnt) != 1:
        raise UserError(f"give one of {', '.join(f'--{option}' for option in LEARNT)}: what is learnt from the table")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists; give another folder with --to")
    name = re.sub("[^a-z0-9]+", "_", table.stem.lower()).strip("_") or "table"
    found = _look(table, given)
    objective, kind = _objective(given, found.labels)
    options = given | ({"kind": kind} if kind else {})
    texts = {
        folder / f"{name}.yaml": _spec(name, table, images, options, found),
        folder / "recipe.yaml": _recipe(name, objective, detector, weights, found),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_text(text)
    return list(texts)


@dataclass(frozen=True)
class Found:
    """What a table holds: rows of each split, and labels."""

    rows: Mapping[str, int]
    labels: frozenset[str]

    @property
    def total(self) -> int:
        return sum(self.rows.values())


def _look(table: Path, given: Mapping[str, str]) -> Found:
    rows, labels = Counter[str](), set[str]()
    for where, row in tables.rows(LocalTable(table), table.name, given):
        word = (row[given["split"]] or "").strip().lower() if "split" in given else "train"
        if word not in SPLITS:
            raise UserError(f"{where}: {given['split']}: {word!r:.80} is no split; valid: {', '.join(SPLITS)}")
        rows[SPLITS[word]] += 1
        if "label" in given and (label := row[given["label"]]) is not None:
            labels.add(label.strip())
    if not rows["train"]:
        raise UserError(f"{table}: no row is in the split train, from which a model would learn")
    return Found(rows, frozenset(labels))


def _objective(given: Mapping[str, str], labels: frozenset[str]) -> tuple[str | None, str | None]:
    """The objective, and the kind of example where it isn't the reader's own choice."""
    if "answer" in given:
        return "vqa", None
    if "caption" in given:
        return None, None
    if "image_2" not in given:
        return "classification", None
    return ("nlvr2", None) if labels <= {"true", "false"} else ("classification", "sentiment")


def _spec(name: str, table: Path, images: Path, options: Mapping[str, str], found: Found) -> str:
    written = "".join(f"    {option}: {_quoted(column)}\n" for option, column in options.items())
    share = 0.1 if found.total >= MANY else 0.25
    held_out = "" if found.rows.get(VALIDATION) else f"\nvalidation: {{of: train, share: {share}}}\n"
    return (
        f"# {found.total:,} rows of {table.name}. Every field: `vbert show --fields datasets`; every option of the\n"
        f"# reader: `help(vbert.data.readers.table)`. Paths are relative to this file.\n"
        f"name: {name}\ntitle: {_quoted(table.name)}\nlicence: private\nsources:\n"
        f"  images: {{path: {_quoted(str(images.resolve()))}}}\n  table: {{path: {_quoted(str(table.resolve()))}}}\n"
        f"images:\n  reader: table\n  options:\n{written}examples:\n  reader: table\n  options:\n{written}{held_out}"
    )


def _recipe(name: str, objective: str | None, detector: str, weights: str | None, found: Found) -> str:
    file = detector_file(detector)
    lines = [
        f"# some minutes on two cores, most of them for regions of the images; a first run of {name}.yaml",
        "data:",
    ]
    lines += [f"  {name}: {{spec: {name}.yaml}}"]
    if weights is not None:
        place = weights if "://" in weights else str(Path(weights).resolve())
        how = f"{{spec: {detector}, weights: {_quoted(place)}}}"
    elif file.weights:
        how = f"{{spec: {detector}}}"
    elif file.backend in TRAINED_HERE:
        lines += ["  shapes: {spec: shapes, images: 400}  # drawn scenes that the detector is trained on"]
        how = f"{{spec: {detector}, train: {{data: shapes, steps: 300, batch_size: 8}}}}"
    else:
        raise UserError(
            f"--detector {detector}: has no published weights; give some with --weights, or another detector"
        )
    lines += [f"detector: {how}", "vocabulary: {size: 2000}", "model: {layers: 2, hidden_size: 128, heads: 2}"]
    lines += ["# to start from a BERT: model: {init: bert_base_uncased}"]
    if objective is None:
        lines += ["pretrain:", f"  data: [{name}]", "  kinds: [caption]", "  steps: 500", "  batch_size: 32"]
        return "\n".join([*lines, "  learning_rate: 1.0e-3", ""])
    splits = [split for split in ("val", "test") if split == "val" or found.rows.get(split)]
    lines += ["downstream:", f"  {objective}:", f"    data: {name}", "    start: none", "    steps: 500"]
    lines += ["    batch_size: 32", "    learning_rate: 1.0e-3", f"    evaluate: {{splits: [{', '.join(splits)}]}}"]
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
