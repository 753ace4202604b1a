"""`vbert features`: import, export, inspect, show and compare region features."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from flows.cli_import import import_features, say
from flows.options import (
    BoxesInOption,
    DtypeOption,
    FormatOption,
    IdsOption,
    ImagesOption,
    JsonOption,
    SharedOption,
    SizesOption,
    StoreOption,
)
from flows.terminal import counted
from vbert.artifacts.making.engine import Engine
from vbert.artifacts.store.store import Store, default_root
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.regions.interop.sizes import ImageSizes

app = App(name="features", help="Region features: import, export, inspect, show, compare.")

app.command(import_features, name="import")


@app.command
def export(
    source: Path,
    /,
    *,
    to: str,
    out: Path,
    format: FormatOption = None,
    ids: IdsOption = None,
    boxes_in: BoxesInOption = None,
    dtype: DtypeOption = None,
    images: ImagesOption = None,
    sizes: SizesOption = None,
    json_: JsonOption = False,
) -> None:
    """Write features as another system reads them: lxmert_tsv, npy (with MMF's _info.npy) or arrow (load_from_disk).

    Example: `vbert features export $(vbert path demo regions[shapes]) --to arrow --out shapes_arrow`

    Parameters
    ----------
    source
        a folder of shards, or a file of any format that can be imported.
    to
        the format to write.
    out
        the file (lxmert_tsv) or folder to make.
    """
    from vbert.regions.interop.exporting import export as write
    from vbert.regions.interop.feature_sets import opened

    with (
        opened(source, format, ids, _boxes_in(boxes_in), _sizes(images, sizes), dtype) as features,
        counted("export") as show,
    ):
        made = write(features, to, out, show)
    for column in made["zeros"]:
        say(f"{column}: 0 everywhere some regions have none: the features don't come with it")
    if made["unreadable"]:
        say(f"{made['unreadable']} images can't be read and are left out; the first: {made['first_unreadable']}")
    print(json.dumps({**made, "format": to, "out": str(out)}) if json_ else out)


@app.command
def inspect(
    path: Path,
    /,
    *,
    format: FormatOption = None,
    ids: IdsOption = None,
    boxes_in: BoxesInOption = None,
    dtype: DtypeOption = None,
    images: ImagesOption = None,
    sizes: SizesOption = None,
    count: int = 3,
    boxes: int = 5,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    json_: JsonOption = False,
) -> None:
    """Facts about features: contract, counts, a few boxes; with --images and -o, those boxes drawn on their images.

    Example: `vbert features inspect features/train --images photos -o boxes.png`

    Parameters
    ----------
    path
        a folder of shards, or a file of any format that can be imported.
    count
        the number of images shown.
    boxes
        the number of boxes of each.
    out
        picture to draw, .png or .jpg.
    """
    from vbert.regions.interop.feature_sets import opened
    from vbert.regions.interop.inspecting import draw
    from vbert.regions.interop.inspecting import inspect as look

    if out is not None and images is None:
        raise UserError("-o draws boxes on images: give their folder with --images")
    with opened(path, format, ids, _boxes_in(boxes_in), _sizes(images, sizes), dtype) as features:
        if out is not None and images is not None:
            for sentence in draw(features, images, out, count, boxes)[:3]:
                say(f"not drawn: {sentence}")
        with counted("inspect") as show:
            facts = look(features, count, boxes, show)
    if out is not None:
        facts["picture"] = str(out)
    if json_:
        print(json.dumps(facts))
    else:
        from flows.features_shown import facts_as_text

        print(facts_as_text(facts))


@app.command
def show(
    images: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    detector: str,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    weights: str | None = None,
    boxes: int | None = None,
    most: int = 20,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    store: StoreOption = None,
    shared: SharedOption = False,
    json_: JsonOption = False,
) -> None:
    """Draw a detector's boxes, classes and attributes on images.

    Example: `vbert features show cat.jpg dog.jpg --detector torchvision_fasterrcnn_resnet50_fpn -o found.png`

    Parameters
    ----------
    images
        files of images.
    detector
        a name in data_specs/detectors, or a .yaml file of your own.
    out
        picture to draw, .png or .jpg.
    weights
        a file, folder or URL, in place of the detector's published weights.
    boxes
        the number of best boxes of an image, in place of the detector's own rule.
    most
        the most boxes drawn on an image.
    device
        where the detector runs; auto: a GPU if there is one.
    """
    from flows.graph import weights_of
    from flows.runs import record_run, run_id
    from flows.terminal import Terminal
    from vbert.device import device_of
    from vbert.regions.boxes import Fixed
    from vbert.regions.detector import RegionSettings, detector_file
    from vbert.regions.drawing import check_name
    from vbert.regions.preview import draw_regions

    if not images:
        raise UserError("give at least one image: `vbert features show IMAGE… --detector NAME -o out.png`")
    check_name(out)
    file = detector_file(detector)
    target = weights_of(file, weights)
    at = Store(store or default_root())
    if shared:
        at.share()
    with (
        Terminal() as terminal,
        record_run(at, run_id("show"), f"features show {target.label} {target.fingerprint[:8]}", [target]),
    ):
        Engine(at, events=terminal).ensure_all([target])
    settings = RegionSettings(boxes=None if boxes is None else Fixed(count=boxes)).resolved(file)
    samples = draw_regions(target.bound(at), images, settings, device_of(device), out, most)
    if json_:
        print(json.dumps({"out": str(out), "images": len(samples), "regions": sum(len(one.scores) for one in samples)}))
    else:
        print(out)


@app.command
def compare(
    a: Path,
    b: Path,
    /,
    *,
    format_a: FormatOption = None,
    format_b: FormatOption = None,
    ids_a: IdsOption = None,
    ids_b: IdsOption = None,
    boxes_in_a: BoxesInOption = None,
    boxes_in_b: BoxesInOption = None,
    dtype_a: DtypeOption = None,
    dtype_b: DtypeOption = None,
    images: ImagesOption = None,
    sizes: SizesOption = None,
    rows: int = 20,
    table: Path | None = None,
    json_: JsonOption = False,
) -> None:
    """Compare two sets of features image by image, and name the likely cause where they differ.

    Boxes are matched by overlap (or features by likeness, where boxes don't agree), then compared by cosine and norm.
    Exit code 0 where they are the same, 1 where not.

    Example: `vbert features compare features/mine train2014_obj36.tsv --ids-b 'COCO_\\w+_0*(\\d+)'`

    Parameters
    ----------
    a
        a folder of shards, or a file of any format that can be imported.
    b
        another one.
    rows
        the number of images listed, differing ones first.
    table
        a .csv file for the figures of every image.
    """
    from flows.features_shown import comparison_as_text, rows_as_csv
    from vbert.regions.contract import differences
    from vbert.regions.interop.comparing import FeatureComparison
    from vbert.regions.interop.comparing import compare as compared
    from vbert.regions.interop.feature_sets import opened

    known = _sizes(images, sizes)
    with (
        opened(a, format_a, ids_a, _boxes_in(boxes_in_a), known, dtype_a) as left,
        opened(b, format_b, ids_b, _boxes_in(boxes_in_b), known, dtype_b) as right,
        counted("compare") as show,
    ):
        total = FeatureComparison()
        contracts = {}
        if left.contract is not None and right.contract is not None:
            contracts = differences(left.contract, right.contract)
        shown = rows_as_csv(compared(left, right, show, total), table, rows)
    facts = total.as_json() | {"a": str(a), "b": str(b), "contract": contracts, "rows": [vars(row) for row in shown]}
    print(json.dumps(facts) if json_ else comparison_as_text(facts))
    if not total.same:
        raise SystemExit(1)


def _boxes_in(text: str | None) -> Any:
    from vbert.regions.interop.boxes_in import BoxesIn

    return None if text is None else BoxesIn.parse(text)


def _sizes(images: Path | None, sizes: Path | None) -> ImageSizes | None:
    from vbert.regions.interop.feature_sets import FolderFiles
    from vbert.regions.interop.sizes import ImageSizes

    if images is not None and sizes is not None:
        raise UserError("--images and --sizes say the same thing; give one of them")
    given = images if images is not None else sizes
    return None if given is None else ImageSizes(FolderFiles(given))
