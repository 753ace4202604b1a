"""Why a model answered as it did, on some examples; and how well explanations measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from vbert.errors import BuildError, UserError, nearest
from vbert.explain import CONTROLS, DEFAULT, METHODS
from vbert.explain.explanations import Explanations, MeasuredKind
from vbert.explain.relevant import RelevantRegion
from vbert.report import plots
from vbert.report.plots import Chart, Point
from vbert.report.predictions import ShownPrediction
from vbert.report.results import DownstreamRun
from vbert.report.thumbnails import ThumbnailAlbum

KINDS = {"both": "words and regions, in one order", "words": "words", "regions": "regions"}
LISTED = 5  # regions named below a picture
SIDE = 300  # pixels of a drawn picture


@dataclass(frozen=True)
class ExplainedExample:
    """first: the most relevant regions."""

    shown: ShownPrediction
    drawing: Markup
    first: list[RelevantRegion]


@dataclass(frozen=True)
class MeasuredSet:
    """The measured explanations of an entry: kinds with their charts, the largest part first."""

    title: str
    split: str
    metric: str
    examples: int
    kinds: list[tuple[MeasuredKind, list[Chart]]]
    absent: list[str]


def explained_examples(
    run: DownstreamRun, album: ThumbnailAlbum, chosen: Sequence[ShownPrediction]
) -> list[ExplainedExample]:
    """The default method's relevances of `run`'s model on the `chosen` examples, drawn; on the CPU.

    Raises BuildError or UserError where the model can't be run on them.
    """
    from vbert.explain.picture import Shown, drawn
    from vbert.explain.relevance import Explainer
    from vbert.explain.told import explanation
    from vbert.objectives import OBJECTIVES, load
    from vbert.objectives.batches import ExampleRows
    from vbert.objectives.dataset import ObjectiveDataset

    entry = run.evaluated
    head = entry.model.head()
    if run.objective not in OBJECTIVES:
        raise UserError(f"no objective {run.objective!r}; {nearest(run.objective, OBJECTIVES)}")
    objective, encoder = load(run.objective), entry.model.vocabulary().encoder()
    model: Any = entry.model.load()
    types, text = head.get("types"), head.get("text", "own")
    splits = ["train", "val", "test"]
    rows = ExampleRows(entry.examples, entry.shards, splits, objective.KINDS, types=types, text=text)
    places = {example_id: i for i, example_id in enumerate(rows.column("example_id"))}
    chosen = [one for one in chosen if one.example_id in places]
    if not chosen:
        raise BuildError("none of the examples has regions")
    predicted = {str(p["example_id"]): p for p in entry.evaluation.predictions()}
    side = ObjectiveDataset(objective, head, encoder, rows, entry.shards, entry.model.config().box_input)
    explainer = Explainer(model, objective, side)
    found: list[ExplainedExample] = []
    for one in chosen:
        i, prediction = places[one.example_id], predicted[one.example_id]
        row = rows.row(i)
        if not (parts := explainer.explain(i, prediction, DEFAULT)):
            continue
        images = list(parts[0].examined.input.images)
        regions = [entry.shards.read(side.visuals.shown.get(image, image)) for image in images]
        told = explanation(row, prediction, parts, regions, DEFAULT, [None] * len(images))
        thumbnails = [album.picture(entry.images, image) for image in images]
        shown = [Shown(thumbnail.uri, thumbnail.width, thumbnail.height) for thumbnail in thumbnails]
        drawing = Markup(drawn(told, f"why-{len(found)}", shown, side=SIDE))
        first = sorted(told.regions, key=lambda region: -region.relevance)[:LISTED]
        found.append(ExplainedExample(one, drawing, first))
    return found


def measured_sets(explained: Mapping[str, Explanations]) -> list[MeasuredSet]:
    """By entry, in the order of their names."""
    found = []
    for key, artifact in sorted(explained.items()):
        content, kinds = artifact.read(), artifact.kinds()
        name, data, split = key.rsplit("/", 2) if key.count("/") >= 2 else (key, "", content["split"])
        listed = [(kinds[kind], _charts(kinds[kind])) for kind in KINDS if kind in kinds]
        absent = [KINDS[kind] for kind in KINDS if kind not in kinds]
        title = f"{name} on {data}" if data else name
        found.append(MeasuredSet(title, split, content["metric"], content["examples"], listed, absent))
    return found


def _charts(kind: MeasuredKind) -> list[Chart]:
    """The accuracy while the most relevant goes first, and while the least relevant does."""
    tones = {name: k for k, name in enumerate(METHODS)}
    charts = []
    for k, title in enumerate(("The most relevant gone first", "The least relevant gone first")):
        points = [
            Point(name.replace("_", " "), 100 * n / (len(one.curves[k]) - 1), value)
            for name, one in kind.methods.items()
            for n, value in enumerate(one.curves[k])
        ]
        named = {name.replace("_", " "): tone for name, tone in tones.items()}
        better = "The lower, the better." if not k else "The higher, the better."
        chart = plots.line_chart(title, points, share=True, tones=named, axis="% gone", summary=better)
        charts += [chart] if chart else []
    return charts


def about(method: str) -> str:
    """What sets a method apart, for the table."""
    return "control" if method in CONTROLS else "default" if method == DEFAULT else ""
