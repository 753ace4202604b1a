"""`vbert serve` as it is called: what is refused before anything is loaded, and what is said aloud."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vbert.serve.server import ServeSettings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rate", "0"], "--rate 0: give more than 0"),
        (["--queue", "-1"], "--queue -1: give 0 or more"),
        (["--images", "photos"], "give their --features too"),
        (["--share-nothing", "--host", "0.0.0.0"], "--share-nothing listens on this machine alone"),
        (["--host", "no.such.name.invalid"], "--port 0 takes a free port"),
        (["--port", "70000"], "--port 70000: give one from 1 to 65535"),
    ],
)
def test_what_can_t_be_is_refused_at_once(vbert: Any, arguments: list[str], said: str) -> None:
    code, out, told = vbert("serve", "exported", *arguments)
    assert (code, out, said in told) == (2, "", True), told
    assert "Traceback" not in told


def test_a_model_that_is_not_there_is_told(vbert: Any, tmp_path: Path) -> None:
    code, _, told = vbert("serve", tmp_path / "none", "--port", "0")
    assert (code, "none: no such folder" in told) == (2, True), told


def test_where_others_can_connect_is_said_aloud(vbert: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ServeSettings] = []

    def serve(settings: ServeSettings, ready: Any) -> None:
        seen.append(settings)
        ready("http://x:1/", {"title": "vqa", "can": ["answer"]})

    monkeypatch.setattr("vbert.serve.server.serve", serve)
    code, out, told = vbert("serve", "exported", "--host", "0.0.0.0", "--json")
    assert (code, out) == (0, '{"url": "http://x:1/", "can": ["answer"]}\n')
    assert "WARNING: whoever reaches 0.0.0.0 can ask this model, without a password" in told
    code, _, told = vbert("serve", "exported", "--share-nothing", "--max-bytes", "5")
    assert "WARNING" not in told
    assert (seen[1].share_nothing, seen[1].opened.forget, seen[1].host, seen[1].limits.bytes) == (
        True,
        True,
        "127.0.0.1",
        5,
    )
