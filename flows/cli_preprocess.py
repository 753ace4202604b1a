"""`vbert preprocess`: region features of a plain folder of images, with no spec and no recipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flows.options import JsonOption, MachineOption, Set, SharedOption, StoreOption
from vbert.errors import BuildError, UserError

if TYPE_CHECKING:
    from flows.recipe import Recipe


def preprocess(
    folder: Path,
    /,
    *,
    detector: str,
    out: Path,
    weights: str | None = None,
    boxes: int | None = None,
    changes: Set = [],  # noqa: B006  cyclopts reads the default
    store: StoreOption = None,
    shared: SharedOption = False,
    machine: MachineOption = [],  # noqa: B006
    local: Annotated[bool, Parameter(negative=())] = False,
    strict: Annotated[bool, Parameter(negative=())] = False,
    json_: JsonOption = False,
) -> None:
    """Region features of a folder of images (subfolders too), as WebDataset shards in a directory.

    Run again after images were added, changed or removed, only those are extracted; killed and run again, it goes on.

    Example: `vbert preprocess ~/photos --detector torchvision_fasterrcnn_resnet50_fpn --out features`

    Parameters
    ----------
    folder
        the images: .jpg, .png and the like, in subfolders too.
    detector
        a name in data_specs/detectors, or a .yaml file of your own.
    out
        where the shards, their index, the quarantine and the contract are put, linked from the store where possible.
    weights
        a file or URL, in place of the detector's published weights.
    boxes
        the number of best boxes of an image, in place of the detector's own rule.
    local
        build in this process, without Prefect.
    strict
        end with exit code 1 where an image can't be used; the features of the others are there all the same.
    """
    from flows.recipe import machine_of, parse_changes
    from flows.running import RecipeRun
    from vbert.artifacts.store.store import Store, default_root
    from vbert.artifacts.upkeep.export import hand_out
    from vbert.regions.shards import INDEX, foreign_files

    if others := foreign_files(out):
        raise UserError(f"{out} holds other files than shards ({others[0]}); give an empty or new directory with --out")
    recipe = folder_recipe(folder, detector, weights, boxes, changes)
    running = RecipeRun(recipe, Store(store or default_root()), machine_of(recipe, machine), ["regions"])
    if shared:
        running.store.share()
    given = {"detector": detector, "weights": weights, "boxes": boxes}
    overrides = {name: value for name, value in given.items() if value is not None} | parse_changes(changes, "--set")
    running.run("local" if local else "auto", str(folder.absolute()), overrides)
    (target,) = running.targets
    shards = target.bound(running.store)
    hand_out(shards, out, kept=INDEX)
    counts = summary(shards.figures, shards.seconds, out)
    if json_:
        print(json.dumps(counts), flush=True)
    else:
        print(out)
    if bad := counts["quarantined"]:
        problem = f"{bad:,} of {counts['images'] + bad:,} images can't be used; {out / 'quarantine.parquet'} says why"
        if strict:
            raise BuildError(problem)
        print(problem, file=sys.stderr)


def folder_recipe(
    folder: Path, detector: str, weights: str | None = None, boxes: int | None = None, changes: list[str] | None = None
) -> Recipe:
    """The recipe that extracts a plain folder. Raises UserError for a wrong name or value."""
    from flows.recipe import Recipe, parse_changes
    from vbert.data.yaml import load_yaml

    fields: dict[str, Any] = {
        "name": f"preprocess-{folder.resolve().name or 'root'}",
        "data": {"photos": {"folder": str(folder)}},
        "detector": {"spec": detector} | ({"weights": weights} if weights else {}),
        # A folder may hold broken images: they are counted, not refused.
        "regions": {"quarantine": 1.0} | ({"boxes": {"rule": "fixed", "count": boxes}} if boxes is not None else {}),
    }
    return load_yaml(json.dumps(fields), "vbert preprocess", Recipe, parse_changes(changes or [], "--set"))


def summary(figures: dict[str, Any], seconds: float, out: Path) -> dict[str, Any]:
    """The last line with `--json`. images_per_second: of the extraction when it was made."""
    counts = {name: figures[name] for name in ("images", "regions", "quarantined", "shards")}
    rate = (figures["images"] + figures["quarantined"]) / seconds if seconds else 0.0
    return {**counts, "images_per_second": round(rate, 2), "out": str(out)}
