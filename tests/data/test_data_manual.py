"""Sources that a person must fetch: an error that says what to do, and a check of what was placed."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from vbert.artifacts.steps.fingerprint import digest
from vbert.data.source import Source
from vbert.errors import UserError

TOLD = Source.model_validate(
    {
        "manual": {
            "steps": ["Ask at https://example.org for the photos.", "Unpack photos.tar."],
            "files": {"labels.txt": {"size": 3, "sha256": sha256(b"abc").hexdigest()}, "img/*.png": {"count": 2}},
        }
    }
)


def test_what_is_not_there_is_said_with_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step on the way to the expected files has its own sentence; the steps stand below it."""
    monkeypatch.setenv("VBERT_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "mine" / "photos"

    def said() -> str:
        with pytest.raises(UserError) as found:
            TOLD.placed(None, "mine photos")
        assert found.value.message.startswith(f"data set mine: photos is fetched by hand into {place}, and ")
        assert "`--set data.NAME.files.photos=FOLDER`" in found.value.message
        assert found.value.details.splitlines() == [
            "  1. Ask at https://example.org for the photos.",
            "  2. Unpack photos.tar.",
            f"  Then {place} holds labels.txt (3 bytes, sha256 ba7816bf8f01…), img/*.png (2 files or more).",
        ]
        return found.value.message

    assert "it isn't there" in said()
    (place / "img").mkdir(parents=True)
    (place / "img" / "1.png").write_bytes(b"1")
    assert "holds no labels.txt" in said()
    (place / "labels.txt").write_bytes(b"ab")
    assert "labels.txt has 2 bytes, not 3: is it whole?" in said()
    (place / "labels.txt").write_bytes(b"abd")
    assert "labels.txt has the sha256" in said()
    (place / "labels.txt").write_bytes(b"abc")
    assert "holds 1 of img/*.png, not 2" in said()
    part = TOLD.placed(str(place), "mine photos")
    assert part.path == str(place), "a place of the user's own may hold a part of the photos"
    (place / "img" / "2.png").write_bytes(b"2")
    whole = TOLD.placed(None, "mine photos").pinned()
    assert (whole.path, whole.manual) == (str(place), None)
    place.rename(tmp_path / "elsewhere")
    assert digest(TOLD.placed(str(tmp_path / "elsewhere"), "mine photos")) == digest(whole), "known by its content"


def test_files_of_ones_own_stand_in_for_any_source(tmp_path: Path) -> None:
    (tmp_path / "p.zip").write_bytes(b"zip")
    source = Source(url="https://example.org/photos.zip", sha256="ab" * 32)
    assert source.placed(None, "mine photos") is source
    assert source.placed(str(tmp_path / "p.zip"), "mine photos").file == "p.zip"
