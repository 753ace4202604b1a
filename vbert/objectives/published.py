"""Models of published VisualBERTs: their weights, vocabulary, semantics and contract, as a `Model`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from vbert.artifacts.steps.fingerprint import digest
from vbert.artifacts.steps.settings import Acceptance, Settings
from vbert.errors import BuildError, UserError
from vbert.model.config import LONGEST_TEXT, SIZES
from vbert.model.published import HEAD, PRETRAINED, Form, Objective, Semantics, not_stated
from vbert.regions.contract import NAME as CONTRACT
from vbert.regions.contract import Contract

if TYPE_CHECKING:
    from vbert.model.config import VisualBertConfig
    from vbert.model.convert import AnyModel, Conventions
    from vbert.model.vocabulary import Vocabulary


class CheckpointSettings(Settings):
    """What a published VisualBERT's files don't say of themselves."""

    name: str = Field(description="of its spec, its repository or its folder")
    form: Form = Field(description="whose names the tensors have")
    objective: Objective | None = Field(None, description="of its head; None: by its `architectures`")
    semantics: Semantics = Semantics()
    contract: Contract | None = Field(None, description="of its features; None: contract.json beside the weights")
    labels: tuple[str, ...] | None = Field(None, description="of objective classification")
    positive: str | None = Field(None, description="of objective classification")
    answers_digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="of the answers in their order"
    )
    sizes: dict[str, int | float | str] = Field(
        {}, description="by the fields of `model`; of files without config.json"
    )
    max_positions: int | None = Field(None, ge=1, description="rows that the position table is extended to")
    wanted: Annotated[str | None, Acceptance()] = Field(
        None, description="the objective that it must have a head for; None: any, as it is trained further"
    )


@dataclass(frozen=True)
class Read:
    """A checkpoint's model, the objective of its head, its labels where it says them, and the heads that it hasn't.
    head: its own head.json, where it has one."""

    model: AnyModel
    objective: str
    labels: Sequence[str] = ()
    untrained: Sequence[str] = ()
    head: dict[str, Any] | None = None


def write_published(
    directory: Path,
    files: Path,
    settings: CheckpointSettings,
    vocabulary: Vocabulary,
    answers: Path | None,
    commit: str | None = None,
) -> dict[str, Any]:
    """Writes the files of a `Model` of the checkpoint in the folder `files`; returns figures.

    answers: the file of the answers of objective vqa. commit: of a repository, recorded in head.json.

    Raises UserError where tensors are missing or have no place, or the parts don't fit each other.
    """
    from vbert.model.convert import STATISTICS
    from vbert.model.positions import extend
    from vbert.objectives import same_task
    from vbert.objectives.trained import write_model

    read = (
        _foreign(files, settings) if settings.form in ("original", "mmf") else _transformers(files, settings, answers)
    )
    objective = str((read.head or {}).get("objective", read.objective))
    if settings.wanted is not None and not same_task(objective, settings.wanted):
        raise UserError(no_head(settings.name, objective, settings.wanted))
    model, config = read.model, read.model.encoder.config
    contract = _contract(files, settings, config)
    if settings.max_positions is not None:
        config = extend(model, settings.max_positions, settings.name)
    encoder = vocabulary.encoder()
    if encoder.size > config.vocab_size:
        raise UserError(
            f"{settings.name}: the vocabulary has {encoder.size:,} pieces, the word embeddings "
            f"{config.vocab_size:,} rows: it is another model's"
        )
    head = dict(read.head) if read.head is not None else _head(read, settings, answers, config)
    head["published"] = {"name": settings.name, "form": settings.form, **({"commit": commit} if commit else {})}
    write_model(directory, model=model, config=config, vocabulary=vocabulary, contract=contract, head=head, curves=())
    numbers = sum(t.numel() for name, t in model.state_dict().items() if name not in STATISTICS)
    return {"parameters": numbers, "pieces": encoder.size, "labels": len(head.get("labels", ()))}


def no_head(name: str, objective: str, wanted: str) -> str:
    """Why a start without the head of the objective `wanted` can't be taken as it is."""
    has = "pre-training's heads" if objective == PRETRAINED else f"the head of objective {objective}"
    if wanted == PRETRAINED:
        return (
            f"{name} has {has}, and pre-training goes on with those for masked words and matching: name one with them"
        )
    return f"{name} has {has} and none of {wanted}: it can't be evaluated as it is; train 1 step or more"


