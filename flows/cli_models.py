"""`vbert export` and `vbert import-model`: a trained model in a folder that lives anywhere, and back into a store."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.options import JsonOption, MachineOption, Set, SharedOption, StoreOption, graph_of, recipe_of, store_at
from vbert.data.yaml import is_yaml
from vbert.errors import UserError, near

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from vbert.artifacts.steps.artifact import Artifact
    from vbert.artifacts.store.store import Store
    from vbert.export.card import Card
    from vbert.export.facts import Facts
    from vbert.export.int8 import Int8Figures
    from vbert.objectives.trained import Model
    from vbert.regions.detector import DetectorWeights


def export(
    what: str,
    stage: str | None = None,
    /,
    *,
    out: Path,
    format_: Annotated[Literal["vbert", "hf"], Parameter(name="--format")] = "vbert",
    conventions: Literal["hf", "original"] = "hf",
    int8: Annotated[bool, Parameter(negative="")] = False,
    measure: Annotated[int | None, Parameter(validator=Number(gte=0))] = None,
    licence: str = "other",
    changes: Set = [],  # noqa: B006  cyclopts reads the default
    store: StoreOption = None,
    json_: JsonOption = False,
) -> None:
    """A trained model as one folder that lives anywhere: weights, vocabulary, head, contract, its detector, and a card.

    `vbert.VisualBert.load(DIR)` and `vbert predict DIR` read it, without the store and with the same bits. With
    `--format hf` it is what `from_pretrained` of transformers loads, with the same numbers.

    Example: `vbert export demo 'finetune[vqa]' --out exported/vqa`

    Parameters
    ----------
    what
        a shipped recipe's name or a YAML file; or, alone, the path of an artifact, or of an exported folder.
    stage
        of a recipe, whose model: `pretrain`, or one of several, `finetune[vqa]`.
    out
        the folder, new or empty, or that of an earlier export, which it replaces.
    format_
        vbert: for this library. hf: for transformers.
    conventions
        with --format hf. hf: regions have the visual segment 1 and label 0 is a matching pair, as transformers' own
        defaults and documentation have it. original: 0 and 1, as in the original's code.
    int8
        the linear layers in 8-bit integers, for CPUs: a smaller folder, and on larger models a faster one. What that
        costs in accuracy and gains in speed is measured on the examples that the model was evaluated on, printed, and
        written into the card and export.json.
    measure
        with --int8. At most so many of these examples; 0: nothing is measured. By default 10,000.
    licence
        the licence of the folder for the front matter of its card, by the Hugging Face hub's word for it.
    """
    from dataclasses import replace

    from vbert.export.folder import write_export

    if conventions != "hf" and format_ != "hf":
        raise UserError("--conventions belongs to --format hf")
    if int8 and format_ == "hf":
        raise UserError("--int8 belongs to vbert's own format: transformers has no class for it")
    if measure is not None and not int8:
        raise UserError("--measure belongs to --int8")
    model, detector, facts, reproduce = _chosen(what, stage, changes, store)
    card = _card(model, detector, facts, reproduce, licence)
    about: Any = {"title": facts.title, "made_from": facts.made_from()}
    architecture, cost = None, _measured_before(what, stage)
    if format_ == "hf":
        from vbert.export.hugging_face import network_for_transformers, write_hugging_face
        from vbert.model.convert import architecture_of

        network = network_for_transformers(model)
        architecture = architecture_of(network)
        card = replace(card, architecture=architecture, conventions=conventions)
        write_hugging_face(out, model, network, detector, conventions=conventions, card=card.text(), **about)
    else:
        with TemporaryDirectory() as making:
            if int8:
                from vbert.export.int8 import MOST, int8_copy, measured

                small = int8_copy(model, Path(making) / "model")
                cost = measured(model, small, MOST if measure is None else measure)
                model = small
            card = replace(card, int8=cost)
            told = None if cost is None else cost.model_dump(mode="json")
            write_export(out, model, detector, card=card.text(), int8=told, **about)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    named = detector.spec().name if detector is not None else None
    if json_:
        done = {"out": str(out), "objective": facts.objective, "detector": named, "bytes": size}
        done |= {"format": format_, "architecture": architecture}
        print(json.dumps(done | ({"int8": cost.model_dump(mode="json")} if int8 and cost else {})))
        return
    print(out)
    print(f"{facts.title}: {size / 1e6:,.1f} MB, " + (f"detector {named}" if named else "no detector: give regions="))
    for line in cost.lines() if int8 and cost else ():
        print(line)
    if architecture is not None:
        print(f"load it by transformers.{architecture}.from_pretrained({str(out)!r})")
    else:
        print(f"ask it by `vbert predict {quote(str(out))}`, or VisualBert.load({str(out)!r})")


def import_model(
    folder: Path,
    /,
    *,
    store: StoreOption = None,
    shared: SharedOption = False,
    machine: MachineOption = [],  # noqa: B006  cyclopts reads the default
    json_: JsonOption = False,
) -> None:
    """Put an exported folder into a store: its model, and its detector. They are known by their content, so that
    importing again makes nothing new.

    Example: `vbert import-model exported/vqa --store store`

    Parameters
    ----------
    folder
        as `vbert export` writes it, for vbert or for transformers; every file is compared with its digest.
    """
    from flows.models import published
    from flows.recipe import machine_from
    from flows.runs import record_run, run_id
    from flows.terminal import Terminal
    from tasks.download import download
    from tasks.weights import weights
    from vbert.artifacts.making.engine import Engine
    from vbert.data.source import Source
    from vbert.export.folder import DETECTOR, check_files, read_record
    from vbert.export.usage import USAGE
    from vbert.model.published import is_int8
    from vbert.regions.detector import DetectorWeights

    record = read_record(folder)
    check_files(folder, record)
    where = folder.absolute()
    model = published(str(where))
    targets: list[Artifact] = [model]
    detector = None
    if any(name.startswith(f"{DETECTOR}/") for name in record.files):
        spec = DetectorWeights.at(where / DETECTOR).spec()
        raw = download(Source(path=str(where / DETECTOR)).pinned()).named(f"{spec.name} weights")
        detector = weights({"weights": raw}, spec).named(spec.name)
        targets.append(detector)
    at = store_at(store)
    if shared:
        at.share()
    title = f"import-model {where.name} {model.fingerprint[:8]}"
    with (
        Terminal() as terminal,
        record_run(at, run_id("import-model"), title, targets, facts=record.made_from or None),
    ):
        Engine(at, machine_from(machine), terminal).ensure_all(targets)
    path = model.bound(at).path
    found = None if detector is None else detector.bound(at).path
    if json_:
        places = {"model": str(path), "detector": found and str(found)}
        print(json.dumps({**places, "fingerprint": model.fingerprint, "objective": record.objective}))
        return
    print(path)
    usage = USAGE.get(record.objective)
    if usage is not None and found is not None:
        print(f"ask it by `vbert predict {quote(str(path))} {usage.options}`")
    if not is_int8(str(path)):
        print(f"train on from it by `start: {path}` in an entry of a recipe" + _with_detector(found, model, at))


def _with_detector(found: Path | None, model: Model, store: Store) -> str:
    """How a recipe has the same features."""
    if found is None:
        return ""
    contract = model.bound(store).contract()
    return f", with `detector: {{spec: {contract.detector}, weights: {found}}}` and the boxes of its contract.json"


def _measured_before(what: str, stage: str | None) -> Int8Figures | None:
    """What stands in the record of an exported folder that is exported again, of int8."""
    from vbert.export.folder import is_export, read_record
    from vbert.export.int8 import Int8Figures

    if stage is not None or not is_export(Path(what)) or (told := read_record(Path(what)).int8) is None:
        return None
    return Int8Figures.model_validate(told)


def _chosen(
    what: str, stage: str | None, changes: list[str], store: str | None
) -> tuple[Model, DetectorWeights | None, Facts, str]:
    """The model, its detector, what is known of it, and the commands that make it again."""
    from vbert.export.facts import Facts, facts_of
    from vbert.export.folder import detector_behind, is_export, read_export, read_record

    if stage is not None:
        recipe = recipe_of(what, changes)
        model = _model_of(recipe, stage, store_at(store))
        return model, detector_behind(model), facts_of(model), _again(recipe)
    folder = Path(what)
    if changes:
        raise UserError("--set belongs to a recipe; an artifact is as it is")
    if is_export(folder):
        model, detector = read_export(folder)
        record = read_record(folder)
        return model, detector, Facts.model_validate(record.made_from), ""
    model = _model_at(folder, what)
    facts = facts_of(model)
    return model, detector_behind(model, store_at(store)), facts, _again_of(model, facts)


def _model_of(recipe: Recipe, stage: str, store: Store) -> Model:
    from vbert.artifacts.making.plan import only, walk
    from vbert.objectives.trained import Model

    artifacts = walk(graph_of(recipe))
    artifact = only(artifacts, stage)
    if not isinstance(artifact, Model):
        models = ", ".join(one.title for one in artifacts if isinstance(one, Model))
        raise UserError(f"{stage} makes no model; models of {recipe.name}: {models or 'none'}")
    model = artifact.bound(store)
    _ = model.path  # raises BuildError, with the command that builds it, where it is not there
    return model


def _model_at(folder: Path, what: str) -> Model:
    from vbert.artifacts.steps.artifact import files_of
    from vbert.objectives.trained import Model

    if not (files_of(folder) / "head.json").is_file():
        from flows.recipe import recipe_names

        of_recipe = what in recipe_names() or is_yaml(what)
        if not folder.is_dir() and not of_recipe:
            raise UserError(
                f"{what}: no such folder, and no recipe of that name; {near(what, recipe_names())}. `vbert path RECIPE "
                "'finetune[ENTRY]'` names the folder of a model"
            )
        raise UserError(
            f"{what}: no folder of a model. Of a recipe name the stage too: `vbert export {what} 'finetune[ENTRY]' "
            "--out DIR`; `vbert path RECIPE STAGE` names the folder of an artifact"
        )
    return Model.at(folder)


def _again(recipe: Recipe) -> str:
    from flows.reproduce import commands_to_reproduce

    return commands_to_reproduce(recipe)


def _again_of(model: Model, facts: Facts) -> str:
    """Of the run that the store knows the model by; "" where the recipe can't be read any more."""
    from pydantic import ValidationError

    from flows.recipe import Recipe

    if not facts.run:
        return ""
    try:
        return _again(Recipe.model_validate(model.origin()[0].run(facts.run)["resolved"]))
    except (ValidationError, UserError, KeyError):
        return ""


def _card(model: Model, detector: DetectorWeights | None, facts: Facts, reproduce: str, licence: str) -> Card:
    from vbert.data.weight_files import read_safetensors
    from vbert.export.card import Card
    from vbert.objectives.trained import WEIGHTS

    return Card(
        facts=facts,
        config=model.config(),
        head=model.head(),
        contract=model.contract(),
        parameters=sum(tensor.numel() for tensor in read_safetensors(model.file(WEIGHTS)).values()),
        classes=None if detector is None else detector.classes(),
        reproduce=reproduce,
        licence=licence,
    )
