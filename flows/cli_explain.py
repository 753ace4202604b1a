"""`vbert explain`: why a model answers as it does, for one image; and how well explanations measure."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from flows.options import JsonOption, MachineOption, Set, StoreOption, changes_of, store_at
from vbert.errors import UserError, nearest

if TYPE_CHECKING:
    from flows.recipe import Recipe
    from vbert.explain.explanation import Explanation
    from vbert.explain.explanations import MeasuredKind


def explain(
    model: str,
    /,
    *,
    image: Path | None = None,
    image_2: Path | None = None,
    question: str | None = None,
    text: str | None = None,
    text_b: str | None = None,
    statement: str | None = None,
    phrase: str | None = None,
    choices: Annotated[list[str], Parameter(name="--choice", negative=())] = [],  # noqa: B006  cyclopts reads it
    method: Annotated[list[str], Parameter(negative=())] = [],  # noqa: B006
    layer: int | None = None,
    head: int | None = None,
    out: Annotated[Path | None, Parameter(name=["--out", "-o"])] = None,
    evaluate: Annotated[bool, Parameter(negative=())] = False,
    entry: str | None = None,
    count: Annotated[int | None, Parameter(name="--count")] = None,
    examples: Path | None = None,
    features: Path | None = None,
    changes: Set = [],  # noqa: B006
    device: Literal["auto", "cpu", "cuda"] = "auto",
    store: StoreOption = None,
    machine: MachineOption = [],  # noqa: B006
    json_: JsonOption = False,
) -> None:
    """Show which words and regions an answer hangs on, or measure explanations over many examples.

    Prints words and regions with their relevances, the largest first, and draws them with -o. With --evaluate: how
    the accuracy falls while words and regions go, the most relevant first (positive) or the least relevant first
    (negative), by every method beside random order. Areas under these curves, with 95 % intervals over images.

    Example: `vbert explain exported/vqa --image cat.jpg --question "What colour is the cat?" -o why.png`

    Example: `vbert explain demo --evaluate --count 300`

    Parameters
    ----------
    model
        an exported folder, the path of an artifact (`vbert path RECIPE 'finetune[ENTRY]'`), or a name in
        data_specs/models; with --evaluate such a folder, or a recipe.
    image
        the image.
    image_2
        the second image of a statement about two.
    question
        of models for question answering, and for choices.
    text
        of models of classes, grounding, matching.
    text_b
        the second text of an entailment.
    statement
        of models for statements that are true or false.
    phrase
        of a model for grounding: the part of the text that is looked for; else the whole text.
    choices
        of a model for choices; given again for each.
    method
        removal (by default: it measures best), integrated_gradients, gradient_attention, rollout, attention, or a
        control: random, size, detector. With --evaluate several may be given; all otherwise.
    layer
        of the method attention, from 0; else the last.
    head
        of the method attention, from 0; else the mean of all.
    out
        why.png, why.svg (pointing at a word shows its regions) or why.json.
    evaluate
        measure explanations.
    entry
        of a recipe, under `downstream`; else the first that can be measured.
    count
        examples that are measured; 300 unless the recipe says.
    examples
        of a model's folder: the folder of the examples that it is measured by (`vbert path RECIPE 'examples[DATA]'`).
    features
        of a model's folder: the folder of the region features of their images.
    device
        where the model runs.
    """
    if evaluate:
        for given, name in ((image, "--image"), (out, "-o"), (layer, "--layer"), (head, "--head")):
            if given is not None:
                raise UserError(f"{name} is for one image: leave --evaluate out")
        content = _measured(model, method, entry, count, examples, features, changes, device, store, machine)
        if json_:
            print(json.dumps(content))
        return
    if image is None:
        raise UserError("give an image with --image, or measure explanations with --evaluate")
    for other, name in ((entry, "--entry"), (count, "--count"), (examples, "--examples"), (features, "--features")):
        if other is not None:
            raise UserError(f"{name} is for --evaluate")
    if len(method) > 1:
        raise UserError("--method: one image is explained by one method; several are for --evaluate")
    asked = [one for one in (question, text, statement) if one is not None]
    if len(asked) > 1:
        raise UserError("give one of --question, --text and --statement")
    from flows.cli_predict import check_cells, loaded, what_to_ask
    from vbert.explain import DEFAULT
    from vbert.explain.explanation import check_name

    if out is not None:
        check_name(out)
    asking = loaded(model, device, store)
    cells: dict[str, Any] = {"image": image, "image_2": image_2, "question": question, "text": text, "text_b": text_b}
    cells |= {"statement": statement, "phrase": phrase, "choices": choices or None}
    given_cells = {name: value for name, value in cells.items() if value is not None}
    check_cells(asking, what_to_ask(asking, None, given_cells), given_cells)
    found: Explanation = asking.explain(
        image,
        asked[0] if asked else None,
        right=image_2,
        text_b=text_b,
        choices=choices,
        phrase=phrase,
        method=method[0] if method else DEFAULT,
        layer=layer,
        head=head,
    )
    _print(found)
    if out is not None:
        print(found.save(out))
    if json_:
        print(json.dumps(found.numbers(), ensure_ascii=False))


def _print(found: Explanation) -> None:
    print(f"{found.answer} ({found.score:.4f}), by {found.method.replace('_', ' ')}")
    for title, each in (
        ("words", [(one.relevance, one.text) for one in found.words]),
        ("regions", [(one.relevance, f"{one.region + 1} {one.name}") for one in found.regions]),
    ):
        for relevance, name in sorted(each, key=lambda pair: -pair[0]):
            print(f"  {title:8}{relevance:+9.3f}  {name}")


def _measured(
    where: str,
    methods: list[str],
    entry: str | None,
    count: int | None,
    examples: Path | None,
    features: Path | None,
    changes: list[str],
    device: str,
    store: str | None,
    machine: list[str],
) -> Mapping[str, Any]:
    """Prints the tables; returns what explanations.json holds."""
    from vbert.explain.explanations import LEAST, kinds_of

    folder = Path(where).is_dir()
    if not folder and (examples or features):
        raise UserError("--examples and --features are for a model's folder: a recipe has its own")
    if folder:
        content = _of_folder(Path(where), methods, count, examples, features, device)
    else:
        content = _of_recipe(where, methods, entry, count, changes, store, machine)
    kinds = kinds_of(content)
    for kind in kinds.values():
        _print_table(kind, str(content["metric"]))
    if not kinds:
        print(f"{content['examples']} examples are of fewer than {LEAST} images: too few to measure by")
    return content


def _of_folder(
    where: Path, methods: list[str], count: int | None, examples: Path | None, features: Path | None, device: str
) -> Mapping[str, Any]:
    if examples is None or features is None:
        raise UserError(
            "a model's folder is measured by examples and the features of their images: give --examples and --features "
            "(`vbert path RECIPE 'examples[DATA]'`, `… 'regions[DATA]'`), or a recipe in place of the folder"
        )
    from flows.terminal import counted
    from vbert.artifacts.steps.settings import Numerics
    from vbert.artifacts.steps.stage import Job, Machine
    from vbert.data.examples import Examples
    from vbert.explain import methods_of
    from vbert.explain.explanations import Explanations
    from vbert.explain.measuring import run_explain
    from vbert.objectives import objective
    from vbert.objectives.entry import ExplainSettings
    from vbert.objectives.trained import Model
    from vbert.regions.shards import Shards

    model, settings = Model.at(where), ExplainSettings() if count is None else ExplainSettings(examples=count)
    plugin, chosen = objective(str(model.head().get("objective"))), methods_of(methods or None)
    with tempfile.TemporaryDirectory() as made, counted("explain") as show:
        target, scratch = (Path(made, part) for part in ("out", "scratch"))
        target.mkdir()
        scratch.mkdir()
        job = Job(target, scratch, Machine.model_validate({"device": device}), report=show)
        given = Examples.at(examples), Shards.at(features), plugin, settings, chosen
        run_explain(job, model, *given, "test", Numerics())
        return Explanations.at(target).read()


def _of_recipe(
    name: str,
    methods: list[str],
    entry: str | None,
    count: int | None,
    changes: list[str],
    store: str | None,
    machine: list[str],
) -> Mapping[str, Any]:
    """Builds the stage of the entry, and what is missing before it."""
    from flows.recipe import machine_of, resolve
    from flows.running import RecipeRun
    from flows.runs import origin
    from vbert.artifacts.making.plan import select, walk
    from vbert.explain.explanations import Explanations

    changed = changes_of(changes)
    recipe = resolve(name, changed)
    key = _entry_of(recipe, entry)
    wanted = recipe.downstream[key].explain
    given = {} if wanted is None else wanted.model_dump(mode="json")
    given |= ({} if count is None else {"examples": count}) | ({"methods": methods} if methods else {})
    changed = {**changed, f"downstream.{key}.explain": given}
    resolved = resolve(name, changed)
    running = RecipeRun(resolved, store_at(store), machine_of(resolved, machine), [f"explain[{key}]"])
    running.run("local", origin(name), changed)
    (artifact, *_) = select(walk(*running.targets), f"explain[{key}]")
    bound = artifact.bound(running.store)
    assert isinstance(bound, Explanations)
    return bound.read()


def _entry_of(recipe: Recipe, entry: str | None) -> str:
    from vbert.explain import MEASURED

    fit = [
        name
        for name, one in recipe.downstream.items()
        if one.objective in MEASURED and one.images == "own" and one.text == "own" and not one.seeds
    ]
    if entry is None and not fit:
        raise UserError(f"{recipe.name} has no entry that explanations are measured of: {', '.join(MEASURED)}")
    if entry is not None and entry not in fit:
        why = nearest(entry, fit) if entry not in recipe.downstream else f"measured are {', '.join(fit) or 'none'}"
        raise UserError(f"--entry {entry}: {why}")
    return entry or fit[0]


def _print_table(kind: MeasuredKind, metric: str) -> None:
    from rich.table import Table

    from flows.terminal import page

    gone = {"both": "words and regions", "words": "words", "regions": "regions"}[kind.kind]
    title = f"{gone} gone: area under {metric}, {kind.examples:,} examples of {kind.images:,} images"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left", title_style="bold")
    for name in ("method", "positive", "negative", "gap", "over random", "over attention"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for name, one in sorted(kind.methods.items(), key=lambda item: -item[1].gap.value):
        areas = one.positive, one.negative, one.gap, one.over.get("random"), one.over.get("attention")
        told = [f"{a.value:.3f} ({a.low:.3f} to {a.high:.3f})" if a else "" for a in areas]
        table.add_row(name.replace("_", " "), *told)
    page().print(table)
    page().print("")
