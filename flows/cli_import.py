"""`vbert features import`: region features of another system into shards."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Literal

from flows.options import (
    BoxesInOption,
    DtypeOption,
    FormatOption,
    IdsOption,
    ImagesOption,
    JsonOption,
    MachineOption,
    SharedOption,
    SizesOption,
    StoreOption,
)
from vbert.artifacts.making.engine import Engine
from vbert.artifacts.store.store import Store, default_root
from vbert.errors import UserError


def import_features(
    path: Path,
    /,
    *,
    detector: str,
    format: FormatOption = None,
    layer: Literal["fc6", "fc7", "res5_pool"] | None = None,
    weights: str | None = None,
    boxes_in: BoxesInOption = None,
    dtype: DtypeOption = None,
    images: ImagesOption = None,
    sizes: SizesOption = None,
    ids: IdsOption = None,
    id_form: str | None = None,
    cap: int | None = None,
    classes: Path | None = None,
    attributes: Path | None = None,
    images_per_shard: int = 500,
    quarantine: float = 0.01,
    out: Path | None = None,
    store: StoreOption = None,
    shared: SharedOption = False,
    machine: MachineOption = [],  # noqa: B006  cyclopts reads the default
    json_: JsonOption = False,
) -> None:
    """Import features of another system into shards, with a contract that states how they were made.

    Reads LXMERT and bottom-up-attention TSV, Oscar TSV, MMF/Pythia .npy, MCAN .npz, MMF, UNITER and ViLBERT LMDB, BAN
    HDF5, VisualBERT .th, folders of Hugging Face datasets.

    Example: `vbert features import train2014_obj36.tsv --detector unknown --layer res5_pool --out features/train`

    Parameters
    ----------
    path
        the file or folder.
    detector
        the detector of the features: a name in data_specs/detectors, or `unknown`.
    layer
        of an unknown detector.
    weights
        sha256 of the detector's weights.
    id_form
        the image's id made of what --ids finds, which stands for {}: `img/{}.png`.
    cap
        the most regions of an image, the most confident ones.
    classes
        names of the classes that the file numbers, one a line.
    attributes
        names of the attributes likewise.
    images_per_shard
        images in a shard.
    quarantine
        share of entries that may be unusable; nothing is imported again for another share.
    out
        a folder for the shards: linked or copied from the store.
    """
    from flows.imported import FeaturesEntry, imported
    from flows.recipe import machine_from
    from flows.runs import record_run, run_id
    from flows.terminal import Terminal
    from vbert.regions.interop.importing import UNKNOWN

    if images is not None and sizes is not None:
        raise UserError("--images and --sizes say the same thing; give one of them")
    _refuse_taken(out)

    def as_text(given: Path | None) -> str | None:
        return None if given is None else str(given)

    target = imported(
        FeaturesEntry(
            path=str(path),
            detector=detector,
            format=format,
            layer=layer,
            weights=weights,
            boxes_in=boxes_in,
            dtype=dtype,
            sizes=as_text(images if images is not None else sizes),
            ids=ids,
            id_form=id_form,
            cap=cap,
            classes=as_text(classes),
            attributes=as_text(attributes),
            images_per_shard=images_per_shard,
            quarantine=quarantine,
        )
    )
    at = Store(store or default_root())
    if shared:
        at.share()
    with (
        Terminal() as terminal,
        record_run(at, run_id("import"), f"features import {target.label} {target.fingerprint[:8]}", [target]),
    ):
        Engine(at, machine_from(machine), terminal).ensure_all([target])
    made = target.bound(at)
    if detector == UNKNOWN:
        say(f"detector unknown: nothing says which features these fit (give --detector when you know it); {made.title}")
    if made.figures["quarantined"]:
        say(f"left out: {made.figures['quarantined']:,} of its entries, see {made.path / 'quarantine.parquet'}")
    if out is not None:
        from vbert.artifacts.upkeep.export import hand_out

        hand_out(made, out)
    contract = made.contract()
    if json_:
        facts = {
            "format": target.input("format").name,
            "detector": contract.detector,
            "layer": contract.layer,
            "boxes": contract.coordinates != "none",
            "fingerprint": made.fingerprint,
            "out": str(out or made.path),
        }
        print(json.dumps({**made.figures, **facts}))
    else:
        print(out or made.path)


def _refuse_taken(out: Path | None) -> None:
    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out} is there already; give a folder that is not, or is empty")


def say(sentence: str) -> None:
    """Print a line on standard error."""
    print(sentence, file=sys.stderr)
