"""For readers of texts: the files of each split, and photos by the last part of their names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vbert.data.names import count_of, is_image
from vbert.data.readers._photos import Place
from vbert.data.readers._rows import check_choice
from vbert.errors import UserError, near

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles


@dataclass(frozen=True)
class SplitFile:
    """A file of texts: its split, and the word by which its name tells it (`test1`)."""

    raw: RawFiles
    name: str
    split: str
    word: str

    def read(self) -> bytes:
        return self.raw.read(self.name)


def split_files(
    raws: Mapping[str, RawFiles], splits: Any, named: re.Pattern[str], words: Mapping[str, str], wanted: str
) -> list[SplitFile]:
    """The files whose whole name `named` matches, its first group being one of `words` (word → split), by name.

    splits: the option of that name in place of them (see `ended_files`). Raises UserError, naming the `wanted` files,
    where there are none.
    """
    if splits is not None:
        return ended_files(raws, splits)
    found = [(raw, name, named.fullmatch(name)) for raw in raws.values() for name in raw.members()]
    files = [SplitFile(raw, name, words[match[1]], match[1]) for raw, name, match in found if match]
    if not files:
        raise UserError(f"{', '.join(raws)} hold no {wanted}; name the files by `options: {{splits: …}}`")
    return _once(files)


def ended_files(raws: Mapping[str, RawFiles], splits: Any) -> list[SplitFile]:
    """The files of the option `splits`: split → an ending of a file's name, or several. Raises UserError for an ending
    that no name has, or several have."""
    every = [(raw, name) for raw in raws.values() for name in raw.members() if not is_image(name)]
    return _once([_ended(every, split, end) for split, end in _endings(splits)])


def _once(files: Sequence[SplitFile]) -> list[SplitFile]:
    if twice := {file.name for file in files if sum(file.name == other.name for other in files) > 1}:
        raise UserError(f"{min(twice)!r:.200} is there twice, or named for two splits; which one is meant?")
    return sorted(files, key=lambda file: file.name)


def _ended(every: Sequence[tuple[RawFiles, str]], split: str, end: str) -> SplitFile:
    matches = [(raw, name) for raw, name in every if f"/{name}".endswith(f"/{end}")]
    if len(matches) != 1:
        names = [name for _, name in matches or every]
        said = f"{count_of(matches, 'file')} end in {end!r:.80}: {', '.join(names[:2]):.200}" if matches else ""
        raise UserError(f"options.splits.{split}: {said or f'no file ends in {end!r:.80}; {near(end, names):.200}'}")
    ((raw, name),) = matches
    return SplitFile(raw, name, split, end.rpartition("/")[2].partition(".")[0])


def _endings(splits: Any) -> Iterator[tuple[str, str]]:
    if not isinstance(splits, Mapping) or not splits:
        raise UserError(
            f"options.splits: must be a mapping like {{train: FILE, test: [FILE, FILE]}}, not {splits!r:.80}"
        )
    for split, ends in splits.items():
        check_choice(split, ("train", "val", "test"), "splits")
        for end in ends if isinstance(ends, list) else [ends]:
            if not isinstance(end, str) or not end:
                raise UserError(f"options.splits.{split}: must be the ending of a file's name, not {end!r:.80}")
            yield split, end


class PhotoStems:
    """The image files of several sources by the last part of their names, without the ending.

    numbers: by the number at its end instead, as in `COCO_train2014_000000000009.jpg`.
    """

    def __init__(self, raws: Mapping[str, RawFiles], numbers: bool = False) -> None:
        self._places: dict[str, list[Place]] = {}
        for source, raw in raws.items():
            for member in raw.members():
                if is_image(member):
                    stem = member.rpartition("/")[2].rpartition(".")[0]
                    digits = re.search("([0-9]+)$", stem) if numbers else None
                    key = str(int(digits[1][-18:])) if digits else stem
                    self._places.setdefault(key, []).append((source, member))

    def __contains__(self, stem: str) -> bool:
        return stem in self._places

    def find(self, stem: str, where: str) -> Place:
        """The photo of that name. Raises UserError, with the place `where` it is named, for none and for several."""
        places = self._places.get(stem, [])
        if len(places) == 1:
            return places[0]
        if places:
            both = " and ".join(f"{source}/{member}" for source, member in places[:2])
            raise UserError(f"{where}: the photo {stem!r:.80} may be {both}; leave one of them out")
        raise UserError(f"{where}: no source holds the photo {stem!r:.80}; {near(stem, self._places):.200}")
