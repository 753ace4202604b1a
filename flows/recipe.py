"""A recipe: what to build, as data, checked as a whole; read from YAML."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import model_validator

from flows.checks import check_entries
from flows.entries import Entries, PretrainEntry
from vbert.artifacts.steps.settings import Settings
from vbert.artifacts.steps.stage import Machine
from vbert.data.yaml import NestedError, is_yaml, load_yaml, parse, parse_value, read_yaml
from vbert.errors import UserError, nearest
from vbert.model.bert import model_names
from vbert.objectives import OBJECTIVES, DownstreamSettings

RECIPES = Path(__file__).parent / "recipes"
STARTS = ("pretrained", "none")  # of downstream entries, beside the names of pre-trainings and of BERTs


def _place(pretraining: str) -> tuple[str, ...]:
    """Where a pre-training stands in the recipe."""
    return ("pretrain", pretraining) if pretraining else ("pretrain",)


class Recipe(Entries):
    """One whole experiment. `machine` reaches only the engine and is never hashed.

    >>> recipe = vbert.resolve("demo")
    >>> isinstance(recipe, vbert.Recipe), list(recipe.data)
    (True, ['shapes', 'easy_vqa'])
    >>> done = vbert.run(recipe)
    """

    @model_validator(mode="after")
    def _wired(self) -> Recipe:
        """Every name of a data set stands under `data`."""
        named: list[tuple[tuple[str | int, ...], str]] = []
        named += [(("downstream", name, "data"), entry.data) for name, entry in self.downstream.items()]
        for key, pretraining in self.pretrainings().items():
            named += [((*_place(key), "data", place), name) for place, name in enumerate(pretraining.data)]
        if self.detector is not None and self.detector.train is not None:
            named += [(("detector", "train", "data"), self.detector.train.data)]
        for where, name in named:
            if name not in self.data:
                raise NestedError(where, f"no data set {name!r} under `data`; {nearest(name, self.data)}")
        for name, data in self.data.items():
            if data.features is None and self.detector is None:
                raise NestedError(
                    ("data", name), "has no `features`, and there is no `detector` to make them: give one"
                )
        known: list[str] = []
        for key, pretraining in self.pretrainings().items():
            self._seeded(_place(key), pretraining)
            if key in (*STARTS, *model_names()) or "/" in key or is_yaml(key):
                raise NestedError(_place(key), "names a start of its own; give the pre-training another name")
            if pretraining.start is not None:
                self._started(_place(key), pretraining, pretraining.start, known, list(self.pretrainings()))
            known.append(key)
        earlier: list[str] = []
        for name, entry in self.downstream.items():
            if "@" in name:
                raise NestedError(("downstream", name), "a name has no @: it stands before the seed")
            self._seeded(("downstream", name), entry)
            if entry.start == "pretrained" and not known:
                where = ("downstream", name, "start")
                raise NestedError(where, "pretrained, but there is no `pretrain`; write none")
            if entry.start != "none":
                started = [*known, "pretrained", *earlier]
                self._started(("downstream", name), entry, entry.start, started, list(self.downstream))
            if entry.start in earlier and entry.start in known:
                where = ("downstream", name, "start")
                raise NestedError(where, f"a pre-training is called {entry.start!r} too; give one another name")
            if entry.teacher is not None:
                self._taught(("downstream", name, "teacher"), entry, entry.teacher, earlier)
            earlier.append(name)
        used = {entry.start for entry in self.downstream.values()}
        used |= {entry.start or "" for entry in self.pretrainings().values()}
        for key in known[:-1]:
            if key not in used:
                raise NestedError(_place(key), "nothing starts from it: name it in a `start`")
        check_entries(self, {_place(key): key for key in self.pretrainings()})
        return self

    def _seeded(self, where: tuple[str, ...], entry: PretrainEntry | DownstreamSettings) -> None:
        if entry.seed is not None and entry.seeds:
            raise NestedError((*where, "seeds"), "give either seed or seeds")
        if len(set(entry.seeds)) < len(entry.seeds) or min(entry.seeds, default=0) < 0:
            raise NestedError((*where, "seeds"), "seeds are different whole numbers from 0 on")

    def _started(
        self,
        where: tuple[str, ...],
        entry: PretrainEntry | DownstreamSettings,
        start: str,
        pretrained: Sequence[str],
        every: Sequence[str],
    ) -> None:
        """`start` is a BERT, a VisualBERT or one of `pretrained` (trainings by name), which then has the seeds of the
        entry. every: the entries beside it, later ones too."""
        if start not in pretrained:
            if start in model_names() or is_yaml(start) or "/" in start:
                return
            own = () if isinstance(entry, PretrainEntry) else STARTS  # words that are valid only in a downstream entry
            here = [name for name in (*pretrained, *own) if name]
            known = [*here, *model_names()]
            later = [name for name in every if name and name not in known]
            hint = nearest(start, known)
            if not hint.startswith("did") and (close := nearest(start, later)).startswith("did"):
                hint = f"{close} It stands later: move it before this entry"
            elif not hint.startswith("did"):
                hint = f"{nearest(start, here)}, the names of data_specs/models (bert_base_uncased, …), or a folder"
                hint += f": ./{start}"
            problem = f"nothing to start from is called {start!r}; {hint}"
            if start in later:
                itself = start == where[-1]
                problem = f"{start} " + (
                    "is this entry itself" if itself else "stands later: move it before this entry"
                )
            raise NestedError((*where, "start"), problem)
        training = self.trained(start)
        assert training is not None, "one of `pretrained`"
        self._of_same_seeds((*where, "start"), entry, start, training)

    def _taught(self, where: tuple[str, ...], entry: DownstreamSettings, teacher: str, earlier: Sequence[str]) -> None:
        """`teacher` is one of the `earlier` entries, which then has the seeds of the entry."""
        if teacher not in earlier:
            problem = f"no entry before this one is called {teacher!r}; {nearest(teacher, earlier)}"
            if teacher in self.downstream:
                itself = teacher == where[1]
                problem = f"{teacher} " + (
                    "is this entry itself" if itself else "stands later: move it before this entry"
                )
            raise NestedError(where, problem)
        if teacher in self.pretrainings():
            raise NestedError(where, f"a pre-training is called {teacher!r} too; give one another name")
        self._of_same_seeds(where, entry, teacher, self.downstream[teacher])

    def _of_same_seeds(
        self,
        where: tuple[str, ...],
        entry: PretrainEntry | DownstreamSettings,
        name: str,
        training: PretrainEntry | DownstreamSettings,
    ) -> None:
        """Of a training with several seeds, the one with the same seed is taken."""
        seeds = self.seeds_of(training)
        if len(seeds) > 1 and (absent := [seed for seed in self.seeds_of(entry) if seed not in seeds]):
            problem = f"{name} is not trained with seed {absent[0]}, but with {', '.join(map(str, seeds))}"
            raise NestedError(where, problem)


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def resolve(recipe: str | os.PathLike[str] | Recipe, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A shipped recipe by its name, or one in a YAML file, with dotted changes. Raises UserError with file:line.

    >>> vbert.resolve("demo", {"pretrain.steps": 600}).pretrainings()[""].steps
    600
    """
    if isinstance(recipe, Recipe):
        if not changes:
            return recipe
        text = as_yaml(recipe)
        return load_yaml(text, recipe.name, Recipe, changes)
    recipe = os.fspath(recipe)
    if recipe in recipe_names():
        path = RECIPES / f"{recipe}.yaml"
    elif is_yaml(recipe):
        path = Path(recipe)
    else:
        raise UserError(f"no recipe {recipe!r}; {nearest(recipe, recipe_names())}, or give a .yaml file")
    whole = read_yaml(path, Recipe, {**_objectives_by_name(path, changes or {}), **(changes or {})})
    return whole if whole.name else whole.model_copy(update={"name": path.stem})


