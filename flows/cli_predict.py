"""`vbert predict`: a trained model's answers, to one question or to a table of them."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.options import JsonOption, MachineOption, SharedOption, StoreOption
from vbert.errors import BuildError, UserError, nearest

if TYPE_CHECKING:
    from vbert.inference.visualbert import VisualBert


def predict(
    model: str,
    /,
    *,
    image: Path | None = None,
    image_2: Path | None = None,
    question: str | None = None,
    text: str | None = None,
    text_b: str | None = None,
    statement: str | None = None,
    phrase: str | None = None,
    choices: Annotated[list[str], Parameter(name="--choice", negative=())] = [],  # noqa: B006  cyclopts reads it
    ask: str | None = None,
    top: Annotated[int, Parameter(validator=Number(gte=1))] = 5,
    table: Path | None = None,
    images: Path | None = None,
    columns: Annotated[list[str], Parameter(name="--column", negative=())] = [],  # noqa: B006
    out: Path | None = None,
    strict: Annotated[bool, Parameter(negative=())] = False,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    store: StoreOption = None,
    shared: SharedOption = False,
    machine: MachineOption = [],  # noqa: B006
    json_: JsonOption = False,
) -> None:
    """Ask a trained model about an image, or about every row of a table.

    What may be asked hangs on what the model was trained for; without a question, it is told. A table is answered in
    units that are kept: killed and run again, it goes on, and ends in the same bytes. A row that can't be asked (no
    such image, a broken one, an empty question) is kept, with the reason.

    Example: `vbert predict exported/vqa --image cat.jpg --question "What colour is the cat?"`

    Example: `vbert predict exported/vqa --table rows.csv --images photos --out predictions.parquet`

    Parameters
    ----------
    model
        an exported folder, the path of an artifact (`vbert path RECIPE 'finetune[ENTRY]'`), or a name in
        data_specs/models.
    image
        the image.
    image_2
        the second image of a statement about two.
    question
        of models for question answering, and for choices.
    text
        of models of classes, grounding, matching.
    text_b
        the second text of an entailment.
    statement
        of models for statements that are true or false.
    phrase
        of a model for grounding: the part of the text that is looked for; else the whole text.
    choices
        of a model for choices; given again for each.
    ask
        what is asked, where a model can several things: match or fill.
    top
        the number of answers that are printed.
    table
        a .csv, .tsv, .jsonl or .parquet file with the columns image, question, and so on, as the options above.
    images
        the folder that the table's images are in; all images in it are looked at, once.
    columns
        `question=frage`: the table's column that holds the question.
    out
        the file of the predictions: .parquet, .csv or .jsonl.
    strict
        end with exit code 1 where a row can't be asked; the predictions of the others are there all the same.
    device
        where the model runs on one image; --machine device=cpu says it for tables.
    """
    if table is None:
        for given, name in ((images, "--images"), (out, "--out"), (columns, "--column")):
            if given:
                raise UserError(f"{name} is for a table: give one with --table, or one image with --image")
        cells = {
            "image": image,
            "image_2": image_2,
            "question": question,
            "text": text,
            "text_b": text_b,
            "statement": statement,
            "phrase": phrase,
            "choices": choices or None,
        }
        _one(model, {name: value for name, value in cells.items() if value is not None}, ask, top, device, store, json_)
        return
    if images is None or out is None:
        raise UserError(
            "--table needs the folder of its images and a file for the predictions: --images DIR --out FILE"
        )
    if image is not None:
        raise UserError("give either one image with --image, or a table with --table")
    _table(model, table, images, columns, out, ask, store, shared, machine, strict, json_)


def _one(
    where: str, given: dict[str, Any], ask: str | None, top: int, device: str, store: str | None, as_json: bool
) -> None:

    asked = loaded(where, device, store)
    verb = what_to_ask(asked, ask, given)
    check_cells(asked, verb, given)
    found = answered(asked, verb, given, top)
    if as_json:
        print(json.dumps({"asked": verb, "model": asked.title, "found": _plain(found)}, ensure_ascii=False))
        return
    for line in lines(found):
        print(line)


def check_cells(model: VisualBert, verb: str, given: dict[str, Any]) -> None:
    """Raises UserError where an option that is needed lacks, or one is given that isn't read."""
    from vbert.inference.table import QUESTIONS

    fields = QUESTIONS[verb]
    known = (*fields.needed, *fields.optional)
    if missing := [name for name in fields.needed if name not in given]:
        options = " ".join(f"--{_option(name)} …" for name in fields.needed)
        raise UserError(f"{model.title} is asked to `{verb}`: give --{_option(missing[0])}, as in {options}")
    if other := [name for name in given if name not in known]:
        raise UserError(f"--{_option(other[0])}: `{verb}` doesn't read it; {nearest(other[0], known)}")


def loaded(where: str, device: str, store: str | None) -> VisualBert:
    """The model, by its path or name."""
    from flows.models import VisualBert

    return VisualBert.load(where, device=device, store=store)


