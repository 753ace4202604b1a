"""Small files of NLVR2, NLVR, A-OKVQA and VCR, drawn from a seed, in the formats that their official evaluators read.

`python tests/scoring/official_inputs.py DIR` writes them; `official.json` says what the evaluators made of them, and
how they were run.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
PHENOMENA = ("hard cardinality", "soft cardinality", "negation", "coreference", "pp ambiguity")
ANSWERS = ("yes", "no", "ski", "Ski", "skis", "2", "")


class Draws:
    """Draws that no version of Python changes: of `random.random` alone."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def one(self, among: Sequence[T]) -> T:
        return among[int(self.random() * len(among))]

    def chance(self, share: float) -> bool:
        return self.random() < share

    def shuffled(self, rows: Iterable[T]) -> list[T]:
        return [row for _, row in sorted(((self.random(), n), row) for n, row in enumerate(rows))]


def write(folder: Path) -> None:
    """nlvr2/, nlvr/, aokvqa/ and vcr/."""
    for make in (nlvr2, nlvr, aokvqa, vcr):
        (folder / make.__name__).mkdir(parents=True)
        make(folder / make.__name__, Draws(0))


def _lines(rows: Iterable[Any]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def nlvr2(folder: Path, draw: Draws) -> None:
    """Sets of up to four pairs with up to two sentences; sentences that several sets share; half of them annotated."""
    examples, guesses = [], []
    for photos in range(150):
        for sentence in range(draw.one((1, 2))):
            text = f"There are {draw.one(range(60))} dogs, set {draw.one((photos, 0))}."
            sure = draw.chance(0.5)
            for pair in range(draw.one((1, 2, 3, 4))):
                name, label = f"dev-{photos}-{pair}-{sentence}", draw.one(("True", "False"))
                examples.append({"identifier": name, "sentence": text, "label": label, "left_url": "http://x/y"})
                right = sure or draw.chance(0.6)
                guess = label if right else "True" if label == "False" else "False"
                guesses.append(f"{name},{draw.one((guess, guess.lower(), guess.upper()))}\n")
    (folder / "dev.json").write_text(_lines(examples))
    (folder / "predictions.csv").write_text("".join(draw.shuffled(guesses)))
    (folder / "balanced_dev.json").write_text(_lines(row for row in examples if draw.chance(0.3)))
    blocks = []
    for text in dict.fromkeys(row["sentence"] for row in examples):
        if draw.chance(0.5):
            kinds = [draw.one(PHENOMENA) for _ in range(draw.one((1, 2, 3)))]  # now and then one of them twice
            blocks.append("\n".join([text, *(f"* {kind}" for kind in kinds)]))
    (folder / "annotated_dev_examples.txt").write_text("\n\n".join([*blocks, *draw.shuffled(blocks)[:3]]))


def nlvr(folder: Path, draw: Draws) -> None:
    examples, guesses = [], []
    for presented in range(60):
        sure = draw.chance(0.5)
        for place in range(draw.one((1, 2, 3, 4))):
            name, label = f"{presented}-{place}", draw.one(("true", "false"))
            examples.append({"identifier": name, "sentence": "There is a box.", "label": label, "structured_rep": []})
            for k in range(6):
                guess = label if sure or draw.chance(0.8) else draw.one(("true", "false"))
                guesses.append(f"dev-{name}-{k}.png,{draw.one((guess, guess.title()))}\n")
    (folder / "dev.json").write_text(_lines(examples).rstrip("\n"))
    (folder / "predictions.csv").write_text("".join(draw.shuffled(guesses)))


def aokvqa(folder: Path, draw: Draws) -> None:
    rows, guesses = [], {}
    for n in range(300):
        name = f"q{n:03}"
        choices = draw.shuffled(ANSWERS)[:4]
        row = {"split": "val", "image_id": n, "question_id": name, "question": "?", "choices": choices}
        row |= {"correct_choice_idx": draw.one(range(4)), "direct_answers": [draw.one(ANSWERS[:5]) for _ in range(10)]}
        rows.append(row | {"difficult_direct_answer": draw.chance(0.1), "rationales": []})
        guess = {"multiple_choice": draw.one(choices), "direct_answer": draw.one(ANSWERS)}
        if draw.chance(0.05):
            guess.pop(draw.one(tuple(guess)))
        guesses[name] = guess
    (folder / "aokvqa_v1p0_val.json").write_text(json.dumps(rows))
    (folder / "predictions.json").write_text(json.dumps(guesses))


def vcr(folder: Path, draw: Draws) -> None:
    """Scores in quarters, so that some are equal."""
    import numpy as np

    labels = ("answer_label", "rationale_label")
    rows = [{"annot_id": f"val-{n}"} | {label: draw.one(range(4)) for label in labels} for n in range(400)]
    (folder / "val.jsonl").write_text(_lines(rows))
    for name in ("answers", "rationales"):
        scores = np.array([[draw.one(range(8)) / 4 for _ in range(4)] for _ in rows], np.float32)
        np.save(folder / f"{name}.npy", scores)


def digest(folder: Path) -> str:
    """Of all files, names and bytes."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*.*")):
        found.update(
            f"{path.relative_to(folder).as_posix()} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode()
        )
    return found.hexdigest()


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    print(digest(Path(sys.argv[1])))
