"""Options that several commands share, and their values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from vbert.artifacts.store.store import Store, default_root

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from vbert.artifacts.steps.artifact import Artifact

Set = Annotated[list[str], Parameter(name="--set", negative=(), help="change a field: pretrain.steps=600")]
MachineOption = Annotated[list[str], Parameter(name="--machine", negative=(), help="units_at_once=4 and the like")]
StoreOption = Annotated[str | None, Parameter(name="--store", help="the store; else $VBERT_STORE, else ./store")]
SharedOption = Annotated[
    bool, Parameter(name="--shared", negative=(), help="let the group of the store's directory build in it too")
]
JsonOption = Annotated[bool, Parameter(name="--json", negative=(), help="one JSON object as the last line of output")]
DtypeOption = Annotated[
    Literal["float16", "float32", "float64"] | None,
    Parameter(help="of the features, in tables that don't say it; float32 otherwise"),
]

# Of the features that `vbert features` reads.
FormatOption = Annotated[str | None, Parameter(help="how to read the features, where their format isn't recognised")]
IdsOption = Annotated[
    str | None,
    Parameter(help=r"regular expression; its first group in the file's name of an image is its id: `COCO_\w+_0*(\d+)`"),
]
BoxesInOption = Annotated[
    str | None,
    Parameter(
        help="unit of the boxes: original (pixels of the image), recorded (pixels of the size in the file), "
        "resized:SHORT or resized:SHORT,LONG, normalised, or none (leave boxes out); by default the format's"
    ),
]
ImagesOption = Annotated[Path | None, Parameter(help="folder of the images, for their sizes, and to draw on")]
SizesOption = Annotated[
    Path | None,
    Parameter(help="table of image_id, width, height (.csv .tsv .parquet, or COCO's .json), instead of the images"),
]


def store_at(root: str | None) -> Store:
    return Store(root or default_root())


def changes_of(changes: list[str], limit: int | None = None) -> dict[str, Any]:
    from flows.recipe import parse_changes

    return parse_changes(changes, "--set") | ({} if limit is None else {"limit": limit})


def recipe_of(name: str, changes: list[str]) -> Recipe:
    from flows.recipe import resolve

    return resolve(name, changes_of(changes))


def graph_of(recipe: Recipe) -> Artifact:
    from flows.graph import graph

    return graph(recipe)
