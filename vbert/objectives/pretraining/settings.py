"""The settings of pre-training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from vbert.artifacts.steps.settings import Acceptance, Since
from vbert.data.examples import Kind
from vbert.regions.contract import acceptable
from vbert.training.schedule import Schedule


class PretrainSettings(Schedule):
    """Settings of pre-training. `mlm` and `itm` are the weights of the two losses.

    matched: kinds whose texts are matched with images; the others are only masked (questions with their answers, as the
    original's pre-training on VQA). captions: texts a sequence; with 2 the first is true and the second is the one
    that may not be (the original). itm_target: mismatch (text and images may not fit), task_label (a true/false label
    of the examples, or which of its choices is right, each of them a sequence: the original's task pre-training for
    NLVR2 and VCR), off. itm_rows: masked, where both losses come
    from one pass over masked texts (the original); unmasked, where a share `itm_share` of the examples is matched
    without masks and the others are masked and true. itm_draw: drawn, where an example is matched by chance with an
    image that it is true of or not (the original); paired, where it is in the batch twice, with both. In pairs, effects
    that don't depend on text and image together cancel out, and the head uses the images sooner (on `shapes`: 1,000
    steps in place of 1,750).
    """

    mlm: float = Field(1.0, ge=0, description="weight of masked language modelling")
    itm: float = Field(1.0, ge=0, description="weight of image–text matching")
    kinds: tuple[Kind, ...] = Field(("caption", "question"), min_length=1, description="of examples")
    matched: tuple[Kind, ...] = Field(("caption",), description="kinds whose texts are matched with images")
    masked: float = Field(0.15, ge=0, lt=1, description="share of word pieces hidden")
    content: float | None = Field(None, ge=0, le=1, description="that of words which decide what is true; None: alike")
    answers: float | None = Field(None, ge=0, le=1, description="that of answers behind their question; None: alike")
    whole_word: bool = Field(False, description="whether all pieces of a word are masked together")
    captions: Literal[1, 2] = Field(1, description="texts a sequence; of 2 the second may be wrong")
    itm_target: Literal["mismatch", "task_label", "off"] = Field(
        "mismatch", description="mismatch: text and images may not fit; task_label: as the examples are labelled; off"
    )
    itm_rows: Literal["masked", "unmasked"] = Field(
        "masked", description="masked: both losses of one pass; unmasked: a share `itm_share` is matched without masks"
    )
    itm_share: float = Field(0.5, ge=0, le=1, description="of `itm_rows: unmasked`")
    itm_draw: Literal["drawn", "paired"] = Field(
        "drawn", description="paired: what is matched stands in the batch twice, with images it is true of and not"
    )
    mismatched: float = Field(0.5, ge=0, le=1, description="share of pairs that don't match, of `itm_draw: drawn`")
    altered: float = Field(0.0, ge=0, le=1, description="share of those made by changing one thing of a true text")
    altered_by: Annotated[tuple[str, ...] | None, Since(None)] = Field(
        None, min_length=1, description="what is changed: color, relation, … as the data says; None: anything"
    )
    question_types: Annotated[tuple[str, ...] | None, Since(None)] = Field(
        None, min_length=1, description="of examples: relation, count, … as the data says; None: all"
    )
    images: Annotated[Literal["own", "shuffled"], Since("own")] = Field(
        "own",
        description="shuffled: each image's texts stand beside another's regions, a control of what compute gives",
    )
    accept_contract: Annotated[Annotated[tuple[str, ...], AfterValidator(acceptable)], Acceptance()] = Field(
        (),
        description="fields of the feature contract in which the regions may differ from the start's: detector, "
        "weights, nms, …; the report says so",
    )
    max_text: int | None = Field(
        None, ge=3, description="tokens of a sequence's text, special ones included; None: max_positions, 128 at most"
    )
    train_pooler: bool = Field(True, description="the original leaves the pooler out of its optimiser")
    validation_examples: int = Field(1000, ge=0, description="held-out examples, a data set")

    @model_validator(mode="after")
    def _choices_are_labelled(self) -> PretrainSettings:
        if self.itm_target == "mismatch" and "choice" in {*self.kinds} & {*self.matched}:
            raise ValueError("matched: choices are right or wrong by their label; write itm_target: task_label")
        return self
