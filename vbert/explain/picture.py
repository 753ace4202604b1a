"""An explanation as SVG, without scripts: pointing at a word shows its regions, as reaching it by the keyboard does."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from vbert.explain.layout import GAP, LINE, SIDE, SIZE, Drawn, laid_out
from vbert.explain.relevant import Relevances, RelevantRegion, strengths

if TYPE_CHECKING:
    from PIL import Image

LOSSLESS = 256 * 256  # pixels up to which a picture is a PNG


@dataclass(frozen=True)
class Shown:
    """A picture by its data URI, None where it isn't to be had, and the image's own size in pixels."""

    href: str | None
    width: int
    height: int


def style() -> str:
    """The rules that all of them share: a page has them once."""
    return (Path(__file__).parent / "picture.css").read_text("utf-8")


def standalone(explanation: Relevances) -> str:
    """A file of its own."""
    return drawn(explanation, "why", rules=f"{style()}.why{{background:var(--paper)}}")


def drawn(
    explanation: Relevances, name: str, pictures: Sequence[Shown] | None = None, rules: str = "", side: int = SIDE
) -> str:
    """name: an id of its own in the page. pictures: in place of the explanation's own. rules: of style, before those of
    this explanation's own words. side: of a picture, in pixels."""
    if pictures is None:
        each = zip(explanation.pictures, shown_sizes(explanation), strict=True)
        pictures = [Shown(None if one is None else data_uri(one), *size) for one, size in each]
    sizes = [(one.width, one.height) for one in pictures]
    place = laid_out(sizes, [one.text for one in explanation.words], side)
    for k in range(len(explanation.words)):
        at = f"#{name} .w{k}:is(:hover,:focus)~.pic"
        rules += f"{at} .of{k}{{opacity:1}}{at} .heat{{opacity:0}}"
    told = f"{explanation.answer} ({explanation.score:.3f})"
    label = escape(f"why {told}, by {explanation.method}")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="why" id="{name}" role="group" aria-label="{label}" '
        f'viewBox="0 0 {place.width} {place.height}">',
        f"<style>{rules}</style>",
        f'<text class="said" x="{GAP}" y="{GAP + SIZE}">{escape(cut(told, place.width))}'
        f'<tspan class="how" dx="10">{escape(explanation.method.replace("_", " "))}</tspan></text>',
        *_words(explanation, place),
        *_pictures(explanation, place, pictures, name),
        "</svg>",
    ]
    return "\n".join(parts)


def _words(explanation: Relevances, place: Drawn) -> list[str]:
    """They stand before the pictures, so that a rule of style reaches from one to the other."""
    found = []
    shown = strengths([one.relevance for one in explanation.words])
    for k, (one, at, strength) in enumerate(zip(explanation.words, place.words, shown, strict=True)):
        best = _best(explanation, one.regions)
        label = escape(f"{one.text}: relevance {one.relevance:+.3f}{best}")
        corners = f'x="{at.x:.1f}" y="{at.y:.1f}" width="{at.width:.1f}" height="{LINE - 4}" rx="5"'
        side, opacity = " no" if strength < 0 else "", f"{0.6 * abs(strength):.3f}"
        found.append(
            f'<g class="w w{k}" tabindex="0" role="img" aria-label="{label}"><title>{label}</title>'
            f'<rect class="shade{side}" fill-opacity="{opacity}" {corners}/><rect class="edge" {corners}/>'
            f'<text x="{at.x + at.width / 2:.1f}" y="{at.y + 17:.1f}" text-anchor="middle">'
            f"{escape(one.text)}</text></g>"
        )
    return found


def _best(explanation: Relevances, shares: Sequence[float]) -> str:
    """The region that is most of a word's, in words."""
    if not shares or max(shares) <= 0:
        return ""
    k = max(range(len(shares)), key=lambda k: shares[k])
    return f"; most of all region {k + 1}, {explanation.regions[k].name}"


