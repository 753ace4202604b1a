"""The formats of predictions and annotations, recognised by their fields, for errors that name both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vbert.errors import UserError

ROWS = 5  # rows of a file that are looked at
PROTOCOL = re.compile(r"--protocol \w+")


@dataclass(frozen=True)
class Format:
    """`title`: as in "this looks like …"; `use`: the command (with its option) that takes it, if there is one; `looks`:
    a row, for a format without names of fields; `also`: titles of formats that are read in its place."""

    title: str
    use: str | None
    looks: str = ""
    also: tuple[str, ...] = ()


VQA_ANNOTATIONS = Format("VQA annotations", "`vbert score vqa --annotations`")
VQA_QUESTIONS = Format("VQA questions", "`vbert score vqa --questions`")
VQA_RESULTS = Format("VQA results", "`vbert score vqa --predictions`")
AOKVQA_ANNOTATIONS = Format("A-OKVQA annotations", "`vbert score vqa --protocol aokvqa --annotations`")
AOKVQA_PREDICTIONS = Format("A-OKVQA predictions", "`vbert score vqa --protocol aokvqa --predictions`")
GQA_QUESTIONS = Format("GQA questions", "`vbert score vqa --protocol gqa --questions`")
GQA_PREDICTIONS = Format("GQA predictions", "`vbert score vqa --protocol gqa --predictions`")
ANSWERS = Format("answers by id", "`vbert score vqa --protocol exact`", also=("VQA results",))
NLVR2_EXAMPLES = Format("NLVR2 examples", "`vbert score nlvr2 --annotations`")
NLVR2_PREDICTIONS = Format("NLVR2 predictions", "`vbert score nlvr2 --predictions`", "as in `dev-850-0-0,True`")
NLVR2_CATEGORIES = Format("NLVR2 sentences with their phenomena", "`vbert score nlvr2 --categories`")
NLVR_EXAMPLES = Format("NLVR examples", "`vbert score nlvr --annotations`")
NLVR_PREDICTIONS = Format("NLVR predictions", "`vbert score nlvr --predictions`", "as in `dev-1373-0-0.png,true`")
VCR_EXAMPLES = Format("VCR examples", "`vbert score vcr --annotations`")
VCR_LEADERBOARD = Format("a VCR leaderboard file", "`vbert score vcr --predictions`")
VCR_ARRAY = Format("an array of numpy (.npy)", "`vbert score vcr --answers` or `--rationales`")
LABELS = Format("rows with id and label", "`vbert score classification`")
COCO_RESULTS = Format("COCO results", "`vbert score captioning --predictions`")
COCO_CAPTIONS = Format("COCO captions", "`vbert score captioning --annotations`", also=("COCO annotations",))
COCO_INSTANCES = Format("COCO instances", "`vbert score refcoco --annotations`", also=("COCO annotations",))
RANKINGS = Format("rankings (JSON lines) or scores (.npz)", "`vbert score retrieval --predictions`")
GROUNDING_PREDICTIONS = Format("boxes of phrases", "`vbert score grounding --predictions`")
GROUNDING_SPLIT = Format("a list of photos", "`vbert score grounding --split`")
GROUNDING_SENTENCES = Format("sentences of Flickr30k Entities", None)
REFCOCO_PREDICTIONS = Format("boxes of referring expressions", "`vbert score refcoco --predictions`")
COCO_BOXES = Format("COCO detections", None)
COCO_ANNOTATIONS = Format("COCO annotations", None)

# Of a JSON document or JSON lines: the fields of its rows (or of the whole) → the format; the first that fits counts.
BY_FIELDS: tuple[tuple[set[str], Format], ...] = (
    ({"image_id", "caption"}, COCO_RESULTS),
    ({"image_id", "bbox", "score"}, COCO_BOXES),
    ({"image_id", "sentence_id", "boxes"}, GROUNDING_PREDICTIONS),
    ({"sent_id", "pred_box"}, REFCOCO_PREDICTIONS),
    ({"text_id", "images"}, RANKINGS),
    ({"image_id", "texts"}, RANKINGS),
    ({"question_id", "direct_answers"}, AOKVQA_ANNOTATIONS),
    ({"question_id", "correct_choice_idx"}, AOKVQA_ANNOTATIONS),
    ({"question_id", "answer"}, VQA_RESULTS),
    ({"questionId", "prediction"}, GQA_PREDICTIONS),
    ({"annot_id", "answer_choices"}, VCR_EXAMPLES),
    ({"annot_id", "answer_label"}, VCR_EXAMPLES),
    ({"identifier", "structured_rep"}, NLVR_EXAMPLES),
    ({"identifier", "left_url"}, NLVR2_EXAMPLES),
    ({"id", "label"}, LABELS),
)
BY_KEYED_FIELDS: tuple[tuple[set[str], Format], ...] = (
    ({"imageId", "question"}, GQA_QUESTIONS),
    ({"direct_answer"}, AOKVQA_PREDICTIONS),
    ({"multiple_choice"}, AOKVQA_PREDICTIONS),
)
BY_LINE: tuple[tuple[str, Format], ...] = (
    (r"[^,{}\[\]]*-\d+-\d+-\d+\.png,", NLVR_PREDICTIONS),
    (r"[^,{}\[\]]*-\d+-\d+-\d+,", NLVR2_PREDICTIONS),
    (r"(?=.*\bannot_id\b)(?=.*\b(?:answer_0|rationale_conditioned_on_a0_0)\b)", VCR_LEADERBOARD),
    (r"(?=.*\bid\b)(?=.*\b(?:label|proba)\b)[^{}\[\]]*$", LABELS),
)


def otherwise(path: Path, text: str | None, wanted: Format) -> None:
    """Raises UserError where the file is of a format known here that is not the wanted one. `text`: None for an
    `.npy`."""
    found = VCR_ARRAY if text is None else recognised(text)
    if found is not None and found.title not in (wanted.title, *wanted.also):
        use = f"; use {found.use}" if found.use else ""
        protocol = PROTOCOL.search(wanted.use or "")
        if protocol and found.use and found.use.startswith("`vbert score vqa --") and not PROTOCOL.search(found.use):
            use += f" and leave out {protocol[0]}"
        raise UserError(f"{path}: this looks like {found.title}, not {wanted.title}{use}")


def recognised(text: str) -> Format | None:
    """The format of a file's text; None where it isn't known."""
    begin = text.lstrip()
    if begin[:1] not in ("{", "["):
        line = begin.partition("\n")[0]
        by_line = (format for pattern, format in BY_LINE if re.match(pattern, line))
        return next(by_line, NLVR2_CATEGORIES if re.match(r".+\n\* \w", begin) else None)
    try:
        content = json.loads(begin)
    except (ValueError, RecursionError):
        return next(filter(None, (_by_fields(row) for row in _rows(begin))), None)
    if isinstance(content, list):
        return next(filter(None, map(_by_fields, content[:ROWS])), None)
    return _of_object(content)


def _rows(text: str) -> Iterator[Any]:
    for line in text.split("\n", ROWS)[:ROWS]:
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            return


def _by_fields(row: Any, known: tuple[tuple[set[str], Format], ...] = BY_FIELDS) -> Format | None:
    fields = set(row) if isinstance(row, dict) else set()
    return next((format for names, format in known if names <= fields), None)


def _of_object(content: Any) -> Format | None:
    if "annotations" in content and "images" in content:
        return COCO_ANNOTATIONS
    for key, format in (("questions", VQA_QUESTIONS), ("annotations", VQA_ANNOTATIONS)):
        rows = content.get(key)
        if isinstance(rows, list) and rows and isinstance(rows[0], dict) and "question_id" in rows[0]:
            return format
    values = list(content.values())[:ROWS]
    if found := next(filter(None, (_by_fields(value, BY_KEYED_FIELDS) for value in values)), None):
        return found
    if single := _by_fields(content):  # JSON lines with one line
        return single
    return ANSWERS if values and all(isinstance(value, str) for value in values) else None
