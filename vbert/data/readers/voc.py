"""Pascal VOC's XML (Everingham et al. 2010): one file of boxes an image, `Annotations/NAME.xml` beside
`JPEGImages/NAME.jpg`, splits in `ImageSets/Main/{train,val,test}.txt`.

For VOC itself, and for other data sets in its format: an XML may also lie beside its image, lists of splits may
lie in `ImageSets` itself and name files with their endings, and without lists all images are `train` (`validation` of
the spec then takes a share of them). Images that `trainval.txt` names, and no other list, are `train`.

- An image's id is the name of its XML without the ending ("000012", "2008_000002").
- VOC counts pixels from 1 and its boxes hold their last pixel: (1, 1, 1, 1) is the first pixel, ours is (0, 0, 1, 1).
  Tools that write the format count from 0 as often as not: `options: {first: 0}`, with the last pixel exclusive.
- Objects marked `difficult` are left out, as VOC's own evaluation ignores them: `options: {difficult: keep}` keeps
  them.
- Boxes of photos that their EXIF turns, and photos of another size than stated, are as in `coco`. A stated 0×0, which
  some tools write, says nothing.
- XML is data of strangers: a document type, and so entities, is refused. It may be in any encoding that it names and
  Python knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, get_args
from xml.etree.ElementTree import Element

from vbert.data.boxes import Corners, Pixels, StatedSize
from vbert.data.names import FileNames, count_of
from vbert.data.readers import BoxRow, ImageRow, ReaderNote
from vbert.data.readers._photos import PhotoFiles, Place
from vbert.data.readers._rows import check_choice, flag
from vbert.data.xml import XML_BYTES, parsed
from vbert.errors import UserError, nearest

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 2
OWN = (".xml", ".txt")

LIST_BYTES = 1 << 28
FLAGS = ("-1", "0", "1")  # the column behind a name in the lists of one class
LISTS = {"train.txt": "train", "val.txt": "val", "test.txt": "test", "trainval.txt": "trainval"}


def images(
    raws: Mapping[str, RawFiles],
    first: int = 1,
    difficult: str = "skip",
    pixels: Pixels = "stated",
    scale_boxes: bool = False,
) -> Iterator[ImageRow | ReaderNote]:
    """Every image with an XML; those in no list of a split, where there are lists, have none."""
    photos, stems = PhotoFiles(raws), {name: _stem(name) for _, name in _annotations(raws)}
    splits, lost = _splits(raws, FileNames(dict.fromkeys(stems.values())))
    for source, name in _annotations(raws):
        photo, member = _photo(photos, raws[source], name)
        split = "train" if splits is None else splits.get(stems[name])
        yield {"image_id": stems[name], "path": member, "source": photo, "split": split}
    if lost:
        some = ", ".join(repr(name)[:80] for name in lost[:3])
        yield ReaderNote(
            "listed_but_missing", len(lost), f"lists of splits name {count_of(lost, 'image')} without an XML: {some}"
        )


def boxes(
    raws: Mapping[str, RawFiles],
    first: int = 1,
    difficult: str = "skip",
    pixels: Pixels = "stated",
    scale_boxes: bool = False,
) -> Iterator[BoxRow]:
    """Every object's box; those of its parts (hands, heads) are left out."""
    check_choice(difficult, ("skip", "keep"), "difficult")
    check_choice(pixels, get_args(Pixels), "pixels")
    check_choice(str(first), ("0", "1"), "first")
    check_choice(scale_boxes, (True, False), "scale_boxes")
    for source, name in _annotations(raws):
        tree = parsed(raws[source].read(name, XML_BYTES), name)
        stated = StatedSize(
            _number(_text(tree, "size/width")), _number(_text(tree, "size/height")), name, pixels, scale_boxes
        )
        for at, item in enumerate(tree.findall("object")):
            where = f"{name}: object[{at}]"
            x1, y1, x2, y2 = _corners(item, int(first), where)
            box: BoxRow = {
                "image_id": _stem(name),
                "x1": x1,
                "y1": y1,
                "x2": x2,
                "y2": y2,
                "class": _needed(item, "name", where),
                "attributes": [],
                "where": where,
                "stated": stated,
            }
            difficult_flag = _text(item, "difficult").lower()
            if difficult == "skip" and difficult_flag != "unspecified" and flag(difficult_flag, f"{where}: difficult"):
                box["left_out"] = "difficult"
            yield box


def examples(raws: Mapping[str, RawFiles], image_ids: Any) -> Iterator[dict[str, Any]]:
    """VOC has no texts."""
    yield from ()


