"""A graph of artifacts-to-be: what is there, what is missing, why, and its building step by step in this process."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vbert.artifacts.making.build import Machine, Runner, StoreBuild, UnitsMade, attempt_directory, run_works
from vbert.artifacts.making.progress import Kept
from vbert.artifacts.steps.artifact import Artifact, Step, map_artifacts
from vbert.artifacts.steps.stage import steps_as_json
from vbert.artifacts.store import durable
from vbert.artifacts.store.disk_full import no_room, short_of_room
from vbert.artifacts.store.manifest import Manifest, environment, numerics_class
from vbert.artifacts.store.store import Store, Unconfirmed
from vbert.errors import BuildError, Damaged, NotAccepted, UserError, nearest

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
    kept: Kept | None = None  # of what is unfinished
    damage: str | None = None
    objection: str | None = None
    spare: bool = False


def needs(artifact: Artifact) -> list[Artifact]:
    """What must be at hand to make `artifact`: its inputs, and what those are read through."""
    assert artifact.step is not None
    found = artifact.step.inputs()
    if artifact.step.stage.through:
        for held in list(found):
            for name in held.through:
                found += Step(held.step.stage, {name: held.input(name)}).inputs() if held.step else []
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
    for _, mark in store.were_set_aside(lost) if lost else ():
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
            kept = store.kept(artifact.stage_name, mark)
            status: Status = "missing" if kept is None else "unfinished"
            spare = mark not in asked
            lines.append(
                Planned(artifact, status, kept=kept, damage=damage.get(mark), objection=objection, spare=spare)
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


Outcome = Literal["built", "cached", "adopted"]


@dataclass(frozen=True)
class Built:
    artifact: Artifact
    outcome: Outcome
    seconds: float
    manifest: Manifest


class Events:
    """What an engine is told while it builds; the terminal and Prefect show it. All methods may be left as they are."""

    def started(self, artifact: Artifact) -> None: ...
    def progress(self, artifact: Artifact, done: int, total: int, figures: dict[str, float]) -> None: ...
    def finished(self, built: Built) -> None: ...
    def said(self, artifact: Artifact, sentence: str) -> None: ...


@dataclass
class Engine:
    """Builds steps into a store. One engine serves one run; its methods may be called from several threads."""

    store: Store
    machine: Machine = field(default_factory=Machine)
    events: Events = field(default_factory=Events)
    run_units: Runner = run_works

    def ensure(self, artifact: Artifact) -> Built:
        """The finished artifact: found, adopted, or built now under its lock.

        Its inputs must be finished; one that turns out damaged when it is read is set aside, built again and the step
        repeated. Raises what the stage raises.
        """
        for _ in range(5):
            try:
                return self._ensure(artifact)
            except Damaged as damage:
                self._mend(artifact, damage)
        raise BuildError(f"{artifact.title}: artifacts it reads are damaged again and again; is the disk failing?")

    def _mend(self, reader: Artifact, damage: Damaged) -> None:
        self._set_aside(reader, damage)
        for artifact in walk(reader):
            if artifact.fingerprint == damage.fingerprint:
                self.ensure_all([artifact])

    def _set_aside(self, reader: Artifact, damage: Damaged) -> None:
        if (moved := self.store.set_aside(damage)) is not None:
            self.events.said(reader, f"{damage}; moved to {moved}, building it again")

    def ensure_all(self, targets: Sequence[Artifact]) -> list[Built]:
        """Build what the targets need and lack, step by step, inputs first."""
        built = []
        lines = plan(targets, self.store)
        refuse(lines)
        needed = [line.artifact for line in lines if line.status != "unneeded"]
        for line in lines:
            if line.damage:
                stage, mark = line.artifact.stage_name, line.artifact.fingerprint
                try:
                    self.store.find(stage, mark)
                except Damaged as damage:
                    self._set_aside(line.artifact, damage)
            if line.status == "unneeded":
                continue
            made = self.bring_back(line.artifact) if line.spare else self.ensure(line.artifact)
            if made is not None:
                built.append(made)
                foresee(line.artifact, needed, self.store)
        return built

    def bring_back(self, artifact: Artifact) -> Built | None:
        """`ensure` what nothing that is asked for needs; where that can't be, it is said and nothing ends: None."""
        try:
            return self.ensure(artifact)
        except (BuildError, UserError) as error:
            said = str(error).partition("\n")[0]
            self.events.said(
                artifact,
                f"{artifact.title} was found damaged and can't be made again ({said}); what is asked for stands "
                "without it, and `vbert gc` forgets it",
            )
            return None

    def _ensure(self, artifact: Artifact) -> Built:
        stage, mark = artifact.stage_name, artifact.fingerprint
        if (found := self.store.find(stage, mark)) is not None:
            return self._finish(artifact, "cached", 0.0, found)
        if self.store.read_only():
            raise BuildError(
                f"{artifact.title} is missing and the store {self.store.location} is read-only for this user"
            )
        self.store.prepare()
        with self.store.lock(mark, lambda who: self._waits(artifact, who)):
            if (found := self.store.find(stage, mark)) is not None:
                return self._finish(artifact, "cached", 0.0, found)
            for held in artifact.step.inputs() if artifact.step else []:
                held.bound(self.store).manifest  # noqa: B018  raises where an input is not built
            bound = artifact.bound(self.store)
            assert bound.step is not None
            resolved = self._bound_step(bound).resolved()
            if (same := self.store.resolved(stage, resolved)) is not None:
                self.store.adopt(self._record(bound, {}, 0.0, resolved, environment()), same)
                return self._finish(artifact, "adopted", 0.0, same)
            self._accept(artifact)  # what its inputs tell
            began = time.monotonic()
            self.events.started(artifact)
            try:
                published = self._build(bound, resolved)
            except Unconfirmed:
                raise
            except Exception as error:
                # Where locks don't hold, another builder may have published and cleared away the units read here.
                if (found := self.store.find(stage, mark)) is None:
                    if not isinstance(error, BuildError) and (full := no_room(error)) is not None:
                        raise short_of_room(artifact.title, full, self.store.root) from error
                    raise
                self.store.clear(stage, mark)
                return self._finish(artifact, "cached", 0.0, found)
            return self._finish(artifact, "built", time.monotonic() - began, published)

    def _waits(self, artifact: Artifact, who: str) -> None:
        self.events.said(artifact, f"{artifact.title}: waiting for {who}")

    def _finish(self, artifact: Artifact, outcome: Outcome, seconds: float, found: Manifest) -> Built:
        built = Built(artifact, outcome, seconds, found)
        self.events.finished(built)
        self._accept(artifact)
        return built

    def _accept(self, artifact: Artifact) -> None:
        if (said := artifact.bound(self.store).objection()) is not None:
            raise NotAccepted(said)

    def _bound_step(self, artifact: Artifact) -> Step:
        assert artifact.step is not None
        arguments = map_artifacts(dict(artifact.step.arguments), lambda a: a.bound(self.store))
        return Step(artifact.step.stage, arguments)

    def _record(
        self, artifact: Artifact, figures: dict[str, Any], seconds: float, resolved: str, made_in: dict[str, Any]
    ) -> Manifest:
        assert artifact.step is not None
        return Manifest(
            stage=artifact.stage_name,
            version=artifact.step.stage.version,
            fingerprint=artifact.fingerprint,
            label=artifact.label,
            hashed=artifact.step.hashed,
            step=steps_as_json(artifact),
            resolved=resolved,
            figures=figures,
            environment=made_in,
            seconds=round(seconds, 3),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    def _build(self, artifact: Artifact, resolved: str) -> Manifest:
        with self.building(artifact) as build:
            figures, seconds = self.make(artifact, build)
            record = self._record(artifact, figures, seconds, resolved, build.environment)
            same_bits = artifact.step is None or artifact.step.stage.same_bits
            published = self.store.publish(build.directory, record, build.hashed, build.say, same_bits)
        self.store.clear(artifact.stage_name, artifact.fingerprint)
        return published

    def make_units(self, artifact: Artifact, which: range) -> UnitsMade | Built:
        """Make units number `which` of the artifact's plan and no more; any number of workers may do so at once.

        Of a finished artifact there is nothing to make.
        """
        stage, mark = artifact.stage_name, artifact.fingerprint
        if (found := self.store.find(stage, mark)) is not None:
            return self._finish(artifact, "cached", 0.0, found)
        self.store.prepare()
        self._accept(artifact)
        bound = artifact.bound(self.store)
        with self.building(bound) as build:
            build.only = which
            try:
                self.make(bound, build)
                raise build.not_of_units()
            except UnitsMade as made:
                ended: Exception = made
            except Exception as error:
                ended = error
        if (found := self.store.find(stage, mark)) is not None:
            # Whoever published in the meantime has cleared away what was being made here.
            self.store.clear(stage, mark)
            return self._finish(artifact, "cached", 0.0, found)
        if not isinstance(ended, UnitsMade):
            raise ended
        return ended

    @contextmanager
    def building(self, artifact: Artifact) -> Iterator[StoreBuild]:
        """A `Build` for `artifact` with a fresh directory, cleared away unless it was published."""
        unfinished = durable.make_directories(
            self.store.unfinished(artifact.stage_name, artifact.fingerprint), sync=False
        )
        self.store.describe(artifact.stage_name, artifact.fingerprint, steps_as_json(artifact))
        directory = self.store.begin(artifact.fingerprint)
        try:
            with durable.group_umask(directory):
                yield StoreBuild(
                    artifact=artifact,
                    store=self.store,
                    machine=self.machine,
                    run_units=self.run_units,
                    show=lambda done, total, **figures: self.events.progress(artifact, done, total, figures),
                    directory=directory,
                    scratch=attempt_directory(unfinished),
                    retries=artifact.step.stage.retries if artifact.step else 0,
                    say=lambda sentence: self.events.said(artifact, sentence),
                )
        finally:
            self.store.abandon(directory)

    def make(self, artifact: Artifact, build: StoreBuild) -> tuple[dict[str, Any], float]:
        """Run the stage's function. Returns its figures and the wall seconds it took."""
        step = self._bound_step(artifact)
        began = time.monotonic()
        figures = step.stage.function(build, **step.arguments)
        return figures, time.monotonic() - began

    def compare(self, artifact: Artifact) -> list[str]:
        """Build a finished artifact again, aside, and name the files whose bits differ. Replaces nothing."""
        standing = self.store.find(artifact.stage_name, artifact.fingerprint)
        if standing is None:
            raise BuildError(f"{artifact.title} is not built, so there is nothing to compare with")
        bound = artifact.bound(self.store)
        with self.store.lock(artifact.fingerprint, lambda who: self._waits(artifact, who)):
            self.store.clear(artifact.stage_name, artifact.fingerprint)  # what is kept there would be compared
            with self.building(bound) as build:
                self.make(bound, build)
                again = {
                    path.relative_to(build.directory).as_posix(): durable.sha256_file(path)
                    for path in build.directory.rglob("*")
                    if path.is_file()
                }
            self.store.clear(artifact.stage_name, artifact.fingerprint)
        before = {entry.name: entry.sha256 for entry in standing.files}
        different = sorted(name for name in before.keys() | again.keys() if before.get(name) != again.get(name))
        there, here = numerics_class(standing.environment), numerics_class(build.environment)
        if different and there != here:
            changes = " and ".join(f"{was} → {now}" for was, now in zip(there, here, strict=True) if was != now)
            self.events.said(artifact, f"{artifact.title}: other bits are allowed, it was made elsewhere: {changes}")
        return different


def build_here(
    targets: Sequence[Artifact], store: Store | Path | str, machine: Machine | None = None, events: Events | None = None
) -> list[Artifact]:
    """Build the targets in this process, without Prefect. Returns them bound to the store."""
    at = store if isinstance(store, Store) else Store(store)
    Engine(at, machine or Machine(), events or Events()).ensure_all(targets)
    return [target.bound(at) for target in targets]
