"""Checks that the entries of a recipe fit each other, as far as is known before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vbert.data.spec import dataset
from vbert.data.yaml import NestedError
from vbert.errors import UserError, nearest
from vbert.explain import MEASURED, METHODS
from vbert.model.config import ModelSettings, too_long
from vbert.model.published import PRETRAINED, contract_of, is_int8, is_published, objective_of, sizes_of
from vbert.objectives import OBJECTIVES, same_task
from vbert.objectives.choice import ChoiceSettings
from vbert.objectives.published import no_head
from vbert.regions.contract import Contract, overridden
from vbert.regions.detector import detector_file
from vbert.training.schedule import Schedule

if TYPE_CHECKING:
    from flows.entries import Entries
    from vbert.objectives.entry import DownstreamSettings

Place = tuple[str, ...]


def check_entries(recipe: Entries, pretrainings: dict[Place, str]) -> None:
    """Raises NestedError at the first setting that a stage would refuse later, after others have run.

    pretrainings: (path in the recipe, name) of each pre-training.
    """
    for place, schedule, processes in _schedules(recipe, pretrainings):
        if problem := schedule.uneven(processes):
            raise NestedError((*place, "batch_size"), problem)
    for place, name in pretrainings.items():
        entry = recipe.pretrainings()[name]
        init = init_behind(recipe, entry.start)
        _check_text(recipe, place, init, entry.max_text)
        where = (*place, "start") if recipe.trained(entry.start or "") is None and entry.start else ("model", "init")
        if init is not None and is_published(init):
            _check_gradients(where, init)
            if (known := objective_of(init)) not in (None, PRETRAINED):
                raise NestedError(where, no_head(init, str(known), PRETRAINED))
            if entry.start is None or recipe.trained(entry.start) is None:
                for data in entry.data:
                    _check_contract(recipe, place, init, data, entry.accept_contract)
        if entry.captions == 2 and _size(recipe, init, "type_vocab") == 1:
            raise NestedError((*place, "captions"), "2, but the model has one segment type: set model.type_vocab to 2")
    for name, settings in recipe.downstream.items():
        place = ("downstream", name)
        init = init_behind(recipe, settings.start)
        published = init is not None and is_published(init) and recipe.trained(settings.start) is None
        if published:
            _check_gradients(("model", "init") if settings.start == "none" else (*place, "start"), str(init))
        if settings.steps == 0 and published:
            if (known := objective_of(str(init))) is not None and not same_task(known, settings.objective):
                raise NestedError((*place, "steps"), f"0, but {no_head(str(init), known, settings.objective)}")
        elif settings.steps == 0 and settings.start not in recipe.downstream:
            raise NestedError(
                (*place, "steps"),
                "0 evaluates the start as it is, and it has no answer head: train 1 step or more",
            )
        elif settings.steps == 0 and not same_task(
            of := recipe.downstream[settings.start].objective, settings.objective
        ):
            raise NestedError(
                (*place, "steps"),
                f"0 evaluates the start as it is, and {settings.start} is of objective {of}, not {settings.objective}: "
                "train 1 step or more",
            )
        if settings.model is not None and (settings.start != "none" or published):
            whose = f"init {init}" if settings.start == "none" else f"start {settings.start}"
            remedy = "leave model out" if settings.start == "none" else "write start: none, or leave model out"
            raise NestedError((*place, "model"), f"{whose} has sizes of its own; {remedy}")
        if untaught := _untaught(recipe, settings):
            raise NestedError((*place, untaught[0]), untaught[1])
        if settings.images == "none" and settings.text == "none" and not isinstance(settings, ChoiceSettings):
            raise NestedError((*place, "text"), "none beside images: none leaves nothing to answer by; leave one out")
        own = settings.answers != "training" and "://" not in settings.answers
        if own and not os.path.exists(os.path.expanduser(settings.answers)):
            problem = f"there is no file {settings.answers}; mend the path, or write training"
            raise NestedError((*place, "answers"), problem)
        _check_explain(place, settings)
        if published:
            _check_contract(recipe, place, str(init), settings.data, settings.accept_contract)
        _check_text(recipe, place, init, settings.max_text)
        part = settings.batch_size // (recipe.numerics.finetune.processes * settings.accumulate)
        positions = _size(recipe, init, "max_positions")
        if unfit := settings.unfit(part, positions if isinstance(positions, int) else None):
            raise NestedError((*place, unfit[0]), unfit[1])
        if settings.select_by is not None and settings.select == "last":
            raise NestedError(
                (*place, "select_by"), "select is last, which goes by none; write select: best, or leave it out"
            )
        if settings.select == "best" and (lacking := _no_validation(recipe, settings)):
            raise NestedError((*place, "select"), f"best, but {lacking}; write last")


def _check_gradients(where: Place, start: str) -> None:
    if is_int8(start):
        problem = f"{start} is of int8, for predictions on CPUs alone: name the model that it was made from"
        raise NestedError(where, problem)


def _untaught(recipe: Entries, entry: DownstreamSettings) -> tuple[str, str] | None:
    """(field, problem) of what can't be with the entry's teacher, or without one."""
    if entry.teacher is None:
        for field in ("teacher_weight", "teacher_temperature"):
            if getattr(entry, field) != type(entry).model_fields[field].default:
                return field, "is for an entry with a teacher: name one, or leave it out"
        return None
    same, teacher = entry.AS_TEACHER, recipe.downstream[entry.teacher]
    if same is None:
        able = ", ".join(name for name, one in OBJECTIVES.items() if one.settings.AS_TEACHER is not None)
        return "teacher", f"{entry.objective} has no labels that a teacher could say more of; it is for {able}"
    if entry.steps == 0:
        return "teacher", "steps: 0 learns nothing from it: train 1 step or more, or leave it out"
    if not same_task(teacher.objective, entry.objective):
        return "teacher", f"{entry.teacher} is of objective {teacher.objective}, not {entry.objective}"
    for field in same:
        if (its := getattr(teacher, field)) != (own := getattr(entry, field)):
            return field, f"{own}, but its teacher {entry.teacher} has {its}: set the same"
    return None


def _schedules(recipe: Entries, pretrainings: dict[Place, str]) -> Iterator[tuple[Place, Schedule, int]]:
    """(path in the recipe, schedule, number of processes) of every training."""
    if recipe.detector is not None and recipe.detector.train is not None:
        yield ("detector", "train"), recipe.detector.train, recipe.numerics.detector.processes
    for place, name in pretrainings.items():
        yield place, recipe.pretrainings()[name], recipe.numerics.pretrain.processes
    for name, entry in recipe.downstream.items():
        yield ("downstream", name), entry, recipe.numerics.finetune.processes


def init_behind(recipe: Entries, start: str | None) -> str | None:
    """The BERT or VisualBERT that `start` goes back to, behind all trainings; None: random weights."""
    if start is None or start == "none":
        return recipe.model.init
    training = recipe.trained(start)
    return start if training is None else init_behind(recipe, training.start)


def _size(recipe: Entries, init: str | None, field: str) -> object:
    """A size of the model that starts from the BERT or VisualBERT `init`; None where it is not known yet."""
    if init is None:
        return getattr(recipe.model, field)
    if field == "max_positions" and init == recipe.model.init and (more := recipe.model.extended()) is not None:
        return more
    known = sizes_of(init) or {}
    return known.get(field, ModelSettings.model_fields[field].default if known else None)


def _check_contract(recipe: Entries, place: Place, start: str, data: str, accepted: Sequence[str]) -> None:
    """That the regions of a data set are such as the published VisualBERT `start` was trained on, where both are known
    before anything is made; the stage compares the rest."""
    wanted = contract_of(start)
    made = None if wanted is None else _contract_to_be(recipe, data, wanted)
    if wanted is None or made is None:
        return
    try:
        overridden(wanted, made, accepted, (f"the start {start}", f"the regions of {data}"))
    except UserError as error:
        raise NestedError((*place, "accept_contract"), str(error)) from None


def _contract_to_be(recipe: Entries, data: str, like: Contract) -> Contract | None:
    """The contract that the regions of a data set will have; what is not known before they are made as `like` has it.
    None for a detector that there isn't, which is told elsewhere."""
    from vbert.regions.interop.importing import Provenance

    entry = recipe.data[data]
    try:
        if entry.features is not None:
            stated = Provenance.of(entry.features.detector, entry.features.layer, entry.features.weights)
        elif recipe.detector is not None:
            file = detector_file(recipe.detector.spec)
            rule = recipe.regions.resolved(file)
            given = rule.boxes is not None and rule.boxes.rule == "given"
            kinds = {"boxes": rule.boxes, "nms": rule.nms, "weights": like.weights or "of a file"}
            kinds["features_of"] = "given" if given else file.features_of
            stated = Provenance.of(file.name if recipe.detector.spec == file.name else recipe.detector.spec)
            stated = stated.model_copy(update=kinds)
        else:
            return None
    except UserError:
        return None
    fields = {name: getattr(stated, name) for name in type(stated).model_fields}
    return like.model_copy(update={**fields, "dim": stated.dim or like.dim})


