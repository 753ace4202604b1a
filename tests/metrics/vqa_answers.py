"""Questions with ten human answers and a prediction each, with every quirk of VQA's evaluation on both sides.

`python tests/metrics/vqa_answers.py DIR` writes questions.json, annotations.json and results.json, as the official code
(GT-Vision-Lab/VQA) reads them; `official_vqa.json` says what it made of them, and how it was run.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from vbert.metrics.vqa import CONTRACTIONS, NUMBER_WORDS, SIGNS

COUNT = 6000
T = TypeVar("T")
WORDS = """
red cat dogs tennis 2 10 3.5 .5 7. 1,000 12,5 e.g. u.s. o'clock 5:30 ski-ing café ŠKODA 42nd no yes
"""
NUMBERS = ("none", *NUMBER_WORDS, "eleven")
ODD = """
I'm I've I'd've let's she's somebody'd somebodyd mustn't've a an the A The 3.5 1,000 2.
"""
TYPES = ("what is", "is the", "how many", "none of the above", "what color is the")
KINDS = ("yes/no", "number", "other")


class Draws:
    """Draws that no version of Python changes: of `random.random` alone."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def one(self, among: Sequence[T]) -> T:
        return among[int(self.random() * len(among))]

    def chance(self, share: float) -> bool:
        return self.random() < share


def meaning(draw: Draws) -> list[str]:
    """One to three words, before they are spelt."""
    kinds = [WORDS.split(), NUMBERS, NUMBERS, ODD.split(), CONTRACTIONS.split(), CONTRACTIONS.split()]
    return [draw.one(draw.one(kinds)) for _ in range(draw.one((1, 1, 2, 3)))]


def spelt(draw: Draws, words: Sequence[str]) -> str:
    """With apostrophes left out, number words as digits, capitals and articles, or none of these."""
    found = []
    for word in words:
        if word in NUMBERS and draw.chance(0.5):
            word = str(max(0, NUMBERS.index(word) - 1))
        if draw.chance(0.2):
            word = word.title() if draw.chance(0.5) else word.upper()
        found.append("".join(c for c in word if c != "'" or draw.chance(0.6)))
    return f"{draw.one(('a', 'an', 'the', 'The'))} {' '.join(found)}" if draw.chance(0.15) else " ".join(found)


def _sign(draw: Draws, text: str) -> str:
    """A sign somewhere, beside a blank before, behind, or on no side."""
    at, sign = int(draw.random() * (len(text) + 1)), draw.one(SIGNS + ".':")
    return text[:at] + draw.one(("{}", " {}", "{} ", " {} ")).format(sign) + text[at:]


QUIRKS: list[Callable[[Draws, str], str]] = [
    lambda draw, text: f"{text}.",
    lambda draw, text: f"{text}{'.' * 40}",
    lambda draw, text: f"{text}\t",
    lambda draw, text: f"\n {text}",
    lambda draw, text: text.replace(" ", draw.one(("\t", "\n", "  ", "-", " - ", ", "))),
    lambda draw, text: f"{text} {draw.one(('1,000', '3,5,7', '1, 2'))}",
    lambda draw, text: draw.one(("", " ", "a", "the", "...", "?!")),
    _sign,
    _sign,
    _sign,
]


def said(draw: Draws, words: Sequence[str]) -> str:
    """What someone who means `words` writes; now and then they mean something else."""
    text = spelt(draw, words if draw.chance(0.9) else meaning(draw))
    while draw.chance(0.2):
        text = draw.one(QUIRKS)(draw, text)
    return text


def make(count: int = COUNT, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """(questions, annotations, results) as documents of VQA v2; every tenth question's answers have no id."""
    draw = Draws(seed)
    questions, annotations, results = [], [], []
    for n in range(count):
        words = meaning(draw)
        several = [said(draw, words) for _ in range(1 if draw.chance(0.15) else 2 + int(draw.random() * 5))]
        given = [draw.one(several) for _ in range(10)]
        answers = [
            {"answer": text, "answer_confidence": draw.one(("yes", "maybe", "no"))}
            | ({} if n % 10 == 9 else {"answer_id": k})
            for k, text in enumerate(given, 1)
        ]
        guess = said(draw, words) if draw.chance(0.7) else draw.one(given)
        questions.append({"image_id": n // 3, "question": "?", "question_id": n})
        annotations.append(
            {
                "question_id": n,
                "image_id": n // 3,
                "question_type": draw.one(TYPES),
                "answer_type": draw.one(KINDS),
                "multiple_choice_answer": given[0],
                "answers": answers,
            }
        )
        results.append({"question_id": n, "answer": guess})
    facts = {"info": {}, "task_type": "Open-Ended", "data_type": "mscoco", "data_subtype": "val2014", "license": {}}
    return facts | {"questions": questions}, facts | {"annotations": annotations}, results


def digest(documents: Any) -> str:
    return hashlib.sha256(json.dumps(documents, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    made = make()
    for name, document in zip(("questions", "annotations", "results"), made, strict=True):
        Path(sys.argv[1], f"{name}.json").write_text(json.dumps(document))
    print(digest(made))
