"""MVSA's files: the merging rule, odd texts, and a split that repeated tweets don't cross."""

from __future__ import annotations

from pathlib import Path

import pytest
from data.own_world import png
from data.text_world import rows_of, spec_of

from vbert.data.readers.mvsa import agreed, merged
from vbert.errors import UserError

POS, NEU, NEG = "positive", "neutral", "negative"


def tweets(folder: Path, lines: list[str], texts: dict[str, bytes], photos: dict[str, int]) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "labelResultAll.txt").write_text("ID\ttext,image\r\n" + "\r\n".join(lines))
    for name, text in texts.items():
        (folder / "data" / f"{name}.txt").write_bytes(text)
    for name, grey in photos.items():
        (folder / "data" / f"{name}.jpg").write_bytes(png(grey))
    return folder


def test_the_published_rule() -> None:
    pairs = [(POS, POS), (POS, NEU), (NEU, POS), (NEG, NEU), (NEU, NEG), (NEU, NEU), (POS, NEG), (NEG, POS)]
    assert [merged(*pair) for pair in pairs] == [POS, POS, POS, NEG, NEG, NEU, None, None]
    assert [agreed(votes) for votes in ([POS], [POS, NEG, POS], [POS, NEG, NEU])] == [POS, POS, None]


def test_tweets_of_one_and_of_three_annotators(tmp_path: Path) -> None:
    votes = ["positive,neutral", "negative,positive", "neutral,neutral", "neutral,Negative", "neutral,neutral"]
    lines = [f"{number}\t{vote}" for number, vote in enumerate(votes, 1)]
    texts = {"1": "naïve ".encode(), "2": b"x", "3": b"caf\xe9 \x81", "4": b" ", "5": b""}
    folder = tweets(tmp_path / "single", lines, texts, {"1": 1, "2": 2, "3": 3, "4": 1})
    rows, figures, images = rows_of(spec_of("mvsa", folder), tmp_path / "store")
    assert [(row["example_id"], row["text"], row["label"]) for row in rows] == [
        ("1", "naïve", POS), ("3", "café �", NEU), ("4", "", NEG)
    ]  # fmt: skip
    counted = ("contradictory_labels", "texts_without_image", "texts_not_utf8", "empty_texts", "left_out")
    assert [figures[name] for name in counted] == [1, 1, 1, 1, 2]
    assert rows[0]["split"] == rows[2]["split"], "the same photo"
    assert any(note.startswith("no official split: train ") and "seed 0" in note for note in images["notes"])

    three = [f"{name}\tpositive,neutral\t{vote},neutral\tnegative,neutral" for name, vote in (("7", POS), ("8", NEU))]
    folder = tweets(tmp_path / "multiple", three, {"7": b"a", "8": b"b"}, {"7": 1, "8": 2})
    rows, figures, _ = rows_of(spec_of("mvsa", folder), tmp_path / "store")
    assert [(row["example_id"], row["label"]) for row in rows] == [("7", POS)]
    assert figures["no_majority"] == 1


def test_repeated_tweets_stay_on_one_side(tmp_path: Path) -> None:
    """Sixty tweets of twenty photos, each three times; shares and seeds decide on which side."""
    names = [str(number) for number in range(60)]
    lines = [f"{name}\tpositive,positive" for name in names]
    photos = {name: int(name) % 20 for name in names}
    folder = tweets(tmp_path / "mvsa", lines, dict.fromkeys(names, b"same"), photos)
    splits = []
    for seed in (0, 1):
        options = {"seed": seed, "test": 0.3, "val": 0.2}
        rows, figures, _ = rows_of(spec_of("mvsa", folder, options), tmp_path / "store")
        assert figures["repeated_pairs"] == 40
        of = {row["example_id"]: row["split"] for row in rows}
        assert set(of.values()) == {"train", "val", "test"}
        assert all(of[name] == of[str(photos[name])] for name in names)
        splits.append(of)
    assert splits[0] != splits[1]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["1\tpositive"], r"labelResultAll\.txt:2: 'positive' is no pair of positive, neutral, negative"),
        (["1\tgood,bad"], r"labelResultAll\.txt:2: 'good,bad' is no pair"),
        (["1\tneutral,neutral\tneutral,neutral"], "must be an ID and `text,image` once or three times"),
        (["1\tneutral,neutral"] * 2, r"the ID '1' has a line before, labelResultAll\.txt:2"),
    ],
)
def test_wrong_labels_are_named(lines: list[str], said: str, tmp_path: Path) -> None:
    folder = tweets(tmp_path / "mvsa", lines, {"1": b"a"}, {"1": 1})
    with pytest.raises(UserError, match=said):
        rows_of(spec_of("mvsa", folder), tmp_path / "store")
    with pytest.raises(UserError, match=r"options\.val: must be a share, and with the other one below 1, not 0\.2"):
        rows_of(spec_of("mvsa", folder, {"val": 0.2, "test": 0.9}), tmp_path / "store")
