"""Dataset specs: one YAML file a data set in `data_specs/datasets`, with its sources, licence, readers and splits.

A new data set is one such file and, if its format is new, one reader. Two data sets on the same photos: the second says
`images: {from: <the first>}`, so that the photos are fetched, indexed and extracted once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, model_validator

from vbert.artifacts.steps.settings import Acceptance, LocalPath, Plugin, Settings, Since
from vbert.data import readers
from vbert.data.links import LinkListSettings, LinkSettings
from vbert.data.shares import share_of
from vbert.data.source import Source, Url
from vbert.data.spec_folder import DATA_SPECS, SpecFolder
from vbert.errors import UserError, nearest

DATASETS = SpecFolder(DATA_SPECS / "datasets", "data set")


def _known_reader(name: str) -> str:
    if name not in readers.names():
        raise ValueError(f"no reader {name!r}; {nearest(name, readers.names())}")
    return name


Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_]*$")]
BoxShare = Annotated[
    float, Field(ge=0, le=1, description="share of boxes that may be unusable: swapped, empty, outside, no numbers")
]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Split = Literal["train", "val", "test"]
SPLITS = get_args(Split)
Count = Annotated[int, Field(ge=0)]


class HoldOut(Settings):
    """A validation split where none is official: the images of split `of` whose id hashes into `share`; by cluster,
    where the reader gives one (NLVR's directories)."""

    of: Split = Field("train", description="the split that images are taken from")
    share: Share = Field(0.05, description="of its images")


class ReaderOptions(Settings):
    """A reader's options, beside its name and version."""

    options: dict[str, JsonValue] = Field({}, description="keyword arguments of the reader")
    merged: Annotated[dict[Split, Split], Since({})] = Field(
        {}, description="official splits that count as another one"
    )
    validation: HoldOut | None = None
    unusable_boxes: Annotated[BoxShare, Acceptance()] = 0.05
    counts: Annotated[Mapping[Split, Count], Acceptance()] = Field({}, description="rows, as published")

    def split(self, split: str | None, image_id: str) -> str | None:
        """The split of an image (by its cluster, where it has one), or of an example by its first image, given the
        official one."""
        hold_out = self.validation
        split = next((whole for part, whole in self.merged.items() if part == split), split)
        return "val" if hold_out is not None and split == hold_out.of and share_of(image_id) < hold_out.share else split


class ImagesSpec(Settings):
    """The image collection: a reader over the sources (all of them, or those named), or another spec's."""

    model_config = ConfigDict(populate_by_name=True)

    from_: Annotated[Annotated[str, AfterValidator(DATASETS.known)] | None, LocalPath(or_name=True)] = Field(
        None, alias="from", description="the spec whose images these are: its name, or its .yaml file"
    )
    reader: Annotated[str, AfterValidator(_known_reader)] | None = Field(None, description="what reads the sources")
    sources: tuple[str, ...] | None = Field(None, description="names of those it reads; else all")
    options: dict[str, JsonValue] = Field({}, description="keyword arguments of the reader")
    counts: dict[Split, Count] = Field({}, description="images, as published; another number is refused")
    unusable_boxes: Annotated[BoxShare, Acceptance()] = 0.05

    @model_validator(mode="after")
    def _own_or_others(self) -> ImagesSpec:
        if (self.from_ is None) == (self.reader is None):
            raise ValueError("give either a reader, or `from` with the name of the spec whose images these are")
        if self.from_ is not None and (self.sources is not None or self.options):
            raise ValueError("with `from`, sources and options are those of the other spec")
        return self


class ExamplesSpec(Settings):
    """The texts: a reader over the sources (all of them, or those named)."""

    reader: Annotated[str, AfterValidator(_known_reader)] = Field(description="what reads the sources")
    sources: tuple[str, ...] | None = Field(None, description="names of those it reads; else all")
    options: dict[str, JsonValue] = Field({}, description="keyword arguments of the reader")
    counts: dict[Split, Count] = Field({}, description="examples, as published; another number is refused")


class LinksSpec(Settings):
    """A list of links in place of photos: its readers read what they led to, by the reader `links`."""

    sources: tuple[str, ...] | None = Field(None, description="names of those that hold the lists; else all")
    list: LinkListSettings
    fetch: LinkSettings = Field(default_factory=lambda: LinkSettings())


class DatasetSpec(Settings):
    """One data set. `generate` holds the settings of the built-in generator, in place of sources."""

    name: Name = Field(description="a word of small letters, digits and _")
    title: str = Field(description="for people")
    licence: str = Field(description="of the data")
    homepage: Url | None = Field(None, description="for people")
    tasks: Annotated[tuple[str, ...], Field(description="downstream tasks it serves")] = ()
    sources: dict[Name, Source] = Field({})
    generate: dict[str, JsonValue] | None = Field(
        None, description="settings of the built-in generator, in place of sources"
    )
    links: LinksSpec | None = Field(None, description="where the sources list photos on the web")
    images: ImagesSpec
    examples: ExamplesSpec | None = None
    merged: dict[Split, Split] = Field(
        {}, description="official splits that count as another one, before `validation`: {val: train}"
    )
    validation: HoldOut | None = None
    known_overlap: str | None = Field(
        None, min_length=1, description="why photos of its evaluation splits may be in a training split"
    )

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSpec:
        if self.generate is not None and self.sources:
            raise ValueError("give either sources or generate")
        if self.generate is None and not self.sources:
            raise ValueError("give sources (or generate: for the built-in generator)")
        for source in (self.links.sources or ()) if self.links else ():
            if source not in self.sources:
                raise ValueError(f"links: there is no source {source!r}; {nearest(source, self.sources)}")
        valid = self.source_names()
        for part in (self.images, self.examples):
            for source in (part.sources or ()) if part else ():
                if source not in valid:
                    raise ValueError(f"there is no source {source!r}; {nearest(source, valid)}")
        return self

    def source_names(self) -> Sequence[str]:
        """Names under which readers get the raw files."""
        if self.links is not None:
            return ["links"]
        return ["generated"] if self.generate is not None else list(self.sources)

    def collection(self) -> DatasetSpec:
        """The spec whose images these are: itself, or the one named by `images.from`."""
        if self.images.from_ is None:
            return self
        other = dataset(self.images.from_)
        if other.images.from_ is not None:
            raise UserError(
                f"data set {self.name!r}: images.from: {other.name!r} has its images from {other.images.from_!r}; "
                f"name that one"
            )
        return other

    def reading(self, part: Literal["images", "examples"]) -> ReaderOptions:
        """The options of that part's reader. A generated set has no published counts, since recipes resize it."""
        of = self.images if part == "images" else self.examples
        return ReaderOptions(
            options=of.options if of else {},
            merged=self.merged,
            validation=self.validation,
            unusable_boxes=self.images.unusable_boxes,
            counts=of.counts if of and self.generate is None else {},
        )

    def reader(self, part: Literal["images", "examples"]) -> Plugin:
        """The name and version of that part's reader."""
        of = self.images if part == "images" else self.examples
        if of is None or of.reader is None:
            raise UserError(f"data set {self.name!r} has no reader of {part}")
        return readers.reader(of.reader)

    def read_by(self, part: Literal["images", "examples"]) -> Sequence[str]:
        """The names of the sources that are passed to that part's reader."""
        of = self.images if part == "images" else self.examples
        return (of.sources if of else None) or self.source_names()


def dataset_names() -> list[str]:
    """The data sets that have a spec."""
    return DATASETS.names()


def dataset(name: str) -> DatasetSpec:
    """The spec of that name, or in that file if `name` ends in `.yaml`. Raises UserError, with file:line:column."""
    return DATASETS.read(name, DatasetSpec)
