"""Pascal VOC's XML (Everingham et al. 2010): one file of boxes an image, `Annotations/NAME.xml` beside
`JPEGImages/NAME.jpg`, splits in `ImageSets/Main/{train,val,test}.txt`.

For VOC itself, and for whatever is annotated in its format: an XML may also lie beside its image, and without lists of
splits all images are `train` (`validation` of the spec then takes a share of them).

- An image's id is the name of its XML without the ending ("000012", "2008_000002").
- VOC counts pixels from 1 and its boxes hold their last pixel: (1, 1, 1, 1) is the first pixel, ours is (0, 0, 1, 1).
  Tools that write the format count from 0 as often as not: `options: {first: 0}`, with the last pixel exclusive.
- Objects marked `difficult` are skipped, as VOC's own evaluation ignores them; `options: {difficult: keep}` keeps them.
- Boxes of photos that their EXIF turns are turned with them where the stated size is the stored one's, as in `coco`.
- XML is data of strangers: a document type, and so entities, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from vbert.artifacts.errors import UserError
from vbert.data.readers import BoxRow, ImageRow
from vbert.data.readers._photos import Corners, Photos, Pixels, chosen

if TYPE_CHECKING:
    from vbert.data.raw import Raw

VERSION = 1

XML_BYTES = 4 << 20  # VOC's are below 10 KB
SPLITS = ("train", "val", "test")


def images(
    raws: Mapping[str, Raw], first: int = 1, difficult: str = "skip", pixels: Pixels = "stated"
) -> Iterator[ImageRow]:
    """Every image with an XML; those in no list of a split, where there are lists, have none."""
    photos, splits = Photos(raws), _splits(raws)
    for source, name in _annotations(raws):
        found, member = _photo(photos, raws[source], name)
        split = splits.get(_stem(name)) if splits else "train"
        yield {"image_id": _stem(name), "path": member, "source": found, "split": split}


def boxes(
    raws: Mapping[str, Raw], first: int = 1, difficult: str = "skip", pixels: Pixels = "stated"
) -> Iterator[BoxRow]:
    """Every object's box; those of its parts (hands, heads) are left out."""
    chosen(difficult, ("skip", "keep"), "difficult")
    chosen(pixels, get_args(Pixels), "pixels")
    chosen(str(first), ("0", "1"), "first")
    photos = Photos(raws)
    for source, name in _annotations(raws):
        tree = parsed(raws[source].read(name, XML_BYTES), name)
        objects = [o for o in tree.findall("object") if difficult == "keep" or _text(o, "difficult") != "1"]
        if not objects:
            continue
        width, height = (_text(tree, f"size/{side}") for side in ("width", "height"))
        size = (int(width), int(height)) if width.isdigit() and height.isdigit() else None
        turn = photos.turn(_photo(photos, raws[source], name), size, pixels)
        for item in objects:
            corners = _corners(item, first, size, name)
            if corners is not None:
                x1, y1, x2, y2 = turn(corners)
                yield {
                    "image_id": _stem(name),
                    "x1": x1,
                    "y1": y1,
                    "x2": x2,
                    "y2": y2,
                    "class": _needed(item, "name", name),
                    "attributes": [],
                }


def examples(raws: Mapping[str, Raw], image_ids: Any) -> Iterator[dict[str, Any]]:
    """VOC has no texts."""
    yield from ()


def parsed(data: bytes, where: str) -> Element:
    """The tree of an XML document without a document type. Raises UserError for one, and for broken XML."""
    builder = TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: Any) -> None:
        raise UserError(f"{where}: has a document type (<!DOCTYPE …>), which may hold entities; take it out")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
        return builder.close()
    except expat.ExpatError as error:
        raise UserError(f"{where}: not XML: {error}") from None


def _annotations(raws: Mapping[str, Raw]) -> Iterator[tuple[str, str]]:
    """(source, name) of every XML; UserError for two of one name, or none."""
    seen: dict[str, str] = {}
    for source, raw in raws.items():
        for name in raw.members():
            if name.endswith(".xml"):
                other = seen.setdefault(_stem(name), f"{source}/{name}")
                if other != f"{source}/{name}":
                    raise UserError(f"two images are called {_stem(name)!r}: {other} and {source}/{name}; rename one")
                yield source, name
    if not seen:
        raise UserError(f"reader 'voc': {', '.join(raws)} hold no .xml; are they the right files?")


def _stem(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".xml")


def _photo(photos: Photos, raw: Raw, name: str) -> tuple[str, str]:
    """(source, member) of an XML's image: of the same name in JPEGImages or beside the XML, else the one it names."""
    own = name.rpartition("/")[0]
    beside = "/".join(filter(None, (own.rpartition("/")[0], "JPEGImages")))
    found = photos.at(f"{beside}/{_stem(name)}") or photos.at("/".join(filter(None, (own, _stem(name)))))
    return found or photos.find(_needed(parsed(raw.read(name, XML_BYTES), name), "filename", name), beside, name)


def _splits(raws: Mapping[str, Raw]) -> dict[str, str]:
    """Image → split, by the lists `ImageSets/Main/SPLIT.txt`."""
    found: dict[str, str] = {}
    for raw in raws.values():
        for name in raw.members():
            folder, _, last = name.rpartition("/")
            split = last.removesuffix(".txt")
            if split in SPLITS and folder.endswith("ImageSets/Main"):
                lines = raw.read(name, XML_BYTES).decode(errors="replace").split("\n")
                found |= {words[0]: split for line in lines if (words := line.split())}
    return found


def _corners(item: Element, first: int, size: tuple[int, int] | None, where: str) -> Corners | None:
    """x1 y1 x2 y2 from 0, the last pixel exclusive, within the image; None where nothing is left."""
    values = []
    for name in ("xmin", "ymin", "xmax", "ymax"):
        text = _needed(item, f"bndbox/{name}", where)
        try:
            values.append(float(text))  # some of VOC 2011 and later are fractions
        except ValueError:
            raise UserError(f"{where}: bndbox/{name}: {text!r:.80} is no number") from None
    x1, y1, x2, y2 = values
    x1, y1 = max(0.0, x1 - first), max(0.0, y1 - first)
    if size is not None:
        x2, y2 = min(x2, float(size[0])), min(y2, float(size[1]))
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _text(item: Element, path: str) -> str:
    return (item.findtext(path) or "").strip()


def _needed(item: Element, path: str, where: str) -> str:
    text = _text(item, path)
    if not text:
        raise UserError(f"{where}: {path}: is missing")
    return text
