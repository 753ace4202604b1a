"""Drawing scenes: integer geometry on 4 × 4 samples a pixel, so that every machine gets the same pixels."""

from __future__ import annotations

import io
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vbert.data.shapes.scene import GAP, SUBSAMPLES, Scene

Mask = NDArray[np.bool_]
HALF = SUBSAMPLES * SUBSAMPLES // 2


def mask(shape: str, width: int, height: int) -> Mask:
    """The samples of `shape` in its frame: bool [height, width]. Centres of samples are compared, doubled to stay
    whole numbers: a frame is 2·width × 2·height, its samples at 1, 3, 5…"""
    x = np.arange(1, 2 * width, 2, dtype=np.int64)[None, :]
    y = np.arange(1, 2 * height, 2, dtype=np.int64)[:, None]
    if shape == "rectangle":
        return np.ones((height, width), np.bool_)
    if shape == "circle":
        return np.asarray((x - width) ** 2 + (y - height) ** 2 <= width * width)
    if shape == "triangle":  # apex in the middle of the upper side
        return np.asarray(np.abs(x - width) * 2 * height <= y * width)
    if shape == "diamond":
        return np.asarray(np.abs(x - width) * height + np.abs(y - height) * width <= width * height)
    if shape == "cross":  # bars a third wide
        return np.asarray((np.abs(x - width) * 3 <= width) | (np.abs(y - height) * 3 <= height))
    raise ValueError(shape)


class Canvas:
    """Which shape is visible at each sample; refuses shapes that hide too much or touch one of their colour."""

    def __init__(self, size: int, overlap: float) -> None:
        self.size, self.overlap = size, overlap
        self.owner: NDArray[np.uint8] = np.zeros((size * SUBSAMPLES, size * SUBSAMPLES), np.uint8)  # 0: background
        self.frames: list[tuple[int, int, int, int]] = []
        self.colours: list[str] = []
        self.areas: list[int] = []  # samples of the whole shape

    def place(self, shape: str, colour: str, frame: tuple[int, int, int, int]) -> bool:
        """Lay a shape over the others; False, and nothing done, where the rules forbid it."""
        x, y, width, height = frame
        hits = []
        for k, (x0, y0, w0, h0) in enumerate(self.frames):
            gap = GAP * SUBSAMPLES if self.colours[k] == colour else 0
            if x < x0 + w0 + gap and x0 < x + width + gap and y < y0 + h0 + gap and y0 < y + height + gap:
                if gap:
                    return False
                hits.append(k)
        new = mask(shape, width, height)
        under = self.owner[y : y + height, x : x + width]
        before = under.copy()
        self.frames.append(frame)
        self.colours.append(colour)
        self.areas.append(int(np.count_nonzero(new)))
        under[new] = len(self.frames)
        for k in hits:
            _, _, covered = self.coverage(k)
            # At least one pixel stays its own, or it had no box.
            if covered.sum() < (1 - self.overlap) * self.areas[k] or covered.max() <= HALF:
                under[:] = before
                del self.frames[-1], self.colours[-1], self.areas[-1]
                return False
        return True

    def coverage(self, k: int) -> tuple[int, int, NDArray[np.int64]]:
        """x, y of the first pixel of shape `k`'s frame and its visible samples in each pixel, 0–16 [height, width]."""
        x, y, width, height = self.frames[k]
        x1, y1 = x // SUBSAMPLES, y // SUBSAMPLES
        x2, y2 = -(-(x + width) // SUBSAMPLES), -(-(y + height) // SUBSAMPLES)
        part = self.owner[y1 * SUBSAMPLES : y2 * SUBSAMPLES, x1 * SUBSAMPLES : x2 * SUBSAMPLES] == k + 1
        return x1, y1, part.reshape(y2 - y1, SUBSAMPLES, x2 - x1, SUBSAMPLES).sum((1, 3))

    def shown(self) -> NDArray[np.uint8]:
        """Which shape each pixel shows, 1 for the first, 0 for the background: the one that covers at least half of
        it, the upper of two [size, size]."""
        pixels: NDArray[np.uint8] = np.zeros((self.size, self.size), np.uint8)
        for k in range(len(self.frames)):
            x, y, covered = self.coverage(k)
            pixels[y : y + covered.shape[0], x : x + covered.shape[1]][covered >= HALF] = k + 1
        return pixels

    def boxes(self) -> list[tuple[int, int, int, int]]:
        """x1, y1, x2, y2 of each shape, tight around the pixels that show it; x2 and y2 exclusive."""
        shown = self.shown()
        boxes = []
        for k in range(len(self.frames)):
            pixels = shown == k + 1
            columns, rows = np.flatnonzero(pixels.any(0)), np.flatnonzero(pixels.any(1))
            boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
        return boxes


def pixels(scene: Scene) -> NDArray[np.uint8]:
    """The image of `scene`: uint8 [size, size, 3], RGB."""
    ground = _background(scene.size, scene.background)
    canvas = Canvas(scene.size, 1.0)
    for item in scene.objects:
        x, y, width, height = item.frame
        canvas.frames.append(item.frame)
        canvas.owner[y : y + height, x : x + width][mask(item.shape, width, height)] = len(canvas.frames)
    if not scene.smooth:
        palette = np.array([(0, 0, 0), *(item.rgb for item in scene.objects)], np.int64)
        shown = canvas.shown()
        return np.where(shown[:, :, None] == 0, ground, palette[shown]).astype(np.uint8)
    full = SUBSAMPLES * SUBSAMPLES
    mixed = ground * full
    for k, item in enumerate(scene.objects):
        x, y, covered = canvas.coverage(k)
        here = np.s_[y : y + covered.shape[0], x : x + covered.shape[1]]
        mixed[here] += covered[:, :, None] * (np.array(item.rgb, np.int64) - ground[here])
    return ((mixed + full // 2) // full).astype(np.uint8)


def png(scene: Scene) -> bytes:
    """The image of `scene` as a PNG file. Run-length matching (zlib's Z_RLE) leaves the compressor no choice that
    could differ between builds of zlib, and is the fastest."""
    target = io.BytesIO()
    Image.fromarray(pixels(scene)).save(target, "PNG", compress_level=6, compress_type=3)
    return target.getvalue()


def _background(size: int, background: tuple[Any, ...]) -> NDArray[np.int64]:
    """int64 [size, size, 3]; see `shapes._background`."""
    kind, first, second, parameter = background
    a, b = np.array(first, np.int64), np.array(second, np.int64)
    flat = np.broadcast_to(a, (size, size, 3))
    if kind == "plain":
        return np.array(flat)
    if kind == "grain":
        noise = np.frombuffer(Random(parameter).randbytes(size * size), np.uint8).astype(np.int64).reshape(size, size)
        return np.asarray(np.minimum(flat + (noise % 17 - 8)[:, :, None], 255))
    kind, _, axis = kind.partition("-")
    along, across = np.arange(size)[None, :, None], np.arange(size)[:, None, None]
    place = {"x": along, "y": across, "xy": along + across}[axis] + np.zeros((size, size, 1), np.int64)
    if kind == "gradient":
        length = (size - 1) * len(axis)
        return np.asarray((a * (length - place) + b * place) // length)
    return np.asarray(np.where(place // parameter % 2 == 0, a, b))
