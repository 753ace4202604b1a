"""`vbert score`: official figures of predictions, from files of any system."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from flows.options import JsonOption

if TYPE_CHECKING:
    from vbert.scoring.score import Score

app = App(name="score", help="Official figures of predictions, from files of any system: no recipe, no store.")

AnnotationsOption = Annotated[Path, Parameter(help="the published file with the right answers")]
PredictionsOption = Annotated[Path, Parameter(help="the predictions, in the format that the benchmark takes")]
MissingOption = Annotated[
    Literal["error", "wrong", "skip"],
    Parameter(help="examples without a prediction: an error, counted as wrong, or left out"),
]


@app.command
def vqa(
    *,
    predictions: PredictionsOption,
    annotations: Path | None = None,
    questions: Path | None = None,
    protocol: Literal["vqa", "aokvqa", "gqa", "exact"] = "vqa",
    missing: MissingOption = "error",
    json_: JsonOption = False,
) -> None:
    """VQA v2 and OK-VQA by their official rule; A-OKVQA, GQA and exact match by --protocol.

    Example: `vbert score vqa --questions questions.json --annotations annotations.json --predictions results.json`

    Parameters
    ----------
    annotations
        the published file with the right answers; of `exact` an object of id and answer.
    questions
        VQA's questions, whose ids must be those of the annotations; GQA's, which hold the answers.
    protocol
        vqa: on ten human answers; aokvqa: direct answers and multiple choice; gqa and exact: the same string.
    """
    from vbert.scoring.vqa import score

    _print(score(protocol, questions, annotations, predictions, missing), missing, json_)


@app.command
def nlvr2(
    *,
    annotations: AnnotationsOption,
    predictions: PredictionsOption,
    subset: Path | None = None,
    categories: Path | None = None,
    missing: MissingOption = "error",
    json_: JsonOption = False,
) -> None:
    """NLVR2: accuracy, consistency over the pairs of a sentence. Predictions are lines like `dev-850-0-0,True`.

    Example: `vbert score nlvr2 --annotations dev.json --predictions nlvr2.csv --subset balanced_dev.json`

    Parameters
    ----------
    subset
        some of the annotations' lines, in which accuracy is given too (balanced_dev.json).
    categories
        sentences with their linguistic phenomena (annotated_dev_examples.txt), for accuracy by phenomenon.
    """
    from vbert.scoring.nlvr import score_nlvr2

    _print(score_nlvr2(annotations, predictions, subset, categories, missing), missing, json_)


@app.command
def nlvr(
    *,
    annotations: AnnotationsOption,
    predictions: PredictionsOption,
    missing: MissingOption = "error",
    json_: JsonOption = False,
) -> None:
    """NLVR (2017), over its pictures, six an example. Predictions are lines like `dev-1373-0-0.png,true`.

    Example: `vbert score nlvr --annotations nlvr_dev.json --predictions nlvr.csv`
    """
    from vbert.scoring.nlvr import score_nlvr

    _print(score_nlvr(annotations, predictions, missing), missing, json_)


@app.command
def classification(
    *,
    annotations: AnnotationsOption,
    predictions: PredictionsOption,
    id_: Annotated[str, Parameter(name="--id", help="the column of ids; `id` does in predictions")] = "id",
    label: str = "label",
    positive: str | None = None,
    missing: MissingOption = "error",
    json_: JsonOption = False,
) -> None:
    """Accuracy and F1 of any labels, AUROC of two. Both files are CSV with a header, TSV or JSON lines.

    Example: `vbert score classification --annotations labels.jsonl --predictions labels.csv --positive 1`

    Parameters
    ----------
    label
        the column of labels; `label` does in predictions.
    positive
        the label whose probability is the predictions' column `proba`, for AUROC; of 0 and 1 it is 1.
    """
    from vbert.scoring.classification import score_classification

    _print(score_classification(annotations, predictions, id_, label, positive, missing), missing, json_)


@app.command
def vcr(
    *,
    annotations: AnnotationsOption,
    answers: Path | None = None,
    rationales: Path | None = None,
    predictions: Path | None = None,
    missing: MissingOption = "error",
    json_: JsonOption = False,
) -> None:
    """VCR: the answer, the rationale given the right answer, and both together (Q→A, QA→R, Q→AR).

    Example: `vbert score vcr --annotations val.jsonl --answers answers.npy --rationales rationales.npy`

    Parameters
    ----------
    answers
        scores of the four answers, an array [n, 4] (.npy) in the order of the annotations.
    rationales
        scores of the four rationales given the right answer, likewise.
    predictions
        instead of both: the leaderboard's CSV, with rationales given each answer; one with answers or rationales alone
        gives their figure.
    """
    from vbert.scoring.vcr import score_vcr

    _print(score_vcr(annotations, answers, rationales, predictions, missing), missing, json_)


@app.command
def captioning(
    *,
    annotations: AnnotationsOption,
    predictions: PredictionsOption,
    missing: MissingOption = "error",
    json_: JsonOption = False,
) -> None:
    """Captions by coco-caption: BLEU, METEOR, ROUGE-L, CIDEr and SPICE. METEOR and SPICE need Java.

    Over all images of the annotations; predictions are COCO results, [{"image_id", "caption"}].

    Example: `vbert score captioning --annotations captions.json --predictions captions_results.json`
    """
    from vbert.scoring.captions import score_captioning

    _print(score_captioning(annotations, predictions, missing), missing, json_)


@app.command
def retrieval(
    *,
    annotations: AnnotationsOption,
    predictions: Annotated[list[Path], Parameter(consume_multiple=True, negative="")],
    folds: int = 1,
    missing: MissingOption = "error",
    json_: JsonOption = False,
) -> None:
    """Retrieval between images and texts: recall at 1, 5 and 10, median rank and rsum. Ties count against the model.

    Example: `vbert score retrieval --annotations captions.json --predictions scores.npz`

    Parameters
    ----------
    annotations
        COCO captions; the id of a text is that of its annotation.
    predictions
        an .npz of scores [images, texts], image_ids and text_ids; or JSON lines of rankings, best first:
        {"text_id", "images"} and {"image_id", "texts"}. Several files are folds, each ranked within itself, whose
        figures are averaged.
    folds
        consecutive parts of the images, in the order of the annotations, whose figures are averaged; COCO 1K: 5. A fold
        has two images or more.
    """
    from vbert.scoring.retrieval import score_retrieval

    _print(score_retrieval(annotations, predictions, folds, missing), missing, json_)


@app.command
def grounding(
    *,
    annotations: Path,
    predictions: PredictionsOption,
    split: Path = Path("test.txt"),
    protocol: Literal["any", "merged"] = "any",
    missing: MissingOption = "error",
    json_: JsonOption = False,
) -> None:
    """Phrases of Flickr30k Entities: recall at 1, 5 and 10 and its bound, overall and by type of phrase.

    Example: `vbert score grounding --annotations flickr30k_entities --split test.txt --predictions phrases.json`

    Parameters
    ----------
    annotations
        the folder with Annotations and Sentences.
    predictions
        [{"image_id", "sentence_id", "boxes"}]: for each phrase that has a box its boxes x1 y1 x2 y2, best first.
    split
        the list of photos, a file or a name in the folder.
    protocol
        a box is right by IoU 0.5 with any true box of its phrase, or with the one box around all of them.
    """
    from vbert.scoring.grounding import score_grounding

    _print(score_grounding(annotations, split, predictions, protocol, missing), missing, json_)


@app.command
def refcoco(
    *,
    annotations: AnnotationsOption,
    refs: Path,
    split: str,
    predictions: PredictionsOption,
    iou: Literal["inclusive", "exact"] = "inclusive",
    missing: MissingOption = "error",
    json_: JsonOption = False,
) -> None:
    """Referring expressions of RefCOCO, RefCOCO+ and RefCOCOg: the share with an IoU above 0.5.

    Example:
    `vbert score refcoco --annotations instances.json --refs 'refs(unc).p' --split testA --predictions expressions.json`

    Parameters
    ----------
    refs
        refs(unc).p, refs(umd).p or refs(google).p.
    split
        one of its splits: val, testA, …
    predictions
        [{"sent_id", "pred_box"}], boxes as x y width height.
    iou
        pixels counted inclusively, as UNITER and MAttNet do, or exact overlap.
    """
    from vbert.scoring.grounding import score_refcoco

    _print(score_refcoco(annotations, refs, split, predictions, iou, missing), missing, json_)


def _print(score: Score, policy: str, as_json: bool) -> None:
    if score.missing:
        what = "count as wrong" if policy == "wrong" else "are left out"
        print(f"vbert: {score.missing:,} of {score.of:,} have no prediction and {what}", file=sys.stderr)
    for note in score.notes:
        print(f"vbert: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps({**score.figures, "scored": score.scored, "of": score.of, "missing": score.missing}))
        return
    rows = list(_rows(score.figures))
    wide = max(len(name) for name, _ in rows)
    for name, value in rows:
        plain = isinstance(value, int) or name.rpartition("/")[2] in score.plain
        said = value if isinstance(value, str) else f"{value:6,.6g}" if plain else f"{100 * value:6.2f}"
        print(f"{name:<{wide}}  {said}")
    print(f"scored {score.scored:,} of {score.of:,}, in percent")


def _rows(figures: dict[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    """Every figure with its name, `per_type/people/r1`."""
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from _rows(value, f"{under}{name}/")
        else:
            yield f"{under}{name}", value