def _transformers(files: Path, settings: CheckpointSettings, answers: Path | None) -> Read:
    """A folder as `save_pretrained` of transformers writes it."""
    from vbert.model.checkpoint import read_json
    from vbert.model.convert import load_pretrained, stated_architecture
    from vbert.model.published import OBJECTIVE_OF

    given = read_json(files / "config.json")
    name = stated_architecture(given, files)
    objective = OBJECTIVE_OF[name]
    if settings.objective not in (None, objective, *(("classification",) if objective == "nlvr2" else ())):
        raise UserError(
            f"{settings.name}: its config.json says {name}, which is of objective {objective}, not "
            f"{settings.objective}: mend the spec"
        )
    by_spec = None if settings.contract is None else settings.semantics.box_input
    if by_spec is not None and (stated := given.get("box_input", by_spec)) != by_spec:
        raise UserError(
            f"{settings.name}: config.json says box_input {stated!r}, semantics.box_input is {by_spec!r}: mend the spec"
        )
    # Of models that were exported here config.json says them.
    conventions: Conventions | None = None if by_spec is None else "original"
    model, report = load_pretrained(files, conventions, by_spec, answers)
    _check_sizes(model.encoder.config, settings)
    _exchanged(model, settings.semantics)
    untrained = sorted({name.partition(".")[0] for name in report.created})
    head = _own_head(files, model) if settings.contract is None else None
    return Read(model, settings.objective or objective, report.answers, untrained, head)


def _own_head(files: Path, model: AnyModel) -> dict[str, Any] | None:
    """The head.json of a model that was exported from here, which says more of its head than config.json."""
    from vbert.model.checkpoint import read_json
    from vbert.objectives import built

    if not (files / HEAD).is_file():
        return None
    head = read_json(files / HEAD)
    if "labels" in head and digest(head["labels"]) != head.pop("digest", None):
        raise UserError(f"{files.name}/{HEAD}: the labels are not those of its digest; export the model again")
    try:
        built(model.encoder.config, head, files.name).load_state_dict(model.state_dict())
    except (RuntimeError, BuildError, KeyError) as error:
        raise UserError(f"{files.name}/{HEAD} is another model's: {' '.join(str(error).split()):.300}") from None
    return head


def _foreign(files: Path, settings: CheckpointSettings) -> Read:
    """The one file of weights in the folder, in the original repository's form or MMF's."""
    from vbert.data.weight_files import read_weights
    from vbert.model.convert import assembled
    from vbert.model.foreign import architecture, configuration, renamed

    assert settings.form in ("original", "mmf"), "the caller's own check"
    assert settings.objective is not None, "a spec of these forms states it"
    (path,) = files.iterdir()
    where = f"{settings.name} ({path.name})"
    tensors = renamed(read_weights(path), settings.form, where)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    config = configuration(tensors, settings.sizes, settings.semantics.box_input, where)
    kind, name = architecture(settings.objective, settings.semantics.answer_at, tensors)
    model, _ = assembled(kind, config, tensors, f"{where}: a {name}")
    _exchanged(model, settings.semantics)
    return Read(model, settings.objective)


def _exchanged(model: AnyModel, semantics: Semantics) -> None:
    """Brings rows into the order of the original: segment 0 of regions, label 1 of a true pair."""
    from vbert.model.convert import MATCHING, SEGMENT, exchange

    parameters = dict(model.named_parameters())
    if semantics.visual_segment == 1:
        exchange(parameters, SEGMENT)
    if semantics.matching == "zero_is_true":
        exchange(parameters, MATCHING)


def _check_sizes(config: VisualBertConfig, settings: CheckpointSettings) -> None:
    for name, stated in settings.sizes.items():
        if name in SIZES and (found := getattr(config, name)) != stated:
            raise UserError(
                f"{settings.name}: its spec says {name} {stated}, its config.json {found}: mend `sizes` of the spec"
            )


def _contract(files: Path, settings: CheckpointSettings, config: VisualBertConfig) -> Contract:
    contract = settings.contract
    if contract is None:
        contract = Contract.read(files / CONTRACT) if (files / CONTRACT).is_file() else not_stated(config.visual_dim)
    if contract.dim != config.visual_dim:
        raise UserError(
            f"{settings.name}: its features have {config.visual_dim:,} numbers by its weights, {contract.dim:,} by its "
            f"contract ({contract.detector}): one is of another model"
        )
    return contract.with_box_input(config.box_input)


