"""The plan of a graph of artifacts-to-be: what is there, what is missing, and what speaks against it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.store.begun import Begun
from vbert.artifacts.store.manifest import Manifest
from vbert.artifacts.store.store import Store
from vbert.errors import Damaged, NotAccepted, UserError, nearest

Status = Literal["present", "unfinished", "missing", "unneeded"]


def walk(*targets: Artifact) -> list[Artifact]:
    """Every artifact the targets rest on, each fingerprint once, inputs before what is made of them."""
    order: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.fingerprint in order or artifact.step is None:
            return
        for needed in artifact.step.inputs():
            visit(needed)
        order[artifact.fingerprint] = artifact

    for target in targets:
        visit(target)
    return list(order.values())


def select(artifacts: Iterable[Artifact], name: str) -> list[Artifact]:
    """Those called `regions[easy_vqa]`, or all of a stage for a bare `regions`, or of a fingerprint's beginning."""
    artifacts = list(artifacts)
    matching = [a for a in artifacts if name in (a.title, a.stage_name)]
    if not matching and len(name) >= 6:
        matching = [a for a in artifacts if a.fingerprint.startswith(name)]
    if not matching:
        names = {a.title for a in artifacts} | {a.stage_name for a in artifacts}
        raise UserError(f"no stage {name!r} in this recipe; {nearest(name, names)}")
    return matching


def only(artifacts: Iterable[Artifact], name: str) -> Artifact:
    """The one that `select` finds. Raises UserError, naming them, where there are several."""
    matching = select(artifacts, name)
    if len(matching) > 1:
        raise UserError(f"{name} means {len(matching)} artifacts; name one: {', '.join(a.title for a in matching)}")
    return matching[0]


@dataclass(frozen=True)
class Planned:
    """A line of a plan. `size` in bytes and `seconds` of its making are of the artifact where it is present.

    `objection`: why it is not accepted, or won't be; see `Artifact.objection`. `spare`: it is to be made for no other
    reason than that it was found damaged.
    """

    artifact: Artifact
    status: Status
    size: int = 0
    seconds: float = 0.0
    begun: Begun | None = None  # of what is unfinished
    damage: str | None = None
    objection: str | None = None
    spare: bool = False


def needs(artifact: Artifact) -> list[Artifact]:
    """Everything that must be at hand to make `artifact`: its inputs, and the files that those are read through."""
    assert artifact.step is not None
    needed: list[Artifact] = artifact.step.inputs()
    if artifact.step.stage.through:
        for made in list(needed):
            needed += made.step.inputs(made.through) if made.step else []
    return needed


def plan(targets: Sequence[Artifact], store: Store) -> list[Planned]:
    """Everything that a run would find and do, checks of given files first (`early` stages), then inputs first.

    Nothing behind a finished artifact is needed, but for what a target shows, and for what was found damaged, whether
    here (without reading contents) or by `verify`, which moved it away: that counts as missing and is told in the line.
    """
    whole = walk(*targets)
    order = walk(*(a for a in whole if a.step is not None and a.step.stage.early), *whole)
    states: dict[str, Manifest | None] = {}
    damage: dict[str, str] = {}
    for artifact in order:
        try:
            states[artifact.fingerprint] = store.find(artifact.stage_name, artifact.fingerprint)
        except Damaged as error:
            states[artifact.fingerprint] = None
            damage[artifact.fingerprint] = str(error)
    shown = [made for target in targets if target.step and target.step.stage.shows for made in target.step.inputs()]
    asked = _with_needs(order, states, {target.fingerprint for target in (*targets, *shown)})
    lost = [(a.stage_name, a.fingerprint) for a in order if states[a.fingerprint] is None]
    for _, fingerprint in store.were_damaged(lost) if lost else ():
        damage.setdefault(fingerprint, "was found damaged and moved away")
    needed = _with_needs(order, states, asked | set(damage))
    lines = []
    for artifact in order:
        fingerprint = artifact.fingerprint
        manifest = states[fingerprint]
        objection = None if fingerprint in damage else artifact.bound(store).objection()
        if manifest is not None:
            lines.append(Planned(artifact, "present", manifest.size, manifest.seconds, objection=objection))
        elif fingerprint not in needed:
            lines.append(Planned(artifact, "unneeded", damage=damage.get(fingerprint)))
        else:
            begun = store.begun(artifact.stage_name, fingerprint)
            status: Status = "missing" if begun is None else "unfinished"
            spare = fingerprint not in asked
            lines.append(
                Planned(artifact, status, begun=begun, damage=damage.get(fingerprint), objection=objection, spare=spare)
            )
    return lines


def _with_needs(order: Sequence[Artifact], states: Mapping[str, Manifest | None], wanted: Collection[str]) -> set[str]:
    """The fingerprints `wanted`, and all that must be made or be at hand to make those of them that are not there."""
    needed = set(wanted)
    for artifact in reversed(order):
        if artifact.fingerprint in needed and states[artifact.fingerprint] is None:
            needed |= {made.fingerprint for made in needs(artifact)}
    return needed


def refuse(lines: Iterable[Planned]) -> None:
    """Raises NotAccepted, before anything is made, where the plan holds what is not accepted."""
    if objections := [line.objection for line in lines if line.objection is not None]:
        raise NotAccepted("\n".join(objections))


def foresee(made: Artifact, others: Iterable[Artifact], store: Store) -> None:
    """Raises NotAccepted where one of `others` is made of `made`, whose figures tell that it won't be accepted.

    Asked when `made` is done, so that no other work is done first.
    """
    for other in others:
        reads = other.step is not None and made in other.step.inputs()
        if reads and (objection := other.bound(store).objection()) is not None:
            raise NotAccepted(objection)
