"""Fingerprints: stable, refusing what has no stable form, and the same after a journey through JSON."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.fingerprint import canonical, digest
from vbert.artifacts.steps.settings import Acceptance, LocalPath, Location, Plugin, Removed, Settings, Since, Wiring
from vbert.artifacts.steps.stage import Build, Figures, stage
from vbert.artifacts.steps.step_json import artifact_from_json, steps_as_json
from vbert.artifacts.store.digests import dumps
from vbert.errors import UserError


class Leaf(Artifact):
    pass


class Made(Artifact):
    pass


class Source(Settings):
    url: Annotated[str, Location]
    sha256: str | None = None
    mirrors: Annotated[tuple[str, ...], Location] = ()


class Mixed(Settings):
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"
    start: Annotated[str, Wiring] = "none"
    late: Annotated[float, Since(0.0)] = 0.0
    names: tuple[str, ...] = ()
    source: Source | None = None


@dataclass(frozen=True)
class Pair:
    left: Leaf
    weight: float


@dataclass
class Loose:
    weight: float


@stage("fp_leaf", makes=Leaf, version=1)
def leaf(build: Build, number: int, source: Source | None = None) -> Figures:
    return {}


@stage("fp_made", makes=Made, version=3)
def made(
    build: Build,
    leaves: Mapping[str, Leaf],
    more: Sequence[Leaf],
    pair: Pair | None,
    settings: Mixed,
    plugin: Plugin,
    seed: int | None = None,
    word: str = "w",
    flag: bool = False,
) -> Figures:
    return {}


@stage("fp_any", makes=Made, version=1)
def any_(build: Build, thing: object) -> Figures:
    return {}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (Path("/tmp"), r"fp_any: thing.*PosixPath"),
        ({1, 2}, r"fp_any: thing.*set"),
        (frozenset("a"), r"fp_any: thing.*frozenset"),
        (b"bytes", r"fp_any: thing.*bytes"),
        (object(), r"fp_any: thing.*object"),
        (len, r"fp_any: thing"),
        (Mixed, r"fp_any: thing"),
        (math.nan, r"fp_any: thing.*nan"),
        (math.inf, r"fp_any: thing.*inf"),
        ({"a": [1, {"b": math.nan}]}, r"fp_any: thing\.a\[1\]\.b.*nan"),
        ({"a": {2: 1}}, r"fp_any: thing\.a: key 2 is not a string"),
        ({"a": (1, Path("x"))}, r"fp_any: thing\.a\[1\].*Path"),
        (Loose(1.0), r"fp_any: thing.*frozen dataclass"),
    ],
)
def test_refuses_what_has_no_stable_form_naming_the_argument(value: object, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        any_(value)


def test_settings_refuse_nan() -> None:
    with pytest.raises(ValueError, match="rate"):
        Mixed(rate=math.nan)


def marked(**changes: Any) -> str:
    return digest(Mixed(**changes))


def test_wiring_is_not_hashed() -> None:
    assert marked(start="a") == marked(start="b")


def test_since_leaves_old_fingerprints_at_its_value() -> None:
    class Before(Settings):
        rate: float = 0.5
        kind: Literal["a", "b"] = "a"
        names: tuple[str, ...] = ()
        source: Source | None = None

    assert digest(Before()) == marked(late=0.0)
    assert marked(late=0.1) != marked(late=0.0)


@stage("fp_added", makes=Leaf, version=1)
def added(build: Build, count: int, late: Annotated[float, Since(0.0)] = 0.0) -> Figures:
    return {}


def test_since_holds_of_a_parameter_of_a_stage_too() -> None:
    assert added(1).step.hashed["arguments"] == {"count": 1}
    assert added(1, 0.5).step.hashed["arguments"] == {"count": 1, "late": 0.5}
    document = steps_as_json(added(1))
    del document["steps"][document["build"]]["arguments"]["late"]  # as it was written before
    assert artifact_from_json(document) == added(1)


class Removing(Settings):
    rate: float = 0.5
    workers: ClassVar[Removed] = Removed(1, "nothing read it; leave it out")


class Deeper(Removing):
    kind: str = "a"


@stage("fp_removing", makes=Leaf, version=1)
def removing(build: Build, settings: Removing) -> Figures:
    return {}


def test_fingerprints_hold_a_removed_field_still() -> None:
    class Before(Settings):
        rate: float = 0.5
        workers: int = 1

    class DeeperBefore(Before):
        kind: str = "a"

    assert digest(Removing()) == digest(Before())
    assert digest(Deeper()) == digest(DeeperBefore())


def test_a_removed_field_may_stand_in_the_json_of_a_step_at_its_value_alone() -> None:
    document = steps_as_json(removing(Removing()))
    given = document["steps"][document["build"]]["arguments"]["settings"]
    given["workers"] = 1
    assert artifact_from_json(document) == removing(Removing())
    given["workers"] = 2
    with pytest.raises(UserError, match="workers"):
        artifact_from_json(document)
    with pytest.raises(ValueError, match="workers"):
        Removing(workers=1)  # type: ignore[call-arg]


def test_location_is_hashed_where_no_digest_stands_beside_it() -> None:
    known, unknown = {"sha256": "0" * 64}, {"sha256": None}
    assert digest(Source(url="https://a", **known)) == digest(Source(url="https://b", mirrors=("c",), **known))
    assert digest(Source(url="https://a", **unknown)) != digest(Source(url="https://b", **unknown))
    assert digest(Source(url="https://a", sha256="")) != digest(Source(url="https://b", sha256=""))


def test_marks_count_as_instances_too() -> None:
    class Instances(Settings):
        start: Annotated[str, Wiring()]
        url: Annotated[str, Location()] = "u"
        sha256: str = "0"

    assert digest(Instances(start="a", url="x")) == digest(Instances(start="b", url="y"))


def test_a_mark_inside_a_type_is_refused() -> None:
    """`Annotated` inside a union or a tuple is not on the field: it would be hashed in silence."""
    with pytest.raises(TypeError, match="url"):

        class Inside(Settings):
            url: Annotated[str, Location] | None = None


def test_plugin_enters_as_name_and_version() -> None:
    assert canonical(Plugin(name="coco", version=2)) == ["coco", 2]
    assert digest(Plugin(name="coco", version=2)) != digest(Plugin(name="coco", version=3))


def example_graph() -> Made:
    source = Source(url="https://a/b", sha256="1" * 64, mirrors=("m",))
    one, two = leaf(1, source).named("one"), leaf(2)
    plugin = Plugin(name="coco", version=2)
    return made({"b": one, "a": two}, [two], Pair(one, 0.25), Mixed(names=("x", "é"), source=source), plugin, seed=3)


def test_labels_and_order_of_mappings_do_not_matter() -> None:
    one, two = leaf(1), leaf(2)
    plugin, settings_ = Plugin(name="p", version=1), Mixed()
    first = made({"a": one, "b": two}, [], None, settings_, plugin)
    assert made({"b": two.named("l"), "a": one}, [], None, settings_, plugin).fingerprint == first.fingerprint
    assert made({"a": two, "b": one}, [], None, settings_, plugin).fingerprint != first.fingerprint
    assert (
        made({}, [one, two], None, settings_, plugin).fingerprint
        != made({}, [two, one], None, settings_, plugin).fingerprint
    )


def test_an_int_where_a_float_belongs_is_that_float() -> None:
    plugin, one = Plugin(name="p", version=1), leaf(1)
    whole, point = (made({}, [], Pair(one, weight), Mixed(rate=weight), plugin) for weight in (1, 1.0))
    assert whole.fingerprint == point.fingerprint


def test_stable_over_processes_and_hash_seeds() -> None:
    code = "from artifacts.test_artifacts_fingerprint import example_graph; print(example_graph().fingerprint)"
    here = {example_graph().fingerprint}
    for seed in ("0", "1", "4242"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[1])}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        here.add(done.stdout.strip())
    # Written down: a change of the canonical form would make every store a stranger to itself.
    assert here == {"befd8d35ee92ef4ae96df9ac6a5e78a4773ce7f865356603f70e754444a66c45"}


class Judged(Settings):
    rate: float = 0.1
    share: Annotated[float, Acceptance(0.01)] = 0.01
    floor: Annotated[float | None, Acceptance()] = None
    bare: Annotated[int, Acceptance] = 3


def test_what_decides_only_acceptance_is_not_hashed() -> None:
    """`share` was hashed before it carried the mark, and keeps its place: no store becomes a stranger to itself."""
    assert canonical(Judged(share=0.5, floor=0.9, bare=4)) == canonical(Judged()) == {"rate": 0.1, "share": 0.01}
    for inside in (Annotated[float, Acceptance()] | None, Annotated[str, LocalPath()] | None):
        with pytest.raises(TypeError, match="a mark belongs around the whole type"):
            type("Inside", (Settings,), {"__annotations__": {"share": inside}, "share": None})


names = st.text(max_size=6)
floats = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | floats | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)
sources = st.builds(
    Source,
    url=names,
    sha256=st.none() | st.just("0" * 64),
    mirrors=st.lists(names, max_size=2).map(tuple),
)
mixed = st.builds(
    Mixed,
    rate=floats,
    kind=st.sampled_from(["a", "b"]),
    start=names,
    late=floats,
    names=st.lists(names, max_size=3).map(tuple),
    source=st.none() | sources,
)
leaves = st.builds(leaf, st.integers(), st.none() | sources)


@st.composite
def graphs(draw: st.DrawFn) -> Made:
    return made(
        draw(st.dictionaries(names, leaves, max_size=3)),
        draw(st.lists(leaves, max_size=3)),
        draw(st.none() | st.builds(Pair, leaves, floats)),
        draw(mixed),
        draw(st.builds(Plugin, name=names, version=st.integers())),
        seed=draw(st.none() | st.integers()),
        word=draw(names),
        flag=draw(st.booleans()),
    ).named(draw(st.text(min_size=1, max_size=6)))


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_steps_travel_as_json(graph: Made) -> None:
    document = json.loads(json.dumps(steps_as_json(graph)))
    assert artifact_from_json(json.loads(json.dumps(document, sort_keys=True))) == graph  # in whatever order
    back = artifact_from_json(document)
    assert back.fingerprint == graph.fingerprint
    assert isinstance(back, Made)
    assert back.label == graph.label
    assert steps_as_json(back) == steps_as_json(graph)  # what is not hashed too: locations, wiring, labels


@given(plain)
@settings(max_examples=100, deadline=None)
@example({"b": 1, "a": [True, 1, 1.0, None, "é\ud800"]})
def test_canonical_json_is_a_fixed_point(value: Any) -> None:
    text = dumps(canonical(value))
    assert text.isascii()
    assert dumps(canonical(json.loads(text))) == text


@given(plain, plain)
@settings(max_examples=100, deadline=None)
def test_different_values_have_different_digests(a: Any, b: Any) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)  # tells 1 from 1.0 and from True
    assert (digest(a) == digest(b)) == same


def test_a_step_file_is_checked() -> None:
    document = steps_as_json(example_graph())
    mark = document["build"]
    step = document["steps"][mark]
    for change, said in (
        ({"version": 2}, "version 2"),
        ({"arguments": step["arguments"] | {"seed": 4}}, "fingerprint"),
        ({"arguments": step["arguments"] | {"seed": "four"}}, "not a step file"),
        ({"arguments": step["arguments"] | {"unheard": 4}}, "not a step file"),
        ({"stage": "fp_mad"}, "did you mean 'fp_made'"),
        ({"module": "no.such.module"}, "no module"),
    ):
        wrong = document | {"steps": document["steps"] | {mark: step | change}}
        with pytest.raises(UserError, match=said):
            artifact_from_json(wrong)
    for nothing in ({}, {"build": mark, "steps": {}}, {"build": mark, "steps": {mark: {}}}):
        with pytest.raises(UserError, match="not a step file"):
            artifact_from_json(nothing)
