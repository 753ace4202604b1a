"""Attempts at an artifact: each has a directory of its own, and goes on from the checkpoints of the one before."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

from vbert.artifacts.store import durable
from vbert.artifacts.store.owner import GRACE, SUFFIX, Owner, untouched


def new_attempt(unfinished: Path, root: Path) -> Path:
    """The directory of this attempt alone; `content` in it holds what earlier attempts left.

    Numbers only grow and each is taken by `mkdir`, so two builders never share one, locks or not. What a provably
    dead owner left is taken over by a rename, what may have a live owner is copied, until it was not touched for days.
    """
    base = durable.make_directories(unfinished / "scratch", sync=False)
    earlier = sorted((p for p in base.iterdir() if p.is_dir() and p.name.isdigit()), key=lambda p: int(p.name))
    number = int(earlier[-1].name) + 1 if earlier else 1
    while True:
        mine = base / str(number)
        try:
            durable.make_fresh(mine)
            break
        except FileExistsError:
            number += 1
    Owner.current().write(base / f"{number}{SUFFIX}")
    content = mine / "content"
    # An attempt killed before it had a content leaves that of the one before it.
    last = next((old for old in reversed(earlier) if (old / "content").is_dir()), None)
    if last is not None:
        owner = Owner.read(base / f"{last.name}{SUFFIX}")
        durable.sync_parents(mine, root)
        with suppress(OSError):
            if _gone(base, last) or (owner is not None and owner.is_current()):
                durable.rename(last / "content", content)
        with suppress(OSError):
            if not content.exists():
                shutil.copytree(last / "content", mine / "copy", copy_function=_copy_if_there)
                durable.open_directory(mine / "copy")
                durable.move(mine / "copy", content)
        durable.remove_tree(mine / "copy")  # half of one, where it could not be made
    if not content.exists():
        durable.make_fresh(content)
    durable.sync_parents(content, root)
    for old in earlier:
        taken = old is not last or not (old / "content").exists()
        if taken and _gone(base, old):
            durable.remove_tree(old)
    return mine


def _gone(base: Path, attempt: Path) -> bool:
    """Whether nobody is at an earlier attempt: its owner is dead, or can't be told and has not touched it for days."""
    owner = Owner.read(base / f"{attempt.name}{SUFFIX}")
    alive = None if owner is None else owner.alive()
    return untouched(GRACE, attempt, *attempt.rglob("*")) if alive is None else not alive


def _copy_if_there(source: str, target: str) -> None:
    with suppress(FileNotFoundError):
        shutil.copyfile(source, target)
