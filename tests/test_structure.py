"""Imports go round in no circle, and no file is too long to be read at once."""

from __future__ import annotations

from structure import PACKAGES, circles, imports, long_files, one_way_round


def test_imports_go_round_in_no_circle() -> None:
    graph = imports()
    assert len(graph) > 200
    assert [one_way_round(graph, part) for part in circles(graph)] == []


def test_a_circle_is_found_and_named() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"d", "b"}, "d": set[str](), "e": {"f"}, "f": {"e", "a"}}
    assert [sorted(part) for part in circles(graph)] == [["b", "c"], ["e", "f"]]
    assert one_way_round(graph, ["b", "c"]) in ("b → c → b", "c → b → c")
    assert circles({"a": {"b"}, "b": set()}) == []


def test_no_file_is_longer_than_can_be_read_at_once() -> None:
    assert long_files(*PACKAGES) == {}
