"""An explanation as PNG, by Pillow."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vbert.explain.layout import GAP, LINE, SIZE, laid_out
from vbert.explain.picture import cut, shown_sizes
from vbert.explain.relevant import Relevances, strengths

FOR, AGAINST, INK = (194, 87, 26), (63, 111, 209), (27, 28, 30)
VEILED = 0.38  # what is left of the light where nothing is relevant


def png(explanation: Relevances) -> bytes:
    """The photo lit where regions are relevant, and the words shaded, below it."""
    sizes = shown_sizes(explanation)
    place = laid_out(sizes, [one.text for one in explanation.words])
    out = Image.new("RGB", (place.width, place.height), "white")
    pen, letters = ImageDraw.Draw(out), ImageFont.load_default(SIZE)
    told = cut(f"{explanation.answer} ({explanation.score:.3f})", place.width)
    pen.text((GAP, GAP), f"{told}   {explanation.method.replace('_', ' ')}", fill=INK, font=letters)
    heat = strengths([one.relevance for one in explanation.regions])
    for number, (width, height) in enumerate(place.sizes):
        picture = explanation.pictures[number]
        shown = Image.new("RGB", (width, height), "#bbb") if picture is None else picture.convert("RGB")
        small = shown.width * shown.height <= 128 * 128
        shown = shown.resize((width, height), Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
        scale = width / max(1, sizes[number][0]), height / max(1, sizes[number][1])
        light = np.full((height, width), VEILED, np.float32)
        boxes = []
        for one, strength in zip(explanation.regions, heat, strict=True):
            if one.image == number and one.box is not None:
                x1, y1, x2, y2 = (side * scale[k % 2] for k, side in enumerate(one.box))
                rows, columns = slice(round(max(0, y1)), round(y2) + 1), slice(round(max(0, x1)), round(x2) + 1)
                lit = VEILED + (1 - VEILED) * max(0.0, strength)
                light[rows, columns] = np.maximum(light[rows, columns], lit)
                boxes.append((abs(strength), strength, (x1, y1, max(x1, x2), max(y1, y2)), one))
        lit_up = (np.asarray(shown, np.float32) * light[..., None]).round().astype(np.uint8)
        shown = Image.fromarray(lit_up)
        over = ImageDraw.Draw(shown, "RGBA")
        for size, strength, corners, one in sorted(boxes, key=lambda box: box[0]):  # the most relevant on top
            colour = (255, 179, 124) if strength >= 0 else (159, 192, 255)
            over.rectangle(corners, outline=(*colour, 70 + round(185 * size)), width=2)
            label = f"{one.name} {one.relevance:+.2f}".encode("latin-1", "replace").decode("latin-1")
            box = over.textbbox((corners[0] + 3, corners[1] + 2), label)
            over.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=(0, 0, 0, 150))
            over.text((corners[0] + 3, corners[1] + 2), label, fill=(*colour, 255))
        out.paste(shown, (place.at[number], place.top))
    shades = strengths([one.relevance for one in explanation.words])
    for word, at, strength in zip(explanation.words, place.words, shades, strict=True):
        colour = FOR if strength >= 0 else AGAINST
        part = 0.6 * abs(strength)
        shade = tuple(round(255 - (255 - channel) * part) for channel in colour)
        pen.rounded_rectangle((at.x, at.y, at.x + at.width, at.y + LINE - 4), 5, fill=shade)
        text = word.text.encode("latin-1", "replace").decode("latin-1")
        pen.text((at.x + 6, at.y + 2), text, fill=INK, font=letters)
    written = BytesIO()
    out.save(written, "PNG")
    return written.getvalue()
