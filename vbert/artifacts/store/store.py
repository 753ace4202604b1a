"""The store: finished artifacts, whole or absent, and what survives a crash of the unfinished ones.

store.json                                format and id; a newer format is refused
artifacts/<stage>/<fingerprint>/          manifest.json + files (or an alias)
unfinished/<stage>/<fingerprint>/units/   committed units, immutable
unfinished/<stage>/<fingerprint>/scratch/ checkpoints, one directory an attempt
publishing/<fingerprint>.<uuid>/          one builder's own, renamed when whole
locks/  damaged/  runs/<run id>.json
"""

from __future__ import annotations

import errno
import json
import os
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.artifacts.making.progress import Kept
from vbert.artifacts.store import durable, manifest
from vbert.artifacts.store.contents import complete, damaged_name, damaged_of, tell_difference
from vbert.artifacts.store.digest_cache import Verified
from vbert.artifacts.store.locks import held
from vbert.artifacts.store.manifest import FileEntry, Manifest
from vbert.artifacts.store.owner import SUFFIX, Owner, clear_dead
from vbert.errors import BuildError, Damaged, UserError

if TYPE_CHECKING:
    from vbert.artifacts.upkeep.upkeep import Sweeping

FORMAT = 1


class Store:
    """A store on a local path. Opening one writes nothing, so a read-only store can be read.

    `Store("s3://bucket/prefix")` gives the one of `remote.py`.

    >>> store = vbert.Store("store")
    >>> [manifest.label for manifest in store.manifests("finetune")]
    ['vqa']
    """

    def __new__(cls, root: Path | str) -> Store:
        if isinstance(root, str) and "://" in root:
            from vbert.artifacts.store.remote import RemoteStore

            cls = RemoteStore
        return object.__new__(cls)

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        self.checked = Verified()
        self._records: dict[Path, tuple[tuple[int, int, int], dict[str, Any]]] = {}  # of runs, as read before
        record = self.root / "store.json"
        try:
            known = record.is_file()
        except PermissionError:
            raise UserError(
                f"{self.root} is closed to this user; whoever made it opens it to its group by --shared"
            ) from None
        if known:
            try:
                found = int(json.loads(record.read_text())["format"])
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{record} is not a store's record ({error}); give another --store") from None
            if found > FORMAT:
                raise UserError(f"{self.root}: store format {found}, this version knows {FORMAT}; upgrade vbert")
        elif self.root.is_file():
            raise UserError(f"{self.root} is a file; --store takes a directory")

    def __reduce__(self) -> tuple[type[Store], tuple[Path | str]]:
        return Store, (self.root,)

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    @property
    def location(self) -> str:
        """What `Store(…)` opens it by: its path, or its URL."""
        return str(self.root)

    def exists(self) -> bool:
        return (self.root / "store.json").exists()

    def afresh(self) -> Store:
        """The same store, remembering nothing that was read or checked before."""
        fresh = Store(self.location)
        fresh.checked.alone = True
        return fresh

    def prepare(self) -> None:
        """Make the store's directories and record, where they are missing. Raises UserError where that can't be."""
        inside = [self.root / name for name in ("artifacts", "unfinished", "publishing", "locks", "damaged", "runs")]
        try:
            for directory in inside:
                durable.make_directories(directory, sync=False)
            if durable.shared(self.root) is not None and None in map(durable.shared, inside):
                durable.share(self.root)  # given to its group after it was made
        except OSError as error:
            raise UserError(f"no store can be made in {self.root} ({error.strerror}); give another --store") from error
        record = self.root / "store.json"
        if not record.exists():
            durable.settle_root(self.root)  # the record is written last: where it is, the root's own name lasts
            fresh = self.root / f".store.{uuid.uuid4().hex}"
            durable.write_file(fresh, json.dumps({"format": FORMAT, "id": uuid.uuid4().hex}).encode())
            durable.move(fresh, record)

    def share(self) -> None:
        """Let the group of the store's directory build in it too. Raises UserError where that is not ours to say."""
        try:
            durable.make_directories(self.root, sync=False)
            if durable.shared(self.root) is None:
                durable.share(self.root)
        except OSError as error:
            raise UserError(f"{self.root} can't be shared ({error.strerror}); ask its owner") from error
        if durable.shared(self.root) is None:
            raise UserError(f"{self.root} can't be shared: it is another user's; ask its owner for `chmod g+ws`")

    # ------------------------------------------------------------------ finding and reading

    def directory(self, stage: str, fingerprint: str) -> Path:
        return self.root / "artifacts" / stage / fingerprint

    def find(self, stage: str, fingerprint: str) -> Manifest | None:
        """The manifest of the finished artifact, its alias followed; None where there is none.

        The sizes of its files are compared. Raises Damaged where it is not whole.
        """
        directory = self.directory(stage, fingerprint)
        path = directory / manifest.NAME
        try:
            os.lstat(directory)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._unreadable(stage, fingerprint, "", error) from None
        info = self._regular(stage, fingerprint, manifest.NAME)
        found = self.checked.manifest(path, info)
        if found is None:
            try:
                found = Manifest.read(path)
            except ValueError as error:
                raise Damaged(stage, fingerprint, manifest.NAME, str(error)) from None
            except OSError as error:
                raise self._unreadable(stage, fingerprint, manifest.NAME, error) from None
            self.checked.note_manifest(path, info, found)
        if found.fingerprint != fingerprint or found.stage != stage:
            raise Damaged(stage, fingerprint, manifest.NAME, f"it is the manifest of {found.stage}/{found.fingerprint}")
        if found.alias_of is not None:
            aliased = self.find(stage, found.alias_of)
            if aliased is None:
                reason = f"it is an alias of {found.alias_of[:8]}, which is gone"
                raise Damaged(stage, fingerprint, manifest.NAME, reason)
            return aliased
        for entry in found.files:
            self._check_size(found, entry)
        return found

    def record(self, stage: str, fingerprint: str) -> Manifest | None:
        """The manifest as it is, an alias not followed; None where it is not whole."""
        try:
            return Manifest.read(self.directory(stage, fingerprint) / manifest.NAME)
        except (OSError, ValueError):
            return None

    def names(self) -> Iterator[tuple[str, str]]:
        """(stage, fingerprint) of everything that may be a finished artifact, sorted."""
        for path in sorted((self.root / "artifacts").glob("*/*")):
            yield path.parent.name, path.name

    def manifests(self, stage: str | None = None) -> Iterator[Manifest]:
        """All whole manifests (of one stage), aliases as such, damaged ones passed over."""
        base = self.root / "artifacts"
        stages = [base / stage] if stage else sorted(p for p in base.glob("*") if p.is_dir())
        for directory in stages:
            for path in sorted(directory.glob(f"*/{manifest.NAME}")):
                with suppress(ValueError, OSError):
                    yield Manifest.read(path)

    def resolved(self, stage: str, resolved: str) -> Manifest | None:
        """A finished artifact of the stage that was made of the same content, if there is one."""
        for found in self.manifests(stage):
            if found.alias_of is None and found.resolved == resolved:
                try:
                    return self.find(stage, found.fingerprint)
                except Damaged:
                    continue
        return None

    @staticmethod
    def entry(found: Manifest, name: str) -> FileEntry:
        """The manifest's entry of a file. Raises BuildError where it has none."""
        entry = next((entry for entry in found.files if entry.name == name), None)
        if entry is None:
            names = ", ".join(entry.name for entry in found.files[:8])
            raise BuildError(f"{found.stage}/{found.fingerprint[:8]} has no file {name!r}; it has {names}")
        return entry

    def place(self, found: Manifest) -> str:
        """Where the artifact is, for people: its directory, or its URL."""
        return str(self.directory(found.stage, found.fingerprint))

    def where(self, found: Manifest, name: str) -> str:
        """Where a file of the artifact is, for people: its path, or its URL."""
        return str(self.directory(found.stage, found.fingerprint) / name)

    def whole(self, found: Manifest) -> Path:
        """The directory that holds every file of a finished artifact."""
        return self.directory(found.stage, found.fingerprint)

    def check(self, found: Manifest, name: str) -> None:
        """Read a file of an artifact where it lies. Raises Damaged where it is not what the manifest says."""
        self.verified(found, name)

    def verified(self, found: Manifest, name: str) -> Path:
        """The path of a file of an artifact: its size compared now, its sha256 at the first read in a run."""
        entry = self.entry(found, name)
        path = self.directory(found.stage, found.fingerprint) / name
        info = self._check_size(found, entry)
        if not self.checked.knows(path, info):
            try:
                digest = durable.sha256_file(path)
            except OSError as error:
                raise self._unreadable(found.stage, found.fingerprint, name, error) from None
            if digest != entry.sha256:
                raise Damaged(found.stage, found.fingerprint, name, "its sha256 is not the manifest's")
            self.checked.note(path, info)
        return path

    def _check_size(self, found: Manifest, entry: FileEntry) -> os.stat_result:
        info = self._regular(found.stage, found.fingerprint, entry.name)
        if info.st_size != entry.size:
            reason = f"{info.st_size} bytes where the manifest says {entry.size}"
            raise Damaged(found.stage, found.fingerprint, entry.name, reason)
        return info

    def _regular(self, stage: str, fingerprint: str, name: str) -> os.stat_result:
        try:
            info = os.lstat(self.directory(stage, fingerprint) / name)
        except OSError as error:
            raise self._unreadable(stage, fingerprint, name, error) from None
        if not stat.S_ISREG(info.st_mode):
            raise Damaged(stage, fingerprint, name, "it is no regular file")
        return info

    def _unreadable(self, stage: str, fingerprint: str, name: str, error: OSError) -> BuildError:
        """Damaged where the disk lost the file; what this user or process may not do is no damage."""
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EIO):
            return Damaged(stage, fingerprint, name, f"it can't be read ({error.strerror})")
        return BuildError(f"{self.directory(stage, fingerprint) / name} can't be read: {error.strerror}")

    # ------------------------------------------------------------------ unfinished work

    def unfinished(self, stage: str, fingerprint: str) -> Path:
        return self.root / "unfinished" / stage / fingerprint

    def describe(self, stage: str, fingerprint: str, document: dict[str, Any]) -> None:
        """Beside the unfinished work, what it is of: a hint for `gc`, which must leave its inputs."""
        unfinished = durable.make_directories(self.unfinished(stage, fingerprint), sync=False)
        durable.hint(unfinished / "step.json", document)

    def scratch_note(self, scratch: Path) -> str | None:
        """What a user should know of where checkpoints are, if anything."""
        return None

    def planned(self, stage: str, fingerprint: str, units: int) -> None:
        """Note of how many units the artifact is made: a hint, for those who ask how far it is."""
        durable.hint(self.unfinished(stage, fingerprint) / "units.json", {"total": units})

    def kept(self, stage: str, fingerprint: str) -> Kept | None:
        """How far the unfinished artifact is: its committed units, or the step of its last checkpoint.

        None where nothing was begun.
        """
        there = self.unfinished(stage, fingerprint)
        if not durable.patiently(there.is_dir):
            return None
        units, total = self._committed(stage, fingerprint), _read_hint(there / "units.json").get("total")
        if units or total is not None:
            return Kept(len(units), total, "units")
        notes = sorted(there.glob("scratch/*/content/kept.json"), key=lambda path: int(path.parents[1].name))
        last = _read_hint(notes[-1]) if notes else {}
        return Kept(last.get("done", 0), last.get("total"), "steps")

    def _committed(self, stage: str, fingerprint: str) -> set[str]:
        return {path.name for path in (self.unfinished(stage, fingerprint) / "units").glob("*")}

    def share_unit(self, stage: str, fingerprint: str, key: str) -> None:
        """Bring a committed unit to where other machines see it; on a path they all have, it is there."""

    def gather_units(self, stage: str, fingerprint: str, fetch: bool, say: Callable[[str], None]) -> set[str]:
        """Keys of units that machines without this path have committed; with `fetch`, those are brought here."""
        return set()

    def clear(self, stage: str, fingerprint: str) -> None:
        """Remove the unfinished work of what is finished."""
        durable.remove_tree(self.unfinished(stage, fingerprint))

    def begin(self, fingerprint: str) -> Path:
        """A fresh directory of this builder alone, from which it publishes."""
        base = durable.make_directories(self.root / "publishing", sync=False)
        clear_dead(base, fingerprint)
        directory = durable.make_fresh(base / f"{fingerprint}.{uuid.uuid4().hex}")
        Owner.current().write(directory.with_name(directory.name + SUFFIX))
        return directory

    def abandon(self, directory: Path) -> None:
        durable.remove_tree(directory)
        directory.with_name(directory.name + SUFFIX).unlink(missing_ok=True)

    # ------------------------------------------------------------------ publishing

    def publish(
        self,
        directory: Path,
        record: Manifest,
        hashed: dict[str, FileEntry],
        say: Callable[[str], None] = lambda _: None,
        same_bits: bool = True,
    ) -> Manifest:
        """Make `directory` the finished artifact of `record`, whole at every moment; first one wins.

        `hashed` are the files whose bytes are synced and hashed already (linked from units). Returns the manifest of
        whoever won; with `same_bits`, `say` is told where its bits should be ours and are not. Raises Damaged where the
        one that stands there is not whole.
        """
        whole = complete(directory, record, hashed)
        durable.write_file(directory / manifest.NAME, whole.dumps())
        durable.sync_tree(directory)
        target = self.directory(record.stage, record.fingerprint)
        durable.make_directories(target.parent, sync=False)
        try:
            durable.move(directory, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            standing = self.find(record.stage, record.fingerprint)
            if standing is None:
                raise
            self.abandon(directory)
            if same_bits:
                tell_difference(whole, standing, say)
            whole = standing
        try:
            durable.settle(target, self.root)
            durable.sync_directory(directory.parent)  # its old name is gone too: a sweep of leftovers must not find it
        except OSError as error:
            raise Unconfirmed(
                f"{target} is whole, but the disk failed to confirm that it lasts ({error.strerror}): look at the disk"
            ) from error
        directory.with_name(directory.name + SUFFIX).unlink(missing_ok=True)
        durable.acknowledge(target)
        return whole

    def adopt(self, record: Manifest, existing: Manifest) -> Manifest:
        """Publish an alias: the step of `record` is known to make the artifact `existing`."""
        directory = self.begin(record.fingerprint)
        self.publish(directory, record.model_copy(update={"alias_of": existing.fingerprint}), {})
        return existing

    def set_aside(self, damage: Damaged) -> Path | str | None:
        """Move a damaged artifact to `damaged/`, so that its name is free; it is never deleted in place.

        Returns where it went, or None where it is whole by now: another reader was faster.
        """
        target = self.root / "damaged" / damaged_name(damage.stage, damage.fingerprint)
        with self.lock(damage.fingerprint):
            if not self._still(damage):
                return None
            durable.make_directories(target.parent)
            durable.move(self.directory(damage.stage, damage.fingerprint), target)
            durable.sync_directory(target.parent)
            durable.acknowledge(target)
        return target

    def were_set_aside(self, names: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those (stage, fingerprint) of which something lies in `damaged/`."""
        there = {damaged_of(name) for name in self._damaged()}
        return {(stage, mark) for stage, mark in names if (stage, mark[:12]) in there}

    def _damaged(self) -> Iterable[str]:
        return [path.name for path in (self.root / "damaged").glob("*")]

    def _still(self, damage: Damaged) -> bool:
        fresh = self.afresh()
        try:
            found = fresh.find(damage.stage, damage.fingerprint)
            if found is not None and any(entry.name == damage.file for entry in found.files):
                fresh.check(found, damage.file)
        except Damaged as again:
            return again.fingerprint == damage.fingerprint
        return False

    # ------------------------------------------------------------------ locks

    @contextmanager
    def lock(self, fingerprint: str, waiting: Any = None) -> Iterator[None]:
        """Hold the lock of a fingerprint; `waiting(sentence)` is called once where another builder holds it.

        The lock saves work. Truth does not rest on it: publishing is first-wins and units are immutable.
        """
        with held(self.root / "locks", fingerprint, waiting):
            yield

    # ------------------------------------------------------------------ runs

    def note_run(self, run_id: str, record: dict[str, Any]) -> None:
        """Write the record of a run (recipe, fingerprints, outcome), replacing what stood under its id."""
        directory = durable.make_directories(self.root / "runs", sync=False)
        fresh = directory / f".{run_id}.{uuid.uuid4().hex}"
        durable.write_file(fresh, (json.dumps(record, indent=1) + "\n").encode(), durable.WRITE)
        target = directory / f"{run_id}.json"
        durable.move(fresh, target)
        durable.settle(target, self.root)
        durable.acknowledge(target)

    def runs(self) -> dict[str, dict[str, Any]]:
        """run id → record, oldest first."""
        found = {}
        for path in sorted((self.root / "runs").glob("*.json")):
            with suppress(ValueError, OSError):
                info = path.stat()  # records are replaced whole: an unchanged one is not read again
                key, held = (info.st_size, info.st_mtime_ns, info.st_ino), self._records.get(path)
                if held is None or held[0] != key:
                    held = self._records[path] = key, json.loads(path.read_text())
                found[path.stem] = held[1]
        return found

    def run(self, run_id: str) -> dict[str, Any]:
        """The record of a run; empty where there is none."""
        try:
            found: dict[str, Any] = json.loads((self.root / "runs" / f"{run_id}.json").read_text())
        except (ValueError, OSError):
            return {}
        return found

    def sweeping(self, roots: frozenset[str], grace: float, recent: float) -> Sweeping:
        """What `gc` goes by."""
        from vbert.artifacts.upkeep.upkeep import Sweeping

        return Sweeping(self, roots, grace, recent)

    def read_only(self) -> bool:
        at = self.root
        while not at.exists():
            at = at.parent
        return not os.access(at, os.W_OK)


def _read_hint(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Unconfirmed(BuildError):
    """Published, and a sync failed after it. A second try would be told that all is well (the kernel forgets)."""


def default_root() -> str:
    """`$VBERT_STORE`, else `./store`."""
    return os.environ.get("VBERT_STORE") or "store"
