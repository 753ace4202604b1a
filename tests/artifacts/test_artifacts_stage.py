"""Stages: wiring checked by mypy and at run time, names unique, artifacts that know what they are before they are."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
from artifacts import toy

from vbert.artifacts.making.engine import build_here
from vbert.artifacts.making.plan import select, walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Settings
from vbert.artifacts.steps.stage import Build, Figures, stage
from vbert.artifacts.steps.step import Stage, find_stage
from vbert.artifacts.store.store import Store
from vbert.errors import BuildError

REPO = Path(__file__).parents[2]
SLOW = toy.Slow()

SNIPPET = """
from collections.abc import Mapping

from artifacts.toy import Numbers, Slow, Squares, Total, add_up, numbers, squares, total
from vbert.artifacts.steps.stage import Build, Figures

raw: Numbers = numbers(3)
good: Squares = squares(raw, Slow())
whole: Total = total(good, {"a": good}, Slow())
more: Mapping[str, Squares] = {"a": good}
again: Total = total(squares=good, more=more, settings=Slow())

squares(good, Slow())  # wrong: squares where raw numbers belong
total(raw, {"a": good}, Slow())  # wrong: raw numbers where squares belong
total(good, {"a": raw}, Slow())  # wrong: inside a mapping
total(good, {"a": good, "b": raw}, Slow())  # wrong: one of a mapping
squares(raw, 3)  # wrong: a number where settings belong
squares(raw)  # wrong: settings are missing
squares(raw, Slow(), Slow())  # wrong: one too many
total(good, good, Slow())  # wrong: an artifact where a mapping belongs
other: Squares = total(good, {"a": good}, Slow())  # wrong: what it makes


def in_a_child(build: Build) -> Figures:
    build.process(add_up, raw, dict(more), Slow())  # wrong: raw numbers where squares belong
    build.process(add_up, good, dict(more))  # wrong: settings are missing
    build.process(add_up, good, dict(more), Slow(), 1)  # wrong: one too many
    build.process(numbers, 3)  # wrong: a stage, which takes no job
    return build.process(add_up, good, dict(more), Slow(), processes=2)
"""


MYPY = """
[mypy]
strict = true
plugins = pydantic.mypy
follow_imports = silent
explicit_package_bases = true

