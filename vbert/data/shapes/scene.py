"""A scene of coloured shapes as data: its objects, background and units.

Positions are pixels, x to the right, y downwards. Lengths of a shape before drawing are quarter pixels.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Shape = Literal["circle", "rectangle", "triangle", "diamond", "cross"]
Colour = Literal["black", "blue", "brown", "gray", "green", "red", "teal", "yellow"]

# easy-VQA's, exactly: CSS's names, but for green, which is CSS's lime.
COLOURS: dict[Colour, tuple[int, int, int]] = {
    "black": (0, 0, 0),
    "blue": (0, 0, 255),
    "brown": (165, 42, 42),
    "gray": (128, 128, 128),
    "green": (0, 255, 0),
    "red": (255, 0, 0),
    "teal": (0, 128, 128),
    "yellow": (255, 255, 0),
}
SIZES = ("small", "medium", "large")
GAP = 2  # pixels at least between the frames of two objects of one colour
SUBSAMPLES = 4  # a pixel is 4 × 4 samples; lengths below are in samples


class SceneObject(NamedTuple):
    """One shape. `box` is x1, y1, x2, y2, tight around its *visible* pixels, x2 and y2 exclusive: a pixel shows
    the shape that covers at least half of it."""

    shape: str
    colour: str
    size: str  # small, medium or large, by the longer side of the box; texts never speak of medium
    box: tuple[int, int, int, int]
    rgb: tuple[int, int, int]
    frame: tuple[int, int, int, int]  # x, y, width, height as drawn, in samples


class Scene(NamedTuple):
    number: int
    split: str  # train, val or test
    size: int
    objects: tuple[SceneObject, ...]  # as drawn, later ones on top
    background: tuple[Any, ...]  # kind, two RGB colours, kind's parameter
    smooth: bool

    @property
    def image_id(self) -> str:
        return f"{self.number:06d}"
