"""A finished artifact in a folder of the user's: replaced whole, or left as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from artifacts import toy

from vbert.artifacts.making.engine import build_here
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.store.owner import Owner
from vbert.artifacts.upkeep import export
from vbert.artifacts.upkeep.export import exchange, hand_out
from vbert.errors import UserError


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return build_here([toy.numbers(2)], tmp_path / "s")[0]


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def kernel_can(monkeypatch: pytest.MonkeyPatch, can: bool) -> None:
    if not can:
        monkeypatch.setattr(export, "_renameat2", lambda one, other: False)


@pytest.mark.parametrize("by_kernel", [True, False])
def test_a_folder_is_replaced_whole(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_kernel: bool
) -> None:
    kernel_can(monkeypatch, by_kernel)
    at = tmp_path / "mine"
    at.mkdir()
    out = at / "out"
    hand_out(artifact, out)
    first = contents(out)
    (out / "note").write_text("of the user")
    hand_out(artifact, out)
    assert contents(out) == first
    (at / "link").symlink_to(out)
    hand_out(artifact, at / "link")
    assert (at / "link").is_symlink()
    assert sorted(path.name for path in at.iterdir()) == ["link", "out"]
    hand_out(artifact, at / "in" / "a" / "new one")
    assert contents(at / "in" / "a" / "new one") == first


def test_the_old_folder_is_back_where_the_new_one_cannot_come(
    artifact: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = tmp_path / "mine"
    (at / "out").mkdir(parents=True)
    (at / "out" / "old").write_text("old")
    kernel_can(monkeypatch, False)
    rename = Path.rename

    def fails(self: Path, target: Path) -> Path:
        if target == at / "out" and not (self / "old").exists():
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(UserError, match="can't be written"):
        hand_out(artifact, at / "out")
    assert contents(at / "out") == {"old": "old"}
    assert [path.name for path in at.iterdir()] == ["out"]


def test_exchange_needs_both(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(OSError, match="No such file"):
        exchange(tmp_path / "one", tmp_path / "absent")
    assert os.listdir(tmp_path) == ["one"]


def test_what_a_killed_command_left_beside_it_goes(artifact: Artifact, tmp_path: Path) -> None:
    at = tmp_path / "mine"
    left, live, others = at / ".out.left", at / ".out.live", at / ".out.of.mine"
    for folder, pid in ((left, 2**22 + 1), (live, os.getpid())):
        folder.mkdir(parents=True)
        Owner(**{**vars(Owner.current()), "pid": pid}).write(folder.with_name(folder.name + ".owner"))
    others.mkdir()
    hand_out(artifact, at / "out")
    assert sorted(path.name for path in at.iterdir()) == [".out.live", ".out.live.owner", ".out.of.mine", "out"]
