"""Accuracy of visual question answering: VQA's on ten human answers, A-OKVQA's, and exact match."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from functools import lru_cache
from typing import Any

# The rules of `vqaEvaluation/vqaEval.py` (GT-Vision-Lab/VQA), its slips included: https://visualqa.org/evaluation.html
SIGNS = ';/[]"{}()=+\\_-><@`,?!'
ANY_SIGN = re.compile(f"[{re.escape(SIGNS)}]")
THOUSANDS = re.compile("[0-9],[0-9]")
FULL_STOP = re.compile(r"\.(?![0-9])")
FULL_STOPS = 32  # at most so many go: the official call gives a flag of this value as the count
ARTICLES = ("a", "an", "the")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(n) for n, word in enumerate(NUMBER_WORDS)}
CONTRACTIONS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# A contraction is recognised where exactly one of its apostrophes is missing; one entry of the official table takes it
# away instead. Its entries with capitals (Id've, Im, Ive) never match, since the text is in lower case.
APOSTROPHES = {
    word[:i] + word[i + 1 :]: word for word in CONTRACTIONS.split() for i, sign in enumerate(word) if sign == "'"
} | {"somebody'd": "somebodyd"}


def plain(text: str) -> str:
    """An answer as it is compared where the human answers agree: tabs and line ends are blanks, none at the ends."""
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 17)
def normalise(text: str) -> str:
    """An answer as it is compared where the human answers differ.

    `plain`; then each of the 21 signs goes where it stands beside a blank anywhere in the text, or where a comma stands
    between digits anywhere, else it becomes a blank; then the first 32 full stops without a digit behind them go; then
    lower case, number words as digits, articles dropped, apostrophes put back, single blanks. Digits are 0–9. `a` and
    `the` become the empty string.
    """
    text = plain(text)
    if ANY_SIGN.search(text):
        every = THOUSANDS.search(text) is not None
        text = text.translate(
            {ord(s): "" if every or f"{s} " in text or f" {s}" in text else " " for s in SIGNS if s in text}
        )
    if "." in text:
        text = FULL_STOP.sub("", text, count=FULL_STOPS)
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ARTICLES)


def accuracy(answer: str, given: Sequence[str], fields: Sequence[Hashable] | None = None) -> float:
    """VQA accuracy of `answer` on the raw human answers `given`, in [0, 1] (Antol et al. 2015).

    The mean over the human answers of min(1, n / 3), n the equal ones among the others; of ten answers, 0, 0.3, 0.6,
    0.9 or 1. `fields`: what the file says of each answer beside its text (confidence, id); those alike in text and
    fields are left out together, as the official code does. Without `fields` each is its own.
    """
    texts = [plain(text) for text in given]
    answer = plain(answer)
    if any(text != texts[0] for text in texts):
        texts, answer = [normalise(text) for text in texts], normalise(answer)
    count = texts.count(answer)
    thirds = min(3, count) * (len(texts) - count)
    if fields is None:
        thirds += min(3, count - 1) * count
    else:
        alike = Counter(field for text, field in zip(texts, fields, strict=True) if text == answer)
        thirds += sum(n * min(3, count - n) for n in alike.values())
    return thirds / (3 * len(texts))


def direct_answer(answer: str, given: Sequence[str]) -> float:
    """A-OKVQA's direct answer (allenai/aokvqa `evaluation/eval_predictions.py`): min(1, n / 3), n the human answers
    that are the same string. Questions with `difficult_direct_answer` don't count."""
    return min(3, given.count(answer)) / 3


def exact(answer: str, right: str) -> float:
    """1 where both are the same string, else 0: GQA, A-OKVQA's multiple choice, VQA-RAD."""
    return float(answer == right)


def soft_accuracy(answer: str, answers: Sequence[Mapping[str, Any]]) -> float:
    """The score of `answer` among an example's scored answers; 0 where it is none of them.

    For VQA v2 the scores are min(0.3 · annotators, 1) (Antol et al. 2015, averaged over annotators left out); for
    data sets with one answer they are 1.
    """
    return max((float(a["score"]) for a in answers if a["answer"] == answer), default=0.0)
