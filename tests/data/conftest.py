"""Fixtures of the tests of data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from data.own_world import png


@pytest.fixture
def own_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of local files is this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of 20 images, examples and boxes of one's own, with its spec; the spec's path."""
    photos = tmp_path / "photos"
    (photos / "cats").mkdir(parents=True)
    for number in range(20):
        (photos / "cats" / f"{number}.png").write_bytes(png(number))
    (photos / "broken.jpg").write_bytes(b"no picture")
    (photos / ".hidden.png").write_bytes(b"left out")
    (photos / "boxes.jsonl").write_text('{"image": "cats/1.png", "box": [0, 0, 3.5, 2], "class": "cat"}\n')
    lines: list[dict[str, object]] = [
        {"image": f"cats/{n}.png", "text": f"a cat of {n}", "split": "train" if n < 15 else "test"} for n in range(20)
    ]
    lines.append({"image": "cats/3.png", "text": "how many cats?", "answer": "one", "example_id": "q"})
    lines.append({"image_ids": ["cats/1.png", "cats/2.png"], "kind": "pair", "text": "both", "label": "true"})
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = tmp_path / "mine.yaml"
    spec.write_text(
        """
name: mine
title: Mine
licence: private
sources: {photos: {path: photos}, texts: {path: texts.jsonl}}
images: {reader: jsonl, sources: [photos]}
examples: {reader: jsonl, sources: [texts]}
"""
    )
    return spec
