"""Golden digests of the toy stages, and that the check itself fails when it should."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from artifacts import toy
from artifacts.golden import RECORD, check, compare

from vbert.artifacts.steps.artifact import Artifact

GRAPH = toy.graph(2)
TOYS = [toy.numbers(3), toy.squares(toy.numbers(3), toy.Slow()), toy.nested(toy.numbers(2)), GRAPH]


@pytest.mark.parametrize("target", TOYS, ids=lambda target: target.title)
def test_bits_are_those_recorded(target: Artifact, tmp_path: Path) -> None:
    check(target, tmp_path, libraries=())


def test_the_record_holds_versions() -> None:
    assert json.loads(RECORD.read_text())["toy_squares"]["version"] == 1


def test_changed_bits_under_one_version_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VBERT_GOLDEN", raising=False)
    record = tmp_path / "golden.json"
    here, elsewhere = {"processor": "a"}, {"processor": "b"}
    with pytest.raises(pytest.fail.Exception, match=r"regions\[x\] version 1 has no golden digest yet"):
        compare("regions[x]", 1, "aa", here, record)
    monkeypatch.setenv("VBERT_GOLDEN", "record")
    compare("regions[x]", 1, "aa", here, record)
    with pytest.raises(pytest.fail.Exception, match="raise the version"):  # recording does not hide it
        compare("regions[x]", 1, "bb", here, record)
    monkeypatch.delenv("VBERT_GOLDEN")
    compare("regions[x]", 1, "aa", here, record)
    with pytest.raises(pytest.fail.Exception, match="under version 1: raise the version of stage regions"):
        compare("regions[x]", 1, "bb", here, record)
    with pytest.raises(pytest.skip.Exception, match="recorded on a, other bits are allowed on b"):
        compare("regions[x]", 1, "bb", elsewhere, record)
    with pytest.raises(pytest.fail.Exception, match="version 2 has no golden digest yet"):
        compare("regions[x]", 2, "bb", here, record)
    monkeypatch.setenv("VBERT_GOLDEN", "record")
    compare("regions[x]", 2, "bb", here, record)
    monkeypatch.delenv("VBERT_GOLDEN")
    compare("regions[x]", 2, "bb", here, record)


def test_a_stage_whose_bits_change_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same stage and version, another function: the real check says so."""
    record = tmp_path / "golden.json"
    monkeypatch.setenv("VBERT_GOLDEN", "record")
    check(toy.numbers(3), tmp_path / "a", record, libraries=())
    monkeypatch.delenv("VBERT_GOLDEN")

    def changed(build: toy.Build, count: int, order: str = "up") -> toy.Figures:
        (build.directory / "numbers.json").write_text(json.dumps(list(range(1, count + 1))))
        return {}

    monkeypatch.setitem(toy.numbers.__dict__, "function", changed)
    with pytest.raises(pytest.fail.Exception, match="raise the version of stage toy_numbers"):
        check(toy.numbers(3), tmp_path / "b", record, libraries=())
