"""Reading all of a store again."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from vbert.artifacts.store.manifest import Manifest
from vbert.artifacts.store.store import Store
from vbert.errors import Damaged


def no_progress(done: int, total: int) -> None: ...


def verify(store: Store, progress: Callable[[int, int], None] = no_progress, quarantine: bool = True) -> list[Damaged]:
    """Read every file of every finished artifact again; `progress(bytes done, bytes in all)`.

    Returns what is damaged, in the order of the store. Its artifacts are moved to `damaged/`, so that the next run
    makes them again (a run itself looks at sizes, and at contents only of what it reads).
    """
    fresh = store.afresh()
    damaged: list[Damaged] = []
    todo: list[tuple[Manifest, str, int]] = []
    for stage, fingerprint in store.names():
        try:
            manifest = fresh.find(stage, fingerprint)
        except Damaged as damage:
            damaged.append(damage)
            continue
        if manifest is not None and manifest.fingerprint == fingerprint:  # an alias's files are its target's
            todo += [(manifest, entry.name, entry.size) for entry in manifest.files]
    total, done = sum(size for *_, size in todo), 0

    def read(item: tuple[Manifest, str, int]) -> Damaged | None:
        try:
            fresh.check(item[0], item[1])
        except Damaged as damage:
            return damage
        return None

    # Digests and reads leave the interpreter's lock: two threads a core keep the disk and the cores busy at once.
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as threads:
        for (_, _, size), found_damage in zip(todo, threads.map(read, todo), strict=True):
            done += size
            progress(done, total)
            if found_damage is not None:
                damaged.append(found_damage)
    damaged = list({str(each): each for each in damaged}.values())
    if quarantine and not store.read_only():
        for one in {each.fingerprint: each for each in damaged}.values():
            store.quarantine(one)
    return sorted(damaged, key=str)
