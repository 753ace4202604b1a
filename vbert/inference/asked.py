"""A question as it is put, with one image or several, brought into one form: examples, and the regions of their
images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import TYPE_CHECKING, Any

from vbert.errors import UserError
from vbert.inference.photos import Photo, photo
from vbert.inference.table import LONGEST_TEXT

if TYPE_CHECKING:
    from PIL import Image

    from vbert.regions.contract import Contract
    from vbert.regions.shards import Regions

OPTIONAL = ("text_b", "phrase")  # texts that may be None
FAR = 0.1  # of an image's side: a box further outside is of another image, or in other units


@dataclass(frozen=True)
class Asked:
    """images: of each example the ids of its images in `regions`; texts: by name, one an example; several: whether a
    list was asked, which is answered by a list."""

    images: Sequence[Sequence[str]]
    regions: Mapping[str, Regions]
    texts: Mapping[str, Sequence[str]]
    several: bool
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)  # by id, of images that were given as such

    def shaped(self, found: Sequence[Any]) -> Any:
        return list(found) if self.several else found[0]


def asked(
    images: Sequence[Any],
    regions: Any,
    texts: Mapping[str, Any],
    contract: Contract,
    look: Callable[[Sequence[Photo]], Sequence[Regions]],
) -> Asked:
    """images: an example's, each one for all examples or a list, one an example; likewise the texts. look: finds the
    regions of photos. Raises UserError for lists of different lengths, and for what is none of an image or a text."""
    from vbert.regions.shards import Shards

    pairs = len(images) == 2
    lists = {f"image {k + 1}" if pairs else "images": one for k, one in enumerate(images) if _several(one)}
    lists |= {name: one for name, one in texts.items() if _several(one)}
    given_list = isinstance(regions, list | tuple) and not (pairs and isinstance(regions, tuple))
    if given_list:
        lists["regions"] = regions
    counts = {name: len(one) for name, one in lists.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UserError(f"lists of different lengths: {told}; give one for all, or one each")
    count = next(iter(counts.values()), 1)
    if not count and (alone := [name for name, one in texts.items() if one is not None and name not in lists]):
        raise UserError(f"{' and '.join(lists)}: an empty list beside one {alone[0]}; give one image at least")
    rows = {name: _texts(name, one, count) for name, one in texts.items()}
    pictures: dict[str, Image.Image] = {}
    if isinstance(regions, Shards):
        ids, found = _from_shards(regions, images, count, contract)
    elif regions is None:
        ids, photos = _from_photos(images, count)
        found = dict(zip(photos, look(list(photos.values())), strict=True))
        pictures = {name: one.picture for name, one in photos.items()}
    else:
        ids, found = _from_regions(regions if given_list else [regions] * count, pairs, contract)
    return Asked(ids, found, rows, bool(counts), pictures)


def _several(one: Any) -> bool:
    return isinstance(one, list | tuple)


def _texts(name: str, one: Any, count: int) -> list[str]:
    """One an example; "" for none where there may be none."""
    each: list[Any] = list(one) if _several(one) else [one] * count
    for k, text in enumerate(each):
        if name in OPTIONAL and text in (None, ""):
            each[k] = ""
            continue
        if not isinstance(text, str):
            raise UserError(f"{name}: {type(text).__name__} is no text; give a string, or a list of strings")
        if not text.strip():
            raise UserError(f"{name}: the text is empty")
        check_length(name, text)
    return each


def _from_photos(images: Sequence[Any], count: int) -> tuple[list[list[str]], dict[str, Photo]]:
    """The ids are digests of pixels: an image that stands twice is looked at once."""
    known: dict[int, Photo] = {}

    def seen(given: Any, name: str) -> Photo:
        if id(given) not in known:
            known[id(given)] = photo(given, name)
        return known[id(given)]

    ids: list[list[str]] = [[] for _ in range(count)]
    photos: dict[str, Photo] = {}
    for one in images:
        for k, given in enumerate(one if _several(one) else [one] * count):
            if given is None and len(images) == 2 and ids[k]:
                continue  # a statement about one image
            shown = seen(given, "" if not _several(one) or isinstance(given, str) else f"image {k}")
            photos[shown.digest] = shown
            ids[k].append(shown.digest)
    return ids, photos


def _from_shards(
    shards: Any, images: Sequence[Any], count: int, contract: Contract
) -> tuple[list[list[str]], dict[str, Regions]]:
    """The images are ids in the shards."""
    from vbert.errors import UnknownImage
    from vbert.regions.contract import check

    check(contract, shards.contract())
    ids: list[list[str]] = [[] for _ in range(count)]
    for one in images:
        for k, given in enumerate(one if _several(one) else [one] * count):
            if given is not None or not ids[k]:
                ids[k].append(str(given))
    try:
        return ids, {image: shards.read(image) for its in ids for image in its}
    except UnknownImage as error:
        raise UserError(str(error)) from None


def _from_regions(each: Sequence[Any], pairs: bool, contract: Contract) -> tuple[list[list[str]], dict[str, Regions]]:
    """Regions by themselves; of pairs, of both images."""
    from vbert.regions.shards import Regions

    ids: list[list[str]] = []
    found: dict[str, Regions] = {}
    for k, given in enumerate(each):
        its = [one for one in given if one is not None] if pairs and _several(given) else [given]
        for one in its:
            if not isinstance(one, Regions):
                raise UserError(
                    f"regions: {type(one).__name__} is none; give what `model.regions(image)` or an entry of "
                    "`vbert.Shards` is, or the shards with ids in place of images"
                )
            if problem := _wrong_with(one, contract):
                raise UserError(f"regions{f' {k}' if len(each) > 1 else ''}: {problem}")
        names = [f"{k}/{place}" for place in range(len(its))]
        found |= dict(zip(names, its, strict=True))
        ids.append(names)
    return ids, found


def _wrong_with(regions: Regions, contract: Contract) -> str:
    """What a model that reads `contract` can't read in an image's regions; "" for nothing."""
    import numpy as np

    features = np.asarray(regions.features)
    if features.ndim != 2 or features.dtype.kind != "f":
        return f"features {list(features.shape)} of {features.dtype}; give floats [regions, {contract.dim}]"
    if features.shape[1] != contract.dim:
        return f"features of {features.shape[1]} numbers; the model reads {contract.dim}"
    if not np.isfinite(features).all():
        return "a feature is no finite number (NaN or infinite)"
    if regions.boxes is None:
        return "they have no boxes, and the model reads them" if contract.box_input not in (None, "none") else ""
    boxes = np.asarray(regions.boxes)
    if boxes.shape != (len(features), 4) or boxes.dtype.kind not in "fiu":
        return f"boxes {list(boxes.shape)} of {boxes.dtype} for {len(features)} regions; give four numbers each"
    if not np.isfinite(boxes).all():
        return "a number of a box is not finite (NaN or infinite)"
    try:
        sides = [regions.details[name] for name in ("width", "height")]
    except (ValueError, KeyError, TypeError):
        return "their json says no width and height of the image"
    for axis, side in enumerate(sides):
        reach = boxes[:, axis::2]
        if side is not None and len(boxes) and (reach.min() < -FAR * side or reach.max() > (1 + FAR) * side):
            far = float(reach.min() if reach.min() < -FAR * side else reach.max())
            what = ("wide", "high")[axis]
            return f"a box reaches {far:.1f} in an image {side} pixels {what}; give x1, y1, x2, y2 in its pixels"
    return ""


def check_length(name: str, text: str) -> None:
    """text: of a list its JSON, as a table has it. Raises UserError for one that is too long."""
    if len(text) > LONGEST_TEXT:
        raise UserError(f"{name}: is longer than {LONGEST_TEXT:,} characters")


def check_top(top: Any) -> None:
    """Raises UserError where `top` is no number of answers."""
    if isinstance(top, bool) or not isinstance(top, Integral) or int(top) < 1:
        raise UserError(f"top: {top!r:.40} is no number of answers; give a whole number from 1")
