"""`vbert explain` of one photo: options that the model doesn't read are refused, as `vbert predict` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from inference.inference_world import make_detector, make_export, photos


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("--question", "what is red?", "--phrase", "red"), ("--phrase", "answer")),
        (("--question", "what is red?", "--image-2", "none.png"), ("--image-2", "answer")),
        (("--statement", "it is red"), ("--question",)),
    ],
)
def test_what_is_not_read_is_refused(
    vbert: Any, tmp_path: Path, words: tuple[str, ...], names: tuple[str, ...]
) -> None:
    model = make_export(tmp_path / "made", "vqa", make_detector(tmp_path / "detector"))
    (photo,) = photos(tmp_path / "photos", 1)
    code, _, err = vbert("explain", model, "--image", photo, *words, "--device", "cpu")
    assert code == 2
    assert all(name in err for name in names), err
