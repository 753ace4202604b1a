"""Estimates of missing steps: seconds and bytes of one like it, scaled by the amounts that they grow with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vbert.artifacts.making.plan import Planned
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.store.begun import Begun
from vbert.artifacts.store.manifest import Manifest
from vbert.artifacts.store.store import Store


@dataclass(frozen=True)
class Estimate:
    """None where nothing like it was ever made here."""

    seconds: float | None = None
    size: float | None = None

    def without(self, begun: Begun | None) -> Estimate:
        """Of what is left to do."""
        if self.seconds is None or begun is None or not begun.total:
            return self
        return replace(self, seconds=self.seconds * max(0.0, 1 - begun.done / begun.total))


def estimates(lines: Iterable[Planned], store: Store) -> dict[str, Estimate]:
    """Fingerprint → estimate of every line that a run would build.

    Each is measured against the newest finished artifact of its stage, one with the same label where there is one.
    """
    missing = [line for line in lines if line.status in ("missing", "unfinished")]
    if not missing:
        return {}
    seen = _Seen([manifest for manifest in store.manifests() if manifest.alias_of is None])
    return {line.artifact.fingerprint: seen.estimate(line.artifact).without(line.begun) for line in missing}


class _Seen:
    def __init__(self, manifests: Sequence[Manifest]) -> None:
        self._made = {manifest.fingerprint: manifest for manifest in manifests}
        self._newest = sorted(manifests, key=lambda manifest: manifest.created, reverse=True)

    def estimate(self, artifact: Artifact) -> Estimate:
        assert artifact.step is not None
        cost, alike = artifact.step.stage.cost, self._alike(artifact)
        outright = None if cost.bytes_are is None else _number(_at(artifact.step.hashed["arguments"], cost.bytes_are))
        if alike is None:
            return Estimate(None, outright)
        seconds, size = self._ratio(artifact, alike, cost.seconds_by), self._ratio(artifact, alike, cost.bytes_by)
        return Estimate(
            None if seconds is None else alike.seconds * seconds,
            outright if outright is not None else None if size is None else alike.size * size,
        )

    def _alike(self, artifact: Artifact) -> Manifest | None:
        of_stage = [manifest for manifest in self._newest if manifest.stage == artifact.stage_name]
        return next((manifest for manifest in of_stage if manifest.label == artifact.label), next(iter(of_stage), None))

    def _ratio(self, artifact: Artifact, alike: Manifest, by: Sequence[str]) -> float | None:
        """How much more of it there is than in `alike`; None where that can't be known yet."""
        assert artifact.step is not None
        inputs = {value.fingerprint: value for value in artifact.step.inputs()}
        ratio = 1.0
        for name in by:
            new = self._amount(artifact.step.hashed["arguments"], name, inputs)
            old = self._amount(alike.hashed["arguments"], name, {})
            if new is None or not old:
                return None
            ratio *= new / old
        return ratio

    def _amount(self, arguments: Any, name: str, inputs: Mapping[str, Artifact]) -> float | None:
        head, star, tail = name.partition(".*.")
        if star:
            parts = _at(arguments, head)
            each = [self._value(part, tail, inputs) for part in parts.values()] if isinstance(parts, dict) else [None]
            return None if None in each else sum(value for value in each if value is not None)
        return self._value(arguments, name, inputs)

    def _value(self, value: Any, name: str, inputs: Mapping[str, Artifact]) -> float | None:
        for part in name.split("."):
            if isinstance(value, dict) and set(value) == {"artifact"}:
                return self._figure(value["artifact"], part, inputs)
            value = value.get(part) if isinstance(value, dict) else None
        return _number(value)

    def _figure(self, fingerprint: str, name: str, inputs: Mapping[str, Artifact]) -> float | None:
        """A figure of an input: of the finished one, else what it will be, from one like it."""
        made = self._made.get(fingerprint)
        if made is not None:
            return _number(made.figures.get(name))
        wanted = inputs.get(fingerprint)
        alike = None if wanted is None else self._alike(wanted)
        if wanted is None or alike is None or wanted.step is None:
            return None
        known, ratio = _number(alike.figures.get(name)), self._ratio(wanted, alike, wanted.step.stage.cost.bytes_by)
        return None if known is None or ratio is None else known * ratio


def _at(value: Any, name: str) -> Any:
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
