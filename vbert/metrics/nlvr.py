"""NLVR2 and NLVR: accuracy, and consistency over the examples of one sentence."""

from __future__ import annotations

PERMUTATIONS = 6  # pictures of an NLVR example, its three boxes in every order


def right(prediction: str, label: str) -> float:
    """1 where prediction and label are the same but for case, else 0 (lil-lab/nlvr `eval/metrics.py`)."""
    return float(prediction.lower() == label.lower())


def nlvr2_group(identifier: str) -> str:
    """`dev-850-2-0` (split, set, pair, sentence) → `dev-850--0`: all pairs of one sentence.

    Consistency is the mean of `means.smallest` over these groups. Raises ValueError for another form.
    """
    split, photos, _, sentence = identifier.split("-")
    return f"{split}-{photos}--{sentence}"


def nlvr_group(identifier: str) -> str:
    """`1373-0` → `1373`: all examples presented together, each with its six pictures, as the official code has it
    (several sentences where an annotator wrote several). Raises ValueError for another form."""
    presented, _ = identifier.split("-")
    return presented


def nlvr_pictures(identifier: str) -> list[str]:
    """`1373-0` → `1373-0-0` … `1373-0-5`: its pictures' names without split and `.png`."""
    return [f"{identifier}-{k}" for k in range(PERMUTATIONS)]


def nlvr_picture(name: str) -> str:
    """`dev-1373-0-5.png` → `1373-0-5`."""
    return name.partition(".")[0].partition("-")[2]
