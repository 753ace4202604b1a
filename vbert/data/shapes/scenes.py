"""Scenes of coloured shapes: the settings of their making, and the one function that makes scene `index`.

A scene depends on the settings and its index alone, never on how many scenes there are. All geometry is integer, so
the same settings give the same scenes and pixels everywhere.
"""

from __future__ import annotations

import hashlib
from random import Random
from typing import Annotated, Any

from pydantic import Field, model_validator

from vbert.artifacts.steps.settings import Settings, Since
from vbert.data.shapes.scene import COLOURS, GAP, SUBSAMPLES, Colour, Scene, SceneObject, Shape


class ShapesSettings(Settings):
    """The generator's settings. Default sizes contain easy-VQA's: one shape of 8–34 px on a light ground."""

    images: int = Field(4000, ge=1, le=200_000)
    size: int = Field(80, ge=24, le=512, description="side of the square image in pixels")
    seed: int = Field(0, ge=0, lt=2**63)
    objects_min: int = Field(1, ge=1, le=16)
    objects_max: int = Field(5, ge=1, le=16)
    single: float = Field(0.25, ge=0, le=1, description="share of scenes with one object, where objects_min is 1")
    smallest: float = Field(0.1, ge=0.05, le=0.6, description="shortest side of a shape, as a share of the image's")
    largest: float = Field(0.425, ge=0.05, le=0.6, description="longest side of a shape, as a share of the image's")
    shapes: tuple[Shape, ...] = Field(("circle", "rectangle", "triangle"), min_length=2)
    colours: tuple[Colour, ...] = Field(tuple(COLOURS), min_length=3)
    overlap: float = Field(0.25, ge=0, le=0.5, description="largest part of a shape that others may hide")
    varied: float = Field(0.5, ge=0, le=1, description="share of backgrounds with a gradient, stripes or grain")
    darkest: int = Field(210, ge=160, le=255, description="lower bound of a background's RGB values")
    jitter: int = Field(12, ge=0, le=24, description="colours differ from their names' by up to this much")
    smooth: float = Field(0.7, ge=0, le=1, description="share of scenes drawn with anti-aliasing")
    held_out_every: int = Field(20, ge=4, le=1000, description="of so many scenes one is val, one test")
    captions: int = Field(5, ge=1, le=8, description="a scene: whole descriptions, relations, counts")
    statements: int = Field(4, ge=0, le=16, description="a scene: short captions about one attribute")
    negatives: int = Field(3, ge=0, le=8, description="false variants of a caption, at most")
    false_of: int = Field(6, ge=0, le=64, description="images that a caption is known to be false of, at most")
    questions: int = Field(6, ge=0, le=32, description="a scene")
    pairs: int = Field(1, ge=0, le=8, description="statements over two images, a scene")
    choices: Annotated[int, Since(0)] = Field(
        0, ge=0, le=16, description="captions among two or more of their false variants, a scene, at most"
    )

    @model_validator(mode="after")
    def _possible(self) -> ShapesSettings:
        if self.objects_min > self.objects_max:
            raise ValueError(f"objects_min {self.objects_min} is above objects_max {self.objects_max}")
        if self.smallest > self.largest:
            raise ValueError(f"smallest {self.smallest} is above largest {self.largest}")
        for name, chosen in (("shapes", self.shapes), ("colours", self.colours)):
            if len(set(chosen)) != len(chosen):
                raise ValueError(f"{name}: one is named twice")
        if self.smallest * self.size < 4:
            raise ValueError(f"smallest {self.smallest} of {self.size} pixels is below 4 pixels; raise one of them")
        # Wherever the others lie, a smallest shape finds a place: each blocks at most its own side, the new one's and
        # the gap. (Larger ones are tried first.) The fifth left over keeps the search short.
        side = self.shortest
        if 5 * (self.objects_max - 1) * (2 * side + 2 * GAP) ** 2 > 4 * (self.size - side) ** 2:
            raise ValueError(
                f"objects_max {self.objects_max} of {side} pixels may not fit into {self.size} × {self.size}; lower "
                "objects_max or smallest, or raise size"
            )
        return self

    @property
    def shortest(self) -> int:
        """Shortest side of a shape in pixels."""
        return round(self.smallest * self.size)


def stream(settings: ShapesSettings, *names: object) -> Random:
    """The generator of one purpose: a function of the seed and the names alone."""
    text = "\0".join(map(str, (settings.seed, *names)))
    return Random(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))


