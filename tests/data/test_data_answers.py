"""Answer vocabularies: the published forms, each with its order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vbert.data.answers import MAX_BYTES, lacking, read_answers
from vbert.errors import UserError


@pytest.mark.parametrize(
    ("content", "order"),
    [
        ("<unk>\nyes\nno\n", ["<unk>", "yes", "no"]),  # Pythia's text
        ("\ufeffyes\r\nno\r\n", ["yes", "no"]),
        (json.dumps(["", "net", "pitcher"]), ["", "net", "pitcher"]),  # LXMERT's list
        (json.dumps({"no": 1, "net": 2, "yes": 0}), ["yes", "no", "net"]),  # UNITER's ans2label.json
    ],
)
def test_each_form_has_its_order(content: str, order: list[str], tmp_path: Path) -> None:
    (tmp_path / "answers").write_text(content)
    assert read_answers(tmp_path / "answers") == order


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("yes\nno\nyes\n", r"'yes' stands in rows 0 and 2"),
        ("yes\n", r"1 answers; a vocabulary has two or more"),
        ('["yes", 2]', r"row 1 is 2, not an answer in quotes"),
        ('{"yes": 0, "no": 2}', r"the rows of its answers must be 0 to 1, each once"),
        ('{"yes": 0, "no": true}', r"the rows of its answers must be 0 to 1, each once"),
        ('["yes",', r"not JSON"),
        ("[" * 100_000, r"not JSON"),
    ],
)
def test_what_is_no_vocabulary_is_refused(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "answers").write_text(content)
    with pytest.raises(UserError, match=said):
        read_answers(tmp_path / "answers")


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No such file or directory; give the file of the answer vocabulary"):
        read_answers(tmp_path / "answers")
    (tmp_path / "answers").write_bytes(b"yes\n\xff\n")
    with pytest.raises(UserError, match=r"not UTF-8 at byte 4"):
        read_answers(tmp_path / "answers")
    with (tmp_path / "answers").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(UserError, match=r"larger than 16 MiB"):
        read_answers(tmp_path / "answers")


def test_what_a_file_lacks_is_counted_and_named() -> None:
    assert lacking(["yes", "no"], ["no", "yes", "maybe"]) == ""
    assert lacking(["a", "b", "c", "d", "e"], ["e"]) == "4 of the 5 training labels: 'a', 'b', 'c', …"
    assert lacking(["yes", "no"], ["yes ", "no"]) == (
        "1 of the 2 training labels: 'yes' (its 'yes ' has stray blanks: take them out)"
    )
