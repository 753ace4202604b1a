"""`vbert init` on a terminal: a few questions, until it is known what to begin."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.recipe import recipe_names
from flows.starting_table import LEARNT, LocalTable
from vbert.data.names import is_image
from vbert.data.readers import _tables as tables
from vbert.errors import UserError, nearest

DOWNLOADED = "torchvision_fasterrcnn_mobilenet_v3_large_fpn"
TRAINED = "shapes_cnn"
SPLIT = "split"
NONE = "none"
MEANINGS = {
    "answer": "the answer to a question about the image",
    "label": "one of a few classes of image and text",
    "caption": "a sentence that is true of the image",
}


@dataclass(frozen=True)
class Beginning:
    """What to begin: a shipped recipe, an example data set (neither), or a table with its images.

    columns: option of the reader of tables → column.
    """

    to: Path
    recipe: str | None = None
    table: Path | None = None
    images: Path | None = None
    columns: Mapping[str, str] | None = None
    detector: str = DOWNLOADED


def ask(read: Callable[[str], str] = input, say: Callable[[str], None] = print) -> Beginning:
    """Asks until all is known; what can't be is said, and asked again. Raises UserError where the input ends."""

    def question(text: str, default: str = "", fits: Callable[[str], object] = bool) -> str:
        while True:
            try:
                answer = read(f"{text}{f' [{default}]' if default else ''}: ").strip() or default
            except EOFError:
                raise UserError("the questions were not answered: nothing is written") from None
            try:
                if fits(answer):
                    return answer
                say("  an answer is needed")
            except UserError as error:
                say(f"  {error}")

    def one_of(text: str, choices: Sequence[str], default: str) -> str:
        def fits(answer: str) -> bool:
            if answer not in choices:
                raise UserError(f"{answer!r:.80} is none of them; {nearest(answer, choices)}")
            return True

        return question(f"{text} ({', '.join(choices)})", default, fits)

    say("What do you begin with?")
    say("  1  a table of mine (CSV, TSV or JSON lines), one row an image and its text")
    say("  2  an example data set: five questions about four images, to be replaced by mine")
    say("  3  a recipe that is shipped, to be changed")
    kind = one_of("Number", ("1", "2", "3"), "1")
    if kind == "2":
        return Beginning(Path(question("Folder to write", "my_data", _absent)).expanduser())
    if kind == "3":
        name = one_of("Recipe", recipe_names(), "demo")
        return Beginning(Path(question("File to write", f"{name}.yaml", _absent)).expanduser(), recipe=name)
    table = Path(question("The table", fits=_is_table)).expanduser()
    images = Path(question("The folder of its images", "images", _has_images)).expanduser()
    columns = tables.columns_of(LocalTable(table), table.name)
    say(f"  columns: {', '.join(columns)}")
    chosen = {"image": one_of("Which one names the image?", columns, _likely(columns, "image", "file", "filename"))}
    say("What shall be learnt?")
    for option in LEARNT:
        say(f"  {option:<8} {MEANINGS[option]}")
    learnt = one_of("It is a", LEARNT, next((option for option in LEARNT if option in columns), "label"))
    chosen[learnt] = one_of(f"Which column has the {learnt}?", columns, _likely(columns, learnt))
    left = [column for column in columns if column not in chosen.values()]
    if learnt != "caption" and left:
        known = left if learnt == "answer" else [*left, NONE]
        text = one_of("Which column has the text?", known, _likely(known, "text", "question", "tweet", NONE))
        chosen |= {} if text == NONE else {"text": text}
        left = [column for column in left if column != text]
    if left:
        split = one_of("Which one says train, val or test?", [*left, NONE], SPLIT if SPLIT in left else NONE)
        chosen |= {} if split == NONE else {"split": split}
    say("Whose regions of the images are taken?")
    say(f"  {DOWNLOADED}: its weights are fetched (74 MB); for photos")
    say(f"  {TRAINED}: trained here on drawn scenes, without network; to try things out")
    detector = one_of("Detector", (DOWNLOADED, TRAINED), DOWNLOADED)
    to = Path(question("Folder to write", "my_table", _absent)).expanduser()
    return Beginning(to, table=table, images=images, columns=chosen, detector=detector)


def _absent(answer: str) -> bool:
    path = Path(answer).expanduser()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists; give another name")
    return bool(answer)


def _is_table(answer: str) -> bool:
    path = Path(answer).expanduser()
    if answer and not (path.is_file() and path.name.lower().endswith(tables.ENDINGS)):
        raise UserError(f"{path}: no table is there: give a file that ends in {', '.join(tables.ENDINGS)}")
    return bool(answer) and bool(tables.columns_of(LocalTable(path), path.name))


def _has_images(answer: str) -> bool:
    path = Path(answer).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder")
    if not any(is_image(file.name) for file in path.rglob("*")):
        raise UserError(f"{path}: holds no image")
    return True


def _likely(columns: Sequence[str], *words: str) -> str:
    return next((word for word in words if word in columns), columns[0])
