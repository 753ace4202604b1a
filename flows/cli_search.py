"""`vbert search`: images of a folder of region features, found by a text or by one of them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.options import JsonOption
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.objectives.retrieval_search import FoundImage, ImageSearch


def search(
    text: str | None = None,
    /,
    *,
    model: Path,
    features: Path,
    images: Path | None = None,
    like: str | None = None,
    top: int = 10,
    rerank: int = 128,
    html: Path | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json_: JsonOption = False,
) -> None:
    """Find images by a text, or those like one of them, with a trained retrieval model.

    Prints a line an image, best first: its id, the cross-encoder's score (match minus mismatch logit) and the cosine of
    the dual encoder's vectors. The vectors of all images are kept beside the features, in the cache directory where
    these can't be written, and made anew for images that changed.

    Example: `vbert search "a dog on a sofa" --model model --features features --images photos --html found.html`

    Parameters
    ----------
    text
        what the images show.
    model
        the folder of a model of the objective `retrieval`, with a dual encoder.
    features
        the folder of region features of the images, as `vbert preprocess` makes it, by the model's own detector.
    images
        the folder of the images, for the pictures of --html.
    like
        in place of a text: the id of an image of the features. Those most similar by the dual encoder are found.
    top
        the number of images found.
    rerank
        so many of the dual encoder's best are ranked by the cross-encoder, the others behind them; 0: none.
    html
        a page to write: pictures, scores, and boxes of the regions that mattered.
    device
        where the model runs; auto: a GPU if there is one.
    """
    if (text is None) == (like is None):
        raise UserError('give either a text, as in `vbert search "a dog" …`, or an image with --like')
    for name, value, least in (("--top", top, 1), ("--rerank", rerank, 0)):
        if value < least:
            raise UserError(f"{name} {value}: give {least} or more")
    if images is not None and html is None:
        raise UserError("--images are for the page of pictures: name it with --html")
    from flows.terminal import counted
    from vbert.device import device_of
    from vbert.objectives.retrieval_search import ImageSearch

    with counted("index") as show:
        searching = ImageSearch.open(model, features, device_of(device), show)
    _tell_index(searching)
    began = time.perf_counter()
    query: Any = like
    if text is not None:
        query = searching.query(text)
        for note in query.notes:
            print(f"vbert: {note}", file=sys.stderr)
        found = searching.by_text(query, top, rerank)
    else:
        found = searching.like(query, top)
    seconds = time.perf_counter() - began
    if html is not None:
        from vbert.report.search import search_sheet

        page = search_sheet(searching, query, found, images, rerank)
        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_bytes(page.encode("utf-8", errors="replace"))
    _print(found)
    if json_:
        about = {"text": text, "like": like, "images": len(searching.index.image_ids), "seconds": round(seconds, 4)}
        index = {"vectors_made": searching.kept.made, "path": searching.kept.path and str(searching.kept.path)}
        rows = [{"image_id": one.image_id, "score": one.score, "similarity": one.similarity} for one in found]
        print(json.dumps({**about, "index": index, "found": rows, "html": html and str(html)}))


def _tell_index(searching: ImageSearch) -> None:
    """Of an index that was made, or isn't where one would look."""
    kept = searching.kept
    if kept.made:
        whole = len(searching.index.image_ids)
        print(f"vbert: vectors of {kept.made:,} of {whole:,} images were made", file=sys.stderr)
    if kept.reason:
        where = f"is kept in {kept.path}" if kept.path else "is not kept, and is made again each time"
        print(f"vbert: {kept.reason}; the index {where}", file=sys.stderr)


def _print(found: list[FoundImage]) -> None:
    wide = max((len(one.image_id) for one in found), default=0)
    for rank, one in enumerate(found, 1):
        score = f"{'':8}" if one.score is None else f"{one.score:+8.3f}"
        print(f"{rank:>3}  {one.image_id:<{wide}}  {score}  {one.similarity:+.4f}")
