"""BERT checkpoints as artifacts, and the specs that name them (`data_specs/models/*.yaml`)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Settings
from vbert.data.source import Source
from vbert.data.spec_folder import DATA_SPECS, SpecFolder
from vbert.data.yaml import NestedError, is_yaml
from vbert.errors import UserError, nearest
from vbert.model.config import SIZES, ModelSettings, VisualBertConfig
from vbert.model.vocabulary import CONFIG, VOCABULARY, Vocabulary

if TYPE_CHECKING:
    from torch import Tensor

MAX_CONFIG = 1 << 20  # bytes of a config.json
COMMIT = 40  # hex digits of a whole one
MODELS = SpecFolder(DATA_SPECS / "models", "model", "the folder of a BERT, or your own .yaml")


class HubSource(Settings):
    """A repository of the Hugging Face hub at one commit. Of a beginning of a commit, the repository must stand at it:
    it is refused as soon as it has moved on."""

    hub: Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")] = Field(description="the repository's name")
    revision: Annotated[
        str, Field(pattern="^[0-9a-f]{7,40}$", description="the commit, or its beginning; a branch would move")
    ]


class ModelSpec(Settings):
    """A published checkpoint that pre-training can start from."""

    name: str = Field(description="a word")
    title: str = Field(description="for people")
    licence: str = Field(description="of the weights")
    homepage: str = Field(description="for people")
    kind: Literal["bert"] = Field("bert", description="what it is")
    source: HubSource | Source = Field(description="where its files are")
    sizes: dict[str, int | float | str] = Field(
        {}, description="by the fields of `model`: what its config.json says, known before it is fetched"
    )

    @model_validator(mode="after")
    def _known(self) -> ModelSpec:
        for name in self.sizes:
            if name not in SIZES:
                raise NestedError(("sizes", name), f"a BERT decides no such size; {nearest(name, SIZES)}")
        return self


def model_names() -> list[str]:
    """Names of the model specs, sorted."""
    return MODELS.names()


def model_spec(name: str) -> ModelSpec:
    """The spec data_specs/models/NAME.yaml, or that in the file `name` if it ends in `.yaml`; paths in it absolute.

    Raises UserError, with the nearest name where there is none.
    """
    return MODELS.read(name, ModelSpec)


def bert_source(where: str) -> tuple[HubSource | Source, str]:
    """(source, name) of `model.init`: a spec (see `model_spec`), or the folder of a BERT. Raises UserError.

    `init` is a folder if it contains a `/`, or if it exists and no spec has its name.
    """
    folder = Path(os.path.expanduser(where))
    if not is_yaml(where) and ("/" in where or (where not in model_names() and folder.is_dir())):
        if not folder.is_dir():
            raise UserError(
                f"model.init: there is no folder {where}; give that of a BERT: config.json, weights, vocab.txt"
            )
        return Source(path=os.path.abspath(folder)), folder.resolve().name
    spec = model_spec(where)
    return spec.source, spec.name


def known_sizes(where: str) -> dict[str, Any] | None:
    """The sizes of the BERT `where` (see `bert_source`) that are known before its stage runs, from its spec or from
    config.json in its folder (whose faults the stage reports). None where there is no such BERT."""
    try:
        source, _ = bert_source(where)
    except UserError:
        return None
    try:
        if isinstance(source, Source) and source.path is not None:
            with (Path(source.path) / "config.json").open("rb") as file:
                given = json.loads(file.read(MAX_CONFIG))
            return {ours: given[theirs] for ours, theirs in SIZES.items() if theirs in given}
        return dict(model_spec(where).sizes)
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


class BertWeights(Artifact):
    """A BERT in one form: config.json and model.safetensors as transformers' BertForPreTraining, and its vocabulary."""

    def tensors(self) -> dict[str, Tensor]:
        """All tensors, float32, named `bert.…` and `cls.…`."""
        from vbert.data.weight_files import read_safetensors

        return read_safetensors(self.file("model.safetensors"))

    def sizes(self) -> dict[str, Any]:
        """The fields of `ModelSettings` that the checkpoint decides."""
        from vbert.model.checkpoint import read_json

        given = read_json(self.file("config.json"))
        return {ours: given[theirs] for ours, theirs in SIZES.items() if theirs in given}

    def model_config(self, settings: ModelSettings, visual_dim: int) -> VisualBertConfig:
        """The configuration of a VisualBERT that starts here: sizes from the checkpoint, the rest from `settings`."""
        words = self.tensors()["bert.embeddings.word_embeddings.weight"]
        chosen = {"vocab_size": words.shape[0], "visual_dim": visual_dim, **self.sizes()}
        return VisualBertConfig.model_validate({**settings.model_dump(), **chosen})

    def vocabulary(self) -> Vocabulary:
        """The checkpoint's vocabulary and text rules."""
        self.file(CONFIG)
        return Vocabulary.at(self.file(VOCABULARY).parent)
