"""`vbert datasets` and `vbert init`: data sets with a spec, shipped recipes, and beginnings of the user's own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.options import JsonOption, StoreOption, store_at
from vbert.errors import UserError, nearest

WITHOUT = """say what to begin (on a terminal `vbert init` asks):
  vbert init RECIPE                           a copy of a shipped recipe; --list lists them
  vbert init --data                           an example data set, to be replaced by yours
  vbert init --table FILE --images FOLDER     a table of yours, and one of
       --answer | --label | --caption COLUMN  what is learnt from it
       --image, --image-2, --text, --split, --id COLUMN, --detector NAME, --weights FILE
  --to PATH                                   the file or folder to write"""


def datasets(
    name: str | None = None,
    /,
    *,
    check: Annotated[bool, Parameter(negative=())] = False,
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """The data sets that have a spec: size, licence, downstream tasks, whether present.

    Example: `vbert datasets`, or `vbert datasets easy_vqa --check`

    Parameters
    ----------
    name
        of one data set, or a .yaml file; else all.
    check
        ask every source whether it still answers with a file of the spec's size; exit code 1 where one doesn't.
    """
    from flows.listing import asked_sources, dataset_rows, print_answers, print_datasets

    if check:
        answers = asked_sources(name)
        if json_:
            print(json.dumps({"sources": [vars(answer) for answer in answers]}))
        else:
            print_answers(answers)
        if any(answer.fault for answer in answers):
            raise SystemExit(1)
        return
    if name is not None:
        raise UserError(
            f"{name}: a name belongs to --check (`vbert datasets {name} --check`); without it all are listed"
        )
    rows = dataset_rows(store_at(store))
    if json_:
        print(json.dumps({"datasets": rows}))
    else:
        print_datasets(rows)


def init(
    recipe: str | None = None,
    /,
    *,
    list_: Annotated[bool, Parameter(name="--list", negative=())] = False,
    data: Annotated[bool, Parameter(negative=())] = False,
    table: Path | None = None,
    images: Path | None = None,
    image: str = "image",
    image_2: str | None = None,
    text: str | None = None,
    answer: str | None = None,
    label: str | None = None,
    caption: str | None = None,
    split: str | None = None,
    id_: Annotated[str | None, Parameter(name="--id")] = None,
    detector: str = "torchvision_fasterrcnn_mobilenet_v3_large_fpn",
    weights: str | None = None,
    to: Path | None = None,
) -> None:
    """Copy a shipped recipe here, to be changed; or begin a data set of your own. On a terminal, without any of these,
    it asks.

    Example: `vbert init demo`, or `vbert init --data`, or
    `vbert init --table data.csv --images photos --label sentiment`

    Parameters
    ----------
    recipe
        a shipped recipe's name.
    list_
        list the shipped recipes.
    data
        write a folder with a spec, five examples, their images and a recipe that runs.
    table
        a CSV, TSV or JSON-lines file with a row an example: write a spec and a recipe for it, into a folder.
    images
        the folder of its images.
    image
        its column of images' names.
    image_2
        its column of second images.
    text
        its column of texts; else `text`, where there is one.
    answer
        its column of answers to the texts, which are to be learnt.
    label
        its column of labels, which are to be learnt.
    caption
        its column of captions, which are to be learnt.
    split
        its column of train, val and test.
    id_
        its column of names by which predictions tell the rows.
    detector
        whose regions are taken; one without published weights is trained on drawn scenes.
    weights
        the detector's weights, a file, folder or URL.
    to
        the file (or with --data the folder, else my_data; with --table the folder, else my_table) to write.
    """
    from flows.recipe import RECIPES, recipe_names

    columns = {"image": image, "image_2": image_2, "text": text, "answer": answer, "label": label}
    columns |= {"caption": caption, "split": split, "id": id_}
    if list_:
        width = max(map(len, recipe_names()))
        for name in recipe_names():
            first = (RECIPES / f"{name}.yaml").read_text().splitlines()[0].lstrip("# ")
            print(f"{name:<{width}}  {first}")
        return
    if recipe is None and table is None and not data:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise UserError(WITHOUT)
        from flows.asking import ask

        begun = ask()
        recipe, table, images, to = begun.recipe, begun.table, begun.images, begun.to
        detector, data = begun.detector, begun.recipe is None and begun.table is None
        columns = {**(begun.columns or {})}
    if table is not None:
        from flows.starting_table import start_table

        if recipe is not None or data:
            raise UserError("--table writes a recipe of its own: leave the name and --data out")
        if images is None:
            raise UserError("--table needs the folder of its images: --images FOLDER")
        written = start_table(table, images, columns, detector, weights, to or Path("my_table"))
    elif data:
        from flows.starting import start_data

        if recipe is not None:
            raise UserError(f"--data writes no recipe {recipe!r}: leave one of them out")
        written = start_data(to or Path("my_data"))
    else:
        target = _copied(recipe or "", to)
        print(f"{target}: change it, then `vbert run {target}`")
        return
    for path in written:
        print(path)
    print(f"next: `vbert run {written[-1]}`")


def _copied(recipe: str, to: Path | None) -> Path:
    from flows.recipe import RECIPES, recipe_names

    if recipe not in recipe_names():
        raise UserError(f"no recipe {recipe!r}; {nearest(recipe, recipe_names())}")
    target = to or Path(f"{recipe}.yaml")
    try:
        with open(target, "xb") as out:
            out.write((RECIPES / f"{recipe}.yaml").read_bytes())
    except FileExistsError:
        raise UserError(f"{target} exists; give another name with --to") from None
    return target
