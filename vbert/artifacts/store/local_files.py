"""Files below a directory: they last by syncs, locks are flock's, and nothing is ever half there."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vbert.artifacts.store import durable
from vbert.artifacts.store.digests import DigestCache, sha256_file
from vbert.artifacts.store.files import FileEntry, FileInfo, Say, Wrong
from vbert.artifacts.store.owner import SUFFIX, Owner, untouched
from vbert.errors import BuildError, UserError


class Unconfirmed(BuildError):
    """Published, and a sync failed after it. A second try would be told that all is well (the kernel forgets)."""


@contextmanager
def _losses(file: str = "") -> Iterator[None]:
    """A file that the disk lost is wrong; one that this user may not read is not."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EIO):
            raise
        raise Wrong(f"it can't be read ({error.strerror})", file) from None


class LocalFiles:
    """Files below `root`. Opening it writes nothing, so a read-only store can be read."""

    def __init__(self, root: Path, alone: bool = False) -> None:
        self.root = root.absolute()
        self.location = str(self.root)
        self.checked = DigestCache(alone)
        with suppress(PermissionError):  # whoever reads will be told
            if self.root.is_file():
                raise UserError(f"{self.root} is a file; --store takes a directory")

    def prepare(self, folders: Sequence[str]) -> None:
        inside = [self.root / name for name in folders]
        try:
            for directory in inside:
                durable.make_directories(directory, sync=False)
                if not directory.is_dir():
                    raise UserError(f"{directory} is no directory: move it away, or give another --store")
            if durable.shared(self.root) is not None and None in map(durable.shared, inside):
                durable.share(self.root)  # given to its group after it was made
        except OSError as error:
            if (self.root / "store.json").exists():
                raise UserError(f"{self.root} is read-only for this user ({error.strerror})") from error
            raise UserError(f"no store can be made in {self.root} ({error.strerror}); give another --store") from error

    def share(self) -> None:
        """Let the group of the root build in it too. Raises UserError where that is not this user's to say."""
        try:
            durable.make_directories(self.root, sync=False)
            if durable.shared(self.root) is None:
                durable.share(self.root)
        except OSError as error:
            raise UserError(f"{self.root} can't be shared ({error.strerror}); ask its owner") from error
        if durable.shared(self.root) is None:
            raise UserError(f"{self.root} can't be shared: it is another user's; ask its owner for `chmod g+ws`")

    def read_only(self) -> bool:
        at = self.root
        while not at.exists():
            at = at.parent
        return not os.access(at, os.W_OK)

    # ------------------------------------------------------------------ reading

    def read(self, name: str) -> bytes | None:
        folder = (self.root / name).parent
        with _losses():
            try:
                self._info(name)
            except FileNotFoundError:
                if os.path.lexists(folder) and not folder.is_dir():
                    raise Wrong(f"{folder.name} is no directory") from None
                return None
            return (self.root / name).read_bytes()

    def version(self, name: str) -> tuple[int, int, int] | None:
        """Size, mtime_ns, inode."""
        try:
            info = self._info(name)
        except (OSError, Wrong):
            return None
        return info.st_size, info.st_mtime_ns, info.st_ino

    def _info(self, name: str, file: str = "") -> os.stat_result:
        info = os.lstat(self.root / name)
        if not stat.S_ISREG(info.st_mode):
            raise Wrong("it is no regular file", file)
        return info

    def walk(self, folder: str) -> list[FileInfo]:
        """An empty folder counts as a file of no bytes; so does a name that is a file or a link itself."""
        infos = []
        if (at := self.root / folder).is_symlink() or at.is_file():
            info = at.lstat()
            return [FileInfo(folder, info.st_size, info.st_mtime)]
        for directory, folders, names in os.walk(self.root / folder):
            links = [name for name in folders if (Path(directory) / name).is_symlink()]
            for path in [Path(directory) / name for name in [*names, *links]] or [Path(directory)] * (not folders):
                with suppress(FileNotFoundError):
                    info = path.lstat()
                    size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
                    infos.append(FileInfo(path.relative_to(self.root).as_posix(), size, info.st_mtime))
        return sorted(infos, key=lambda file: file.name)

    def folders(self, folder: str) -> list[str]:
        return sorted(path.name for path in (self.root / folder).glob("*") if path.is_dir())

    def folder(self, base: str, content: str) -> str:
        """Format 1 had the files of a thing beside its record."""
        within = f"{base}/{content}"
        return within if (self.root / within).is_dir() else base

    def compare_sizes(self, folder: str, files: Sequence[FileEntry]) -> None:
        for entry in files:
            self._sized(f"{folder}/{entry.name}", entry)

    def _sized(self, name: str, entry: FileEntry) -> os.stat_result:
        with _losses(entry.name):
            info = self._info(name, entry.name)
        if info.st_size != entry.size:
            raise Wrong(f"{info.st_size} bytes where its record says {entry.size}", entry.name)
        return info

    def local(self, name: str, entry: FileEntry) -> Path:
        """Its size is compared now, its sha256 at the first read in a run."""
        path, info = self.root / name, self._sized(name, entry)
        if not self.checked.knows(path, info):
            with _losses(entry.name):
                digest = sha256_file(path)
            if digest != entry.sha256:
                raise Wrong("its sha256 is not the recorded one", entry.name)
            self.checked.note(path, info)
        return path

    def check(self, name: str, entry: FileEntry) -> None:
        self.local(name, entry)

    # ------------------------------------------------------------------ writing

    def create(self, name: str, data: bytes) -> bool:
        target = self.root / name
        durable.make_directories(target.parent, sync=False)
        fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        durable.write_file(fresh, data)
        try:
            first = durable.name_once(fresh, target)
        finally:
            fresh.unlink(missing_ok=True)
        self._lasts(target)
        return first

    def replace(self, name: str, data: bytes) -> None:
        target = self.root / name
        durable.make_directories(target.parent, sync=False)
        fresh = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        durable.write_file(fresh, data, durable.WRITE)
        durable.move(fresh, target)
        self._lasts(target)

    def _lasts(self, target: Path) -> None:
        try:
            durable.sync_parents(target, self.root)
        except OSError as error:
            raise Unconfirmed(
                f"{target} is whole, but the disk failed to confirm that it lasts ({error.strerror}): look at the disk"
            ) from error

    def add_folder(self, folder: str, directory: Path, files: Sequence[FileEntry]) -> None:
        """By a rename: `directory` is gone from where it was."""
        target = self.root / folder
        durable.sync_tree(directory)
        durable.make_directories(target.parent, sync=False)
        try:
            durable.move(directory, target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            if self._holds(folder, files):  # another builder was here, and was killed or is about to tell
                return self._lasts(target)
            self.quarantine(folder, f"trash/{uuid.uuid4().hex}")
            return self.add_folder(folder, directory, files)
        self._lasts(target)
        durable.sync_directory(directory.parent)  # its old name is gone too: who clears there must not find it

    def _holds(self, folder: str, files: Sequence[FileEntry]) -> bool:
        try:
            for entry in files:
                self.check(f"{folder}/{entry.name}", entry)
        except (OSError, Wrong):
            return False
        return True

    def quarantine(self, folder: str, target: str, worth: Sequence[str] = ()) -> None:
        durable.make_directories((self.root / target).parent)
        durable.move(self.root / folder, self.root / target)
        durable.sync_directory((self.root / target).parent)

    def remove(self, folder: str) -> None:
        trash = f"trash/{uuid.uuid4().hex}"
        with suppress(FileNotFoundError):
            self.quarantine(folder, trash)
            durable.sync_directory((self.root / folder).parent)  # its old name is gone before what it named is
        path = self.root / trash
        if path.is_dir() and not path.is_symlink():
            durable.remove_tree(path)
        else:
            path.unlink(missing_ok=True)

    # ------------------------------------------------------------------ locks

    @contextmanager
    def lock(self, name: str, waiting: Say | None = None) -> Iterator[None]:
        """One file a name, never deleted, and beside it who holds it."""
        from filelock import FileLock, Timeout

        directory = durable.make_directories(self.root / "locks", sync=False)
        path = directory / f"{name}.lock"
        if not path.exists():  # comes with its mode at once: one left unwritable would shut other users out for ever
            fresh = directory / f".{name}.{uuid.uuid4().hex}"
            fresh.touch()
            durable.open_file(fresh)
            with suppress(OSError):
                os.link(fresh, path)
            fresh.unlink()
        holder = directory / f"{name}.holder"
        lock = FileLock(path, mode=stat.S_IMODE(path.stat().st_mode) | 0o600, thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if waiting is not None:
                waiting(Owner.describe(holder))
            lock.acquire()
        try:
            with suppress(OSError):
                Owner.current().write(holder)
            yield
        finally:
            with suppress(OSError):
                holder.unlink(missing_ok=True)
            lock.release()

    def at_work(self, grace: float) -> set[str]:
        """Also of those that have a scratch directory; what this process builds has one too."""
        live = set()
        holders = [(path.stem, path) for path in (self.root / "locks").glob("*.holder")]
        holders += [(path.parents[1].name, path) for path in (self.root / "unfinished").glob(f"*/*/scratch/*{SUFFIX}")]
        for name, path in holders:
            owner = Owner.read(path)
            if owner is not None and owner.is_current() and path.suffix == ".holder":
                continue  # held to sweep it
            alive = False if owner is None else owner.alive()
            if alive or (alive is None and not untouched(grace, path)):
                live.add(name)
        return live
