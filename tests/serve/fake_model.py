"""A model of the interface that is served, without torch: what it does is told by the text that it is asked."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import numpy as np

from vbert.inference.results import Answer, Caption, GroundedRegion, Match, Verdict
from vbert.regions.shards import Regions

LABELS = ["yes", "no", "red", "blue", "circle", "rectangle", "triangle", "black", "green", "teal", "gray", "yellow"]
TASKS = ("answer", "true", "choose", "ground", "match", "caption", "sentiment", "regions")


class FakeModel:
    title = "/somewhere/secret/fake"
    device = "cpu"
    contract = SimpleNamespace(detector="squares")
    head = {"labels": LABELS}  # noqa: RUF012

    def __init__(self, can: tuple[str, ...] = TASKS) -> None:
        self.can, self.forgotten = can, 0
        self.looker = SimpleNamespace(forget=self._forget)

    def _forget(self) -> None:
        self.forgotten += 1

    def encoder(self, text: str) -> Any:
        return SimpleNamespace(ids=[1] * len(text.split()))

    encoder.unk = 0  # type: ignore[attr-defined]

    def regions(self, photo: Any) -> Regions:
        width, height = photo.size
        boxes = [[width * 0.1, height * 0.1, width * 0.5, height * 0.5], [width * 0.4, height * 0.4, width, height]]
        details = {
            "image_id": "x",
            "width": width,
            "height": height,
            "scores": [0.9, 0.4],
            "classes": ["square", "square"],
            "attributes": [["red"], []],
        }
        import json

        return Regions(np.zeros((2, 4), np.float16), np.array(boxes, np.float32), json.dumps(details).encode())

    def answer(self, photo: Any, question: str, *, regions: Any, top: int = 5) -> list[Answer]:
        word, _, rest = question.partition(" ")
        if word == "sleep":
            time.sleep(float(rest))
        elif word == "die":
            os._exit(9)
        elif word == "raise":
            raise ValueError("no secret of the server: 4711")
        elif word == "refuse":
            from vbert.errors import UserError

            raise UserError(f"{self.title}: it can't read that; ask another")
        return [Answer(text, 0.5 / (k + 1)) for k, text in enumerate(LABELS[:top])]

    def true(self, left: Any, right: Any, statement: str, *, regions: Any) -> Verdict:
        assert len(regions) == 2
        return Verdict(left.size == right.size, 0.75)

    def choose(self, photo: Any, question: str, choices: list[str], *, regions: Any) -> list[Answer]:
        return [Answer(one, 1 / len(choices)) for one in choices]

    def ground(self, photo: Any, text: str, phrase: str | None, *, regions: Any) -> list[GroundedRegion]:
        return [GroundedRegion(tuple(regions.boxes[1].tolist()), 0.8, 1, phrase or text)]

    def match(self, photo: Any, text: str, *, regions: Any) -> Match:
        return Match(0.8, 1.386)

    def caption(self, photo: Any, *, regions: Any) -> Caption:
        return Caption("a red square", 0.6)

    def explain(self, photo: Any, text: str | None, *, regions: Any, right: Any = None, **fields: Any) -> Any:
        """As `vbert.explain.explanation.Explanation`."""
        one = SimpleNamespace
        said = (text or "red square").split()
        words = [one(text=word, relevance=0.5 - k, regions=(0.25, 0.75)) for k, word in enumerate(said)]
        shown = len(regions) if isinstance(regions, tuple) else 1
        boxes = [one(image=number, region=k, relevance=0.1 + k) for number in range(shown) for k in range(2)]
        return one(answer="red", score=0.9, method="fake", words=words, regions=boxes)

    def sentiment(self, photo: Any, text: str, *, regions: Any) -> list[Answer]:
        return [Answer("positive", 0.9), Answer("negative", 0.1)]


def load(where: str) -> Any:
    return FakeModel()