def _head(read: Read, settings: CheckpointSettings, answers: Path | None, config: VisualBertConfig) -> dict[str, Any]:
    """head.json, as the objective itself would have written it."""
    semantics, described = settings.semantics, _described(read, settings, answers)
    transform = getattr(getattr(read.model, "answer", None), "transform", None) is not None
    head: dict[str, Any] = {"objective": read.objective, **described}
    if read.objective != PRETRAINED:
        head |= {"images": "own", "max_text": min(LONGEST_TEXT, settings.max_positions or config.max_positions)}
    head |= {"transform": True} if transform else {}
    untrained = [*read.untrained, *(("matching",) if semantics.matching == "untrained" else ())]
    if read.objective == PRETRAINED and untrained:
        head["untrained"] = sorted(set(untrained))
    return head


def _described(read: Read, settings: CheckpointSettings, answers: Path | None) -> dict[str, Any]:
    """What the objective needs to know of its head."""
    from vbert.objectives.nlvr2 import LABELS

    semantics, rows = settings.semantics, _rows(read.model)
    if read.objective == PRETRAINED:
        return {"kind": "pretraining"}
    if read.objective == "vqa":
        labels, name = _answers(read, settings, answers, rows)
        return {"kind": "answer", "labels": labels, "name": name, "answer_at": semantics.answer_at} | {
            "loss": semantics.loss
        }
    if read.objective == "nlvr2":
        labels = [label.casefold() for label in read.labels] or LABELS
        if sorted(labels) != LABELS or rows != len(LABELS):
            raise UserError(
                f"{settings.name}: a head of {rows} rows ({', '.join(labels[:3])}) on the pooled vector; of statements "
                "that are true or false it has two. For other labels write a spec: `objective: classification` and "
                "`labels`"
            )
        return {"kind": "answer", "labels": labels}
    if read.objective == "classification":
        labels = list(settings.labels or read.labels)
        if len(labels) != rows:
            raise UserError(f"{settings.name}: {len(labels)} labels for a head of {rows} rows: mend `labels`")
        return {"kind": "answer", "labels": labels} | ({"positive": settings.positive} if settings.positive else {})
    if read.objective == "choice":
        return {"kind": "choice", "align": True, "cut": semantics.cut}
    return {
        "kind": "phrases", "selects": "r1", "protocol": "any", "loss": "kl", "iou": "inclusive", "as_original": True
    }  # fmt: skip


def _rows(model: AnyModel) -> int:
    from vbert.model.heads import AnswerModel

    return model.answer.dense.out_features if isinstance(model, AnswerModel) else 0


def _answers(read: Read, settings: CheckpointSettings, path: Path | None, rows: int) -> tuple[list[str], str]:
    """(the answers in the order of the head's rows, where they are from)"""
    from vbert.data.answers import read_answers

    if path is not None:
        labels, name = read_answers(path), path.name
    else:
        labels, name = list(read.labels), "config.json"
    if len(labels) != rows:
        raise UserError(
            f"{settings.name}: {name} has {len(labels):,} answers, the head {rows:,} rows: another vocabulary"
        )
    if settings.answers_digest is not None and (found := digest(labels)) != settings.answers_digest:
        raise UserError(
            f"{settings.name}: {name} holds other answers than its spec says, or in another order (digest "
            f"{found[:12]}…, not {settings.answers_digest[:12]}…): each row would stand for another answer"
        )
    return labels, name


def copy_own(directory: Path, files: Path, settings: CheckpointSettings) -> Mapping[str, Any]:
    """A model as it is written here, read whole and written again; returns figures."""
    from vbert.model.positions import extend
    from vbert.objectives.trained import Model, write_model

    source = Model.at(files)
    model, head, config = source.load(), source.head(), source.config()
    if settings.max_positions is not None:
        config = extend(model, settings.max_positions, settings.name)
    curves = source.curves() if (files / "curves.jsonl").is_file() else []
    write_model(
        directory,
        model=model,
        config=config,
        vocabulary=source.vocabulary(),
        contract=source.contract(),
        head={name: value for name, value in head.items() if name != "digest"},
        curves=curves,
    )
    return {"parameters": sum(p.numel() for p in model.parameters()), "labels": len(head.get("labels", ()))}
