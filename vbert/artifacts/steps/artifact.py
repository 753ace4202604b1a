"""An artifact: a directory with a manifest, and the one class that can read it.

It knows its identity (the fingerprint of the step that makes it) before it exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from vbert.artifacts.steps.fingerprint import canonical, dumps, sha256
from vbert.artifacts.steps.settings import as_before
from vbert.errors import BuildError

if TYPE_CHECKING:
    from vbert.artifacts.steps.stage import Stage
    from vbert.artifacts.store.manifest import Manifest
    from vbert.artifacts.store.store import Store

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """A stage and its arguments: all that says what will be made."""

    stage: Stage[Any, Any]
    arguments: Mapping[str, Any]

    @cached_property
    def hashed(self) -> dict[str, Any]:
        """What the fingerprint is taken of; inputs by their fingerprints."""
        return self._payload(lambda a: a.fingerprint)

    @cached_property
    def fingerprint(self) -> str:
        return sha256(dumps(self.hashed))

    def resolved(self) -> str:
        """Like the fingerprint, but with inputs by the content they turned out to have; they must be built."""
        return sha256(dumps(self._payload(lambda a: a.manifest.content)))

    def _payload(self, identity: Callable[[Artifact], str]) -> dict[str, Any]:
        def identify(value: Any) -> str | None:
            return identity(value) if isinstance(value, Artifact) else None

        name = self.stage.name
        hints = self.stage.hints
        counted = {k: v for k, v in self.arguments.items() if not as_before(hints[k], v)}
        arguments = {k: canonical(v, identify, f"{name}: {k}") for k, v in counted.items()}
        return {"stage": name, "version": self.stage.version, "arguments": arguments}

    def inputs(self) -> list[Artifact]:
        """The artifacts among the arguments, in their order, each once."""
        found: dict[str, Artifact] = {}

        def note(artifact: Artifact) -> Artifact:
            found.setdefault(artifact.fingerprint, artifact)
            return artifact

        map_artifacts(dict(self.arguments), note)
        return list(found.values())


def map_artifacts(value: T, function: Callable[[Artifact], Artifact]) -> T:
    """`value` with every artifact in it (in mappings, sequences, frozen dataclasses) replaced by `function` of it."""
    out: Any = value
    if isinstance(value, Artifact):
        out = function(value)
    elif isinstance(value, Mapping):
        out = {k: map_artifacts(v, function) for k, v in value.items()}
    elif isinstance(value, list | tuple):
        out = type(value)(map_artifacts(v, function) for v in value)
    elif is_dataclass(value) and not isinstance(value, type):
        out = replace(value, **{f.name: map_artifacts(getattr(value, f.name), function) for f in fields(value)})
    return out  # type: ignore[no-any-return]


class Artifact:
    """What a stage makes. Subclasses add the readers of their files, beside the functions that write them."""

    # Inputs that the class reads through (`Images.open` reads its raw files): a stage given it needs them too.
    through: ClassVar[Sequence[str]] = ()

    step: Step | None = None
    label: str | None = None
    store: Store | None = None
    _directory: Path | None = None

    def __init__(self, step: Step | None = None) -> None:
        self.step = step

    @classmethod
    def at(cls, directory: Path) -> Self:
        """A loose artifact over a bare directory: no manifest, nothing verified."""
        loose = cls()
        loose._directory = Path(directory)
        return loose

    def _copy(self, **changes: Any) -> Self:
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.__dict__.update(changes)
        return copy

    def named(self, label: str) -> Self:
        """The same artifact under an unhashed label: `regions[easy_vqa]`."""
        return self._copy(label=label)

    def bound(self, store: Store) -> Self:
        """The same artifact, looked for in `store`."""
        return self if self.step is None else self._copy(store=store)

    @property
    def fingerprint(self) -> str:
        if self.step is None:
            raise BuildError(f"a loose {type(self).__name__} has no fingerprint: it was opened by its directory")
        return self.step.fingerprint

    @property
    def stage_name(self) -> str:
        return self.step.stage.name if self.step else type(self).__name__

    @property
    def title(self) -> str:
        """`regions[easy_vqa]`, or `regions` without a label."""
        return f"{self.stage_name}[{self.label}]" if self.label else self.stage_name

    def __repr__(self) -> str:
        said = f"{self.title} {self.fingerprint[:8]}" if self.step else self._directory
        return f"{type(self).__name__}({said})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Artifact) or type(self) is not type(other):
            return False
        return self.fingerprint == other.fingerprint if self.step and other.step else self is other

    def __hash__(self) -> int:
        return hash(self.fingerprint) if self.step else id(self)

    def input(self, name: str) -> Any:
        """The argument `name` of the step that makes this artifact, bound to the same store.

        A loose artifact has those that the manifest in its directory says, in the store that it lies in.
        """
        if self.step is None:
            return self._made().input(name)
        if name not in self.step.arguments:
            raise AttributeError(f"{self.title} has no input {name!r}")
        store = self.store
        value = self.step.arguments[name]
        return value if store is None else map_artifacts(value, lambda a: a.bound(store))

    def _made(self) -> Artifact:
        """Of a loose artifact, the one that its store knows."""
        from vbert.artifacts.steps.stage import artifact_from_json
        from vbert.artifacts.store.manifest import NAME, Manifest
        from vbert.artifacts.store.store import Store

        directory = (self._directory or Path()).absolute()
        try:
            manifest = Manifest.read(directory / NAME)
        except (OSError, ValueError):
            said = f"{self!r} was opened by its directory, and no manifest there says what it is made of"
            raise BuildError(f"{said}: open it where its store has it") from None
        return artifact_from_json(manifest.step).bound(Store(directory.parents[2]))

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
            found = self.store.find(self.stage_name, self.fingerprint)
            if found is not None:
                return found
        raise BuildError(
            f"{self.title} is not built"
            + (f" in the store {self.store.location}" if self.store else "")
            + f": `vbert run RECIPE --until {self.title}` builds it"
        )

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
        return self.store.verified(manifest, name)

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