def split_of(settings: ShapesSettings, index: int) -> str:
    """Every `held_out_every`-th scene is val, another test: known from the index, exact in number, scenes being
    independent of one another."""
    return {1: "val", 3: "test"}.get(index % settings.held_out_every, "train")


def size_name(settings_size: int, box: tuple[int, int, int, int]) -> str:
    """small: at most a fifth of the image's side; large: at least 0.3 of it; between: medium. No text mentions medium,
    so no statement depends on a single pixel."""
    side = max(box[2] - box[0], box[3] - box[1])
    return "small" if 5 * side <= settings_size else "large" if 10 * side >= 3 * settings_size else "medium"


def scene(settings: ShapesSettings, index: int) -> Scene:
    """Scene `index`: one object with probability `single` (where objects_min allows it), else a number drawn uniformly
    from two, or objects_min, to objects_max. Objects of one colour never touch; at most `overlap` of one is hidden."""
    from vbert.data.shapes.draw import Canvas

    rng = stream(settings, "scene", index)
    fewest = settings.objects_min
    if fewest == 1 < settings.objects_max:
        fewest = 1 if rng.random() < settings.single else 2
    number = 1 if fewest == 1 else rng.randint(fewest, settings.objects_max)
    smooth = rng.random() < settings.smooth
    background = _background(settings, rng)
    step = 1 if smooth else SUBSAMPLES  # without anti-aliasing shapes lie on whole pixels, as drawn by old programs
    shortest = SUBSAMPLES * settings.shortest
    longest = max(SUBSAMPLES * round(settings.largest * settings.size), shortest)
    canvas = Canvas(settings.size, settings.overlap)
    drawn: list[tuple[str, str, tuple[int, int, int], tuple[int, int, int, int]]] = []
    while len(drawn) < number:
        shape, colour = rng.choice(settings.shapes), rng.choice(settings.colours)
        rgb = _jittered(COLOURS[colour], settings.jitter, rng)
        limit = longest
        while True:  # terminates: the settings leave room for the smallest shape
            width, height = _sides(shape, shortest, limit, step, rng)
            x = rng.randrange(0, settings.size * SUBSAMPLES - width + 1, step)
            y = rng.randrange(0, settings.size * SUBSAMPLES - height + 1, step)
            if canvas.place(shape, colour, (x, y, width, height)):
                break
            limit = max(shortest, limit - SUBSAMPLES // 2)
        drawn.append((shape, colour, rgb, (x, y, width, height)))
    boxes = canvas.boxes()
    objects = tuple(
        SceneObject(shape, colour, size_name(settings.size, box), box, rgb, frame)
        for (shape, colour, rgb, frame), box in zip(drawn, boxes, strict=True)
    )
    return Scene(index, split_of(settings, index), settings.size, objects, background, smooth)


def _sides(shape: str, shortest: int, longest: int, step: int, rng: Random) -> tuple[int, int]:
    """Width and height in samples, multiples of `step`: rectangles free, triangles from 0.8 to 1 as high as wide
    (an equilateral one is 0.87), the others as high as wide."""
    width = rng.randrange(shortest, longest + 1, step)
    if shape == "rectangle":
        return width, rng.randrange(shortest, longest + 1, step)
    if shape == "triangle":
        height = width * rng.randint(80, 100) // 100
        return width, max(shortest, height - height % step)
    return width, width


def _jittered(rgb: tuple[int, int, int], jitter: int, rng: Random) -> tuple[int, int, int]:
    """`rgb` itself half of the time, else with each value moved by up to `jitter`."""
    if jitter == 0 or rng.random() < 0.5:
        return rgb
    r, g, b = (min(255, max(0, value + rng.randint(-jitter, jitter))) for value in rgb)
    return r, g, b


def _background(settings: ShapesSettings, rng: Random) -> tuple[Any, ...]:
    """(kind, colour, other colour, parameter): plain as easy-VQA's; gradient, stripes (parameter: period in pixels)
    run along x, y or both; grain's parameter seeds its noise."""
    first, second = (tuple(rng.randint(settings.darkest, 255) for _ in range(3)) for _ in range(2))
    if rng.random() >= settings.varied:
        return ("plain", first, first, 0)
    kind = rng.choice(("gradient", "stripes", "grain"))
    if kind == "grain":
        return (kind, first, second, rng.getrandbits(32))
    if kind == "stripes":  # faint: a quarter of the way to the other colour
        second = tuple((3 * a + b) // 4 for a, b in zip(first, second, strict=True))
    return (f"{kind}-{rng.choice(('x', 'y', 'xy'))}", first, second, rng.randint(4, 16))
