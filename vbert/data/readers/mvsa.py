"""MVSA-Single and MVSA-Multiple (Niu et al. 2016): tweets of a photo and a text, with the sentiment of either.

`labelResultAll.txt` has a first line of names and then `ID<tab>text,image` for each tweet, three times `text,image` in
MVSA-Multiple; `data/ID.jpg` and `data/ID.txt` are the tweet.

- Three annotators: of the text and of the photo, the label that two of them give; tweets without one are left out. Then
  equal labels stand, a neutral one yields to the other, and tweets both positive and negative are left out: the rule
  of the published results (Xu and Mao 2017).
- There is no official split: `test` (0.1) and `val` (0.1) are shares of a hash of `seed` (0) and the ID. Tweets with
  the same photo, bit by bit, have the split of the smallest ID among them: they often repeat the text as well.
- Texts that aren't UTF-8 are read as cp1252, with signs that it lacks replaced. They are counted, as are empty ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vbert.data.readers import ImageRow, ReaderNote
from vbert.data.readers._files import PhotoStems
from vbert.data.readers._odd import Odd
from vbert.data.readers._photos import Place
from vbert.data.shares import share_of
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.data.raw import RawFiles

VERSION = 1
OWN = (".txt",)

LABELS = "labelResultAll.txt"
LABELS_BYTES, TEXT_BYTES = 1 << 24, 1 << 20
SENTIMENTS = ("positive", "neutral", "negative")


def images(
    raws: Mapping[str, RawFiles], seed: int = 0, val: float = 0.1, test: float = 0.1
) -> Iterator[ImageRow | ReaderNote]:
    """The photo of every tweet whose labels agree."""
    _check(seed, val, test)
    odd = Odd()
    tweets = list(_tweets(raws, odd))
    first: dict[str, str] = {}
    digests = {name: raws[source].sha256(member) for name, _, (source, member) in tweets}
    for name in sorted(digests, key=_order):
        first.setdefault(digests[name], name)
    counts: Counter[str] = Counter()
    for name, _, (source, member) in tweets:
        share = share_of(f"{seed}/{first[digests[name]]}")
        split = "test" if share < test else "val" if share < test + val else "train"
        counts[split] += 1
        yield {"image_id": name, "path": member, "source": source, "split": split}
    said = ", ".join(f"{split} {counts[split]:,}" for split in ("train", "val", "test"))
    yield ReaderNote("split_seed", seed, f"no official split: {said}, by a hash of seed {seed} and the ID")


def examples(
    raws: Mapping[str, RawFiles],
    image_ids: Collection[str],
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.1,
) -> Iterator[dict[str, Any] | ReaderNote]:
    """One tweet an example, in the split of its photo."""
    odd = Odd()
    texts = {
        name.rpartition("/")[2].rpartition(".")[0]: (raw, name)
        for raw in raws.values()
        for name in raw.members()
        if name.lower().endswith(".txt")
    }
    seen: set[tuple[str, str]] = set()
    for name, label, (source, member) in _tweets(raws, odd):
        if name not in texts:
            odd.add("missing_texts", member)
            continue
        text = _decoded(texts[name][0].read(texts[name][1], TEXT_BYTES), texts[name][1], odd)
        if not text:
            odd.add("empty_texts", texts[name][1])
        pair = (raws[source].sha256(member), text)
        if pair in seen:
            odd.add("repeated_pairs", member)
        seen.add(pair)
        yield {"example_id": name, "kind": "sentiment", "image_ids": [name], "text": text, "label": label}
    yield from odd.notes()


def merged(text: str, image: str) -> str | None:
    """The sentiment of a tweet, given those of its text and photo; None where they contradict each other."""
    if text == image or image == "neutral":
        return text
    return image if text == "neutral" else None


def agreed(labels: Sequence[str]) -> str | None:
    """The label of the only annotator, or that of two or more of three; None without one."""
    ((label, votes),) = Counter(labels).most_common(1)
    return label if 2 * votes > len(labels) else None


def _tweets(raws: Mapping[str, RawFiles], odd: Odd) -> Iterator[tuple[str, str, Place]]:
    """(ID, label, photo) of every tweet whose labels agree and whose photo is there; others are counted."""
    photos = PhotoStems(raws)
    for where, name, votes in _votes(raws):
        text, image = (agreed([vote[side] for vote in votes]) for side in (0, 1))
        label = None if text is None or image is None else merged(text, image)
        if label is None:
            odd.add("no_majority" if text is None or image is None else "contradictory_labels", where)
        elif name not in photos:
            odd.add("texts_without_image", where)
        else:
            yield name, label, photos.find(name, where)


def _votes(raws: Mapping[str, RawFiles]) -> Iterator[tuple[str, str, list[list[str]]]]:
    """(place, ID, [text, image] of each annotator)"""
    found = [(raw, name) for raw in raws.values() for name in raw.members() if f"/{name}".endswith(f"/{LABELS}")]
    if len(found) != 1:
        raise UserError(f"{', '.join(raws)} hold {len(found) or 'no'} {LABELS}; give the folder that holds it")
    ((raw, name),) = found
    seen: dict[str, str] = {}
    for number, line in enumerate(raw.read(name, LABELS_BYTES).decode("utf-8-sig", "replace").splitlines(), 1):
        where = f"{name}:{number}"
        if number == 1 or not line.strip():
            continue
        tweet, *rest = (cell.strip() for cell in line.split("\t"))
        votes = [[word.strip().lower() for word in vote.split(",")] for vote in rest if vote]
        if not tweet or len(votes) not in (1, 3):
            raise UserError(f"{where}: must be an ID and `text,image` once or three times, divided by tabs")
        for vote in votes:
            if len(vote) != 2 or not set(vote) <= set(SENTIMENTS):
                raise UserError(f"{where}: {','.join(vote)!r:.80} is no pair of {', '.join(SENTIMENTS)}")
        if tweet in seen:
            raise UserError(f"{where}: the ID {tweet!r:.80} has a line before, {seen[tweet]}; take one out")
        seen[tweet] = where
        yield where, tweet, votes


def _decoded(data: bytes, name: str, odd: Odd) -> str:
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        odd.add("texts_not_utf8", name)
        return data.decode("cp1252", "replace").strip()


def _order(name: str) -> tuple[int, str]:
    return len(name), name


def _check(seed: Any, val: Any, test: Any) -> None:
    if type(seed) is not int or seed < 0:
        raise UserError(f"options.seed: must be a whole number from 0 on, not {seed!r:.80}")
    for option, share in (("val", val), ("test", test)):
        if type(share) not in (int, float) or not 0 <= share < 1 or not val + test < 1:
            raise UserError(f"options.{option}: must be a share, and with the other one below 1, not {share!r:.80}")
