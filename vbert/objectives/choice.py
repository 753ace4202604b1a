"""Choices: VCR's answers and rationales, A-OKVQA's multiple choice, a caption among false ones.

Each choice is an input, `[CLS] context [SEP] choice [SEP]`; the pooled vector; one number a choice, softmax over an
example's choices, cross entropy. A region that words name takes their mean position (VCR's tags, the original).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from vbert.artifacts.steps.settings import Since
from vbert.objectives import choice_protocols, defaults
from vbert.objectives.choice_protocols import Protocol
from vbert.objectives.entry import DownstreamSettings, Head, Prediction, Predictions, Row, Rows

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from vbert.metrics.metric import Metric
    from vbert.model.config import VisualBertConfig
    from vbert.model.visualbert import PackedBatch
    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.batches import ExampleRows, Input
    from vbert.objectives.examined import Examined

KINDS = ("choice",)
SELECTS = "accuracy"


class ChoiceSettings(DownstreamSettings):
    """Of examples with `choices`; `types: [answer]` or `[rationale]` takes VCR's Q→A or QA→R alone."""

    AS_TEACHER = ("images", "text", "align", "cut")

    align: bool = Field(True, description="whether regions that words name take their positions: the original's VCR")
    cut: Literal["both", "choice"] = Field(
        "both",
        description="the front that is cut of too long a text: half off the context, the rest off the choice; or, as "
        "the original does unintendedly, all off the choice",
    )
    protocol: Annotated[Protocol, Since("none")] = Field("none", description="whose submission file is written")


def head(rows: Iterable[Row], settings: ChoiceSettings) -> Head:
    choice_protocols.check(settings.protocol, rows)
    described = {"kind": "choice", "align": settings.align, "cut": settings.cut}
    return described if settings.protocol == "none" else {**described, "protocol": settings.protocol}


def model(config: VisualBertConfig, head: Head, seed: int) -> nn.Module:
    return defaults.answer_model(config, 1, seed)


def begin(model: Any, head: Head, source: Any, source_head: Head) -> None:
    """The encoder; of another model of choices the head too; of a matching head how much more it says match than
    mismatch."""
    import torch

    defaults.begin(model, head, source, source_head)
    with torch.no_grad():
        if source_head.get("kind") == "choice":
            model.answer.load_state_dict(source.answer.state_dict())
        elif hasattr(source, "matching"):
            dense = source.matching.dense
            model.answer.dense.weight.copy_(dense.weight[1:] - dense.weight[:1])
            model.answer.dense.bias.copy_(dense.bias[1:] - dense.bias[:1])


def inputs(
    rows: ExampleRows, i: int, encoder: WordPieceEncoder, head: Head, draw: np.random.Generator | None
) -> list[Input]:
    from vbert.objectives.batches import Input
    from vbert.objectives.named_regions import TaggedText, joined, region_of

    row = rows.row(i)
    images, boxes, regions = row["image_ids"], None, None
    named = head["align"] and any(part["phrases"] for part in (row, *row["choices"]))
    if images and (named or row["boxes"]):  # or a shard would be read for nothing
        boxes = rows.boxes(images[0])
    if boxes is not None and row["boxes"]:
        regions = sorted({region for box in row["boxes"] if (region := region_of(box, boxes)) is not None})
        boxes = boxes[regions]
    boxes = boxes if named else None
    context = TaggedText.of(encoder, row["text"], row["phrases"], boxes)
    made = []
    for choice in row["choices"]:
        tagged = TaggedText.of(encoder, choice["text"], choice["phrases"], boxes)
        text, aligned = joined(encoder, context, tagged, head["max_text"], head["cut"])
        made.append(Input(text, images, regions=regions, aligned=aligned))
    return made


def targets(rows: Rows, head: Head) -> dict[str, Tensor]:
    """label: int64 [B], the number of the right choice, -1 for none."""
    import torch

    return {"label": torch.tensor([-1 if row["label"] is None else int(row["label"]) for row in rows])}


def loss(outputs: Tensor, tensors: Mapping[str, Tensor], head: Head) -> dict[str, Tensor]:
    """Cross entropy over the choices of each example."""
    import torch.nn.functional as F

    return {"loss": F.cross_entropy(_by_example(outputs, tensors), tensors["label"], ignore_index=-1, reduction="sum")}


def _by_example(outputs: Tensor, tensors: Mapping[str, Tensor]) -> Tensor:
    """The scores of each example's choices [B, most choices], -inf where it has fewer."""
    import torch

    example = tensors["example"]
    count = torch.bincount(example, minlength=len(tensors["label"]))
    within = torch.arange(len(example), device=example.device) - (count.cumsum(0) - count)[example]
    scores = outputs.new_full((len(count), int(count.max())), float("-inf"))
    return scores.index_put((example, within), outputs[:, 0])


def logits(outputs: Tensor, tensors: Mapping[str, Tensor], head: Head) -> Tensor:
    return _by_example(outputs, tensors)


def decode(outputs: Tensor, tensors: Mapping[str, Tensor], rows: Rows, head: Head) -> list[Prediction]:
    """answer: the number of the best choice, the first of equal ones; its probability; those of all."""
    probabilities = _by_example(outputs.double(), tensors).softmax(-1)
    return [
        {
            "example_id": row["example_id"],
            "answer": str(best),
            "score": round(each[best], 6),
            "probabilities": each[: len(row["choices"])],
        }
        for row, best, each in zip(rows, probabilities.argmax(-1).tolist(), probabilities.tolist(), strict=True)
    ]


def examined(
    inputs: Sequence[Input], row: Row, prediction: Prediction, encoder: WordPieceEncoder, head: Head
) -> list[Examined]:
    """The choice that was taken."""
    from vbert.objectives.examined import Examined

    return [Examined(inputs[int(prediction["answer"])], 0)]


def explained(model: nn.Module, batch: PackedBatch, targets: Tensor, head: Head) -> Tensor:
    """The choice's own number, before the softmax over all choices."""
    return model(batch).float()[:, 0]  # type: ignore[no-any-return]


def metrics(rows: Rows, predictions: Predictions, head: Head) -> dict[str, Metric]:
    return choice_protocols.metrics(head.get("protocol", "none"), rows, predictions)


def submission(rows: Rows, predictions: Predictions, head: Head) -> dict[str, bytes]:
    return choice_protocols.submission(head.get("protocol", "none"), rows, predictions)
