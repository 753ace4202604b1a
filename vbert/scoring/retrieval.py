"""Scores of retrieval between images and texts: a matrix of scores, or rankings."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict  # pydantic asks for this one before Python 3.12

from vbert.data.names import count_of
from vbert.errors import UserError
from vbert.metrics import retrieval
from vbert.scoring import formats
from vbert.scoring.captions import Annotated, annotated
from vbert.scoring.files import lines, read_start
from vbert.scoring.score import Figures, IdsDiffer, Missing, Score, match

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ZIP = b"PK\x03\x04"
ARRAYS = ("scores", "image_ids", "text_ids")
LONGEST_ID = 4096  # bytes
SIDES = ("text_to_image", "image_to_text")
FEWEST = 2  # images of a fold: among one, each text finds its own


@with_config(ConfigDict(strict=True, extra="forbid"))
class Ranking(TypedDict):
    """Of a text the images, or of an image the texts, best first."""

    text_id: NotRequired[int | str]
    images: NotRequired[list[int | str]]
    image_id: NotRequired[int | str]
    texts: NotRequired[list[int | str]]


@dataclass
class Part:
    """What a file says of a fold: its candidates of either side, and each query's rank (None: behind the end of its
    ranking, whose length stands in `lengths`). tied: None where the file says nothing of ties."""

    images: Sequence[str]
    texts: Sequence[str]
    ranks: dict[str, dict[str, retrieval.Rank]] = field(default_factory=lambda: {side: {} for side in SIDES})
    lengths: dict[str, dict[str, int]] = field(default_factory=lambda: {side: {} for side in SIDES})
    tied: int | None = None

    def candidates(self, side: str) -> int:
        """Of a query of a side; of rankings as many as the longest holds."""
        known = len(self.images if side == SIDES[0] else self.texts)
        return max(self.lengths[side].values()) if self.lengths[side] else known


def score_retrieval(
    annotations: Path, predictions: Sequence[Path], folds: int = 1, missing: Missing = "error"
) -> Score:
    """Recall at 1, 5 and 10 and the median rank of either side, their sum, the number of ties, which count against the
    model, and of either side the candidates of a query (the fewest of any fold; of rankings those that the longest
    holds). `scored`, `of` and `missing` count queries, texts and images together.

    annotations: COCO captions; a text's id is its annotation's. Several files are folds, whose figures are averaged;
    `folds` cuts one file into as many consecutive parts, in the order of the annotations' images. A fold has two images
    at least; one of rankings is of the images that its lines ask about, and those without a text that they hold.

    Raises UserError for a file that isn't of the format, IdsDiffer for ids that don't agree.
    """
    if folds > 1 and len(predictions) > 1:
        raise UserError("--folds cuts one file into parts; several files are folds already: leave it out")
    if missing == "wrong" and (folds > 1 or len(predictions) > 1):
        raise UserError("--missing wrong: a missing query is of no fold; leave it out by --missing skip")
    truth = annotated(annotations)
    owners = {text: image for image, texts in truth.texts.items() for text in texts}
    known = [image for image in truth.images if truth.texts[image]]
    most = len(known) // FEWEST
    if not 1 <= folds <= max(1, most):
        allowed = f"1 to {most:,}" if most > 1 else "1"
        raise UserError(
            f"--folds: must be {allowed}, so that each of the {count_of(known, 'image')} with a text is ranked beside "
            f"another, not {folds}"
        )
    groups = [set(known[len(known) * k // folds : len(known) * (k + 1) // folds]) for k in range(folds)]
    parts: list[Part] = []
    for path in predictions:
        within = groups if len(predictions) == 1 else [set(truth.images)]
        whole = [set(truth.images)] if folds == 1 else within
        reader = _matrix if read_start(path, len(ZIP)) == ZIP else _rankings
        found = list(reader(path, truth, owners, whole, len(predictions) > 1))
        for part in found:
            if len(part.images) < FEWEST:
                raise UserError(
                    f"{path}: each text would be ranked among {count_of(part.images, 'image')}; a fold has {FEWEST} "
                    "images or more: give them in one file"
                )
        parts += found
    giving = ", ".join(map(str, predictions))
    matched = {}
    for side, expected in zip(SIDES, (list(owners), known), strict=True):
        names = [name for part in parts for name in part.ranks[side]]
        if names or not any(part.ranks[other] for part in parts for other in SIDES if other != side):
            matched[side] = match(expected, names, missing, annotations, giving)
    return _score(parts, matched, truth, missing)


def _score(parts: Sequence[Part], matched: Mapping[str, Any], truth: Annotated, missing: Missing) -> Score:
    figures: Figures = {}
    notes: list[str] = []
    sides: dict[str, dict[str, float]] = {}
    for side in SIDES:
        if side not in matched:
            notes.append(f"{side} is absent: no ranking of its queries")
            continue
        each = [_of_side(part, side, notes) for part in parts if part.ranks[side]]
        if missing == "wrong" and matched[side].missing:
            right = len(matched[side].scored) - matched[side].missing
            share = right / len(matched[side].scored)
            each = [{name: share * value for name, value in one.items() if name != "median"} for one in each]
            notes.append(f"{side}: median is absent: queries without a prediction have no rank")
        figures[side] = sides[side] = retrieval.averaged(each)
    recalls = {f"r{k}" for k in retrieval.AT}
    if len(sides) == len(SIDES) and all(recalls <= side.keys() for side in sides.values()):
        figures["rsum"] = retrieval.rsum(*sides.values())
    else:
        notes.append("rsum is absent: it needs all six recalls")
    every = dict(zip(SIDES, (len(truth.images), len(truth.words)), strict=True))
    figures["candidates"] = {side: _candidates(parts, side, every[side], notes) for side in sides}
    ties = [part.tied for part in parts]
    if all(tied is not None for tied in ties):
        figures["tied"] = sum(tied or 0 for tied in ties)
    else:
        notes.append("tied is absent: rankings don't say which scores are equal")
    return Score(
        figures,
        sum(len(one.scored) for one in matched.values()),
        sum(one.of for one in matched.values()),
        sum(one.missing for one in matched.values()),
        tuple(dict.fromkeys(notes)),
        plain=("median", "rsum", "tied"),
    )


def _candidates(parts: Sequence[Part], side: str, every: int, notes: list[str]) -> int:
    """How many a query was ranked among, the fewest of the folds, with a note where that isn't all of them."""
    query, candidate = side.split("_to_")
    counts = sorted(part.candidates(side) for part in parts if part.ranks[side])
    if counts[0] < every:
        several = f" to {counts[-1]:,}" if counts[-1] > counts[0] else ""
        kind = candidate if every == 1 else f"{candidate}s"
        how = "at most " if any(part.lengths[side] for part in parts) else ""
        notes.append(f"{side}: each {query} was ranked among {how}{counts[0]:,}{several} of the {every:,} {kind}")
    return counts[0]


