"""For readers of annotated photos: finds photos by the names that annotation files give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from vbert.data.names import bare, ending, folded, is_image, plain
from vbert.errors import UserError, near

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

Place = tuple[str, str]  # source, member


class PhotoFiles:
    """The image files of several sources, by name."""

    def __init__(self, raws: Mapping[str, RawFiles]) -> None:
        self._all = [(source, member) for source, raw in raws.items() for member in raw.members() if is_image(member)]
        self._endings = {ending(member).lower() for _, member in self._all}
        self._last: dict[Callable[[str], str], dict[str, list[Place]]] = {}
        self._stems: dict[Callable[[str], str], dict[str, list[Place]]] = {}

    def at(self, stem: str) -> list[Place]:
        """The photos of that name, folders included and ending left out."""
        for key in (_same, plain, folded):
            if key not in self._stems:
                index = self._stems[key] = {}
                for place in self._all:
                    index.setdefault(key(place[1].rpartition(".")[0]), []).append(place)
            if places := self._stems[key].get(key(stem)):
                return places
        return []

    def find(self, name: str, folder: str, where: str, any_ending: bool = True) -> Place:
        """The photo `name`, which may begin with folders; of several, that in `folder`.

        A name without an exact match is tried as `plain` and `folded` (see `names.py`), and as `bare` where no photo
        has its ending (photos may have been converted; with that ending it might be the mask of a missing photo).
        Leading folders that the sources don't have are ignored. Raises UserError, with the place `where` it is named,
        for no match or an ambiguous one.
        """
        converted = any_ending and ending(name).lower() not in self._endings
        for key in (_same, plain, folded, *([bare] if converted else [])):
            places = self._like(name, folder, key)
            if len(places) == 1:
                return places[0]
            if places:
                both = " and ".join(f"{source}/{member}" for source, member in places[:2])
                raise UserError(f"{where}: the photo {name!r:.200} may be {both}; name it with its folder")
        hint = near(name, [member.rpartition("/")[2] for _, member in self._all])
        raise UserError(f"{where}: no source holds the photo {name!r:.200}; {hint:.200}; are all sources given?")

    def _like(self, name: str, folder: str, key: Callable[[str], str]) -> list[Place]:
        """The photos that match `name` when names are compared by `key`."""
        wanted = key(name)
        if key not in self._last:
            index = self._last[key] = {}
            for place in self._all:
                index.setdefault(key(place[1]).rpartition("/")[2], []).append(place)
        alike = self._last[key].get(wanted.rpartition("/")[2], [])
        matches = [place for place in alike if f"/{key(place[1])}".endswith(f"/{wanted}")]
        if not matches:
            within = [place for place in alike if f"/{wanted}".endswith(f"/{key(place[1])}")]
            longest = max((len(place[1]) for place in within), default=0)
            matches = [place for place in within if len(place[1]) == longest]
        if len(matches) > 1:
            for part in (f"/{key(folder)}/{wanted}", f"/{wanted}"):
                if narrowed := [place for place in matches if f"/{key('/'.join(place))}".endswith(part)]:
                    return narrowed
        return matches


def _same(name: str) -> str:
    return name
