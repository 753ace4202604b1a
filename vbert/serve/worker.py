"""The child's side of the desk: it holds the model, decodes photos, and answers with plain data or a refusal."""

from __future__ import annotations

import ctypes
import os
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from vbert.errors import UserError
from vbert.serve.data_address import data_address
from vbert.serve.photos import read_photo
from vbert.serve.refused import Refused

if TYPE_CHECKING:
    from PIL import Image

    from vbert.explain.explanation import Explanation
    from vbert.inference.visualbert import VisualBert
    from vbert.regions.shards import Regions

RERANK = 48  # photos found that the cross-encoder ranks: a page is waited for
PICTURE = 320  # longer side of a found photo's picture, in pixels
# What can be asked over HTTP, of a model that can it, with the photos of each; `regions` of every model.
PHOTOS = {
    "answer": ("image",),
    "classify": ("image",),
    "sentiment": ("image",),
    "true": ("left", "right"),
    "choose": ("image",),
    "ground": ("image",),
    "match": ("image",),
    "caption": ("image",),
    "fill": ("image",),
    "regions": ("image",),
}


@dataclass(frozen=True)
class Opened:
    """load: makes the model from `where`, in the child. features, images: folders of the photos that are searched.
    forget: whether nothing of a request, not even its photos' regions, stays in memory when it has its answer."""

    load: Callable[[str], VisualBert]
    where: str
    features: Path | None = None
    images: Path | None = None
    pixels: int = 30_000_000
    forget: bool = False


@dataclass(frozen=True)
class Job:
    """task: `search`, `explain`, or one of PHOTOS. photos: files as uploaded, by their names in the form. fields: the
    arguments of the model's method."""

    task: str
    photos: Mapping[str, bytes] = field(default_factory=dict)
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Held:
    opened: Opened
    model: VisualBert
    search: Any = None  # ImageSearch
    folder: Any = None  # FolderImages


_held: _Held | None = None


def open_model(opened: Opened) -> dict[str, Any]:
    """Loads it; the fields of `About` that the model decides. Raises UserError where it can't be asked about photos."""
    from vbert.serve.examples import examples

    held = _open(opened)
    model = held.model
    can = [name for name in PHOTOS if name in model.can]
    searches = ["search"] if held.search else []
    explains = ["explain"] if hasattr(model, "explain") and len(can) > 1 else []
    shown = examples(model, [*can, *searches])
    _ready(held, shown)
    return {
        "title": PurePath(model.title).name,  # not where it lies
        "can": [*can, *searches, *explains],
        "labels": list(model.head.get("labels", ()))[:200],
        "detector": str(model.contract.detector),
        "examples": shown,
        "searched": len(held.search.index.image_ids) if held.search else None,
    }


def _ready(held: _Held, shown: Sequence[Mapping[str, Any]]) -> None:
    """Does once what the first request would wait for: loading the detector, imports."""
    from PIL import Image

    held.model.regions(Image.new("RGB", (64, 64), "white"))
    for one in shown[:1]:
        photos = [b64decode(picture.partition(",")[2]) for picture in one["pictures"]]
        fields = {**one["fields"], **({"top": 1} if one["task"] == "search" else {})}
        work(held.opened, Job(one["task"], dict(zip(PHOTOS.get(one["task"], ()), photos, strict=True)), fields))


def work(opened: Opened, job: Job) -> dict[str, Any] | Refused:
    """The fields of a reply. What the client did wrong comes back as a value, like any other failure: a child that
    raises is replaced."""
    try:
        held = _open(opened)
    except Exception as error:
        return Refused(500, f"the model can't be loaded again: {_told(error)}")
    began = time.perf_counter()
    try:
        reply = _search(held, job) if job.task == "search" else _asked(held, job)
        return {**reply, "seconds": round(time.perf_counter() - began, 4)}
    except Refused as refused:
        return refused
    except UserError as error:
        return Refused(422, error.message.replace(held.model.title, "the model"))
    except MemoryError:
        return Refused(413, "there is not enough memory for this request: make the photo smaller")
    except Exception as error:
        return Refused(500, f"the model failed at this request ({type(error).__name__}); it goes on with the next")
    finally:
        if opened.forget and "looker" in vars(held.model):
            held.model.looker.forget()
        _give_back()


