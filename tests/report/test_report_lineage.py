"""The chain's picture: of real steps in a store, and of graphs in general."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

from artifacts.toy import graph
from hypothesis import given, settings
from hypothesis import strategies as st

from vbert.artifacts.making.engine import build_here
from vbert.artifacts.store import durable
from vbert.report.layout import GAP_X, HEIGHT, WIDTH, essential, layered_layout
from vbert.report.lineage import trace_lineage


def test_a_built_chain_has_figures_seconds_and_settings(tmp_path: Path) -> None:
    (total,) = build_here([graph(count=2)], tmp_path / "store")
    found = trace_lineage([total, total])
    titles = [node.title for node in found.nodes]
    assert titles == ["toy_numbers[one]", "toy_squares[one]", "toy_numbers[two]", "toy_squares[two]", "toy_total"]
    assert found.seconds == sum(node.manifest.seconds for node in found.nodes if node.manifest) > 0
    assert found.size == sum(node.manifest.size for node in found.nodes if node.manifest) > 0
    assert found.nodes[1].settings["settings"] == {"scale": 1, "seconds": 0.0}
    assert found.nodes[1].settings["numbers"] == {"artifact": found.nodes[0].key}


def test_what_was_left_out_is_a_note_and_no_figure(tmp_path: Path) -> None:
    (total,) = build_here([graph(count=2)], tmp_path / "store")
    node = trace_lineage([total]).nodes[0]
    assert node.manifest is not None
    assert node.notes == []
    figures = {"images": 3, "boxes_empty": 1, "notes": ["1 of 3 boxes ..."]}
    told = replace(node, manifest=node.manifest.model_copy(update={"figures": figures}))
    assert told.notes == ["1 of 3 boxes ..."]
    assert told.figures == {"images": 3, "boxes_empty": 1}


def test_what_is_no_longer_stored_is_still_in_the_chain(tmp_path: Path) -> None:
    (total,) = build_here([graph(count=2)], tmp_path / "store")
    durable.remove_tree(tmp_path / "store" / "artifacts" / "toy_numbers")
    found = trace_lineage([total])
    assert [node.manifest is None for node in found.nodes] == [True, False, True, False, False]
    assert found.nodes[0].figures == {}


def test_loose_artifacts_have_no_chain(tmp_path: Path) -> None:
    from artifacts.toy import Numbers

    found = trace_lineage([Numbers.at(tmp_path)])
    assert found.nodes == []
    assert (found.layout.width, found.layout.height) == (0, 0)


def test_inputs_that_others_imply_are_not_drawn() -> None:
    inputs = {"a": [], "b": ["a"], "c": ["a", "b"], "d": ["c", "a"], "e": ["b", "d"]}
    assert essential(inputs) == {"a": [], "b": ["a"], "c": ["b"], "d": ["c"], "e": ["d"]}


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    size = draw(st.integers(1, 14))
    names = [f"n{i}" for i in range(size)]
    return {name: draw(st.lists(st.sampled_from(names[:i]), unique=True)) if i else [] for i, name in enumerate(names)}


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_no_node_covers_another_and_every_line_leads_on(inputs: dict[str, list[str]]) -> None:
    drawn = essential(inputs)
    found = layered_layout(drawn)
    assert found == layered_layout(drawn)
    for (ax, ay), (bx, by) in combinations(found.places.values(), 2):
        assert abs(ax - bx) >= WIDTH + GAP_X - 1e-6 or abs(ay - by) >= HEIGHT - 0.2
    for x, y in found.places.values():
        assert -0.2 <= x <= found.width - WIDTH + 0.2
        assert -0.2 <= y <= found.height - HEIGHT + 0.2
    assert set(found.paths) == {(one, key) for key, held in drawn.items() for one in held}
    for (one, key), path in found.paths.items():
        assert found.places[one][0] + WIDTH < found.places[key][0]
        assert path.startswith(f"M{found.places[one][0] + WIDTH:.1f} ")


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_the_drawn_lines_keep_who_rests_on_whom(inputs: dict[str, list[str]]) -> None:
    def closure(held: dict[str, list[str]]) -> dict[str, set[str]]:
        behind: dict[str, set[str]] = {}
        for key, ones in held.items():
            behind[key] = set(ones).union(*(behind[one] for one in ones))
        return behind

    drawn = essential(inputs)
    assert closure(drawn) == closure(inputs)
    for key, held in drawn.items():
        for one in held:
            less = {**drawn, key: [other for other in held if other != one]}
            assert closure(less) != closure(inputs)
