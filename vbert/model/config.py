"""Sizes and semantics of a VisualBERT, as plain data: a recipe is read without torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vbert.artifacts.steps.settings import Settings, Since
from vbert.errors import UserError

LONGEST_TEXT = 128  # default number of tokens: the original's max_seq_length
BOX_NUMBERS = 6  # numbers that `append6` adds to a feature

# config.json's name of each size; a missing one has BERT base's value.
SIZES = {
    "hidden_size": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab": "type_vocab_size",
    "activation": "hidden_act",
    "layer_norm_eps": "layer_norm_eps",
    "initializer_range": "initializer_range",
}


class ModelSettings(Settings):
    """A recipe's settings of a model. Defaults are those of BERT base (Devlin et al. 2019) where it has them."""

    hidden_size: int = Field(768, ge=1, description="numbers of a token between layers")
    layers: int = Field(12, ge=1, description="of the encoder")
    heads: int = Field(12, ge=1, description="of attention, a layer")
    intermediate_size: int = Field(0, ge=0, description="0: four times hidden_size")
    max_positions: int = Field(512, ge=1, description="tokens of a text at most")
    type_vocab: int = Field(2, ge=1, description="kinds of text segments")
    activation: Literal["gelu", "gelu_new", "relu"] = Field("gelu", description="of the inner layer")
    hidden_dropout: float = Field(0.1, ge=0, lt=1, description="share of numbers dropped in training")
    attention_dropout: float = Field(0.1, ge=0, lt=1, description="share of attention dropped in training")
    layer_norm_eps: float = Field(1e-12, gt=0, description="added to a norm's variance")
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of fresh weights")
    # For our own data sets; imported checkpoints say `none` and false. Without box numbers the model sees no positions.
    box_input: Literal["none", "append6"] = Field(
        "append6", description="append6 lets the model see where a box lies; none is the original"
    )
    standardise: bool = Field(True, description="visual input by the training shards' mean and deviation")
    # Without a gain the six numbers are a fortieth of a region's input at first, and positions are not learnt.
    box_gain: Annotated[float, Since(1.0)] = Field(
        1.0, gt=0, description="what a standardised box number is multiplied by; 1: it weighs as one of the feature's"
    )

    @model_validator(mode="before")
    @classmethod
    def _intermediate(cls, data: Any) -> Any:
        size = data.get("hidden_size", 768) if isinstance(data, Mapping) else None
        if isinstance(size, int) and not data.get("intermediate_size"):
            return {**data, "intermediate_size": 4 * size}
        return data

    @model_validator(mode="after")
    def _fits(self) -> ModelSettings:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        if self.box_gain != 1 and not (self.standardise and self.box_input == "append6"):
            raise ValueError("box_gain is of standardised box numbers: set box_input: append6 and standardise: true")
        return self


class OwnSizes(Settings):
    """A model beside the recipe's, of another size; what is not said here is the recipe's `model`'s."""

    layers: int = Field(ge=1, description="of the encoder")
    hidden_size: int = Field(ge=1, description="numbers of a token between layers")
    heads: int = Field(ge=1, description="of attention, a layer")
    intermediate_size: int = Field(0, ge=0, description="0: four times hidden_size")
    initializer_range: float | None = Field(None, gt=0, description="deviation of fresh weights; None: `model`'s")

    @model_validator(mode="after")
    def _fits(self) -> OwnSizes:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}")
        return self

    def beside(self, model: ModelSettings) -> ModelSettings:
        """The whole settings, of the recipe's."""
        return ModelSettings.model_validate({**model.model_dump(), **self.model_dump(exclude_none=True)})


INT8_STEP = ".weight_step"  # the end of a name of a tensor that tells a linear layer in int8


def too_long(max_text: int | None, max_positions: int) -> str:
    """An error where a text may have more tokens than the model has positions; else ""."""
    if max_text is None or max_text <= max_positions:
        return ""
    return f"{max_text} is beyond the model's {max_positions} positions (max_positions); set it to {max_positions}"


def text_limit(max_text: int | None, max_positions: int) -> int:
    """The most tokens of a text: `max_text`, else the number of positions. Raises UserError for more than these."""
    if problem := too_long(max_text, max_positions):
        raise UserError(f"max_text {problem}")
    return min(LONGEST_TEXT, max_positions) if max_text is None else max_text


class VisualBertConfig(ModelSettings):
    """A model's sizes, including those of its vocabulary and its regions."""

    vocab_size: int = Field(ge=1)
    visual_dim: int = Field(ge=1, description="length of a region feature, without box numbers")

    @property
    def visual_input(self) -> int:
        """Length of one row of `PackedBatch.visual`: the feature and its box numbers."""
        return self.visual_dim + (BOX_NUMBERS if self.box_input == "append6" else 0)