def _pictures(
    explanation: Relevances,
    place: Drawn,
    pictures: Sequence[Shown],
    name: str,
) -> list[str]:
    found = []
    heat = strengths([one.relevance for one in explanation.regions])
    layers = [("heat", heat)] + [(f"of of{k}", _positive(one.regions)) for k, one in enumerate(explanation.words)]
    for number, (shown, (width, height), left) in enumerate(zip(pictures, place.sizes, place.at, strict=True)):
        crisp = ' class="crisp"' if shown.width * shown.height <= LOSSLESS // 4 else ""
        image = (
            f'<image href="{escape(shown.href)}" width="{width}" height="{height}" preserveAspectRatio="none"{crisp}/>'
            if shown.href
            else f'<rect width="{width}" height="{height}" fill="#888" fill-opacity=".25"/>'
        )
        scale = width / max(1, shown.width), height / max(1, shown.height)
        its = [(k, one) for k, one in enumerate(explanation.regions) if one.image == number and one.box is not None]
        drawn_layers = []
        for n, (kind, values) in enumerate(layers):
            mask = f"{name}-{number}-{n}"
            lit = [f'<rect {_corners(one, scale)} fill-opacity="{max(0.0, values[k]):.3f}"/>' for k, one in its]
            boxes = [_box(one, values[k], scale, n == 0) for k, one in its]
            drawn_layers.append(
                f'<g class="{kind}"><mask id="{mask}"><rect width="{width}" height="{height}" fill="#fff"/>'
                f'{"".join(lit)}</mask><rect class="veil" width="{width}" height="{height}" mask="url(#{mask})"/>'
                f"{''.join(boxes)}</g>"
            )
        found.append(f'<g class="pic" transform="translate({left} {place.top})">{image}{"".join(drawn_layers)}</g>')
    return found


def _box(one: RelevantRegion, strength: float, scale: tuple[float, float], told: bool) -> str:
    corners, side = _corners(one, scale), " no" if strength < 0 else ""
    title = f"<title>{escape(f'{one.region + 1} {one.name}: {one.relevance:+.3f}')}</title>" if told else ""
    opacity = f"{0.12 + 0.88 * abs(strength):.3f}"
    return f'<g opacity="{opacity}">{title}<rect class="halo" {corners}/><rect class="box{side}" {corners}/></g>'


def _corners(one: RelevantRegion, scale: tuple[float, float]) -> str:
    assert one.box is not None
    x1, y1, x2, y2 = (side * scale[k % 2] for k, side in enumerate(one.box))
    return f'x="{x1:.1f}" y="{y1:.1f}" width="{max(0.0, x2 - x1):.1f}" height="{max(0.0, y2 - y1):.1f}"'


def _positive(shares: Sequence[float]) -> list[float]:
    return strengths([max(0.0, share) for share in shares])


def shown_sizes(explanation: Relevances) -> list[tuple[int, int]]:
    """Of the pictures in their own pixels; of one that isn't to be had, as far as its boxes reach."""
    sizes = []
    for number, picture in enumerate(explanation.pictures):
        ends = [one.box[2:] for one in explanation.regions if one.image == number and one.box is not None]
        reach = (round(max((x for x, _ in ends), default=4)), round(max((y for _, y in ends), default=3)))
        sizes.append(reach if picture is None else picture.size)
    return sizes


def data_uri(picture: Image.Image) -> str:
    """PNG of small pictures, JPEG of others, at 920 pixels at most."""
    out, small = BytesIO(), picture.convert("RGB")
    if small.width * small.height <= LOSSLESS:
        small.save(out, "PNG", optimize=True)
        kind = "png"
    else:
        small.thumbnail((920, 920))
        small.save(out, "JPEG", quality=85, optimize=True)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


def cut(text: str, width: int) -> str:
    longest = max(8, width // 12)
    return text if len(text) <= longest else text[: longest - 1] + "…"
