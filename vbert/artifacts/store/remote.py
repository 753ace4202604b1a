"""A store on an object store: built in a local working directory, published object by object, the manifest last.

store.json                                             format and id
artifacts/<stage>/<fingerprint>/manifest.json          put last, first one wins; where it is, the artifact is
artifacts/<stage>/<fingerprint>/<content>/…            its files; two builders of other bits never share a name
unfinished/<stage>/<fingerprint>/units/<key>/          a committed unit: <content>/…, then unit.json, first one wins
locks/<fingerprint>.json                               leases
damaged/  runs/<run id>.json

No listing is ever taken for existence, and no object that another one may rest on is written with other bytes. The
working directory is a local store of its own: units and checkpoints survive a crash there, finished files are cached.
Checkpoints stay there, and the build says so: they are large and written often, and a machine that goes on from
another's would have to be sure that it is gone. A pod that must survive keeps `$VBERT_CACHE` on a volume.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.artifacts.making.progress import Kept
from vbert.artifacts.steps.fingerprint import sha256
from vbert.artifacts.store import cache, durable, manifest, transfer
from vbert.artifacts.store.contents import complete, damaged_name, tell_difference
from vbert.artifacts.store.lease import Lease
from vbert.artifacts.store.manifest import FileEntry, Manifest, content_digest
from vbert.artifacts.store.objects import NotAllowed, Objects
from vbert.artifacts.store.shared import SharedUnits
from vbert.artifacts.store.store import FORMAT, Store
from vbert.artifacts.store.transfer import Wrong, each
from vbert.errors import BuildError, Damaged, UserError

if TYPE_CHECKING:
    from vbert.artifacts.upkeep.upkeep import Sweeping

WORTH_TELLING = 64 << 20  # bytes whose upload takes long enough to be told of


class RemoteStore(Store):
    """A store at `s3://bucket/prefix`. `root` is its local working directory."""

    def __init__(self, root: Path | str) -> None:
        self.objects = Objects(str(root))
        super().__init__(cache.working_directory(self.objects.url, sha256(self.objects.url)))
        self._found: dict[tuple[str, str], Manifest] = {}  # what was seen once is used to its end
        self._placed: dict[str, str] = {}  # sha256 → key of an object that holds it
        self._probed = False

    def __reduce__(self) -> tuple[type[Store], tuple[Path | str]]:
        return Store, (self.location,)

    @property
    def location(self) -> str:
        return self.objects.url

    def exists(self) -> bool:
        return self._record() is not None

    def _record(self) -> dict[str, Any] | None:
        found = self.objects.get("store.json")
        if found is None:
            return None
        try:
            record: dict[str, Any] = json.loads(found[0])
            known = int(record["format"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.location}/store.json is not a store's record ({error})") from None
        if known > FORMAT:
            raise UserError(f"{self.location}: store format {known}, this version knows {FORMAT}; upgrade vbert")
        return record

    def prepare(self) -> None:
        """Make the working directory and the store's record. Raises UserError where the server can't be relied on."""
        super().prepare()
        self._probe()
        if self._record() is None:
            self.objects.create("store.json", json.dumps({"format": FORMAT, "id": uuid.uuid4().hex}).encode())

    def _probe(self) -> None:
        """Once: whether the server refuses what it must refuse, a second object of one name, a change of another's."""
        if self._probed:
            return
        key = f"locks/probe-{uuid.uuid4().hex}"
        try:
            tag = self.objects.create(key, b"first")
            if tag is None or self.objects.create(key, b"second") is not None:
                raise UserError(
                    f"{self.location}: the server ignores `If-None-Match: *` (it took a second object of the same "
                    "name), so two builders could overwrite each other; use one that honours it, such as AWS or MinIO"
                )
            if self.objects.replace(key, b"third", '"other"') is not None:
                raise UserError(
                    f"{self.location}: the server ignores `If-Match` (it replaced an object that had changed), so "
                    "builders could not wait for each other; use one that honours it, such as AWS or MinIO"
                )
        finally:
            self.objects.delete([key])
        self._probed = True

    def share(self) -> None:
        raise UserError(f"{self.location}: who may build in a bucket is said on its server; leave out --shared")

    def read_only(self) -> bool:
        try:
            self._probe()
        except NotAllowed:
            return True
        return False

    # ------------------------------------------------------------------ finding and reading

    @staticmethod
    def _base(stage: str, fingerprint: str) -> str:
        return f"artifacts/{stage}/{fingerprint}"

    def _key(self, found: Manifest, name: str) -> str:
        return f"{self._base(found.stage, found.fingerprint)}/{found.content[:12]}/{name}"

    def _local(self, found: Manifest) -> Path:
        return self.directory(found.stage, found.fingerprint) / found.content[:12]

    def place(self, found: Manifest) -> str:
        return f"{self.location}/{self._base(found.stage, found.fingerprint)}"

    def where(self, found: Manifest, name: str) -> str:
        return f"{self.location}/{self._key(found, name)}"

    def find(self, stage: str, fingerprint: str) -> Manifest | None:
        known = self._found.get((stage, fingerprint))
        if known is not None:
            return known
        got = self.objects.get(f"{self._base(stage, fingerprint)}/{manifest.NAME}")
        if got is None:
            return None
        try:
            found = Manifest.loads(got[0])
        except ValueError as error:
            raise Damaged(stage, fingerprint, manifest.NAME, str(error)) from None
        if found.fingerprint != fingerprint or found.stage != stage:
            raise Damaged(stage, fingerprint, manifest.NAME, f"it is the manifest of {found.stage}/{found.fingerprint}")
        if found.alias_of is not None:
            aliased = self.find(stage, found.alias_of)
            if aliased is None:
                reason = f"it is an alias of {found.alias_of[:8]}, which is gone"
                raise Damaged(stage, fingerprint, manifest.NAME, reason)
            found = aliased
        elif found.content != content_digest(found.files):
            raise Damaged(stage, fingerprint, manifest.NAME, "its content is not that of its files")
        else:
            self._check_sizes(found)
        self._found[stage, fingerprint] = found
        return found

    def _check_sizes(self, found: Manifest) -> None:
        """One listing spares a request a file; what it lacks is asked for by name."""
        folder = self._key(found, "").rstrip("/")
        listed = {entry.key: entry.size for entry in self.objects.list(folder)} if found.files else {}
        for entry in found.files:
            if listed.get(self._key(found, entry.name)) != entry.size:
                self._told(found, entry, lambda key, entry: transfer.compare_size(self.objects, key, entry))

    def _told(self, found: Manifest, entry: FileEntry, act: Callable[[str, FileEntry], None]) -> None:
        """`act` on the object of a file; what is wrong with it is damage of the artifact."""
        try:
            act(self._key(found, entry.name), entry)
        except Wrong as error:
            raise Damaged(found.stage, found.fingerprint, entry.name, str(error)) from None

    def record(self, stage: str, fingerprint: str) -> Manifest | None:
        got = self.objects.get(f"{self._base(stage, fingerprint)}/{manifest.NAME}")
        with suppress(ValueError):
            return None if got is None else Manifest.loads(got[0])
        return None

    def names(self) -> Iterator[tuple[str, str]]:
        for stage in self.objects.folders("artifacts"):
            for fingerprint in self.objects.folders(f"artifacts/{stage}"):
                yield stage, fingerprint

    def manifests(self, stage: str | None = None) -> Iterator[Manifest]:
        names = [(stage, mark) for mark in self.objects.folders(f"artifacts/{stage}")] if stage else list(self.names())
        yield from (found for found in each(lambda name: self.record(*name), names) if found is not None)

    def whole(self, found: Manifest) -> Path:
        each(lambda entry: self.verified(found, entry.name), found.files)
        return durable.make_directories(self._local(found), sync=False)

    def verified(self, found: Manifest, name: str) -> Path:
        """The path of a local copy, fetched where there is none; its sha256 checked at the first read in a run."""
        entry = self.entry(found, name)
        path = self._local(found) / name
        with suppress(FileNotFoundError, NotADirectoryError):  # another process may make room at any moment
            info = path.lstat()
            if self.checked.knows(path, info):
                cache.used(path, info)
                return path
            if info.st_size == entry.size and durable.sha256_file(path) == entry.sha256:
                self.checked.note(path, info)
                cache.used(path, info)
                return path
            path.unlink()
        cache.make_room(self.root, entry.size)
        aside = self.root / "fetching"
        self._told(found, entry, lambda key, entry: transfer.fetch(self.objects, key, entry, path, aside))
        self.checked.note(path, path.lstat())
        return path

    def check(self, found: Manifest, name: str) -> None:
        self._told(found, self.entry(found, name), lambda key, entry: transfer.check(self.objects, key, entry))

    # ------------------------------------------------------------------ unfinished work

    def describe(self, stage: str, fingerprint: str, document: dict[str, Any]) -> None:
        super().describe(stage, fingerprint, document)
        self.objects.put(f"unfinished/{stage}/{fingerprint}/step.json", json.dumps(document).encode())

    def _units(self, stage: str, fingerprint: str) -> SharedUnits:
        return SharedUnits(self.objects, stage, fingerprint, self.unfinished(stage, fingerprint))

    def kept(self, stage: str, fingerprint: str) -> Kept | None:
        shared = self._units(stage, fingerprint).keys()
        here = super().kept(stage, fingerprint)
        return Kept(len(shared), None, "units") if here is None and shared else here

    def _committed(self, stage: str, fingerprint: str) -> set[str]:
        return super()._committed(stage, fingerprint) | self._units(stage, fingerprint).keys()

    def share_unit(self, stage: str, fingerprint: str, key: str) -> None:
        """Upload a committed unit, its record last; the first record of a key stands."""
        self._units(stage, fingerprint).share(key)

    def gather_units(self, stage: str, fingerprint: str, fetch: bool, say: Callable[[str], None]) -> set[str]:
        shared = self._units(stage, fingerprint)
        keys = shared.share_all()
        if not fetch:
            return keys
        order = sorted(keys)
        objects = each(lambda key: shared.bring(key, say), order)
        for held in objects:
            self._placed |= held or {}
        return {key for key, held in zip(order, objects, strict=True) if held is not None}

    def clear(self, stage: str, fingerprint: str) -> None:
        super().clear(stage, fingerprint)
        transfer.sweep(self.objects, f"unfinished/{stage}/{fingerprint}")

    def scratch_note(self, scratch: Path) -> str | None:
        return f"checkpoints stay on this machine, in {scratch}; units and finished artifacts go to {self.location}"

    # ------------------------------------------------------------------ publishing

    def publish(
        self,
        directory: Path,
        record: Manifest,
        hashed: dict[str, FileEntry],
        say: Callable[[str], None] = lambda _: None,
        same_bits: bool = True,
    ) -> Manifest:
        """Upload the files, then put the manifest unless there is one. As `Store.publish` otherwise."""
        whole = complete(directory, record, hashed)
        if whole.size > WORTH_TELLING:
            say(f"{record.stage}: uploading {whole.size / 1e6:,.0f} MB to {self.location}")
        transfer.place(self.objects, self._key(whole, "").rstrip("/"), directory, whole.files, self._placed)
        key = f"{self._base(record.stage, record.fingerprint)}/{manifest.NAME}"
        if self.objects.create(key, whole.dumps()) is None:
            standing = self.find(record.stage, record.fingerprint)
            if standing is None:
                raise BuildError(
                    f"{self.location}/{key} was there a moment ago and is gone: run the same command again"
                )
            if same_bits:
                tell_difference(whole, standing, say)
            self.abandon(directory)
            return standing
        if whole.alias_of is None:
            self._found[whole.stage, whole.fingerprint] = whole
            self._keep(directory, whole)
        self.abandon(directory)
        return whole

    def _keep(self, directory: Path, whole: Manifest) -> None:
        """What was built here is the cache's first copy of it."""
        target = self._local(whole)
        durable.make_directories(target.parent, sync=False)
        with suppress(OSError):  # a copy that another process fetched is as good
            durable.move(directory, target)
        for entry in whole.files:
            with suppress(OSError):
                self.checked.note(target / entry.name, (target / entry.name).lstat())
        cache.make_room(self.root, 0)

    def set_aside(self, damage: Damaged) -> Path | str | None:
        """Copy the manifest and the damaged file to `damaged/`, then delete the artifact, its manifest first.

        Its other files go too: what is built again is uploaded anew, whatever bytes lie there.
        """
        base = self._base(damage.stage, damage.fingerprint)
        target = f"damaged/{damaged_name(damage.stage, damage.fingerprint)}"
        self._found.clear()
        with self.lock(damage.fingerprint):
            if not self._still(damage):
                return None
            found = self.record(damage.stage, damage.fingerprint)
            if found is not None and damage.file != manifest.NAME:
                transfer.copy(self.objects, self._key(found, damage.file), f"{target}/{damage.file}")
            transfer.move(self.objects, f"{base}/{manifest.NAME}", f"{target}/{manifest.NAME}")
            transfer.sweep(self.objects, base)
            durable.remove_tree(self.directory(damage.stage, damage.fingerprint))
        return f"{self.location}/{target}"

    def _damaged(self) -> Iterable[str]:
        return self.objects.folders("damaged")

    @contextmanager
    def lock(self, fingerprint: str, waiting: Any = None) -> Iterator[None]:
        """The lock of this machine, then the lease among machines."""
        with super().lock(fingerprint, waiting), Lease(self.objects, f"locks/{fingerprint}.json", waiting):
            yield

    # ------------------------------------------------------------------ upkeep and runs

    def sweeping(self, roots: frozenset[str], grace: float, recent: float) -> Sweeping:
        from vbert.artifacts.upkeep.remote_upkeep import RemoteSweeping

        return RemoteSweeping(self, roots, grace, recent)

    def note_run(self, run_id: str, record: dict[str, Any]) -> None:
        self.objects.put(f"runs/{run_id}.json", (json.dumps(record, indent=1) + "\n").encode())

    def run(self, run_id: str) -> dict[str, Any]:
        got = self.objects.get(f"runs/{run_id}.json")
        found: dict[str, Any] = {}
        with suppress(ValueError):
            found = {} if got is None else json.loads(got[0])
        return found

    def runs(self) -> dict[str, dict[str, Any]]:
        keys = [entry.key for entry in self.objects.list("runs")]
        found = {}
        for key, got in zip(keys, each(self.objects.get, keys), strict=True):
            with suppress(ValueError):
                if got is not None:
                    found[key.removeprefix("runs/").removesuffix(".json")] = json.loads(got[0])
        return found
