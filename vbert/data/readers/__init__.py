"""Readers: one module a format, turning a data set's own files into the tables of `images.py` and `examples.py`.

A reader is a module of this package with (see `Reader`):

    VERSION = 1     raised by hand when the reader starts to make other rows
    OWN = (".xml",) endings of the files it reads beside images; others are counted. Left out: all files are its own

    def images(raws, **options) -> Iterable[ImageRow | ReaderNote]
    def boxes(raws, **options) -> Iterable[BoxRow]                 only where the collection has boxes
    def examples(raws, image_ids, **options) -> Iterable[dict | ReaderNote]  keys: columns of EXAMPLES_SCHEMA;
                                                                         only where the format has texts

A reader reads a file as its format defines it, or raises a UserError with file, line and field, and no other exception.
It reports every row that it leaves out (`ReaderNote`, `left_out` of a box) and makes up no number.

`raws` are the artifacts of the spec's sources by name ("generated" for a generator's); `options` stand in the spec.
Order doesn't matter: tables are sorted. Import heavy libraries inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, TypedDict, cast

from vbert.artifacts.steps.settings import Plugin
from vbert.errors import UserError, nearest

if TYPE_CHECKING:
    from vbert.data.boxes import StatedSize
    from vbert.data.raw import RawFiles


@dataclass(frozen=True)
class ReaderNote:
    """A reader's remark beside its rows: a figure of the index, and a sentence."""

    figure: str
    count: int
    sentence: str
    left_out: bool = False  # whether it counts rows that were left out


class ImageRow(TypedDict):
    """One image: where its bytes are. The stage `images` adds sha256, width and height."""

    image_id: str  # unique in the collection
    path: str  # member of the RawFiles
    source: NotRequired[str]  # the source whose raw files hold it; may be left out where there is only one
    split: NotRequired[str | None]  # the official split, if the collection has one
    cluster: NotRequired[str]  # images of one cluster are held out together, and kept together by a limit


# x2 and y2 exclusive, in the pixels of `stated`, else of the image as shown; `boxes.BoxConverter` makes rows of
# `boxes.parquet` of them. `class` is a keyword, so this type is written as a call.
BoxRow = TypedDict(
    "BoxRow",
    {
        "image_id": str,
        "x1": float,
        "y1": float,
        "x2": float,
        "y2": float,
        "class": str,
        "attributes": Sequence[str],
        "where": NotRequired[str],  # its place in the file, for errors
        "stated": NotRequired["StatedSize"],  # the size of its photo in the file
        "left_out": NotRequired[str],  # the reason for leaving it out, in a word, by which it is counted
    },
)


class Reader(Protocol):
    """The interface of a reader module; see this module's docstring."""

    __name__: str
    VERSION: int
    images: Callable[..., Iterable[ImageRow | ReaderNote]]
    examples: Callable[..., Iterable[dict[str, Any]]]


def names() -> list[str]:
    """All readers, by the names of their modules."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))


def load(name: str) -> Reader:
    """The module of the reader `name`; UserError where there is none."""
    if name not in names():
        raise UserError(f"no reader {name!r}; {nearest(name, names())}")
    return cast(Reader, import_module(f"{__name__}.{name}"))


def reader(name: str) -> Plugin:
    """Name and version of a reader, as they enter fingerprints."""
    return Plugin(name=name, version=load(name).VERSION)


def of(plugin: Plugin) -> Reader:
    """The module of `plugin`; UserError where this checkout has another version of it."""
    module = load(plugin.name)
    if plugin.version != module.VERSION:
        raise UserError(
            f"reader {plugin.name!r}: the step wants version {plugin.version}, this checkout has {module.VERSION}; "
            f"check out the commit it was made with"
        )
    return module


def call(reader: Reader, part: str, *given: Any, options: Mapping[str, Any]) -> Any:
    """`reader.<part>(*given, **options)`; UserError for an option that it doesn't know."""
    function = getattr(reader, part, None)
    if function is None:
        raise UserError(f"reader {reader.__name__.rpartition('.')[2]!r} reads no {part}; choose another one for them")
    valid = list(signature(function).parameters)[len(given) :]
    for option in options:
        if option not in valid:
            name = reader.__name__.rpartition(".")[2]
            raise UserError(f"reader {name!r} has no option {option!r} for {part}; {nearest(option, valid)}")
    return function(*given, **options)


def left_out(notes: Iterable[ReaderNote]) -> dict[str, int]:
    """The figure `left_out`: how many rows readers left out; nothing where there are none."""
    count = sum(note.count for note in notes if note.left_out)
    return {"left_out": count} if count else {}


def only(raws: Mapping[str, RawFiles], wanted: str) -> RawFiles:
    """The raw files of a reader that takes one source only; `wanted`: their expected content, for the error."""
    if len(raws) != 1:
        raise UserError(f"the reader wants one source ({wanted}), the spec gives {', '.join(raws) or 'none'}")
    return next(iter(raws.values()))