def _annotations(raws: Mapping[str, RawFiles]) -> Iterator[Place]:
    """(source, name) of every XML; UserError for two of one name, or none."""
    seen: dict[str, str] = {}
    for source, raw in raws.items():
        for name in raw.members():
            if name.lower().endswith(".xml"):
                other = seen.setdefault(_stem(name), f"{source}/{name}")
                if other != f"{source}/{name}":
                    raise UserError(f"two images are called {_stem(name)!r}: {other} and {source}/{name}; rename one")
                yield source, name
    if not seen:
        raise UserError(f"reader 'voc': {', '.join(raws)} hold no .xml; are they the right files?")


def _stem(name: str) -> str:
    return name.rpartition("/")[2][: -len(".xml")]


def _photo(photos: PhotoFiles, raw: RawFiles, name: str) -> Place:
    """(source, member) of an XML's image: of the same name in JPEGImages or beside the XML, else the one it names."""
    own = name.rpartition("/")[0]
    beside = "/".join(filter(None, (own.rpartition("/")[0], "JPEGImages")))
    for folder in (beside, own):
        places = photos.at("/".join(filter(None, (folder, _stem(name)))))
        if len(places) == 1:
            return places[0]
    named = _needed(parsed(raw.read(name, XML_BYTES), name), "filename", name)
    return photos.find(named, beside, name, any_ending=False)


def _splits(raws: Mapping[str, RawFiles], known: FileNames) -> tuple[dict[str, str] | None, list[str]]:
    """Image → split, by the lists `ImageSets/Main/SPLIT.txt` (None: there are none), and the names that no image has.

    Raises UserError for a list of which no name is an image's, and for an image in two of them.
    """
    splits: dict[str, str] = {}
    both: set[str] = set()  # named by trainval.txt
    lost: list[str] = []
    lists = 0
    for raw in raws.values():
        for name in raw.members():
            folder, _, last = name.lower().rpartition("/")
            if last not in LISTS or not folder.endswith(("imagesets/main", "imagesets")):
                continue
            lists += 1
            named = [line.strip() for line in _list(raw, name).splitlines() if line.strip()]
            mine = [_listed(line, known, name) for line in named]
            if named and not any(mine):
                hint = nearest(named[0], known.some())
                raise UserError(f"{name}: none of its {len(named):,} names is an XML's: {named[0]!r:.80}; {hint:.200}")
            lost += [line for line, image in zip(named, mine, strict=True) if image is None]
            for image in filter(None, mine):
                if LISTS[last] == "trainval":
                    both.add(image)
                elif splits.setdefault(image, LISTS[last]) != LISTS[last]:
                    raise UserError(f"{name}: {image!r} is also listed as {splits[image]}; which one is meant?")
    return (splits | dict.fromkeys(both - splits.keys(), "train") if lists else None), lost


def _list(raw: RawFiles, name: str) -> str:
    data = raw.read(name, LIST_BYTES)
    try:
        return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: is not in UTF-8 ({error.reason}); save it as UTF-8") from None


def _listed(line: str, known: FileNames, where: str) -> str | None:
    """The image of a line: its name, which may have blanks, without a column of -1, 0 or 1 or the name of its XML
    behind it."""
    *_, final = line.split()
    more = final in FLAGS or final.lower().endswith(".xml")
    for name in (line, line.removesuffix(final).strip()) if more else (line,):
        last = name.replace("\\", "/").rpartition("/")[2]
        for spelling in (name, last, last.removesuffix(".xml")):
            if len(matches := known.matches(spelling)) == 1:
                return matches[0]
            if matches:
                raise UserError(f"{where}: {line!r:.80} may be {' or '.join(sorted(matches)[:2])}")
    return None


def _corners(item: Element, first: int, where: str) -> Corners:
    """x1 y1 x2 y2 from 0, the last pixel exclusive."""
    values = []
    for name in ("xmin", "ymin", "xmax", "ymax"):
        text = _needed(item, f"bndbox/{name}", where)
        try:
            values.append(float(text.replace("_", "?")))  # some of VOC 2011 and later are fractions; 1_0 is Python's
        except ValueError:
            raise UserError(f"{where}: bndbox/{name}: {text!r:.80} is no number") from None
    x1, y1, x2, y2 = values
    return x1 - first, y1 - first, x2, y2


def _number(text: str) -> int | str:
    """A side of a stated size as an int; any other text is returned as it is."""
    return int(text) if re.fullmatch("[1-9][0-9]{0,8}", text) else text


def _text(item: Element, path: str) -> str:
    return (item.findtext(path) or "").strip()


def _needed(item: Element, path: str, where: str) -> str:
    text = _text(item, path)
    if not text:
        raise UserError(f"{where}: {path}: is missing")
    return text
