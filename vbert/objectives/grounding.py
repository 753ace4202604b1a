"""Phrases and referring expressions: the region that words of a text mean (Flickr30k Entities, RefCOCO).

`[CLS] text [SEP]` and the regions in one pass, then one attention head without values (the original's
`FlickrAttention`): the query is a phrase's last piece, the keys are the regions.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from vbert.artifacts.steps.settings import Acceptance, Wiring
from vbert.errors import BuildError, UserError
from vbert.objectives import grounding_protocols
from vbert.objectives.bound import too_low
from vbert.objectives.entry import DownstreamSettings, Head, Prediction, Predictions, Row, Rows
from vbert.objectives.grounding_protocols import Protocol, ZeroShotSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from vbert.artifacts.steps.stage import Figures
    from vbert.metrics.metric import Metric
    from vbert.model.config import VisualBertConfig
    from vbert.model.visualbert import PackedBatch
    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import ExampleRows, Input, TokenizedText
    from vbert.objectives.examined import Examined

log = logging.getLogger("vbert.grounding")
KINDS = ("phrases",)
SELECTS = "r1"


class GroundingSettings(DownstreamSettings):
    """Of examples whose `phrases` have boxes; an expression is one phrase, its whole text, with one box."""

    protocol: Protocol = Field(
        "any",
        description="right is a region with an overlap (IoU) of 0.5 or more with any box of a phrase, or with the one "
        "box around them all (merged); or of an expression (refcoco), more than 0.5",
    )
    loss: Literal["kl", "cross_entropy"] = Field(
        "kl", description="every right region gets an equal share (the original), or the best one alone (UNITER)"
    )
    iou: Literal["inclusive", "exact"] = Field(
        "inclusive", description="of refcoco: pixels counted inclusively, as UNITER and MAttNet do, or exactly"
    )
    as_original: bool = Field(
        False, description="whether a phrase stands where its words stand first in the text, as in BAN and VisualBERT"
    )
    floor: Annotated[float, Acceptance()] = Field(
        0.5, ge=0, le=1, description="share of phrases with a right region below which nothing is trained"
    )
    zero_shot: Annotated[bool, Wiring] = Field(
        True, description="whether the report tells how often each attention head of the start looks at a right region"
    )

    def analysed(self) -> ZeroShotSettings | None:
        """What the start's attention heads are looked at with; None where they aren't, and for controls."""
        if not self.zero_shot or self.images != "own" or self.text != "own":
            return None
        names = ("protocol", "iou", "as_original", "types", "accept_contract")
        return ZeroShotSettings.model_validate({name: getattr(self, name) for name in names})

    @field_validator("images")
    @classmethod
    def _regions_to_choose_from(cls, images: str) -> str:
        if images == "none":
            raise ValueError("none leaves no region to choose from; what language alone gives is `images: shuffled`")
        return images


def labelled(row: Row) -> bool:
    return any(phrase["boxes"] for phrase in row["phrases"] or ())


def head(rows: Iterable[Row], settings: GroundingSettings) -> Head:
    main = {"any": SELECTS, "merged": f"{SELECTS}_merged", "refcoco": "accuracy"}[settings.protocol]
    if settings.protocol == "refcoco":
        for row in rows:
            if [len(phrase["boxes"]) for phrase in row["phrases"]] != [1]:
                raise BuildError(
                    f"protocol refcoco: example {row['example_id']!r} is no expression: that is one phrase with one box"
                )
    chosen = settings.model_dump(include={"protocol", "loss", "iou", "as_original"})
    return {"kind": "phrases", "selects": main, **chosen}


def model(config: VisualBertConfig, head: Head, seed: int) -> nn.Module:
    import torch

    from vbert.model.heads import PhraseModel
    from vbert.training.sampler import derive

    return PhraseModel(config, torch.Generator().manual_seed(derive(seed, "phrase head")))


def begin(model: Any, head: Head, source: Any, source_head: Head) -> None:
    """The encoder; of another model of phrases the head too."""
    model.encoder.load_state_dict(source.encoder.state_dict())
    if hasattr(source, "phrase"):
        model.phrase.load_state_dict(source.phrase.state_dict())


def before(train: ExampleRows, held_out: ExampleRows, head: Head, settings: GroundingSettings) -> Figures:
    """The bound: the share of phrases that have a right region at all, by split, `upper_bound/train`. Raises UserError
    where one is below `floor`."""
    figures: dict[str, float] = {}
    for split, rows in (("train", train if settings.steps else None), ("val", held_out)):
        if rows is not None:
            found = grounding_protocols.bound(rows, head)
            figures |= {f"{name}/{split}": value for name, value in found.items()}
            log.info("%s: %s", split, ", ".join(f"{name} {value:.4f}" for name, value in found.items()))
    if (why := too_low(figures, settings)) is not None:
        raise UserError(why)
    return figures


def inputs(
    rows: ExampleRows, i: int, encoder: WordPieceEncoder, head: Head, draw: np.random.Generator | None
) -> list[Input]:
    import numpy as np

    from vbert.objectives.batches import Input, sentence

    row = rows.row(i)
    text = sentence(encoder, [(row["text"], "")], head["max_text"])
    ends = [_end(text, row["text"], phrase, head) for phrase in row["phrases"]]
    asked = [k for k, end in enumerate(ends) if end is not None]
    regions, others = _regions(rows, row, head)
    (image,) = row["image_ids"]
    boxes, classes = rows.candidates(image)
    if regions is not None:
        boxes, classes = boxes[regions], classes[regions]
    ragged: dict[str, NDArray[Any]]
    if draw is not None:
        shares = [grounding_protocols.target(row["phrases"][k]["boxes"], boxes, head) for k in asked]
        ragged = {"target": np.stack(shares) if asked else np.zeros((0, len(boxes)), np.float32)}
    else:
        sizes = np.array([[len(boxes), len(asked)]])
        ragged = {"boxes": boxes, "classes": classes, "sizes": sizes, "phrases": np.array(asked, np.int64)}
    at = [end for end in ends if end is not None]
    return [Input(text, [image], at=at, regions=regions, others=others, ragged=ragged)]


def _regions(rows: ExampleRows, row: Row, head: Head) -> tuple[list[int] | None, list[int] | None]:
    """(the regions to choose from, None for all; another image's that stand for them). Of given boxes those that the
    example is about (RefCOCO: no crowds). Where other images' regions are shown, they are as many as the image's own,
    in turn, and each stands for the own one of its number: the bound is the same, and language alone is chance."""
    from vbert.objectives.named_regions import region_of

    (image,) = row["image_ids"]
    boxes, _ = rows.candidates(image)
    regions = None
    if rows.given and row["boxes"]:
        found = (region_of(box, boxes) for box in row["boxes"])
        regions = sorted({region for region in found if region is not None})
    if head["images"] == "own":
        return regions, None
    there = len(rows.candidates(rows.shown[image])[0])
    own = list(range(len(boxes))) if regions is None else regions
    return (own, [k % there for k in range(len(own))]) if there else ([], [])


def _end(text: TokenizedText, given: str, phrase: Mapping[str, Any], head: Head) -> int | None:
    """The place of the phrase's last piece; None where it is cut off or has none. Without a text it is [CLS]."""
    if head.get("text") == "none":
        return 0
    start, end = phrase["start"], phrase["end"]
    if head["as_original"]:
        start, end = first_occurrence(given, start, end)
    places = text.places(start, end)
    return places[-1] if places else None


def first_occurrence(text: str, start: int, end: int) -> tuple[int, int]:
    """Where the words of a phrase stand first in the text: jnhwkim/ban-vqa looks phrases up as lists of words, so that
    of two equal ones both are the first."""
    words, wanted = list(re.finditer(r"\S+", text)), text[start:end].split()
    for k in range(len(words) - len(wanted) + 1 if wanted else 0):
        found = words[k : k + len(wanted)]
        if [word[0] for word in found] == wanted:
            return found[0].start(), found[-1].end()
    return start, end  # part of a word


def targets(rows: Rows, head: Head) -> dict[str, Tensor]:
    """In `Input.ragged`. In training target, float32 [phrases, regions]: 1/n for each of n right ones. Else boxes,
    float32 [regions, 4], and classes, int64 [regions], see `ExampleRows.candidates`; sizes, int64 [B, 2]: regions and
    phrases asked for of each example; phrases, int64: the number, in its example, of each of these."""
    return {}


def counts(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The loss is a mean over examples, as the original's (`batchmean`)."""
    return {"loss": len(tensors["example"])}


def loss(outputs: Tensor, tensors: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    """Kullback–Leibler divergence of the target from the softmax over an example's regions; with one right region that
    is cross entropy. A phrase without a right region adds 0."""
    import torch

    target = tensors["target"]
    logarithms = outputs.float().log_softmax(-1).masked_fill(target == 0, 0.0)  # behind the regions they are -inf
    return {"loss": (torch.xlogy(target, target) - target * logarithms).sum()}


def decode(outputs: Tensor, tensors: Mapping[str, Tensor], rows: Rows, head: Head) -> list[Prediction]:
    """regions: the boxes; classes: of each, the number of the first region of its detected class; ranked: of each
    phrase, the numbers of the regions, best first, of equal ones the smaller number first, and none for a phrase
    without a piece; sure: the probability of each phrase's best region; score: their mean."""
    scores = outputs.double()
    order = scores.argsort(stable=True, dim=-1, descending=True).tolist()
    best = scores.softmax(-1).amax(-1).tolist() if scores.shape[1] else [0.0] * len(scores)
    boxes, classes = tensors["boxes"].double().round(decimals=3).tolist(), tensors["classes"].tolist()
    numbers, made, region, place = tensors["phrases"].tolist(), [], 0, 0
    for row, (regions, phrases) in zip(rows, tensors["sizes"].tolist(), strict=True):
        ranked: list[list[int]] = [[] for _ in row["phrases"]]
        sure = [0.0] * len(ranked)
        for k in range(place, place + phrases if regions else place):
            ranked[numbers[k]], sure[numbers[k]] = order[k][:regions], round(best[k], 6)
        made.append(
            {
                "example_id": row["example_id"],
                "answer": "",
                "score": round(sum(sure) / max(1, len(sure)), 6),
                "regions": boxes[region : region + regions],
                "classes": classes[region : region + regions],
                "ranked": ranked,
                "sure": sure,
            }
        )
        region, place = region + regions, place + phrases
    return made


def examined(
    inputs: Sequence[Input], row: Row, prediction: Prediction, encoder: WordPieceEncoder, head: Head
) -> list[Examined]:
    """Each phrase that has a piece, and the region that was chosen for it: the score is read from both."""
    from dataclasses import replace

    from vbert.objectives.examined import Examined

    (one,) = inputs
    found = []
    for k, place in zip(one.ragged["phrases"].tolist(), one.at, strict=True):
        if ranked := prediction["ranked"][k]:
            phrase, also = row["phrases"][k], (len(one.text.ids) + ranked[0],)
            words = row["text"][phrase["start"] : phrase["end"]]
            found.append(Examined(replace(one, at=(place,)), ranked[0], words, also))
    return found


def explained(model: nn.Module, batch: PackedBatch, targets: Tensor, head: Head) -> Tensor:
    """The log-odds of the region among all, for the phrase."""
    from vbert.objectives.examined import log_odds

    return log_odds(model(batch), targets)


def metrics(rows: Rows, predictions: Predictions, head: Head) -> dict[str, Metric]:
    return grounding_protocols.metrics(rows, predictions, head)


def submission(rows: Rows, predictions: Predictions, head: Head) -> dict[str, bytes]:
    return grounding_protocols.submission(rows, predictions, head)


def frozen(head: Head, settings: GroundingSettings) -> Sequence[str]:
    """The pooler, which the head doesn't read."""
    return ("encoder.pooler.",)