def _objectives_by_name(path: Path, changes: Mapping[str, Any]) -> dict[str, str]:
    """Fills in the objective of entries under `downstream` without one: the entry's name."""
    try:
        node = parse(path.read_text(), str(path)).value["downstream"]
    except (OSError, UnicodeDecodeError, TypeError, KeyError):
        return {}  # `read_yaml` raises the error
    given = {key.split(".")[1] for key in changes if key.startswith("downstream.") and key.endswith(".objective")}
    objectives = {}
    for name, entry in node.value.items() if isinstance(node.value, dict) else ():
        if isinstance(entry.value, dict) and "objective" not in entry.value and name not in given:
            if name not in OBJECTIVES:
                raise UserError(
                    f"{entry.key_at}: downstream.{name}: no objective is called {name!r}; add `objective: NAME` "
                    f"({', '.join(OBJECTIVES)})"
                )
            objectives[f"downstream.{name}.objective"] = name
    return objectives


def parse_changes(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """`["seed=1"]` → `{"seed": 1}`; values are read as they would be in the YAML file."""
    changes = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UserError(f"{option} {pair!r}: write it as KEY=VALUE, for example {option} seed=1")
        changes[key.strip()] = parse_value(value)
    return changes


def machine_from(pairs: Sequence[str], base: Machine | None = None) -> Machine:
    """A `Machine` with the changes of `--machine`. Raises UserError with the nearest valid field."""
    changes = parse_changes(pairs, "--machine")
    if unknown := [key for key in changes if key not in Machine.model_fields]:
        raise UserError(
            f"--machine {unknown[0]}: there is no such setting; {nearest(unknown[0], Machine.model_fields)}"
        )
    machine = load_yaml(as_yaml(base or Machine()), "--machine", Machine, changes, option="--machine")
    if machine.device == "cuda" and machine.units_on == "threads":  # on Dask, other machines have the GPU
        from vbert.device import device_of

        device_of("cuda")
    return machine


def machine_of(recipe: Recipe, pairs: Sequence[str]) -> Machine:
    return machine_from(pairs, recipe.machine)


def as_yaml(settings: Settings) -> str:
    """Settings with all defaults, as YAML that reads back to the same."""
    from io import StringIO

    from ruamel.yaml import YAML

    writer = YAML()
    writer.default_flow_style = False
    out = StringIO()
    writer.dump(settings.model_dump(mode="json", by_alias=True), out)
    return out.getvalue()
