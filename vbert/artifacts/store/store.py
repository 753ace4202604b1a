"""The store: finished artifacts, whole or absent, and what survives a crash of the unfinished ones.

store.json                                        format and id; a newer format is refused
artifacts/<stage>/<fingerprint>/<content>/…       the files of an artifact; other bits have another <content>
artifacts/<stage>/<fingerprint>/manifest.json     put last, the first one wins: where it is, the artifact is
unfinished/<stage>/<fingerprint>/units/<key>/     committed units: <content>/… and unit.json, in the same way
unfinished/<stage>/<fingerprint>/scratch/<n>/     attempt n: what it builds, and its checkpoints
resolved/<stage>/<digest>                         the fingerprint of what was made of inputs of this content
locks/  damaged/  runs/<run id>.json
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from vbert.artifacts.store import durable
from vbert.artifacts.store.begun import Begun, begun
from vbert.artifacts.store.contents import complete, damaged_name, damaged_of, tell_difference
from vbert.artifacts.store.files import FileEntry, FileInfo, Files, Say, Wrong, each, no_words
from vbert.artifacts.store.local_files import LocalFiles
from vbert.artifacts.store.manifest import NAME, Manifest, content_digest
from vbert.artifacts.store.run_records import run_record
from vbert.artifacts.store.units import Units
from vbert.errors import BuildError, Damaged, UserError

FORMAT = 2  # 1 had the files of an artifact beside its manifest, and no resolved/
FOLDERS = ("artifacts", "unfinished", "resolved", "locks", "damaged", "runs")
WORTH_TELLING = 64 << 20  # bytes whose upload takes long enough to be told of


class Store:
    """A store on a local path or in a bucket (`s3://bucket/prefix`). `root` is where unfinished work lies: the path
    itself, or the bucket's working directory on this machine.

    >>> store = vbert.Store("store")
    >>> [manifest.label for manifest in store.manifests("finetune")]
    ['vqa']
    """

    def __init__(self, location: Path | str, alone: bool = False) -> None:
        self.files, self.here = _open(location, alone)
        self.root, self.location = self.here.root, self.files.location
        self._manifests: dict[str, tuple[Any, Manifest]] = {}
        self._runs: dict[str, tuple[FileInfo, dict[str, Any]]] = {}
        if not self.remote:  # a bucket is asked at the first need
            self._record()

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return Store, (self.location,)

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    @property
    def remote(self) -> bool:
        return self.files is not self.here

    def _record(self) -> dict[str, Any] | None:
        try:
            data = self.files.read("store.json")
        except PermissionError:
            raise UserError(
                f"{self.location} is closed to this user; whoever made it opens it to its group by --shared"
            ) from None
        except Wrong as error:
            raise UserError(
                f"{self.location}/store.json is not a store's record ({error}); give another --store"
            ) from None
        if data is None:
            return None
        try:
            record: dict[str, Any] = json.loads(data)
            known = int(record["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.location}/store.json is not a store's record ({error}); give another --store"
            ) from None
        if known > FORMAT:
            raise UserError(f"{self.location}: store format {known}, this version knows {FORMAT}; upgrade vbert")
        return record

    def exists(self) -> bool:
        return self._record() is not None

    def afresh(self) -> Store:
        """The same store, remembering nothing that was read or checked before."""
        return Store(self.location, alone=True)

    def prepare(self) -> None:
        """Make the store where there is none. Raises UserError where that can't be."""
        self.files.prepare(FOLDERS)
        if self._record() is None:
            if not self.remote:
                durable.sync_above(self.root)  # the record is written last: where it is, the root's own name lasts
            self.files.create("store.json", json.dumps({"format": FORMAT, "id": uuid.uuid4().hex}).encode())

    def upgrade(self) -> bool:
        """Bring a store of an earlier format to this one, before anything of this one is written; False where it is."""
        record = self._record()
        if record is None or record["format"] == FORMAT:
            return False
        for manifest in self.manifests():
            if manifest.alias_of is None:
                self._index(manifest)
        self.files.replace("store.json", json.dumps(record | {"format": FORMAT}).encode())
        return True

    def share(self) -> None:
        """Let the group of the store's directory build in it too. Raises UserError where that is not ours to say."""
        self.files.share()

    def read_only(self) -> bool:
        return self.files.read_only()

    # ------------------------------------------------------------------ finding and reading

    @staticmethod
    def _base(stage: str, fingerprint: str) -> str:
        return f"artifacts/{stage}/{fingerprint}"

    def _folder(self, manifest: Manifest) -> str:
        return self.files.folder(self._base(manifest.stage, manifest.fingerprint), manifest.content[:12])

    def find(self, stage: str, fingerprint: str) -> Manifest | None:
        """The manifest of the finished artifact, its alias followed; None where there is none.

        The sizes of its files are compared. Raises Damaged where it is not whole.
        """
        manifest = self.manifest(stage, fingerprint)
        if manifest is not None:
            with self._damage(manifest.stage, manifest.fingerprint):
                self.files.compare_sizes(self._folder(manifest), manifest.files)
        return manifest

    def manifest(self, stage: str, fingerprint: str) -> Manifest | None:
        """As `find`, its files not looked at."""
        manifest = self.record(stage, fingerprint)
        if manifest is None or manifest.alias_of is None:
            return manifest
        aliased = self.manifest(stage, manifest.alias_of)
        if aliased is None:
            raise Damaged(stage, fingerprint, NAME, f"it is an alias of {manifest.alias_of[:8]}, which is gone")
        return aliased

    def record(self, stage: str, fingerprint: str) -> Manifest | None:
        """The manifest as it is, an alias not followed. Raises Damaged where it is not whole."""
        name = f"{self._base(stage, fingerprint)}/{NAME}"
        known, version = self._manifests.get(name), self.files.version(name)
        if known is not None and known[0] == version:
            return known[1]
        with self._damage(stage, fingerprint, NAME):
            if (data := self.files.read(name)) is None:
                return None
            try:
                manifest = Manifest.loads(data)
            except ValueError as error:
                raise Wrong(str(error)) from None
            if (manifest.stage, manifest.fingerprint) != (stage, fingerprint):
                raise Wrong(f"it is the manifest of {manifest.stage}/{manifest.fingerprint}")
            if manifest.alias_of is None and manifest.content != content_digest(manifest.files):
                raise Wrong("its content is not that of its files")
            self._manifests[name] = version, manifest
        return manifest

    @contextmanager
    def _damage(self, stage: str, fingerprint: str, name: str = "") -> Iterator[None]:
        """Raise Damaged for a wrong file; one that this user may not read is no damage."""
        try:
            yield
        except Wrong as error:
            raise Damaged(stage, fingerprint, error.file or name, str(error)) from None
        except OSError as error:
            raise BuildError(f"{error.filename or self.location} can't be read: {error.strerror}") from None

    def names(self, stage: str | None = None) -> list[tuple[str, str]]:
        """(stage, fingerprint) of everything (of one stage) that may be a finished artifact, sorted."""
        stages = self.files.folders("artifacts") if stage is None else [stage]
        return [(stage, fingerprint) for stage in stages for fingerprint in self.files.folders(f"artifacts/{stage}")]

    def manifests(self, stage: str | None = None) -> list[Manifest]:
        """All whole manifests (of one stage), aliases as such, damaged ones passed over."""

        def read(name: tuple[str, str]) -> Manifest | None:
            with suppress(Damaged):
                return self.record(*name)
            return None

        names = self.names(stage)
        return [manifest for manifest in each(read, names) if manifest is not None]

    def resolved(self, stage: str, resolved: str) -> Manifest | None:
        """A finished artifact of the stage that was made of the same content, if there is one."""
        with suppress(Damaged, Wrong, ValueError):  # the index is no more than a hint
            fingerprint = (self.files.read(f"resolved/{stage}/{resolved}") or b"").decode()
            manifest = self.find(stage, fingerprint) if fingerprint else None
            return manifest if manifest is not None and manifest.resolved == resolved else None
        return None

    def _index(self, made: Manifest) -> None:
        with suppress(IsADirectoryError, NotADirectoryError):  # no more than a hint
            if made.resolved:
                self.files.replace(f"resolved/{made.stage}/{made.resolved}", made.fingerprint.encode())

    def forget(self, made: Manifest) -> None:
        """Before an artifact is removed: whoever makes it of the same content is not sent to it."""
        name = f"resolved/{made.stage}/{made.resolved}"
        if self.files.read(name) == made.fingerprint.encode():
            self.files.remove(name)
        self._manifests.clear()

    @staticmethod
    def entry(manifest: Manifest, name: str) -> FileEntry:
        """The manifest's entry of a file. Raises BuildError where it has none."""
        entry = next((entry for entry in manifest.files if entry.name == name), None)
        if entry is None:
            names = ", ".join(entry.name for entry in manifest.files[:8])
            raise BuildError(f"{manifest.stage}/{manifest.fingerprint[:8]} has no file {name!r}; it has {names}")
        return entry

    def where(self, manifest: Manifest, name: str = "") -> str:
        """Where a file of the artifact is, or all of them, for people: a path, or a URL."""
        return f"{self.location}/{self._folder(manifest)}/{name}".rstrip("/")

    def whole(self, manifest: Manifest) -> Path:
        """The local directory that holds every file of a finished artifact."""
        folder = self.root / self._folder(manifest)
        if self.remote:
            each(lambda entry: self.file(manifest, entry.name), manifest.files)
            durable.make_directories(folder, sync=False)
        return folder

    def check(self, manifest: Manifest, name: str) -> None:
        """Read a file of an artifact where it lies. Raises Damaged where it is not what the manifest says."""
        with self._damage(manifest.stage, manifest.fingerprint, name):
            self.files.check(f"{self._folder(manifest)}/{name}", self.entry(manifest, name))

    def file(self, manifest: Manifest, name: str) -> Path:
        """The path of a file of an artifact: its size compared now, its sha256 at the first read in a run."""
        entry = self.entry(manifest, name)
        with self._damage(manifest.stage, manifest.fingerprint, name):
            return self.files.local(f"{self._folder(manifest)}/{name}", entry)

    # ------------------------------------------------------------------ unfinished work

    def unfinished(self, stage: str, fingerprint: str) -> Path:
        """The local directory of what is not finished."""
        return self.root / "unfinished" / stage / fingerprint

    def units(self, stage: str, fingerprint: str) -> Units:
        return Units(self.files, self.here, stage, fingerprint)

    def describe(self, stage: str, fingerprint: str, document: dict[str, Any]) -> None:
        """Beside the unfinished work, what it is of: a hint for `gc`, which must leave its inputs."""
        unfinished = durable.make_directories(self.unfinished(stage, fingerprint), sync=False)
        durable.hint(unfinished / "step.json", document)
        if self.remote:
            self.files.replace(f"unfinished/{stage}/{fingerprint}/step.json", json.dumps(document).encode())

    def planned(self, stage: str, fingerprint: str, units: int) -> None:
        """Note of how many units the artifact is made: a hint, for those who ask how far it is."""
        durable.hint(self.unfinished(stage, fingerprint) / "units.json", {"total": units})

    def begun(self, stage: str, fingerprint: str) -> Begun | None:
        """How far the unfinished artifact is; None where nothing was begun."""
        return begun(self.unfinished(stage, fingerprint), self.units(stage, fingerprint).keys())

    def clear(self, stage: str, fingerprint: str) -> None:
        """Remove the unfinished work of what is finished."""
        durable.remove_tree(self.unfinished(stage, fingerprint))
        if self.remote:
            self.files.remove(f"unfinished/{stage}/{fingerprint}")

    # ------------------------------------------------------------------ publishing

    def publish(
        self,
        directory: Path,
        record: Manifest,
        hashed: dict[str, FileEntry],
        say: Say = no_words,
        same_bits: bool = True,
    ) -> Manifest:
        """Make the files of `directory` the finished artifact of `record`, whole at every moment; the first one wins.

        `hashed` are the files whose bytes are synced and hashed already (linked from units). Returns the manifest of
        whoever won; with `same_bits`, `say` is told where its bits should be ours and are not. Raises Damaged where the
        one that stands there is not whole.
        """
        whole = complete(directory, record, hashed)
        base = self._base(whole.stage, whole.fingerprint)
        if self.remote and whole.size > WORTH_TELLING:
            say(f"{record.stage}: uploading {whole.size / 1e6:,.0f} MB to {self.location}")
        self.files.add_folder(f"{base}/{whole.content[:12]}", directory, whole.files)
        self._index(whole)
        if self.files.create(f"{base}/{NAME}", whole.dumps()):
            return whole
        standing = self.find(record.stage, record.fingerprint)
        if standing is None:
            raise BuildError(f"{self.location}/{base} was there a moment ago and is gone: run the same command again")
        if standing.content != whole.content:
            self.files.remove(f"{base}/{whole.content[:12]}")  # no manifest leads to it
        if same_bits:
            tell_difference(whole, standing, say)
        return standing

    def adopt(self, record: Manifest, existing: Manifest) -> Manifest:
        """Publish an alias: the step of `record` is known to make the artifact `existing`."""
        alias = record.model_copy(update={"alias_of": existing.fingerprint, "content": content_digest([])})
        self.files.create(f"{self._base(alias.stage, alias.fingerprint)}/{NAME}", alias.dumps())
        return existing

    def quarantine(self, damage: Damaged) -> str | None:
        """Move a damaged artifact to `damaged/`, so that its name is free; it is never deleted in place.

        Returns where it went, or None where it is whole by now: another reader was faster.
        """
        base = self._base(damage.stage, damage.fingerprint)
        target = f"damaged/{damaged_name(damage.stage, damage.fingerprint)}"
        self._manifests.clear()  # another machine may have mended it
        with self.lock(damage.fingerprint):
            if not self._still(damage):
                return None
            worth = [NAME]
            with suppress(Damaged):
                manifest = self.record(damage.stage, damage.fingerprint)
                if manifest is not None and damage.file != NAME:
                    worth.append(f"{manifest.content[:12]}/{damage.file}")
            self.files.quarantine(base, target, worth)
            self._manifests.clear()
        return f"{self.location}/{target}"

    def were_damaged(self, names: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those (stage, fingerprint) of which something lies in `damaged/`."""
        there = {damaged_of(name) for name in self.files.folders("damaged")}
        return {(stage, fingerprint) for stage, fingerprint in names if (stage, fingerprint[:12]) in there}

    def _still(self, damage: Damaged) -> bool:
        fresh = self.afresh()
        try:
            manifest = fresh.find(damage.stage, damage.fingerprint)
            if manifest is not None and any(entry.name == damage.file for entry in manifest.files):
                fresh.check(manifest, damage.file)
        except Damaged as again:
            return again.fingerprint == damage.fingerprint
        return False

    def lock(self, fingerprint: str, waiting: Say | None = None) -> AbstractContextManager[None]:
        """Hold the lock of a fingerprint; `waiting(who)` is called once where another builder holds it.

        The lock saves work. Truth does not rest on it: publishing is first-wins and units are immutable.
        """
        return self.files.lock(fingerprint, waiting)

    # ------------------------------------------------------------------ runs

    def record_run(self, run_id: str, record: dict[str, Any]) -> None:
        """Write the record of a run (recipe, fingerprints, outcome), replacing what stood under its id."""
        self.files.replace(f"runs/{run_id}.json", (json.dumps(record, indent=1) + "\n").encode())

    def runs(self) -> dict[str, dict[str, Any]]:
        """run id → record, oldest first."""
        infos = {info.name: info for info in self.files.walk("runs") if info.name.endswith(".json")}
        # A record is replaced whole, if at all. In a bucket, times are of seconds: two of one size can't be told apart.
        known = {} if self.remote else self._runs
        old = {name: record for name, record in known.items() if infos.get(name) == record[0]}
        new = [name for name in infos if name not in old]
        self._runs = old | {name: (infos[name], made) for name, made in zip(new, each(self._run, new), strict=True)}
        return {Path(name).stem: self._runs[name][1] for name in infos if self._runs[name][1]}

    def run(self, run_id: str) -> dict[str, Any]:
        """The record of a run; empty where there is none."""
        return self._run(f"runs/{run_id}.json")

    def _run(self, name: str) -> dict[str, Any]:
        with suppress(OSError, Wrong):
            return run_record(self.files.read(name))
        return {}


def _open(location: Path | str, alone: bool) -> tuple[Files, LocalFiles]:
    """The files of a store, and those of the local directory in which it is worked on: the same, for one on a disk."""
    if isinstance(location, str) and "://" in location:
        from vbert.artifacts.store.s3_files import S3Files

        files = S3Files(location, alone)
        return files, files.here
    local = LocalFiles(Path(location), alone)
    return local, local


def default_root() -> str:
    """`$VBERT_STORE`, else `./store`."""
    return os.environ.get("VBERT_STORE") or "store"
