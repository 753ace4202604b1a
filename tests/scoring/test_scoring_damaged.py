"""Damaged and odd files end in a sentence or in shares between 0 and 1, never in another exception."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from scoring import score_world

from vbert.errors import UserError
from vbert.scoring import nlvr, vqa
from vbert.scoring.classification import score_classification
from vbert.scoring.score import IdsDiffer, Score
from vbert.scoring.vcr import score_vcr

ODD = (
    b"NaN",
    b"1e999",
    b"-1",
    b"null",
    b"true",
    b"{}",
    b'""',
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
)
ODD += (b"\\ud800", b"9" * 400, b"[" * 5000, b'{"a":' * 5000, b" ", b"\t", b"1.5", b'"x"', b"(")
CALLS: dict[str, Callable[[Path], Score]] = {
    "questions.json annotations.json results.json": lambda at: vqa.score(
        "vqa", at / "questions.json", at / "annotations.json", at / "results.json"
    ),
    "aokvqa_v1p0_val.json aokvqa.json": lambda at: vqa.score(
        "aokvqa", None, at / "aokvqa_v1p0_val.json", at / "aokvqa.json", "wrong"
    ),
    "gqa.json gqa_predictions.json": lambda at: vqa.score("gqa", at / "gqa.json", None, at / "gqa_predictions.json"),
    "truth.json answers.json": lambda at: vqa.score("exact", None, at / "truth.json", at / "answers.json", "skip"),
    "dev.json nlvr2.csv balanced_dev.json annotated_dev_examples.txt": lambda at: nlvr.score_nlvr2(
        at / "dev.json", at / "nlvr2.csv", at / "balanced_dev.json", at / "annotated_dev_examples.txt", "skip"
    ),
    "nlvr_dev.json nlvr.csv": lambda at: nlvr.score_nlvr(at / "nlvr_dev.json", at / "nlvr.csv", "wrong"),
    "labels.jsonl labels.csv": lambda at: score_classification(at / "labels.jsonl", at / "labels.csv", missing="skip"),
    "val.jsonl answers.npy rationales.npy": lambda at: score_vcr(
        at / "val.jsonl", at / "answers.npy", at / "rationales.npy"
    ),
    "val.jsonl leaderboard.csv": lambda at: score_vcr(
        at / "val.jsonl", predictions=at / "leaderboard.csv", missing="wrong"
    ),
}


def damaged(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(changed) + 1)
        changed[at : at + draw.choice((0, 0, 1, 3, 8, 40, len(data)))] = draw.choice((b"", *ODD))
    return bytes(changed)


@pytest.mark.parametrize("files", CALLS)
def test_damaged_files_are_refused_or_scored(files: str, tmp_path: Path) -> None:
    score_world.write(tmp_path)
    draw, said = random.Random(files), list[str]()
    for _ in range(60):
        path = tmp_path / draw.choice(files.split())
        data = path.read_bytes()
        path.write_bytes(damaged(data, draw))
        try:
            for figure in CALLS[files](tmp_path).figures.values():
                for share in figure.values() if isinstance(figure, dict) else (figure,):
                    assert 0 <= share <= 1
        except (UserError, IdsDiffer) as error:
            said.append(str(error).splitlines()[0])
        path.write_bytes(data)
    assert len(said) > 20
    assert max(map(len, said)) < 600


def test_the_header_of_an_array_is_no_program(tmp_path: Path) -> None:
    """numpy reads headers of Python 2 by its tokenizer, which raises an error of its own."""
    score_world.write(tmp_path)
    path = tmp_path / "answers.npy"
    path.write_bytes(path.read_bytes().replace(b"), }", b"(, }"))
    with pytest.raises(UserError, match=r"answers.npy: no whole \.npy"):
        score_vcr(tmp_path / "val.jsonl", path, tmp_path / "rationales.npy")
