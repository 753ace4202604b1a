"""RefCOCO's pickled references, as Python 2 and 3 write them, and what is no such file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from vbert.data.pickles import UnsafePickle
from vbert.data.refs import read_refs
from vbert.errors import UserError

REF: dict[str, Any] = {
    "ref_id": 7, "ann_id": 1719310, "image_id": 581857, "category_id": 1, "split": "testA", "sent_ids": [0, 1],
    "file_name": "COCO_train2014_000000581857_16.jpg",
    "sentences": [
        {"sent_id": 0, "sent": "woman in blue", "raw": "Woman in blue!", "tokens": ["woman", "in", "blue"]},
        {"sent_id": 1, "sent": "the café lady", "raw": "the café lady", "tokens": ["the", "café", "lady"]},
    ],
}  # fmt: skip
PYTHON_2 = (  # protocol 0 of Python 2: text as bytes, here of UTF-8
    b"(lp1\n(dp2\nS'ref_id'\np3\nI7\nsS'ann_id'\nI9\nsS'image_id'\nI5\nsS'category_id'\nI1\nsS'split'\nS'val'\ns"
    b"S'sentences'\n(lp4\n(dp5\nS'sent_id'\nI0\nsS'sent'\nS'caf\\xc3\\xa9'\nsS'raw'\nV\\u00e9l\\u00e9phant\nsasa."
)


def test_references_are_read_from_either_python(tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps([REF, REF | {"ref_id": 8}], protocol))
        assert read_refs(path) == [REF, REF | {"ref_id": 8}]
    path.write_bytes(PYTHON_2)
    (ref,) = read_refs(path)
    assert (ref["sentences"][0]["sent"], ref["sentences"][0]["raw"]) == ("café", "éléphant")


def test_what_is_no_file_of_references_is_told_with_its_field(tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    for content, told in (
        ({"annotations": []}, "must be list"),
        ([{k: v for k, v in REF.items() if k != "ann_id"}], r"\[0\]: ann_id: is missing"),
        ([REF, REF | {"sentences": [{"sent_id": "x", "sent": "a", "raw": "a"}]}], r"\[1\]: sentences\[0\]: sent_id"),
    ):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=told):
            read_refs(path)
    path.write_bytes(pickle.dumps([REF | {"split": Path("x")}]))
    with pytest.raises(UnsafePickle, match="pathlib"):
        read_refs(path, "refs(unc).p")
    with pytest.raises(UserError, match="no such file"):
        read_refs(tmp_path / "refs(google).p")


def test_what_is_no_whole_pickle_is_told_with_what_to_give(tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    for content, told in (
        (b'{"annotations": []}', "must be a pickle of references, but is JSON"),
        (b"", "must be a pickle of references, but is empty"),
        (pickle.dumps([REF])[:-40], "is not read, because it is damaged"),
        (pickle.dumps([REF], 0)[:60], "is not read, because it is damaged"),
        (b"some words", "is not read, because"),
    ):
        path.write_bytes(content)
        for source in (path, content):
            with pytest.raises(UserError, match=told) as caught:
                read_refs(source, "refs(unc).p")
            assert "give refs(unc).p, refs(umd).p or refs(google).p as published" in str(caught.value)
            assert "numpy.save" not in str(caught.value)
    with pytest.raises(UserError, match="is a folder; give the file in it"):
        read_refs(tmp_path)