def _check_text(recipe: Entries, place: Place, init: str | None, max_text: int | None) -> None:
    positions = _size(recipe, init, "max_positions")
    if isinstance(positions, int) and (problem := too_long(max_text, positions)):
        raise NestedError((*place, "max_text"), problem)


def _check_explain(place: Place, settings: DownstreamSettings) -> None:
    """Explanations are measured of tasks that choose one answer, and of no control."""
    if settings.explain is None:
        return
    if settings.objective not in MEASURED:
        raise NestedError(
            (*place, "explain"),
            f"is of tasks that choose one answer ({', '.join(MEASURED)}), not of {settings.objective}: leave it out",
        )
    if settings.images != "own" or settings.text != "own":
        raise NestedError((*place, "explain"), "a control was trained without looking: explain the entry beside it")
    for n, name in enumerate(settings.explain.methods or ()):
        if name not in METHODS:
            raise NestedError((*place, "explain", "methods", n), f"no method {name!r}; {nearest(name, METHODS)}")


def _no_validation(recipe: Entries, entry: DownstreamSettings) -> str:
    """Why there are no held-out examples to select by, as far as recipe and spec show; else ""."""
    if not entry.validation_examples:
        return "validation_examples is 0"
    spec = recipe.data[entry.data].spec
    spec_of = dataset(spec) if spec is not None else None
    if spec_of is None or spec_of.examples is None or spec_of.validation is not None:
        return ""
    counts = spec_of.examples.counts or spec_of.images.counts
    return f"{entry.data} has no split val" if counts and "val" not in counts else ""
