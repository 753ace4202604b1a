"""The entries of a recipe: small frozen models, one a stage, so that a field changes only the stages that read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)

from flows.imported import FeaturesEntry
from vbert.artifacts.steps.settings import LocalPath, Numerics, Settings, Wiring
from vbert.artifacts.steps.stage import Machine
from vbert.data.spec import DATASETS, BoxShare
from vbert.data.yaml import NestedError
from vbert.model.bert import model_names
from vbert.model.config import SIZES, ModelSettings
from vbert.model.published import HUB, is_published, sizes_of
from vbert.model.vocabulary import VocabularySettings
from vbert.objectives import DownstreamEntry, DownstreamSettings
from vbert.objectives.pretraining.settings import PretrainSettings
from vbert.regions.detector import DETECTORS, DetectorTraining, ExtractionNumerics, RegionSettings


class DataEntry(Settings):
    """A data set of the recipe: one with a spec, or a plain folder of images (subfolders too) without texts.

    Its region features are extracted, or imported with `features`. Sizes apply to generated sets and replace the
    spec's.
    """

    spec: Annotated[Annotated[str, AfterValidator(DATASETS.known)] | None, Wiring, LocalPath(or_name=True)] = Field(
        None, description="a name in data_specs/datasets, or a .yaml file of your own"
    )
    folder: Annotated[str | None, Wiring, LocalPath()] = Field(
        None, description="of images, subfolders too, without texts"
    )
    features: Annotated[FeaturesEntry | None, Wiring] = Field(
        None, description="of another system, in place of those that the detector makes"
    )
    files: Annotated[dict[str, str], Wiring, LocalPath()] = Field(
        {}, description="a folder or file of your own in place of a source of the spec, or of the one with its photos"
    )
    known_overlap: Annotated[str | None, Wiring] = Field(
        None, min_length=1, description="why its photos may be trained on and evaluated on; in place of the spec's"
    )
    images: int | None = Field(None, ge=1, description="how many to generate, for generated sets")
    size: int | None = Field(None, ge=1, description="side of a generated image in pixels")
    seed: int | None = Field(None, ge=0, description="of a generated set")
    unusable_boxes: Annotated[BoxShare | None, Wiring] = Field(None, description="in place of the spec's")

    dead_links: Annotated[Annotated[float, Field(ge=0, le=1)] | None, Wiring] = Field(
        None, description="share of links that may be dead, in place of the spec's"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> DataEntry:
        if (self.spec is None) == (self.folder is None):
            raise ValueError("give either spec or folder")
        if self.folder is not None and self.files:
            raise ValueError("files belong to a spec")
        return self


class DetectorEntry(Settings):
    """A detector that the recipe trains, or one with weights: those of the spec, or `weights`, a file or URL."""

    spec: Annotated[str, Wiring, AfterValidator(DETECTORS.known), LocalPath(or_name=True)] = Field(
        description="a name in data_specs/detectors, or a .yaml file of your own"
    )
    weights: Annotated[str | None, Wiring, LocalPath()] = Field(
        None, description="a file or URL, in place of the spec's weights"
    )
    start: Annotated[str | None, Wiring, LocalPath()] = Field(
        None, description="a file or URL that training starts from, in place of the spec's"
    )
    train: DetectorTraining | None = None

    @model_validator(mode="after")
    def _one_origin(self) -> DetectorEntry:
        if self.weights is not None and self.train is not None:
            raise ValueError("give either train or weights")
        if self.start is not None and self.train is None:
            raise ValueError("start is for train")
        return self


class ModelEntry(ModelSettings):
    """The model's sizes, or the BERT or VisualBERT that it starts from."""

    init: Annotated[str | None, Wiring, LocalPath(or_name=True, names=model_names, unless=HUB.pattern)] = Field(
        None,
        description="the BERT or VisualBERT whose sizes and vocabulary are then the model's: a name in "
        "data_specs/models, a folder (my_bert, beside the recipe), a .yaml file of your own, or of a VisualBERT on the "
        "Hugging Face hub OWNER/NAME@COMMIT; a larger max_positions beside it extends its table of positions",
    )

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_init(cls, data: Any) -> Any:
        """Sizes beside `init` are its own, or refused; of a VisualBERT all of `model` is its own. More positions than
        it has extend it."""
        init = data.get("init") if isinstance(data, Mapping) else None
        known = sizes_of(init) if isinstance(init, str) else None
        if known is None:
            return data
        for field in ModelSettings.model_fields if is_published(str(init)) else SIZES:
            given = data.get(field)
            if field not in data or (field in known and given == known[field]):
                continue
            if field == "max_positions" and isinstance(given, int) and given > known.get(field, 0):
                continue
            brings = f"{known[field]} is that of init {init}" if field in known else f"init {init} brings its own"
            more = ", or give more, which extends its table" if field == "max_positions" else ""
            raise NestedError((field,), f"{given}, but {brings}: leave it out{more}")
        return data

    @model_serializer(mode="wrap")
    def _without_sizes_of_init(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if self.init is None:
            return written
        own = ModelSettings.model_fields if is_published(self.init) else SIZES
        kept = () if self.extended() is None else ("max_positions",)
        return {name: value for name, value in written.items() if name not in own or name in kept}

    def extended(self) -> int | None:
        """The number of positions that the table of `init` is extended to; None: it stays as it is."""
        if self.init is None or "max_positions" not in self.model_fields_set:
            return None
        known = (sizes_of(self.init) or {}).get("max_positions", 0)
        return self.max_positions if self.max_positions > known else None


class PretrainEntry(PretrainSettings):
    data: Annotated[tuple[str, ...], Wiring] = Field(
        min_length=1, description="names under `data`, whose training texts are read"
    )
    start: Annotated[str | None, Wiring, LocalPath(or_name=True, unless=HUB.pattern)] = Field(
        None,
        description="an earlier one under `pretrain`, or a BERT or VisualBERT: a name in data_specs/models, a folder "
        "(./my_bert), a .yaml file of your own, or of a VisualBERT on the Hugging Face hub OWNER/NAME@COMMIT; None: as "
        "`model` says, from its `init` or from random weights",
    )
    seed: Annotated[int | None, Wiring] = Field(None, ge=0, description="None: the recipe's")
    seeds: Annotated[tuple[int, ...], Wiring] = Field(
        (), description="several: one pre-training each, `NAME@SEED`, from which entries of the same seed start"
    )


def _form(pretrain: Any) -> str:
    """Whether `pretrain` is one pre-training or several by name: no field of one is a mapping."""
    several = (
        isinstance(pretrain, Mapping) and pretrain and all(isinstance(v, Mapping | Settings) for v in pretrain.values())
    )
    return "several" if several else "one"


Pretrainings = Annotated[
    Annotated[PretrainEntry, Tag("one")] | Annotated[dict[str, PretrainEntry], Tag("several")], Discriminator(_form)
]


class NumericsByStage(Settings):
    """Numerics settings, which change bits, for each computing stage."""

    detector: Numerics = Numerics()
    regions: ExtractionNumerics = ExtractionNumerics()
    pretrain: Numerics = Numerics()
    finetune: Numerics = Numerics()
    evaluate: Numerics = Numerics()


class Entries(Settings):
    """All entries of a recipe, each valid by itself."""

    name: str = Field("", description="what the run and its report are called; else the name of the file")
    seed: int = Field(0, ge=0, description="of everything drawn at random")
    limit: int | None = Field(None, ge=1, description="at most so many images per data set and split")
    data: dict[str, DataEntry] = Field(min_length=1)
    detector: DetectorEntry | None = Field(None, description="of all data sets without `features`")
    regions: RegionSettings = RegionSettings()
    vocabulary: VocabularySettings = VocabularySettings()
    model: ModelEntry = ModelEntry()
    pretrain: Pretrainings | None = Field(None, description="one, or several by name; the last one is `pretrained`")
    downstream: dict[str, DownstreamEntry] = Field({}, description="downstream tasks and their controls, by name")
    numerics: NumericsByStage = NumericsByStage()
    machine: Machine = Machine()

    def pretrainings(self) -> dict[str, PretrainEntry]:
        """The pre-trainings by name, in their order; the key of one without a name is ""."""
        if isinstance(self.pretrain, PretrainEntry):
            return {"": self.pretrain}
        return dict(self.pretrain or {})

    def started_by(self, start: str) -> str:
        """The name of the training that `start` names; `pretrained` is the last pre-training."""
        return list(self.pretrainings())[-1] if start == "pretrained" else start

    def trained(self, start: str) -> PretrainEntry | DownstreamSettings | None:
        """The training whose model `start` names: a pre-training, or an entry under `downstream`; None: a BERT, or
        none."""
        return self.pretrainings().get(self.started_by(start)) or self.downstream.get(start)

    def seeds_of(self, entry: PretrainEntry | DownstreamSettings) -> tuple[int, ...]:
        return entry.seeds or (self.seed if entry.seed is None else entry.seed,)
