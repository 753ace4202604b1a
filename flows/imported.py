"""Features of another system as a step: for a data set of a recipe, and for `vbert features import`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from vbert.artifacts.steps.settings import LocalPath, Settings, Wiring
from vbert.data.manual import Manual
from vbert.data.raw import RawFiles
from vbert.errors import UserError
from vbert.regions.contract import Layer
from vbert.regions.interop import Dtype
from vbert.regions.shards import Shards


class FeaturesEntry(Settings):
    """A file or folder of features with its required description; paths are relative to the recipe.

    Features that a person must fetch are looked for in `$VBERT_DATA/SPEC/DETECTOR` (`./data` without the variable),
    SPEC being that of the photos; with `path`, there.
    """

    path: Annotated[str | None, Wiring, LocalPath()] = Field(
        None, description="the file or folder, of any format that can be imported; None: where `manual` puts it"
    )
    manual: Annotated[Manual | None, Wiring] = Field(None, description="what a person must do to get the features")
    detector: Annotated[str, Wiring, LocalPath(or_name=True)] = Field(
        description="what made them: a name in data_specs/detectors, a .yaml file of your own, or `unknown`"
    )
    format: Annotated[str | None, Wiring] = Field(None, description="how to read them, where it isn't recognised")
    layer: Annotated[Layer | None, Wiring] = Field(None, description="of an unknown detector")
    weights: Annotated[str | None, Wiring] = Field(None, description="sha256 of the detector's weights")
    boxes_in: Annotated[str | None, Wiring] = Field(
        None, description="original, recorded, resized:SHORT[,LONG], normalised or none; else what the format says"
    )
    dtype: Annotated[Dtype | None, Wiring] = Field(None, description="of the features, where the file doesn't say it")
    sizes: Annotated[str | None, Wiring, LocalPath()] = Field(
        None, description="of the images: their folder, or a table of image_id, width, height"
    )
    ids: Annotated[str | None, Wiring] = Field(
        None, description="regular expression; its first group in a file's name of an image is the image's id"
    )
    id_form: Annotated[str | None, Wiring] = Field(
        None,
        pattern=r"^[^{}]*\{\}[^{}]*$",
        description="the image's id made of what `ids` finds, which stands for {}: img/{}.png",
    )
    cap: Annotated[int | None, Wiring] = Field(None, ge=1, description="at most so many regions an image")
    classes: Annotated[str | None, Wiring, LocalPath()] = Field(
        None, description="file of the classes that numbers stand for"
    )
    attributes: Annotated[str | None, Wiring, LocalPath()] = Field(None, description="of the attributes likewise")
    images_per_shard: Annotated[int, Wiring] = Field(500, ge=1, description="images in a shard")
    quarantine: Annotated[float, Wiring] = Field(0.01, ge=0, le=1, description="share that may be unusable")

    @model_validator(mode="after")
    def _found(self) -> FeaturesEntry:
        if self.path is None and self.manual is None:
            raise ValueError("give the path of the features, or say in `manual` how to get them")
        return self


def imported(entry: FeaturesEntry, name: str = "", photos: str = "") -> Shards:
    """The shards-to-be. name, photos: of the data set in its recipe, and of the spec of its photos.

    Raises UserError for settings with which nothing can be imported, and for features that aren't placed.
    """
    from tasks.import_features import import_features
    from vbert.regions import interop
    from vbert.regions.interop.boxes_in import BoxesIn
    from vbert.regions.interop.importing import ImportSettings, Provenance

    path = _place(entry, name, photos)
    form = interop.recognised(path, entry.format)
    settings = ImportSettings(
        statement=Provenance.of(entry.detector, entry.layer, entry.weights),
        boxes_in=None if entry.boxes_in is None else BoxesIn.parse(entry.boxes_in),
        dtype=entry.dtype,
        ids=entry.ids,
        id_form=entry.id_form,
        cap=entry.cap,
        classes=_vocabulary(entry.classes),
        attributes=_vocabulary(entry.attributes),
        images_per_shard=entry.images_per_shard,
        quarantine=entry.quarantine,
    )
    files = {role: _raw(file, role) for role, file in interop.load(form).files(path).items()}
    sizes = None if entry.sizes is None else _raw(_path(entry.sizes), "sizes")
    return import_features(files, interop.plugin(form), settings, sizes).named(path.name)


def _place(entry: FeaturesEntry, name: str, photos: str) -> Path:
    """The file or folder of features; those that a person fetched are checked."""
    if entry.path is not None:
        return _path(entry.path)
    from vbert.data.folders import file_digests
    from vbert.data.manual import check, place_of, unplaced

    assert entry.manual is not None, "the entry's own check"
    place = place_of(photos, Path(entry.detector).stem)
    title, setting = f"{name} features", f"data.{name}.features.path"
    if not place.is_dir():
        absent = "it is no folder" if place.exists() else "it isn't there"
        raise unplaced(entry.manual, place, title, absent, setting)
    check(entry.manual, place, file_digests(place), title, setting=setting)
    return place


def _path(text: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(text)))


def _raw(path: Path, label: str) -> RawFiles:
    """A local file or folder, kept in place and identified by its content."""
    from tasks.download import download
    from vbert.data.source import Source

    return download(Source(path=str(path), file=path.name).pinned()).named(label)


def _vocabulary(text: str | None) -> tuple[str, ...] | None:
    """One name a line; of several separated by commas (Visual Genome's) the first."""
    if text is None:
        return None
    path = _path(text)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read as a vocabulary ({error})") from None
    return tuple(line.split(",")[0].strip() for line in lines)
