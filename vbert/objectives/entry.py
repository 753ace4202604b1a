"""Settings of every entry under `downstream` of a recipe: data, training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AfterValidator, Field

from vbert.artifacts.steps.settings import Acceptance, LocalPath, Settings, Since, Wiring
from vbert.artifacts.steps.stage import Figures
from vbert.model.config import OwnSizes
from vbert.model.published import HUB
from vbert.regions.contract import acceptable
from vbert.training.schedule import Schedule

Row = dict[str, Any]  # an example, by the columns of EXAMPLES_SCHEMA
Rows = Sequence[Row]
Head = dict[str, Any]  # head.json of the trained model
Prediction = dict[str, Any]  # example_id, answer, score, and further fields of the objective
Predictions = Sequence[Prediction]


class Parts(Protocol):
    """The predictions of a split in parts that are made and kept one by one, by all ranks: a run that was stopped goes
    on behind the last. Each is a function of the examples, the model and the settings."""

    suffix: str  # of a part's file
    unit: str  # of what is counted, in words
    total: int  # of all parts

    def __len__(self) -> int: ...

    def before(self) -> dict[str, bytes]:
        """File name → content of what the parts are read by."""

    def make(self, k: int) -> bytes:
        """Part k."""

    def figures(self) -> Figures:
        """What was done, and how fast; beside the metrics in the manifest."""

    def done(self, k: int) -> int:
        """What is behind the end of part k, of `total`."""


class EvaluateSettings(Settings):
    """How predictions are scored."""

    splits: Annotated[tuple[Literal["train", "val", "test"], ...], Wiring] = Field(
        ("test",), description="that are evaluated"
    )
    batch_size: int = Field(256, ge=1, description="examples at once")
    resamples: int = Field(2000, ge=0, description="of the bootstrap; 0: no intervals")

    def while_training(self) -> EvaluateSettings:
        """Those of validation: the defaults, as what a recipe says of evaluation must not select another model."""
        return type(self)()


class ExplainSettings(Settings):
    """Perturbation curves of explanations: the accuracy while words and regions go, the most or the least relevant
    first, over a sample of the evaluated examples."""

    examples: int = Field(300, ge=1, description="of a split, drawn by `seed`")
    methods: Annotated[tuple[str, ...] | None, Wiring] = Field(
        None, min_length=1, description="of explaining; None: all of them. random is always among them"
    )
    seed: int = Field(0, ge=0, description="of the sample")
    resamples: int = Field(2000, ge=1, description="of the bootstrap, over images")


class DownstreamSettings(Schedule):
    """images and text: controls of either side, in training and evaluation; with `images: shuffled` or `none` only the
    language helps, with `text: shuffled` or `none` only the images. select: the model that is kept. steps: 0 leaves the
    start as it is. share: of the training examples, in whole images drawn by the seed; with one seed a smaller share is
    part of a larger one.
    """

    AS_TEACHER: ClassVar[tuple[str, ...] | None] = None  # fields that are as the teacher's; None: it can have none

    objective: str = Field(description="the downstream task; else the name of the entry")
    data: Annotated[str, Wiring] = Field(description="a name under `data`")
    start: Annotated[str, Wiring, LocalPath(or_name=True, unless=HUB.pattern)] = Field(
        "pretrained",
        description="a name under `pretrain`, pretrained (the last one), an entry before this one under `downstream`, "
        "none (as pre-training starts: from `model.init` or from random weights), or a BERT or VisualBERT: a name in "
        "data_specs/models, a folder (./my_bert), a .yaml file of your own, or of a VisualBERT on the Hugging Face hub "
        "OWNER/NAME@COMMIT",
    )
    model: Annotated[OwnSizes | None, Wiring] = Field(
        None, description="another size of model than the recipe's, for `start: none`: random weights"
    )
    teacher: Annotated[str | None, Wiring] = Field(
        None,
        description="an entry before this one under `downstream`, of the same objective, whose probabilities this one "
        "learns too: distillation (Hinton et al. 2015)",
    )
    teacher_weight: Annotated[float, Since(0.5)] = Field(
        0.5, gt=0, le=1, description="of the teacher's loss; the labels' has the rest"
    )
    teacher_temperature: Annotated[float, Since(2.0)] = Field(
        2.0, gt=0, description="that both models' logits are divided by; its square multiplies the teacher's loss"
    )
    seed: Annotated[int | None, Wiring] = Field(
        None, ge=0, description="of the heads, the order of examples and the share; None: the recipe's"
    )
    seeds: Annotated[tuple[int, ...], Wiring] = Field(
        (), description="several: one fine-tuning and evaluation each, `NAME@SEED`, compared as one entry"
    )
    share: Annotated[float, Since(1.0)] = Field(1.0, gt=0, le=1, description="of the training examples, by image")
    evaluate: Annotated[EvaluateSettings, Wiring] = EvaluateSettings()  # read by the stage `evaluate` alone
    explain: Annotated[ExplainSettings | None, Wiring] = Field(  # read by the stage `explain` alone
        None, description="measures explanations of the predictions; None: not"
    )
    answers: Annotated[str, Wiring, LocalPath(or_name=True, names=lambda: ("training",))] = Field(
        "training",
        description="the labels, in the order of the head's rows: those of the training examples, or those of a "
        "published file, text or JSON",
    )
    types: Annotated[tuple[str, ...] | None, Since(None)] = Field(
        None, min_length=1, description="question types of the examples: relation, count, … as the data says; None: all"
    )
    images: Literal["own", "shuffled", "none"] = Field(
        "own", description="shuffled: other images' regions stand beside a text; none: no regions. Language alone"
    )
    text: Annotated[Literal["own", "shuffled", "none"], Since("own")] = Field(
        "own", description="shuffled: other examples' texts stand beside an image; none: no text. The image alone"
    )
    select: Literal["best", "last"] = Field(
        "last", description="which model is kept: of the best validation, or the last"
    )
    select_by: Annotated[str | None, Since(None)] = Field(
        None, description="the metric that `select: best` goes by, also of a part: auroc/dev_unseen; None: the main one"
    )
    max_text: int | None = Field(
        None, ge=4, description="tokens of a text, special ones included; None: max_positions, 128 at most"
    )
    train_pooler: bool = Field(True, description="the original leaves the pooler out of its optimiser")
    accept_contract: Annotated[Annotated[tuple[str, ...], AfterValidator(acceptable)], Acceptance()] = Field(
        (),
        description="fields of the feature contract in which the regions may differ from the start's: detector, "
        "weights, nms, …; the report says so",
    )
    validation_examples: int = Field(1000, ge=0, description="held-out examples looked at while training")

    def evaluated_types(self) -> tuple[str, ...] | None:
        """Question types of the examples that are validated and evaluated on: those that are trained on."""
        return self.types

    def unfit(self, part: int, positions: int | None) -> tuple[str, str] | None:
        """(field, problem) of the first setting that can't be with what the rest of a recipe says. part: examples a
        process computes at once; positions: the model's, None where that isn't known yet."""
        return None