def _of_side(part: Part, side: str, notes: list[str]) -> dict[str, float]:
    """Figures of a fold, without those that a truncated ranking leaves open."""
    ranks = part.ranks[side]
    found = retrieval.figures(list(ranks.values()))
    cut = [part.lengths[side][name] for name, rank in ranks.items() if rank is None]
    if not cut:
        return found
    notes.append(f"{side}: median is absent: in {count_of(cut, 'ranking')} the right one is behind the end")
    for k in retrieval.AT:
        if min(cut) < k:
            del found[f"r{k}"]
            notes.append(f"{side}: r{k} is absent: in a ranking of {min(cut)} the right one is behind the end")
    return found


def _rankings(
    path: Path, truth: Annotated, owners: Mapping[str, str], groups: Sequence[set[str]], several: bool
) -> Iterator[Part]:
    rows = lines(path, Ranking, formats.RANKINGS)
    images, texts = set(truth.images), set(owners)
    found: list[tuple[str, str, str, list[str]]] = []  # side, `file:line: candidates`, query, ranking
    for where, row in rows:
        forms = (("text_id", "images", SIDES[0], texts, images), ("image_id", "texts", SIDES[1], images, texts))
        for query, candidates, side, queries, known in forms:
            if query in row and candidates in row and len(row) == 2:
                ranking = [str(name) for name in row[candidates]]  # type: ignore[literal-required]
                name = str(row[query])  # type: ignore[literal-required]
                _check(where, query, [name], queries)
                _check(where, candidates, ranking, known)
                found.append((side, f"{where}: {candidates}", name, ranking))
                break
        else:
            raise UserError(f"{where}: must be text_id and images, or image_id and texts")
    for side in SIDES:
        names = [name for its, _, name, _ in found if its == side]
        if names:
            match(names, names, "error", path, path, forgivable=False)
    if several:
        groups = [_fold_of(found, truth, owners)]
    for group in groups:
        part = Part(sorted(group), [text for text in owners if owners[text] in group])
        inside = group, set(part.texts)
        for side, _, name, ranking in found:
            image = owners[name] if side == SIDES[0] else name
            if image not in group:
                continue
            right = {image} if side == SIDES[0] else set(truth.texts[image])
            if not right:
                continue
            kept = [one for one in ranking if one in inside[side == SIDES[1]]]
            part.ranks[side][name] = retrieval.rank_in(kept, right)
            part.lengths[side][name] = len(kept)
        yield part


def _fold_of(
    rankings: Sequence[tuple[str, str, str, list[str]]], truth: Annotated, owners: Mapping[str, str]
) -> set[str]:
    """The images of a file's fold. Raises IdsDiffer for a ranking of others, which would be of an easier search without
    them."""
    fold = {owners[query] if side == SIDES[0] else query for side, _, query, _ in rankings}
    for side, _, _, ranking in rankings:
        fold |= {image for image in ranking if not truth.texts[image]} if side == SIDES[0] else set()
    for side, where, _, ranking in rankings:
        if others := [one for one in ranking if (one if side == SIDES[0] else owners[one]) not in fold]:
            raise IdsDiffer(
                f"{where}: {count_of(others, 'id')} outside the fold of this file, whose lines ask about "
                f"{count_of(fold, 'image')}: {', '.join(others[:5]):.300}; several files are folds, each ranked within "
                "itself: give rankings of all in one file"
            )
    return fold


