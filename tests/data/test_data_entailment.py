"""SNLI-VE's reader: SNLI's own files with Flickr30k's lists, and the finished ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data.own_world import png
from data.text_world import rows_of, spec_of

from vbert.data.readers import snli_ve
from vbert.errors import UserError

LINES = {
    "train": [("1.jpg#0r1e", "entailment"), ("1.jpg#0r1n", "neutral"), ("2.jpg#1r1c", "contradiction"),
              ("vg_7#0", "neutral")],
    "dev": [("3.jpg#2r1n", "neutral"), ("3.jpg#2r1c", "-")],
    "test": [("4.jpg#3r1e", "entailment")],
}  # fmt: skip


def written(folder: Path, name: str = "snli_1.0", lists: bool = True, **changes: Any) -> Path:
    """Photo 3 is in a dev file and, by the list, in val; photo 2 is in a train file and, by the list, in val too."""
    folder.mkdir(parents=True)
    for split, pairs in LINES.items():
        rows = [
            {"pairID": pair, "gold_label": label, "sentence1": "A secret.", "sentence2": f" About {pair}. ",
             "captionID": "x", "annotator_labels": [label], "sentence1_parse": "(", **changes}
            for pair, label in pairs
        ]  # fmt: skip
        (folder / f"{name}_{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for i in range(1, 5):
        (folder / f"{i}.jpg").write_bytes(png(i))
    if lists:
        (folder / "flickr30k_train_val.lst").write_text("1.jpg\n2.jpg\n3.jpg\n")
        (folder / "flickr30k_test.lst").write_text("4.jpg\n")
    return folder


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snli_ve, "HELD_OUT", 2)


def test_hypotheses_stand_alone_beside_their_photos(tmp_path: Path) -> None:
    """By the lists' splits; the premise, a caption of the photo, is nowhere."""
    rows, figures, _ = rows_of(spec_of("snli_ve", written(tmp_path / "files")), tmp_path / "store")
    assert "A secret." not in json.dumps(rows)
    assert {row["example_id"]: (row["image_ids"], row["split"], row["label"]) for row in rows} == {
        "1.jpg#0r1e": (["1"], "train", "entailment"),
        "1.jpg#0r1n": (["1"], "train", "neutral"),
        "2.jpg#1r1c": (["2"], "val", "contradiction"),
        "3.jpg#2r1n": (["3"], "val", "neutral"),
        "4.jpg#3r1e": (["4"], "test", "entailment"),
    }
    assert {row["text"] for row in rows} >= {"About 1.jpg#0r1e."}
    assert figures["no_gold_label"] == 1


def test_finished_files_have_their_own_splits(tmp_path: Path) -> None:
    files = written(tmp_path / "files", "snli_ve", lists=False, Flickr30K_ID="1")
    rows, _, _ = rows_of(spec_of("snli_ve", files), tmp_path / "store")
    assert {row["example_id"]: row["split"] for row in rows}["2.jpg#1r1c"] == "train"


def test_the_type_of_a_row_keeps_no_premise() -> None:
    """Reading `sentence1` is an error: the type has no such field, and what it has not is dropped."""
    assert set(snli_ve.Row.__annotations__) == {"gold_label", "pairID", "sentence2"}


def test_faults_are_told_with_their_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"snli_1\.0_dev\.jsonl:1: gold_label: must be one of .*, not 'maybe'"):
        rows_of(spec_of("snli_ve", written(tmp_path / "a", gold_label="maybe")), tmp_path / "store")
    with pytest.raises(UserError, match=r"0 files are called flickr30k_train_val\.lst; SNLI's files need it once"):
        rows_of(spec_of("snli_ve", written(tmp_path / "b", lists=False)), tmp_path / "store")
    other = written(tmp_path / "c")
    (other / "flickr30k_test.lst").write_text("5.jpg\n")
    with pytest.raises(UserError, match=r"snli_1\.0_test\.jsonl:1: pairID: the photo '4' is in neither of Flickr30k's"):
        rows_of(spec_of("snli_ve", other), tmp_path / "store")
