"""Charts as Vega-Lite by Altair. The library that draws them is inlined once and evaluates no text as code."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

# Legible on white and on near black; the style sheet has the same ones, for bars and boxes.
PALETTE = ("#4a7fe0", "#e0863a", "#3fa578", "#a57bd8", "#d8605c", "#3aa3b5", "#b3913a", "#8b8f98")
HELD_OUT = "validation/"
DETECTION = ("map50", "map", "attribute_accuracy")  # held-out figures of detection, which have no prefix
LOG_RATIO = 30  # ratio of the largest to the smallest loss from which on the axis is logarithmic
DIGITS = 5
HEIGHT = 236
FONT = 'Inter, ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif'
# Titles of figures whose names are no words.
WORDS = {
    "map50": "mAP@0.5",
    "map": "mAP@0.5:0.95",
    "attribute_accuracy": "attribute accuracy",
    "mlm": "masked words",
    "mlm_accuracy": "masked words right",
    "itm": "matching",
    "itm_accuracy": "matching right",
    "text_only_accuracy": "matching by text alone",
    "rpn_boxes": "proposal boxes",
    "unknown_share": "unknown",
}

Row = Mapping[str, float]
TRAINED, VALIDATED = "training", "held-out (val)"


@dataclass(frozen=True)
class Point:
    """A value of the series `name` at `step`."""

    name: str
    step: float
    value: float
    kind: str = TRAINED


@dataclass(frozen=True)
class Chart:
    """A chart: its title, its series with their colours, its last values and majority baselines in words, and its
    Vega-Lite. `dashed`: it has held-out lines beside those of training."""

    title: str
    series: list[tuple[str, int]]
    dashed: bool
    summary: str
    spec: Mapping[str, Any]


@lru_cache(maxsize=1)
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines `vegaEmbed`; bundling it takes two seconds."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version="6.4")
    return script.replace("</script", "<\\/script").replace("\r", "")


def losses(rows: Sequence[Row]) -> list[Point]:
    """Losses of training and of held-out examples."""
    trained = {name for row in rows for name in row if not _is_held_out(name)}
    return [p for p in _points(rows) if p.name in trained]


def shares(rows: Sequence[Row]) -> list[Point]:
    """Accuracies and the like of held-out examples: the held-out figures that are no training loss."""
    trained = {name for row in rows for name in row if not _is_held_out(name)}
    return [p for p in _points(rows) if p.name not in trained]


def _is_held_out(name: str) -> bool:
    return name.startswith(HELD_OUT) or name in DETECTION


def _points(rows: Sequence[Row]) -> list[Point]:
    return [
        Point(name.removeprefix(HELD_OUT), row["step"], value, VALIDATED if _is_held_out(name) else TRAINED)
        for row in rows
        for name, value in row.items()
        if name not in ("step", "learning_rate") and math.isfinite(value)
    ]


def line_chart(
    title: str,
    points: Iterable[Point],
    *,
    share: bool,
    tones: Mapping[str, int] | None = None,
    guesses: Mapping[str, float] | None = None,
    axis: str = "step",
    summary: str = "",
) -> Chart | None:
    """Lines over training steps (or what `axis` names), one colour a series; held-out ones dashed where training has
    the same. None without points. share: values are parts of one, the axis in percent. tones: series → colour. guesses:
    series → its majority baseline, named below the chart. summary: in place of the last values."""
    import altair as alt

    points = sorted(points, key=lambda p: p.name != "loss")  # the sum first; the sort is stable
    if not points:
        return None
    names = list(dict.fromkeys(point.name for point in points))
    series = [(name, (tones or {}).get(name, i) % len(PALETTE)) for i, name in enumerate(names)]
    dashed = len({point.kind for point in points}) > 1
    percents = share and max(point.value for point in points) <= 1
    rows = [{"s": p.step, "v": _short(p.value), "n": called(p.name), "k": p.kind} for p in points]
    label = "format(datum.value * 100, '.3~g') + '\u00a0%'" if percents else "format(datum.value, '~g')"
    scale, ticks = _scale([point.value for point in points], percents)
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X(
            "s:Q",
            title=axis,
            scale=alt.Scale(domain=[0, max(point.step for point in points)], nice=False),
            axis=alt.Axis(grid=False, tickCount=5, format="~s"),
        ),
        y=alt.Y("v:Q", title=None, scale=scale, axis=alt.Axis(labelExpr=label, **ticks)),
        color=alt.Color(
            "n:N",
            scale=alt.Scale(domain=[called(name) for name, _ in series], range=[PALETTE[tone] for _, tone in series]),
            legend=None,
        ),
    )
    # Not `nearest`: Vega-Lite 6.4 reads the fields of names from the wrong place then, and shows "undefined".
    near = alt.selection_point(on="pointerover", clear="pointerout", fields=["s", "n", "k"], empty=False)
    shown = [
        alt.Tooltip("n:N", title="series"),
        alt.Tooltip("k:N", title="of"),
        alt.Tooltip("s:Q", title=axis, format=",d"),
        alt.Tooltip("v:Q", title="value", format=".2%" if percents else ".4~g"),
    ]
    dashes = alt.Scale(domain=[TRAINED, VALIDATED], range=[[1, 0], [5, 3]])
    dash: dict[str, Any] = {"strokeDash": alt.StrokeDash("k:N", scale=dashes, legend=None)} if dashed else {}
    line = base.mark_line(strokeWidth=1.8, strokeJoin="round", clip=True).encode(**dash)
    opacity = alt.condition(near, alt.value(1), alt.value(0))
    counts = Counter((point.name, point.kind) for point in points)
    if min(counts.values()) == 1:  # a line of one point would be invisible
        lone = [row for row, p in zip(rows, points, strict=True) if counts[p.name, p.kind] == 1]
        line += base.mark_point(size=70, filled=True).properties(data=alt.InlineData(values=lone))
    dots = base.mark_circle(size=90).encode(opacity=opacity, tooltip=shown).add_params(near)
    chart = (line + dots).properties(width="container", height=HEIGHT, background="transparent")
    summary = summary or _summary(points, percents)
    if guesses:
        listed = (f"{called(name)} {100 * value:.1f}\u00a0%" for name, value in guesses.items())
        summary += f" The commonest of training alone: {', '.join(listed)}."
    return Chart(title, [(called(n), tone) for n, tone in series], dashed, summary, _themed(chart))


def called(name: str) -> str:
    """The figure `name` in words."""
    return WORDS.get(name, name)


def _scale(values: Sequence[float], percents: bool) -> tuple[Any, dict[str, Any]]:
    """The vertical scale and its ticks: shares end at one, losses of several magnitudes are logarithmic."""
    import altair as alt

    low, high = min(values), max(values)
    if percents:
        return alt.Scale(domain=[math.floor(min(low, 0.99) * 10) / 10, 1], nice=False), {"tickCount": 5}
    if low > 0 and high > LOG_RATIO * low:
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        powers = [10.0**power for power in range(first, last + 1)]
        return alt.Scale(type="log", domain=[low * 0.9, high * 1.1], nice=False), {"values": powers}
    return alt.Scale(zero=False, nice=True), {"tickCount": 5}


def _themed(chart: Any) -> dict[str, Any]:
    """Greys that the style sheet replaces by those of light or dark, and the font that widths are measured in."""
    chart = chart.configure(font=FONT, autosize={"type": "fit", "contains": "padding"}, padding=3)
    greys = {"labelColor": "#888", "titleColor": "#888", "gridColor": "#8883", "domainColor": "#8886"}
    chart = chart.configure_view(stroke=None).configure_axis(
        **greys, tickColor="#8886", labelFontSize=11, titleFontSize=11, titleFontWeight="normal", labelPadding=4
    )
    spec: dict[str, Any] = chart.to_dict()
    return spec


def _summary(points: Sequence[Point], percents: bool) -> str:
    last = {(p.name, p.kind): p.value for p in points}
    several = len({kind for _, kind in last}) > 1
    parts = []
    for (name, kind), value in last.items():
        figure = f"{100 * value:.2f}\u00a0%" if percents else f"{value:.4g}"
        parts.append(f"{kind} {called(name)} {figure}" if several else f"{called(name)} {figure}")
    return f"Last: {', '.join(parts)}."


def _short(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
