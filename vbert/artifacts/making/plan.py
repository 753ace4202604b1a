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
    found: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.fingerprint in found or artifact.step is None:
            return
        for needed in artifact.step.inputs():
            visit(needed)
        found[artifact.fingerprint] = artifact

    for target in targets:
        visit(target)
    return list(found.values())


def select(artifacts: Iterable[Artifact], name: str) -> list[Artifact]:
    """Those called `regions[easy_vqa]`, or all of a stage for a bare `regions`, or of a fingerprint's beginning."""
    artifacts = list(artifacts)
    found = [a for a in artifacts if name in (a.title, a.stage_name)]
    if not found and len(name) >= 6:
        found = [a for a in artifacts if a.fingerprint.startswith(name)]
    if not found:
        names = {a.title for a in artifacts} | {a.stage_name for a in artifacts}
        raise UserError(f"no stage {name!r} in this recipe; {nearest(name, names)}")
    return found


def only(artifacts: Iterable[Artifact], name: str) -> Artifact:
    """The one that `select` finds. Raises UserError, naming them, where there are several."""
    found = select(artifacts, name)
    if len(found) > 1:
        raise UserError(f"{name} means {len(found)} artifacts; name one: {', '.join(a.title for a in found)}")
    return found[0]


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
    """What must be at hand to make `artifact`: its inputs, and what those are read through."""
    assert artifact.step is not None
    found = artifact.step.inputs()
    if artifact.step.stage.through:
        for held in list(found):
            found += held.step.inputs(held.through)
    return found


def plan(targets: Sequence[Artifact], store: Store) -> list[Planned]:
    """What a run would find and do, inputs first, and of those what checks given files (stages that are `early`).

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
    shown = [held for target in targets if target.step and target.step.stage.shows for held in target.step.inputs()]
    asked = _with_needs(order, states, {target.fingerprint for target in (*targets, *shown)})
    lost = [(a.stage_name, a.fingerprint) for a in order if states[a.fingerprint] is None]
    for _, mark in store.were_damaged(lost) if lost else ():
        damage.setdefault(mark, "was found damaged and moved away")
    needed = _with_needs(order, states, asked | set(damage))
    lines = []
    for artifact in order:
        mark = artifact.fingerprint
        found = states[mark]
        objection = None if mark in damage else artifact.bound(store).objection()
        if found is not None:
            lines.append(Planned(artifact, "present", found.size, found.seconds, objection=objection))
        elif mark not in needed:
            lines.append(Planned(artifact, "unneeded", damage=damage.get(mark)))
        else:
            begun = store.begun(artifact.stage_name, mark)
            status: Status = "missing" if begun is None else "unfinished"
            spare = mark not in asked
            lines.append(
                Planned(artifact, status, begun=begun, damage=damage.get(mark), objection=objection, spare=spare)
            )
    return lines


def _with_needs(order: Sequence[Artifact], states: Mapping[str, Manifest | None], wanted: Collection[str]) -> set[str]:
    """The fingerprints `wanted`, and all that must be made or be at hand to make those of them that are not there."""
    found = set(wanted)
    for artifact in reversed(order):
        if artifact.fingerprint in found and states[artifact.fingerprint] is None:
            found |= {held.fingerprint for held in needs(artifact)}
    return found


def refuse(lines: Iterable[Planned]) -> None:
    """Raises NotAccepted, before anything is made, where the plan holds what is not accepted."""
    if said := [line.objection for line in lines if line.objection is not None]:
        raise NotAccepted("\n".join(said))


def foresee(made: Artifact, others: Iterable[Artifact], store: Store) -> None:
    """Raises NotAccepted where one of `others` is made of `made`, whose figures tell that it won't be accepted.

    Asked when `made` is done, so that no other work is done first.
    """
    for other in others:
        reads = other.step is not None and made in other.step.inputs()
        if reads and (said := other.bound(store).objection()) is not None:
            raise NotAccepted(said)