def _give_back() -> None:
    """Freed memory goes back to the system, where the C library can: photos of many sizes leave it in pieces."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _open(opened: Opened) -> _Held:
    global _held
    if _held is None:
        # Kernels are compiled for each size of photo, and kept: 1,024 of them would be hundreds of megabytes.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
        model = opened.load(opened.where)
        _ = model.looker  # a model that can't look at photos is refused now
        _held = _Held(opened, model)
        if opened.features is not None:
            from vbert.objectives.retrieval_search import ImageSearch
            from vbert.regions.interop.folder_images import FolderImages

            _held.search = ImageSearch.open(opened.where, opened.features, model.device)
            _held.folder = FolderImages(opened.images) if opened.images else None
    return _held


def _asked(held: _Held, job: Job) -> dict[str, Any]:
    fields, model = dict(job.fields), held.model
    photos = [read_photo(data, held.opened.pixels, name) for name, data in job.photos.items()]
    regions = [model.regions(photo) for photo in photos]
    shown = [_photo(photo, its) for photo, its in zip(photos, regions, strict=True)]
    if job.task == "regions":
        return {"photos": shown}
    given = regions[0] if len(regions) == 1 else tuple(regions)
    if job.task == "explain":
        fields["right"] = photos[1] if len(photos) > 1 else None
        return {"photos": shown, **_explained(model.explain(photos[0], **fields, regions=given))}
    result = getattr(model, job.task)(*photos, **fields, regions=given)
    return {"photos": shown, **REPLIES[job.task](result)}


def _scored(answers: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"text": one.text, "score": one.score} for one in answers]


def _answers(result: Sequence[Any]) -> dict[str, Any]:
    return {"answers": _scored(result)}


# The model's result → fields of the reply.
REPLIES: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    **dict.fromkeys(("answer", "classify", "sentiment", "choose"), _answers),
    "true": lambda found: {"true": found.true, "score": found.score},
    "match": lambda found: {"score": found.score, "logit": found.logit},
    "caption": lambda found: {"caption": found.text, "score": found.score},
    "fill": lambda found: {"words": [_scored(each) for each in found]},
    "ground": lambda found: {
        "found": [{"region": r.region, "box": r.box, "name": r.name, "score": r.score} for r in found]
    },
}


def _photo(photo: Image.Image, regions: Regions) -> dict[str, Any]:
    details = regions.details
    boxes = [] if regions.boxes is None else regions.boxes.tolist()
    named = []
    for k, box in enumerate(boxes):
        words = [its[k] for name in ("attributes", "classes") if k < len(its := details.get(name) or ())]
        scores = details.get("scores") or ()
        score = float(scores[k]) if k < len(scores) else None
        named.append({"box": box, "name": " ".join(filter(None, map(_word, words))), "score": score})
    return {"width": photo.width, "height": photo.height, "regions": named}


def _word(value: Any) -> str:
    """An attribute or class: the likeliest where there are several."""
    return str(value[0] if value else "") if isinstance(value, list | tuple) else str(value or "")


def _explained(why: Explanation) -> dict[str, Any]:
    return {
        "answer": why.answer,
        "score": why.score,
        "method": why.method,
        "words": [{"text": w.text, "relevance": w.relevance, "regions": w.regions} for w in why.words],
        "regions": [{"photo": r.image, "region": r.region, "relevance": r.relevance} for r in why.regions],
    }


def _search(held: _Held, job: Job) -> dict[str, Any]:
    """The photos of a text, with pictures where their folder was given."""
    search = held.search
    query = search.query(str(job.fields["text"]))
    found = []
    for one in search.by_text(query, int(job.fields["top"]), RERANK):
        regions = search.regions(one.image_id)
        mattered = [each.region for each in search.mattered(one, query)]
        boxes = [] if regions.boxes is None else [regions.boxes[k].tolist() for k in mattered]
        sides = {name: regions.details[name] for name in ("width", "height")}
        about = {"image_id": one.image_id, "score": one.score, "similarity": one.similarity}
        found.append({**about, **sides, "boxes": boxes, "picture": _picture(held.folder, one.image_id)})
    return {"found": found, "searched": len(search.index.image_ids), "notes": query.notes}


def _picture(folder: Any, image_id: str) -> str | None:
    from vbert.data.decode import BadImage

    if folder is None:
        return None
    try:
        photo = folder.open(image_id)
    except (BadImage, UserError):
        return None
    photo.thumbnail((PICTURE, PICTURE))
    return data_address(photo)


def _told(error: Exception) -> str:
    return error.message if isinstance(error, UserError) else type(error).__name__
