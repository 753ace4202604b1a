"""Renders the page as HTML by Jinja2, and formats its figures."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from vbert.explain import picture
from vbert.report import layout, plots, why
from vbert.report.results import unitless

if TYPE_CHECKING:
    from vbert.report.baselines import MajorityBaseline
    from vbert.report.contents import Page

FOLDER = Path(__file__).parent
TONES = {"raw": 7, "data": 5, "regions": 1, "model": 0, "result": 2, "other": 3}  # colours of the style sheet
FAMILY_NAMES = {
    "raw": "sources",
    "data": "images and texts",
    "regions": "detector and regions",
    "model": "training",
    "result": "evaluation",
    "other": "other",
}
# Short titles, for the nodes of the lineage's drawing.
SHORT = {"attribute_accuracy": "attribute", "mlm_accuracy": "words", "itm_accuracy": "matching"}
SHARES = ("accuracy", "map", "share", "recall", "precision")  # figures that are parts of one


def templates() -> Environment:
    """The templates of this folder, with our filters; everything from data is escaped."""
    jinja = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters |= {
        "percent": percent,
        "of_metric": of_metric,
        "points": points,
        "figure": figure,
        "duration": duration,
        "bytes": size,
        "called": plots.called,
        "cut": cut,
        "soft": soft,
        "alone": alone,
        "pretty": lambda value: json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True),
    }
    return jinja


def style() -> Markup:
    """The style sheet of all pages."""
    return Markup((FOLDER / "page.css").read_text("utf-8"))


def policy(scripts: Sequence[str]) -> str:
    """The content security policy of a page: scripts run by their sha256 alone, nothing is fetched."""
    rules = {
        "default-src": "'none'",
        "script-src": " ".join(_source(script) for script in scripts) or "'none'",
        "style-src": "'unsafe-inline'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    return "; ".join(f"{name} {value}" for name, value in rules.items())


def render(page: Page) -> str:
    """The page as HTML."""
    drawn = page.charts or any(charts for one in page.measured for _, charts in one.kinds)
    scripts = [plots.library()] if drawn else []
    scripts.append((FOLDER / "page.js").read_text("utf-8"))
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            page=page,
            scripts=[Markup(script) for script in scripts],  # our own files, and a library's
            style=style() + (Markup(picture.style()) if page.explained else ""),
            policy=policy(scripts),
            tiles=_tiles(page),
            families=_families(page),
            family_names=FAMILY_NAMES,
            tones=TONES,
            sizes=(layout.WIDTH, layout.HEIGHT),
            kinds=why.KINDS,
            about=why.about,
            held_out=plots.VALIDATED,
            short=SHORT,
        )
    )


def _source(script: str) -> str:
    """An inline script's name in a content security policy: the sha256 of its text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _tiles(page: Page) -> list[tuple[str, str, str]]:
    """The other headline figures: (name, value, split with the majority baseline), where they exist."""
    detector, trained = page.detected, page.pretrained or {}
    text = trained.get("validation/text_only_accuracy")
    rows = [
        ("Detector mAP@0.5", page.detector.get("map50"), detector.split, ""),
        ("Detector attributes", page.detector.get("attribute_accuracy"), detector.split,
         alone(detector.attributes.get(detector.split))),
        ("Masked words right", trained.get("validation/mlm_accuracy"), "val", alone(page.hidden)),
        ("Texts matched", trained.get("validation/itm_accuracy"), "val",
         "chance 50\u00a0%" if text is None else f"the text alone: {percent(text, 1)}"),
    ]  # fmt: skip
    tiles = [
        (name, percent(value, 1), "; ".join(filter(None, (f"held-out ({split})", beside))))
        for name, value, split, beside in rows
        if value is not None
    ]
    if page.shards:
        images, regions = (sum(getattr(s, name) for s in page.shards) for name in ("images", "regions"))
        tiles += [("Images with regions", f"{images:,}", ""), ("Regions", f"{regions:,}", "")]
    return tiles


def _families(page: Page) -> list[tuple[str, float]]:
    """Seconds of work by family, in the order of the chain."""
    seconds: dict[str, float] = {}
    for node in page.chain.nodes:
        seconds[node.family] = seconds.get(node.family, 0.0) + node.seconds
    return [(family, seconds[family]) for family in TONES if seconds.get(family)]


def percent(value: float, digits: int = 2) -> str:
    """A share as `99.97 %`; another figure as it is."""
    if not math.isfinite(value):
        return "–"
    return f"{100 * value:.{digits}f}\u00a0%" if 0 <= value <= 1 else f"{value:.3f}"


def of_metric(value: float, name: str, digits: int = 2) -> str:
    """A share as `percent` tells it; CIDEr or a median rank, which may be 1, is none."""
    return f"{value:.4g}" if unitless(name) else percent(value, digits)


def alone(guess: MajorityBaseline | None, metric: str = "") -> str:
    """`“red” alone: 20.1 %`; empty without a guess."""
    if guess is None:
        return ""
    said = guess.word if guess.drawn else f"“{cut(guess.word, 40)}” alone"
    return f"{said}: {of_metric(guess.share, metric, 1)}"


def points(value: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def figure(value: Any, name: str = "") -> str:
    """A figure of a manifest as text; its `name` tells shares from counts."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = str(value)
        return text if len(text) <= 20 else text[:12] + "…"
    if name == "bytes":
        return size(value)
    if any(word in name for word in SHARES) and 0 <= value <= 1:
        return percent(value, 1)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def duration(seconds: float) -> str:
    """`0.4 s`, `52 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def cut(text: str, longest: int) -> str:
    """The text, cut to `longest` characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def soft(text: str) -> Markup:
    """A name with line breaks allowed behind `_`, `/` and `[`: `does_pretraining_help` has no spaces."""
    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[_/\[])(?=\w)", text))
