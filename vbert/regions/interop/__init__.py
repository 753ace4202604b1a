"""Region features of other systems: one module a format, with its recogniser, its reader and its writer.

A format is a module of this package and a line in FORMATS. One that reads has (see `FeatureFormat`):

    VERSION = 1     raised by hand when the reader starts to read other numbers
    TITLE = "…"     its common name

    def holds(path) -> bool                      whether the file or folder looks like one; cheap, never raises
    def files(path) -> dict[str, Path]           all that must be read, by role; `features` first
    def index(files) -> Iterator[(key, place)]   every image's name in the file and where it is, without the features
    def opened(files) -> context manager         of a function (key, place) → RawRegions, for one process

A format whose files state the length of an image's features in bytes, but not their type, has `BY_LENGTH = True` and an
`opened(files, dtype)` that takes the type of `--dtype`.

Keys are the file's own names; places are numbers and texts. Only `index` and `opened` import heavy libraries. Files are
untrusted: pickles go through `vbert.data.pickles`, sizes are compared with the bytes there before memory is taken.
A file of another format raises UserError, an unreadable entry BadEntry; both say where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from vbert.artifacts.steps.settings import Plugin
from vbert.errors import UserError, nearest
from vbert.regions.interop.raw_regions import RawRegions, check_finite

Place = tuple[Any, ...]
Read = Callable[[str, Place], RawRegions]
Dtype = Literal["float16", "float32", "float64"]

# name → its module in this package. Formats that look alike are listed in the order in which they are tried.
FORMATS = {
    "lxmert_tsv": "lxmert_tsv",
    "bottom_up_tsv": "bottom_up_tsv",
    "oscar_tsv": "oscar_tsv",
    "uniter_lmdb": "uniter_lmdb",
    "vilbert_lmdb": "vilbert_lmdb",
    "mmf_lmdb": "mmf_lmdb",
    "ban_hdf5": "ban_hdf5",
    "visualbert_th": "visualbert_th",
    "arrow": "hf_arrow",
    "npz": "npz_files",
    "npy": "npy_files",
}
WRITERS = {"lxmert_tsv": "lxmert_tsv", "npy": "npy_files", "arrow": "hf_arrow"}


class FeatureFormat(Protocol):
    """The interface of the module of a format that is read; see this package's docstring."""

    __name__: str
    VERSION: int
    TITLE: str

    def holds(self, path: Path) -> bool: ...
    def files(self, path: Path) -> dict[str, Path]: ...
    def index(self, files: Mapping[str, Path]) -> Iterator[tuple[str, Place]]: ...
    def opened(self, files: Mapping[str, Path]) -> AbstractContextManager[Read]: ...


def load(name: str) -> FeatureFormat:
    """The module of the format `name`; UserError where there is none."""
    if name not in FORMATS:
        raise UserError(f"no format {name!r} that can be read; {nearest(name, FORMATS)}")
    return cast(FeatureFormat, import_module(f"{__name__}.{FORMATS[name]}"))


@contextmanager
def reading(module: FeatureFormat, files: Mapping[str, Path], dtype: Dtype | None = None) -> Iterator[Read]:
    """`module.opened` for features of the type `dtype`, if given; raises BadEntry for entries with NaN or infinite
    numbers.

    Raises UserError for a `dtype` where the format states the type itself.
    """
    if dtype is not None and not getattr(module, "BY_LENGTH", False):
        raise UserError(f"--dtype {dtype}: {module.TITLE} says the type of its numbers itself; leave it out")
    with module.opened(files) if dtype is None else cast(Any, module).opened(files, dtype) as take:

        def read(key: str, place: Place) -> RawRegions:
            regions: RawRegions = take(key, place)
            check_finite(regions, f"{files['features']}: {key}")
            return regions

        yield read


def plugin(name: str) -> Plugin:
    """Name and version of a format, as they enter fingerprints."""
    return Plugin(name=name, version=load(name).VERSION)


def recognised(path: Path, name: str | None = None) -> str:
    """The name of the format of `path`: the one given, or the first that looks like it. Raises UserError."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if name is not None:
        load(name)
        return name
    for known in FORMATS:
        if load(known).holds(path):
            return known
    listed = "\n".join(f"{known:<14} {load(known).TITLE}" for known in FORMATS)
    raise UserError(f"{path}: none of the formats that can be read; name the one it should be with --format", listed)