# What `vbert/__init__.pyi` names besides: the store's stages need none of it, and torch behind it takes a minute.
[mypy-flows.*,vbert.data.*,vbert.metrics.*,vbert.model.*,vbert.objectives.*,vbert.regions.*,vbert.report.*]
follow_imports = skip
"""


def test_mypy_refuses_wrong_wiring_and_nothing_else(tmp_path: Path) -> None:
    snippet, config = tmp_path / "wiring.py", tmp_path / "mypy.ini"
    snippet.write_text(SNIPPET)
    config.write_text(MYPY)
    environment = {"MYPYPATH": str(REPO / "tests"), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-m", "mypy", "--config-file", str(config), "--cache-dir", str(tmp_path), str(snippet)]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    refused = {int(n) for n in re.findall(r"wiring\.py:(\d+): error", done.stdout)}
    wrong = {n for n, line in enumerate(SNIPPET.splitlines(), 1) if "# wrong" in line}
    assert refused == wrong, done.stdout + done.stderr
    assert len(wrong) == 13


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda: toy.squares(toy.squares(toy.numbers(2), SLOW), SLOW),
            "toy_squares: numbers must be an instance of Numbers, got Squares (toy_squares)",
        ),
        (
            lambda: toy.total(toy.numbers(2), {}, SLOW),
            "toy_total: squares must be an instance of Squares, got Numbers (toy_numbers)",
        ),
        (
            lambda: toy.total(toy.squares(toy.numbers(2), SLOW), {"a": toy.numbers(2).named("raw")}, SLOW),
            "toy_total: more['a'] must be an instance of Squares, got Numbers (toy_numbers[raw])",
        ),
        (
            lambda: toy.squares(toy.numbers(2), 3),
            "toy_squares: settings must be a valid dictionary or instance of Slow, got int (3)",
        ),
        (lambda: toy.numbers("3"), "toy_numbers: count must be a valid integer, got str ('3')"),
        (lambda: toy.numbers(True), "toy_numbers: count must be a valid integer, got bool (True)"),
        (lambda: toy.squares(toy.numbers(2)), "toy_squares: missing a required argument: 'settings'"),
        (lambda: toy.numbers(2, wide=3), "toy_numbers: got an unexpected keyword argument 'wide'"),
    ],
)
def test_run_time_refuses_wrong_wiring_with_a_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value) == sentence


@dataclass(frozen=True)
class Bundle:
    raw: toy.Numbers
    share: float


class Choice(Settings):
    kind: Literal["a", "b"] = "a"


@stage("stage_many", makes=toy.Total, version=1)
def many(
    build: Build,
    bundle: Bundle,
    rows: Sequence[toy.Numbers],
    start: toy.Numbers | toy.Squares | None,
    kind: Literal["a", "b"] = "a",
    rate: float = 1.0,
    table: Mapping[str, Sequence[int]] = {},
) -> Figures:
    return {}


def test_types_that_parameters_may_have() -> None:
    raw = toy.numbers(2)
    made = many(Bundle(raw, 1), [raw], None, rate=2, table={"a": [1, 2]})
    assert made.step is not None
    assert made.step.arguments == {
        "bundle": Bundle(raw, 1.0),
        "rows": (raw,),
        "start": None,
        "kind": "a",
        "rate": 2.0,
        "table": {"a": (1, 2)},
    }
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"bundle": Bundle(toy.squares(raw, SLOW), 1.0)}, r"bundle\['raw'\] must be an instance of Numbers"),  # type: ignore[arg-type]
        ({"bundle": Bundle(raw, "x")}, r"bundle\['share'\] must be a valid number"),  # type: ignore[arg-type]
        ({"rows": [raw, 3]}, r"rows\[1\] must be an instance of Numbers"),
        ({"rows": raw}, "rows must be an instance of Sequence"),
        ({"start": toy.graph(2)}, "start.* must be an instance of (Numbers|Squares)"),
        ({"kind": "c"}, "kind must be"),
        ({"table": {"a": [1, "2"]}}, r"table\['a'\]\[1\] must be a valid integer"),
    ]
    given: dict[str, Any] = {"bundle": Bundle(raw, 1.0), "rows": [raw], "start": None}
    for change, said in wrong:
        with pytest.raises(TypeError, match=said):
            many(**given | change)


def test_artifacts_behind_bundles_are_inputs() -> None:
    one, two, three = (toy.numbers(n) for n in (1, 2, 3))
    made = many(Bundle(one, 0.5), [two, one], three)
    assert made.inputs() == [one, two, three]
    assert walk(made) == [one, two, three, made]


def test_two_stages_of_one_name_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"two stages are called 'toy_numbers': one in artifacts\.toy, one in test_artif"
    ):

        @stage("toy_numbers", makes=toy.Numbers, version=1)
        def another(build: Build) -> Figures:
            return {}

    assert find_stage("artifacts.toy", "toy_numbers") is toy.numbers


def test_moving_and_renaming_a_function_changes_nothing() -> None:
    def moved(build: Build, count: int, order: str = "up") -> Figures:
        return {}

    elsewhere: Stage[Any, toy.Numbers] = Stage("toy_numbers", toy.Numbers, 1, moved, retries=9, gpus=4, tags=("x",))
    assert elsewhere(3).fingerprint == toy.numbers(3).fingerprint
    raised: Stage[Any, toy.Numbers] = Stage("toy_numbers", toy.Numbers, 2, moved)
    assert raised(3).fingerprint != toy.numbers(3).fingerprint


def test_calling_runs_nothing_and_an_unbuilt_path_says_so(tmp_path: Path) -> None:
    target = toy.graph()
    for artifact in walk(target):
        for read in (lambda a: a.path, lambda a: a.file("x"), lambda a: a.names(), lambda a: a.figures):
            with pytest.raises(BuildError, match=re.escape(f"{artifact.title} is not built")):
                read(artifact)
    bound = target.bound(Store(tmp_path))
    with pytest.raises(BuildError, match=rf"toy_total is not built in the store {tmp_path}: `vbert run RECIPE --until"):
        bound.path  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_loose_artifacts(tmp_path: Path) -> None:
    (tmp_path / "numbers.json").write_text("[4]")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "more").write_text("")
    loose = toy.Numbers.at(tmp_path)
    assert loose.read() == [4]
    assert loose.names() == ["deep/more", "numbers.json"]
    assert (loose.path, loose.figures, loose.seconds, loose.inputs()) == (tmp_path, {}, 0.0, [])
    with pytest.raises(BuildError, match="holds no file 'x': is it a Numbers"):
        loose.file("x")
    with pytest.raises(BuildError, match="no fingerprint"):
        toy.squares(loose, SLOW)
    with pytest.raises(BuildError, match="opened by its directory, and no manifest there"):
        loose.input("raws")
    assert loose == loose
    assert loose != toy.Numbers.at(tmp_path)


def test_built_artifacts_read_their_inputs_and_travel(tmp_path: Path) -> None:
    made = build_here([toy.squares(toy.numbers(3), SLOW)], tmp_path)[0]
    assert made.input("numbers").read() == [0, 1, 2]
    with pytest.raises(AttributeError, match="no input 'raw'"):
        made.input("raw")
    travelled = pickle.loads(pickle.dumps(made))
    assert travelled == made
    assert travelled.read() == {"0000.json": 0, "0001.json": 1, "0002.json": 4}
    assert travelled.input("numbers").read() == [0, 1, 2]
    assert made.figures == {"squares": 3}
    with pytest.raises(BuildError, match=r"has no file '0009.json'; it has 0000.json, 0001.json"):
        made.file("0009.json")


def test_labels_select() -> None:
    artifacts = walk(toy.graph())
    assert [a.title for a in select(artifacts, "toy_squares[two]")] == ["toy_squares[two]"]
    assert [a.label for a in select(artifacts, "toy_squares")] == ["one", "two"]
    assert select(artifacts, artifacts[0].fingerprint[:7]) == [artifacts[0]]
    with pytest.raises(Exception, match="did you mean 'toy_squares'"):
        select(artifacts, "toy_square")


def test_artifact_equality_is_identity_of_the_step() -> None:
    assert toy.numbers(2) == toy.numbers(2).named("x")
    assert len({toy.numbers(2), toy.numbers(2).named("x"), toy.numbers(3)}) == 2
    assert toy.numbers(2) != toy.squares(toy.numbers(2), SLOW)
    assert isinstance(toy.numbers(2), Artifact)