def what_to_ask(model: VisualBert, ask: str | None, given: dict[str, Any]) -> str:
    """The method that a question is put to. Raises UserError where the model can't."""
    from vbert.inference.table import QUESTIONS

    can = [name for name in model.can if name in QUESTIONS]
    if ask is not None and ask not in can:
        raise UserError(f"--ask {ask}: {model.title} can {', '.join(can) or 'only encode'}; {nearest(ask, can)}")
    if not can:
        raise UserError(f"{model.title}: nothing that a command prints; it can {', '.join(model.can)}, in Python")
    if ask is None and "fill" in can and "[MASK]" in str(given.get("text")):
        return "fill"
    return ask or can[0]


def answered(model: VisualBert, verb: str, given: dict[str, Any], top: int) -> Any:
    """What the model says to one question."""
    image = given["image"]
    if verb == "true":
        return model.true(image, given.get("image_2"), given["statement"])
    if verb == "choose":
        return model.choose(image, given["question"], given["choices"])
    if verb == "caption":
        return model.caption(image)
    if verb == "ground":
        return model.ground(image, given["text"], given.get("phrase"))[:top]
    if verb == "classify":
        return model.classify(image, given["text"], given.get("text_b"))
    if verb == "match":
        return model.match(image, given["text"])
    if verb == "fill":
        return model.fill(image, given["text"], top=top)
    return model.answer(image, given["question"], top=top)


def lines(found: Any) -> list[str]:
    """A line an answer, its probability first."""
    if isinstance(found, list) and found and isinstance(found[0], list):
        return [line for each in found for line in (*lines(each), "")][:-1]
    several = found if isinstance(found, list) else [found]
    return [f"{one.score:.4f}  {_words(one)}".rstrip() for one in several]


def _words(one: Any) -> str:
    from vbert.inference.results import GroundedRegion, Match, Verdict

    if isinstance(one, Verdict):
        return "true" if one.true else "false"
    if isinstance(one, Match):
        return f"match (logit {one.logit:+.3f})"
    if isinstance(one, GroundedRegion):
        return f"{one.name}  {', '.join(f'{value:.0f}' for value in one.box)}".strip()
    return str(one.text)


def _plain(found: Any) -> Any:
    if isinstance(found, list):
        return [_plain(one) for one in found]
    return asdict(found) if is_dataclass(found) and not isinstance(found, type) else found


def _option(name: str) -> str:
    return {"image_2": "image-2", "text_b": "text-b", "choices": "choice"}.get(name, name)


def _table(
    where: str,
    table: Path,
    images: Path,
    columns: list[str],
    out: Path,
    ask: str | None,
    store: str | None,
    shared: bool,
    machine: list[str],
    strict: bool,
    as_json: bool,
) -> None:
    from flows.predictions import check_out, hand_out, predictions_of
    from flows.recipe import machine_from
    from flows.runs import record_run, run_id
    from flows.terminal import Terminal
    from vbert.artifacts.making.engine import Engine

    pairs = [_column(one) for one in columns]
    check_out(out, table)
    at, rows, target = predictions_of(where, table, images, pairs, ask, store)
    if shared:
        at.share()
    with (
        Terminal() as terminal,
        record_run(at, run_id("predict"), f"predict {table.name} {target.fingerprint[:8]}", [target]),
    ):
        engine = Engine(at, machine_from(machine), terminal)
        engine.ensure_all([rows])  # before the images: a table that can't be read is told at once
        engine.ensure_all([target])
    made = target.bound(at)
    hand_out(made.file("predictions.parquet"), out)
    figures = {name: value for name, value in made.figures.items() if name in ("rows", "answered")}
    reasons = {n.removeprefix("reason/"): v for n, v in made.figures.items() if n.startswith("reason/")}
    rate = round(figures["rows"] / made.seconds, 1) if made.seconds else None
    if as_json:
        print(json.dumps({**figures, "reasons": reasons, "rows_per_second": rate, "out": str(out)}), flush=True)
    else:
        print(out)
    if reasons:
        told = ", ".join(f"{count:,} for their {name}" for name, count in reasons.items())
        if not figures["answered"]:
            (reason, count), *_ = made.reasons().most_common()
            raise BuildError(
                f"none of {figures['rows']:,} rows can be asked, {count:,} for this reason: {reason}; {out} has all"
            )
        left = figures["rows"] - figures["answered"]
        problem = f"{left:,} of {figures['rows']:,} rows can't be asked: {told}; the column `reason` says why"
        if strict:
            raise BuildError(problem)
        print(problem, file=sys.stderr)


def _column(pair: str) -> tuple[str, str]:
    cell, equals, column = pair.partition("=")
    if not equals or not cell.strip() or not column.strip():
        raise UserError(f"--column {pair!r:.80}: write it as CELL=COLUMN, for example --column question=frage")
    return cell.strip(), column.strip()
