"""What readers of boxes share: photos found by name, and boxes brought to pixels of the image as shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from vbert.artifacts.errors import UserError, nearest
from vbert.data.decode import BadImage, laid_out

if TYPE_CHECKING:
    from vbert.data.raw import Raw

ENDINGS = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff")
HEAD = 4096  # bytes in which a JPEG with an orientation says "Exif": its block comes first, or behind JFIF's 18 bytes

# Which pixels an annotation file counts in where a photo's EXIF says that it is to be turned: those of the stored
# file, those as shown, or whichever have the width and height that the annotation file states (as shown, if both do).
Pixels = Literal["stated", "stored", "shown"]
Corners = tuple[float, float, float, float]


class Photos:
    """The image files of some Raws, by name."""

    def __init__(self, raws: Mapping[str, Raw]) -> None:
        self.raws = raws
        self._places: dict[str, list[tuple[str, str]]] = {}
        self._stems: dict[str, tuple[str, str]] = {}
        for source, raw in raws.items():
            for member in raw.members():
                if member.lower().endswith(ENDINGS):
                    self._places.setdefault(member.rpartition("/")[2], []).append((source, member))
                    self._stems.setdefault(member.rpartition(".")[0], (source, member))

    def at(self, stem: str) -> tuple[str, str] | None:
        """(source, member) of the photo of that name, folders included and ending left out, if there is one."""
        return self._stems.get(stem)

    def find(self, name: str, folder: str, where: str) -> tuple[str, str]:
        """(source, member) of the photo `name`, which may begin with folders; of several, that in `folder`.

        Raises UserError, saying `where` it is named, where there is none or one can't tell which.
        """
        alike = self._places.get(name.rpartition("/")[2], [])
        found = [place for place in alike if f"/{place[1]}".endswith(f"/{name}")]
        if len(found) > 1:
            found = [place for place in found if f"/{place[1]}".endswith(f"/{folder}/{name}")] or found
        if len(found) == 1:
            return found[0]
        if found:
            both = " and ".join(f"{source}/{member}" for source, member in found[:2])
            raise UserError(f"{where}: the photo {name!r} may be {both}; name it with its folder")
        hint = nearest(name, list(self._places)[:2000])
        raise UserError(f"{where}: no source holds the photo {name!r}; {hint:.200}; are all sources given?")

    def turn(self, place: tuple[str, str], stated: tuple[int, int] | None, pixels: Pixels) -> Turn:
        """How boxes of the photo at `place` are brought to pixels as shown; `stated`: (width, height) as annotated."""
        if pixels == "shown":
            return Turn(1, 0, 0)
        source, member = place
        raw = self.raws[source]
        with raw.open(member) as file:
            head = file.read(HEAD)
        if head.startswith(b"\xff\xd8") and b"Exif" not in head:
            return Turn(1, 0, 0)
        try:
            width, height, orientation = laid_out(raw.read(member))
        except BadImage:
            return Turn(1, 0, 0)  # it has no pixels at all; `regions` sets it aside with its reason
        if pixels == "stated" and not (orientation >= 5 and stated == (width, height) != (height, width)):
            orientation = 1
        return Turn(orientation, width, height)


class Turn:
    """The way from the stored pixels of a photo, width × height, to those as shown, by its EXIF orientation."""

    def __init__(self, orientation: int, width: int, height: int) -> None:
        self.orientation, self.width, self.height = orientation, width, height

    def __call__(self, box: Sequence[float]) -> Corners:
        """x1 y1 x2 y2 in stored pixels, x2 and y2 exclusive, to the same as shown."""
        x1, y1, x2, y2 = box
        w, h = self.width, self.height
        return {
            1: (x1, y1, x2, y2),
            2: (w - x2, y1, w - x1, y2),
            3: (w - x2, h - y2, w - x1, h - y1),
            4: (x1, h - y2, x2, h - y1),
            5: (y1, x1, y2, x2),
            6: (h - y2, x1, h - y1, x2),
            7: (h - y2, w - x2, h - y1, w - x1),
            8: (y1, w - x2, y2, w - x1),
        }[self.orientation]


def chosen(value: str, valid: Sequence[str], option: str) -> None:
    """Raises UserError where the option of a reader is none of the valid ones."""
    if value not in valid:
        raise UserError(f"options.{option}: {value!r} is none of {', '.join(valid)}; {nearest(str(value), valid)}")
