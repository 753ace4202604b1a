"""`vbert export` and `vbert import-model`: a trained model in a folder that lives anywhere, and back into a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from flows.options import JsonOption, MachineOption, Set, SharedOption, StoreOption, graph_of, recipe_of, store_at
from vbert.errors import UserError

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from vbert.artifacts.steps.artifact import Artifact
    from vbert.artifacts.store.store import Store
    from vbert.export.card import Card
    from vbert.export.facts import Facts
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
    licence
        the licence of the folder for the front matter of its card, by the Hugging Face hub's word for it.
    """
    from vbert.export.folder import write_export

    if conventions != "hf" and format_ != "hf":
        raise UserError("--conventions belongs to --format hf")
    model, detector, facts, reproduce = _chosen(what, stage, changes, store)
    card = _card(model, detector, facts, reproduce, licence)
    about: Any = {"title": facts.title, "made_from": facts.made_from()}
    architecture = None
    if format_ == "hf":
        from dataclasses import replace

        from vbert.export.hugging_face import network_for_transformers, write_hugging_face
        from vbert.model.convert import architecture_of

        network = network_for_transformers(model)
        architecture = architecture_of(network)
        card = replace(card, architecture=architecture, conventions=conventions)
        write_hugging_face(out, model, network, detector, conventions=conventions, card=card.text(), **about)
    else:
        write_export(out, model, detector, card=card.text(), **about)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    named = detector.spec().name if detector is not None else None
    if json_:
        done = {"out": str(out), "objective": facts.objective, "detector": named, "bytes": size}
        print(json.dumps(done | {"format": format_, "architecture": architecture}))
        return
    print(out)
    print(f"{facts.title}: {size / 1e6:,.1f} MB, " + (f"detector {named}" if named else "no detector: give regions="))
    if architecture is not None:
        print(f"load it by transformers.{architecture}.from_pretrained({str(out)!r})")
    else:
        print(f"ask it by `vbert predict {out}`, or VisualBert.load({str(out)!r})")


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
        print(f"ask it by `vbert predict {path} {usage.options}`")
    print(f"train on from it by `start: {path}` in an entry of a recipe" + _with_detector(found, model, at))


def _with_detector(found: Path | None, model: Model, store: Store) -> str:
    """How a recipe has the same features."""
    if found is None:
        return ""
    contract = model.bound(store).contract()
    return f", with `detector: {{spec: {contract.detector}, weights: {found}}}` and the boxes of its contract.json"


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