def _check(where: str, what: str, names: Sequence[str], known: set[str]) -> None:
    if unknown := [name for name in names if name not in known]:
        raise IdsDiffer(f"{where}: {what}: {count_of(unknown, 'unknown id')}: {', '.join(unknown[:5]):.300}")
    if len(set(names)) < len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise IdsDiffer(f"{where}: {what}: {doubled:.80} stands in it twice")


def _matrix(
    path: Path, truth: Annotated, owners: Mapping[str, str], groups: Sequence[set[str]], several: bool
) -> Iterator[Part]:
    import numpy as np

    scores, images, texts = _arrays(path)
    for names, known, what in ((images, set(truth.images), "image_ids"), (texts, set(owners), "text_ids")):
        if len(set(names)) < len(names):
            match(names, names, "error", f"{path} ({what})", f"{path} ({what})", forgivable=False)
        if unknown := [name for name in names if name not in known]:
            raise IdsDiffer(f"{path}: {what}: {count_of(unknown, 'unknown id')}: {', '.join(unknown[:5]):.300}")
    rows = {image: at for at, image in enumerate(images)}
    for group in groups:
        chosen = [at for at, image in enumerate(images) if image in group]
        columns = [at for at, text in enumerate(texts) if owners[text] in group and owners[text] in rows]
        if several and len(columns) < len(texts):
            lost = next(text for text in texts if owners[text] not in rows)
            raise IdsDiffer(f"{path}: holds the text {lost:.80} without its image {owners[lost]:.80}")
        whole = len(chosen) == len(images) and len(columns) == len(texts)
        own = scores if whole else scores[np.ix_(chosen, columns)]
        place = {images[at]: k for k, at in enumerate(chosen)}
        found = retrieval.ranks(own, [place[owners[texts[at]]] for at in columns])
        part = Part([images[at] for at in chosen], [texts[at] for at in columns], tied=found.tied)
        part.ranks[SIDES[0]] = dict(zip(part.texts, found.texts, strict=True))
        asked = {owners[text] for text in part.texts}
        part.ranks[SIDES[1]] = dict(zip([i for i in part.images if i in asked], found.images, strict=True))
        yield part


def _arrays(path: Path) -> tuple[NDArray[Any], list[str], list[str]]:
    """scores [images, texts], image_ids, text_ids of an `.npz` that holds no pickle, whose sizes agree before anything
    is unpacked."""
    import numpy as np

    with _npz(path) as archive:
        shapes = {name: _header(path, archive, name) for name in ARRAYS}
        for name in ARRAYS[1:]:
            shape, dtype = shapes[name]
            if len(shape) != 1 or dtype.kind not in "iuUS" or dtype.itemsize > LONGEST_ID:
                raise UserError(f"{path}: {name}: must be a list of whole numbers or texts, not {dtype} {shape}")
        shape, dtype = shapes["scores"]
        wanted = shapes["image_ids"][0] + shapes["text_ids"][0]
        if shape != wanted:
            raise UserError(f"{path}: scores: must be [images, texts], {wanted} by the ids, not {shape}")
        if dtype.kind not in "fiu":
            raise UserError(f"{path}: scores: must be real numbers, not {dtype}")
        loaded = {}
        for name in ARRAYS:
            with archive.open(f"{name}.npy") as member:
                loaded[name] = np.lib.format.read_array(member, allow_pickle=False)
    scores = loaded["scores"]
    if (bad := np.isnan(scores)).any():
        row, column = np.argwhere(bad)[0]
        raise UserError(f"{path}: scores: row {row:,}, column {column:,} is NaN; {int(bad.sum()):,} of them are")
    return scores, _names(loaded["image_ids"]), _names(loaded["text_ids"])


@contextmanager
def _npz(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, ValueError, EOFError, OSError, NotImplementedError, MemoryError, RuntimeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: no whole .npz: {said:.200}") from None
    except Exception as error:
        if type(error).__module__ == "zlib":
            raise UserError(f"{path}: no whole .npz: {error!s:.200}") from None
        raise


def _header(path: Path, archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type of a member, whose stated size they must make."""
    import numpy as np

    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise UserError(f"{path}: holds no array {name!r}; it must hold {', '.join(ARRAYS)}") from None
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(member)
    if dtype.hasobject:
        raise UserError(
            f"{path}: {name}: holds a pickle (an array of objects), which is not read: save numbers or texts"
        )
    size = dtype.itemsize
    for side in shape:
        size *= side
    if not size <= info.file_size <= size + (1 << 16):
        raise UserError(f"{path}: {name}: states {shape} {dtype} in {info.file_size:,} bytes: no whole .npz")
    return tuple(shape), dtype


def _names(ids: NDArray[Any]) -> list[str]:
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in ids.tolist()]
