"""What an artifact's class reads of the step that makes it: declared on the class, and there in every stage."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import pytest
from artifacts import toy

from vbert.artifacts.steps.argument import Argument
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Figures, stage
from vbert.artifacts.steps.step import REGISTRY
from vbert.errors import BuildError


class Sums(Artifact):
    squares: Argument[Mapping[str, toy.Squares]] = Argument(through=True)
    scale: Argument[int | None] = Argument(default=None)


@stage("toy_sums", makes=Sums, version=1)
def sums(build: toy.Build, squares: Mapping[str, toy.Squares]) -> Figures:
    return {}


def test_a_class_reads_an_argument_of_its_step() -> None:
    squares = toy.squares(toy.numbers(2), toy.Slow())
    made = sums({"a": squares})
    assert made.squares == {"a": squares}
    assert made.scale is None  # a stage without such a parameter
    assert made._copy(squares={}).squares == {}
    assert Sums.through == ("squares",)
    assert Artifact.through == ()


def test_a_loose_artifact_without_a_manifest_has_none(tmp_path: Path) -> None:
    with pytest.raises(BuildError):
        Sums.at(tmp_path).squares  # noqa: B018


def test_every_stage_has_the_parameters_that_its_artifact_reads() -> None:
    import_module("flows.graph")
    import_module("tasks.import_features")

    declared = {
        (made.name, name)
        for made in REGISTRY.values()
        for name, value in vars(made.makes).items()
        if isinstance(value, Argument) and value.needed
    }
    assert ("images", "raws") in declared
    assert [one for one in declared if one[1] not in REGISTRY[one[0]].hints] == []
