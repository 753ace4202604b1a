"""An artifact: finished files with a manifest, and the one class that can read them.

It knows its identity (the fingerprint of the step that makes it) before it exists.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from vbert.artifacts.steps.step import Product, map_products
from vbert.artifacts.steps.step_json import artifact_from_json
from vbert.artifacts.store.manifest import NAME, Manifest
from vbert.artifacts.store.store import Store
from vbert.errors import BuildError


def files_of(directory: Path) -> Path:
    """The directory of an artifact's files: of `<stage>/<fingerprint>` in a store the one that its manifest names."""
    with suppress(OSError, ValueError):
        within = directory / Manifest.loads((directory / NAME).read_bytes()).content[:12]
        return within if within.is_dir() else directory
    return directory


class Artifact(Product):
    """The product of a stage. Subclasses add the readers of their files, beside the functions that write them."""

    store: Store | None = None
    _directory: Path | None = None

    @classmethod
    def at(cls, directory: Path) -> Self:
        """A loose artifact over a bare directory, or over one in a store: nothing is verified."""
        loose = cls()
        loose._directory = files_of(Path(directory))
        return loose

    def bound(self, store: Store) -> Self:
        """The same artifact, looked for in `store`."""
        return self if self.step is None else self._copy(store=store)

    def __repr__(self) -> str:
        shown = f"{self.title} {self.fingerprint[:8]}" if self.step else self._directory
        return f"{type(self).__name__}({shown})"

    def input(self, name: str) -> Any:
        """The argument `name` of the step that makes this artifact, bound to the same store.

        A loose artifact has those that the manifest beside its files says, in the store that it lies in.
        """
        if self.step is None:
            return self.made().input(name)
        if name not in self.step.arguments:
            raise AttributeError(f"{self.title} has no input {name!r}")
        store = self.store
        value = self.step.arguments[name]
        return value if store is None else map_products(value, lambda a: a.bound(store))

    def origin(self) -> tuple[Store, Manifest]:
        """The store that the finished artifact lies in, and its manifest; of a loose one, those that it lies beside.

        Raises BuildError where it is not built, or no manifest is beside it.
        """
        if self.step is not None:
            manifest = self.manifest
            assert self.store is not None
            return self.store, manifest
        directory = (self._directory or Path()).absolute()
        for place in (directory.parent, directory):  # format 1 of a store has the manifest among the files
            with suppress(OSError, ValueError):
                manifest = Manifest.loads((place / NAME).read_bytes())
                return Store(place.parents[2]), manifest
        raise BuildError(
            f"{self!r} was opened by its directory, and no manifest there says what it is made of: open it where its "
            "store has it"
        )

    def made(self) -> Artifact:
        """Of a loose artifact, the one that its store knows."""
        store, manifest = self.origin()
        made: Artifact = artifact_from_json(manifest.step)
        return made.bound(store)

    def inputs(self) -> list[Artifact]:
        """The artifacts this one is made from, each once."""
        if self.step is None:
            return []
        store = self.store
        return [a if store is None else a.bound(store) for a in self.step.inputs()]

    @property
    def manifest(self) -> Manifest:
        """The record of the finished artifact. Raises BuildError where it is not built."""
        if self.step is not None and self.store is not None:
            manifest = self.store.manifest(self.stage_name, self.fingerprint)
            if manifest is not None:
                return manifest
        raise BuildError(
            f"{self.title} is not built"
            + (f" in the store {self.store.location}" if self.store else "")
            + f": `vbert run RECIPE --until {self.title}` builds it"
        )

    @property
    def content(self) -> str:
        """Digest of its files' names and bytes. Raises BuildError where it is not built."""
        return self.manifest.content

    @property
    def path(self) -> Path:
        """The directory of the finished artifact. Raises BuildError where it is not built."""
        if self._directory is not None:
            return self._directory
        manifest = self.manifest
        assert self.store is not None
        return self.store.whole(manifest)

    def names(self) -> list[str]:
        """The artifact's files, sorted, without the manifest."""
        if self._directory is None:
            return [entry.name for entry in self.manifest.files]
        base = self._directory
        return sorted(str(p.relative_to(base)) for p in base.rglob("*") if p.is_file())

    def file(self, name: str) -> Path:
        """The path of the file `name`, its size checked now and its sha256 at the first read in a run.

        Raises Damaged where they are not what the manifest says, BuildError where there is no such file.
        """
        if self._directory is not None:
            path = self._directory / name
            if not path.is_file():
                raise BuildError(f"{self._directory} holds no file {name!r}: is it a {type(self).__name__}?")
            return path
        manifest = self.manifest
        assert self.store is not None
        return self.store.file(manifest, name)

    @property
    def figures(self) -> dict[str, Any]:
        return {} if self._directory is not None else dict(self.manifest.figures)

    def objection(self) -> str | None:
        """Why its settings marked `Acceptance` refuse it: what is made, or what its inputs tell of it before that.

        None where nothing known is against it. Asked at every planning, so it goes by figures and reads no files.
        """
        return None

    @property
    def seconds(self) -> float:
        """Wall seconds its making took; 0 for a loose artifact."""
        return 0.0 if self._directory is not None else self.manifest.seconds
