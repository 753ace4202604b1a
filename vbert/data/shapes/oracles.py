"""Reference figures for results: the best guess from text or image alone, and the score of a perfect reader.

All are shares (0–1), of the split named; majorities are those of the train split.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from vbert.data.majority import majority
from vbert.data.shapes.language import Meaning, SplitScenes
from vbert.data.shapes.parsing import parse
from vbert.data.shapes.wording import wordings, words

Row = Mapping[str, Any]
Gram = tuple[str, ...]
Vector = tuple[list[dict[Gram, float]], list[float], int]  # weights and norms for n = 1–4; words
RETRIEVED = 1000  # images that retrieval is computed over, the first of a split: the usual "1K" pool
CAPTION_KINDS = ("description", "list", "relation", "count", "place")  # statements are no captions of a scene


def answers(rows: Sequence[Row]) -> dict[str, Any]:
    """Questions: the share that the most frequent train answer gets right, given parts of the question."""
    given: dict[str, Callable[[Row], Hashable]] = {
        "majority": lambda row: None,
        "majority_per_type": lambda row: row["question_type"],
        "majority_per_question": lambda row: row["text"],
    }
    return _guesses(rows, given, lambda row: row["answers"][0]["answer"])


def sentiments(rows: Sequence[Row]) -> dict[str, Any]:
    """Sentiments: the best guess from the text alone, and from the image alone (the most frequent label of each image,
    with the labels known: an upper bound of any guess)."""
    result = _guesses(rows, {"text": lambda row: row["text"]}, lambda row: row["label"])
    for split, figures in result.items():
        figures["image"] = _upper([r for r in rows if r["split"] == split], lambda row: row["image_ids"][0])
    return result


def pairs(rows: Sequence[Row]) -> dict[str, Any]:
    """Pairs: the upper bound of a guess from the text, and from the text with one of the images."""
    result = {}
    for split in _splits(rows):
        part = [row for row in rows if row["split"] == split]
        result[split] = {
            "text": _upper(part, lambda row: row["text"]),
            "text_and_left": _upper(part, lambda row: (_claim(row), row["image_ids"][0])),
            "text_and_right": _upper(part, lambda row: (_claim(row), row["image_ids"][1])),
            "examples": len(part),
        }
    return result


def _claim(row: Row) -> str:
    return str(row["example_id"]).rpartition("/")[0]


def choices(rows: Sequence[Row]) -> dict[str, Any]:
    """Choices of val and test, without the image: `random`; `alone`, the text that is most often the right one in
    train, each judged by itself; `compared`, the one that differs least from the others in words. Ties are drawn."""
    counts = Counter(text for row in rows if row["split"] == "train" for text in _choice_texts(row))
    right = Counter(_choice_texts(row)[int(row["label"])] for row in rows if row["split"] == "train")
    result: dict[str, Any] = {}
    for split in ("val", "test"):
        part = [row for row in rows if row["split"] == split]
        scores: dict[str, list[float]] = {"random": [], "alone": [], "compared": []}
        for row in part:
            texts, label = _choice_texts(row), int(row["label"])
            chance = 1 / len(texts)
            counted = [Counter(text.replace(",", "").split()) for text in texts]
            differ = [sum(((one - other) + (other - one)).total() for other in counted) for one in counted]
            # A text that train has n times counts as if it also stood there once more, right by chance.
            shares = [(right[text] + chance) / (counts[text] + 1) for text in texts]
            scores["random"].append(chance)
            scores["alone"].append(_drawn(shares, label))
            scores["compared"].append(_drawn([-n for n in differ], label))
        result[split] = {name: _mean(values) for name, values in scores.items()} | {"examples": len(part)}
    return result


def _choice_texts(row: Row) -> list[str]:
    return [choice["text"] for choice in row["choices"]]


def _drawn(scores: Sequence[float], label: int) -> float:
    """The chance that `label` is drawn from the places with the highest score."""
    best = [k for k, score in enumerate(scores) if score == max(scores)]
    return (label in best) / len(best)


def phrases(rows: Sequence[Row], things: Mapping[str, int]) -> dict[str, Any]:
    """Phrases: the share right when each is given a box of its image at random. `things`: image id → boxes."""
    result = {}
    for split in _splits(rows):
        shares = [
            len(phrase["boxes"]) / things[row["image_ids"][0]]
            for row in rows
            if row["split"] == split
            for phrase in row["phrases"]
        ]
        result[split] = {"random_box": _mean(shares), "phrases": len(shares)}
    return result


def retrieval(split: SplitScenes, texts: Sequence[tuple[int, str, Meaning]]) -> dict[str, Any]:
    """Recall at 1, 5, 10 of a reader who knows of every caption which images it may be true of (unclear counts as
    true). `texts`: (place in the split, kind of caption, meaning), statements left out.

    caption_to_image: the caption's image among the first k of those it is true of, drawn at random.
    description_to_image: the same over the descriptions, which are true of one image alone.
    image_to_caption: any of the image's own captions among the first k of those true of it, the captions true of the
    fewest images first (the best order there is). drawn_image_to_caption: the same in random order.
    """
    pool = min(len(split.scenes), RETRIEVED)
    texts = [entry for entry in texts if entry[0] < pool and entry[1] in CAPTION_KINDS]
    matches = [[p for p in split.candidates(meaning) if p < pool] for _, _, meaning in texts]
    described = [len(images) for (_, kind, _), images in zip(texts, matches, strict=True) if kind == "description"]
    true_of: list[list[tuple[int, bool]]] = [[] for _ in range(pool)]  # of each image: (images it is true of, own)
    for (place, _, _), images in zip(texts, matches, strict=True):
        for p in images:
            true_of[p].append((len(images), p == place))
    result: dict[str, Any] = {"images": pool, "captions": len(texts)}
    for k in (1, 5, 10):
        result[f"caption_to_image_r{k}"] = _mean([min(1.0, k / len(images)) for images in matches])
        result[f"description_to_image_r{k}"] = _mean([min(1.0, k / n) for n in described])
        result[f"image_to_caption_r{k}"] = _mean([_first(captions, k) for captions in true_of])
        drawn = [_one_of(sum(own for _, own in captions), len(captions), k) for captions in true_of]
        result[f"drawn_image_to_caption_r{k}"] = _mean(drawn)
    return result


def _first(captions: Sequence[tuple[int, bool]], k: int) -> float:
    """The chance that an own caption is among the first k, fewest images first, equals drawn."""
    missed, left = 1.0, k
    for number in sorted({n for n, _ in captions}):
        equals = [own for n, own in captions if n == number]
        missed *= 1.0 - _one_of(sum(equals), len(equals), min(left, len(equals)))
        left -= len(equals)
        if left <= 0 or not missed:
            break
    return 1.0 - missed


def _one_of(own: int, total: int, k: int) -> float:
    """The chance that k of `total`, drawn without putting back, hold one of the `own` ones."""
    return 1.0 - math.comb(total - own, k) / math.comb(total, k) if total >= k else float(own > 0)


def caption_scores(rows: Sequence[Row]) -> dict[str, float]:
    """CIDEr-D (Vedantam et al. 2015; n = 1–4, σ = 6, × 10; document frequencies of this split) of: each caption
    against the image's others (`leave_one_out`), the list against the others (`list`), the list in each of its other
    wordings against all of the image's (`list_reworded`), a caption against all of the image's, itself among them
    (`copied`). Words are split at blanks, commas dropped."""
    by_image: dict[str, list[tuple[str, list[Counter[Gram]]]]] = defaultdict(list)
    reworded: dict[str, list[list[Counter[Gram]]]] = {}
    for row in rows:
        if row["question_type"] in CAPTION_KINDS:
            by_image[row["image_ids"][0]].append((row["question_type"], _grams(row["text"])))
        if row["question_type"] == "list" and (meaning := parse(row["text"])) is not None:
            others = {words(meaning, k) for k in range(wordings(meaning))} - {row["text"]}
            reworded[row["image_ids"][0]] = [_grams(text) for text in sorted(others)]
    frequency: Counter[Gram] = Counter()
    for captions in by_image.values():
        frequency.update({gram for _, grams in captions for counts in grams for gram in counts})
    log_images = math.log(max(len(by_image), 2))
    scores: dict[str, list[float]] = {"leave_one_out": [], "list": [], "list_reworded": [], "copied": []}
    for image_id, captions in by_image.items():
        vectors = [(kind, _vector(grams, frequency, log_images)) for kind, grams in captions]
        for k, (kind, vector) in enumerate(vectors):
            similar = [_similarity(vector, other) for _, other in vectors]
            scores["copied"].append(math.fsum(similar) / len(similar))
            if len(similar) > 1:
                left = math.fsum(similar[:k] + similar[k + 1 :]) / (len(similar) - 1)
                scores["leave_one_out"].append(left)
                if kind == "list":
                    scores["list"].append(left)
        for grams in reworded.get(image_id, ()):
            vector = _vector(grams, frequency, log_images)
            scores["list_reworded"].append(_mean(_similarity(vector, other) for _, other in vectors))
    return {name: _mean(values) for name, values in scores.items()}


def _grams(text: str) -> list[Counter[Gram]]:
    said = text.replace(",", "").split()
    return [Counter(tuple(said[i : i + n]) for i in range(len(said) - n + 1)) for n in (1, 2, 3, 4)]


def _vector(grams: list[Counter[Gram]], frequency: Mapping[Gram, int], log_images: float) -> Vector:
    weighted = [
        {gram: count * (log_images - math.log(max(1, frequency[gram]))) for gram, count in g.items()} for g in grams
    ]
    return weighted, [math.sqrt(math.fsum(v * v for v in w.values())) for w in weighted], sum(grams[0].values())


def _similarity(one: Vector, other: Vector) -> float:
    total = 0.0
    for mine, theirs, my_norm, their_norm in zip(one[0], other[0], one[1], other[1], strict=True):
        if my_norm and their_norm:
            shared = math.fsum(
                min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs
            )
            total += shared / (my_norm * their_norm)
    return 10.0 * total / 4 * math.exp(-((one[2] - other[2]) ** 2) / 72.0)


def _guesses(
    rows: Sequence[Row], given: Mapping[str, Callable[[Row], Hashable]], truth: Callable[[Row], str]
) -> dict[str, Any]:
    """Of each split, the share right of the train split's most frequent answer given the known part of a row (a train
    row itself left out); an unseen part gets the overall majority. Ties go to the alphabetically first."""
    result: dict[str, Any] = {split: {} for split in _splits(rows)}
    for name, known in given.items():
        seen: dict[Hashable, Counter[str]] = defaultdict(Counter)
        overall: Counter[str] = Counter()
        for row in rows:
            if row["split"] == "train":
                seen[known(row)][truth(row)] += 1
                overall[truth(row)] += 1
        default = _most(overall)
        best = {key: _most(counts) for key, counts in seen.items()}
        for split, figures in result.items():
            right = []
            for row in (row for row in rows if row["split"] == split):
                key, own = known(row), truth(row)
                guess = best.get(key, default)
                if split == "train" and guess == own:  # only then can leaving the row out change the guess
                    guess = _most(seen[key] - Counter([own])) or default
                right.append(guess == own)
            figures[name] = _mean(right)
            figures["examples"] = len(right)
    return result


def _upper(rows: Sequence[Row], known: Callable[[Row], Hashable]) -> float:
    """The share right of the best answer for each thing known, chosen with the labels at hand."""
    seen: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for row in rows:
        seen[known(row)][row["label"]] += 1
    return round(sum(max(counts.values()) for counts in seen.values()) / max(len(rows), 1), 6)


def _most(counts: Counter[str]) -> str | None:
    return majority(counts) if counts else None


def _splits(rows: Sequence[Row]) -> list[str]:
    present = {row["split"] for row in rows}
    return [split for split in ("train", "val", "test") if split in present]


def _mean(values: Iterable[float]) -> float:
    """The mean, rounded so that the last bits of a machine's logarithm don't show."""
    numbers = list(values)
    return round(math.fsum(numbers) / len(numbers), 6) if numbers else 0.0
