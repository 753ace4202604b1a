"""The engine: builds what a plan lacks, step by step, each under its lock."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vbert.artifacts.making.attempts import new_attempt
from vbert.artifacts.making.build import StoreBuild
from vbert.artifacts.making.plan import foresee, plan, refuse, walk
from vbert.artifacts.making.work import Runner, UnitsMade, run_works
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.fingerprint import canonical
from vbert.artifacts.steps.stage import Machine
from vbert.artifacts.steps.step import Step, map_products
from vbert.artifacts.steps.step_json import steps_as_json
from vbert.artifacts.store import durable
from vbert.artifacts.store.digests import sha256_file
from vbert.artifacts.store.disk_full import no_room, short_of_room
from vbert.artifacts.store.local_files import Unconfirmed
from vbert.artifacts.store.manifest import Manifest, environment, numerics_class
from vbert.artifacts.store.store import Store
from vbert.errors import BuildError, Damaged, NotAccepted, UserError

Outcome = Literal["built", "cached", "adopted"]


@dataclass(frozen=True)
class Built:
    artifact: Artifact
    outcome: Outcome
    seconds: float
    manifest: Manifest


class Events:
    """Reports of an engine while it builds, for the terminal and Prefect. A subclass overrides those it wants."""

    def started(self, artifact: Artifact) -> None: ...
    def progress(self, artifact: Artifact, done: int, total: int, figures: dict[str, float]) -> None: ...
    def finished(self, built: Built) -> None: ...
    def message(self, artifact: Artifact, sentence: str) -> None: ...


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
        self._quarantine(reader, damage)
        for artifact in walk(reader):
            if artifact.fingerprint == damage.fingerprint:
                self.ensure_all([artifact])

    def _quarantine(self, reader: Artifact, damage: Damaged) -> None:
        if (moved := self.store.quarantine(damage)) is not None:
            self.events.message(reader, f"{damage}; moved to {moved}, building it again")

    def ensure_all(self, targets: Sequence[Artifact]) -> list[Built]:
        """Build what the targets need and lack, step by step, inputs first."""
        built = []
        lines = plan(targets, self.store)
        refuse(lines)
        needed = [line.artifact for line in lines if line.status != "unneeded"]
        for line in lines:
            if line.damage:
                stage, fingerprint = line.artifact.stage_name, line.artifact.fingerprint
                try:
                    self.store.find(stage, fingerprint)
                except Damaged as damage:
                    self._quarantine(line.artifact, damage)
            if line.status == "unneeded":
                continue
            made = self.bring_back(line.artifact) if line.spare else self.ensure(line.artifact)
            if made is not None:
                built.append(made)
                foresee(line.artifact, needed, self.store)
        return built

    def bring_back(self, artifact: Artifact) -> Built | None:
        """`ensure` what nothing that is asked for needs; where that can't be, it is told and nothing ends: None."""
        try:
            return self.ensure(artifact)
        except (BuildError, UserError) as error:
            reason = str(error).partition("\n")[0]
            self.events.message(
                artifact,
                f"{artifact.title} was found damaged and can't be made again ({reason}); what is asked for stands "
                "without it, and `vbert gc` forgets it",
            )
            return None

    def _ensure(self, artifact: Artifact) -> Built:
        stage, fingerprint = artifact.stage_name, artifact.fingerprint
        if (manifest := self.store.find(stage, fingerprint)) is not None:
            return self._finish(artifact, "cached", 0.0, manifest)
        if self.store.read_only():
            raise BuildError(
                f"{artifact.title} is missing and the store {self.store.location} is read-only for this user"
            )
        self._prepare(artifact)
        with self.store.lock(fingerprint, lambda who: self._waits(artifact, who)):
            if (manifest := self.store.find(stage, fingerprint)) is not None:
                return self._finish(artifact, "cached", 0.0, manifest)
            for made in artifact.step.inputs() if artifact.step else []:
                made.bound(self.store).manifest  # noqa: B018  raises where an input is not built
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
                if (manifest := self.store.find(stage, fingerprint)) is None:
                    if not isinstance(error, BuildError) and (full := no_room(error)) is not None:
                        raise short_of_room(artifact.title, full, self.store.root) from error
                    raise
                self.store.clear(stage, fingerprint)
                return self._finish(artifact, "cached", 0.0, manifest)
            return self._finish(artifact, "built", time.monotonic() - began, published)

    def _prepare(self, artifact: Artifact) -> None:
        self.store.prepare()
        if self.store.upgrade():
            sentence = f"{self.store.location} is of a later format now: earlier versions of vbert can't open it"
            self.events.message(artifact, sentence)

    def _waits(self, artifact: Artifact, who: str) -> None:
        self.events.message(artifact, f"{artifact.title}: waiting for {who}")

    def _finish(self, artifact: Artifact, outcome: Outcome, seconds: float, manifest: Manifest) -> Built:
        built = Built(artifact, outcome, seconds, manifest)
        self.events.finished(built)
        self._accept(artifact)
        return built

    def _accept(self, artifact: Artifact) -> None:
        if (objection := artifact.bound(self.store).objection()) is not None:
            raise NotAccepted(objection)

    def _bound_step(self, artifact: Artifact) -> Step:
        assert artifact.step is not None
        arguments = map_products(dict(artifact.step.arguments), lambda a: a.bound(self.store))
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
            figures=canonical(figures, where=f"{artifact.title}: figures"),
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
        stage, fingerprint = artifact.stage_name, artifact.fingerprint
        if (manifest := self.store.find(stage, fingerprint)) is not None:
            return self._finish(artifact, "cached", 0.0, manifest)
        self._prepare(artifact)
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
        if (manifest := self.store.find(stage, fingerprint)) is not None:
            # Whoever published in the meantime has cleared away what was being made here.
            self.store.clear(stage, fingerprint)
            return self._finish(artifact, "cached", 0.0, manifest)
        if not isinstance(ended, UnitsMade):
            raise ended
        return ended

    @contextmanager
    def building(self, artifact: Artifact) -> Iterator[StoreBuild]:
        """A `Build` for `artifact` in a fresh directory, cleared away unless it was published."""
        unfinished = self.store.unfinished(artifact.stage_name, artifact.fingerprint)
        durable.make_directories(unfinished, sync=False)
        self.store.describe(artifact.stage_name, artifact.fingerprint, steps_as_json(artifact))
        with durable.group_umask(unfinished):
            build = StoreBuild(
                artifact=artifact,
                store=self.store,
                machine=self.machine,
                run_units=self.run_units,
                show=lambda done, total, **figures: self.events.progress(artifact, done, total, figures),
                attempt=new_attempt(unfinished, self.store.root),
                retries=artifact.step.stage.retries if artifact.step else 0,
                say=lambda sentence: self.events.message(artifact, sentence),
            )
            try:
                yield build
            finally:
                durable.remove_tree(build.directory)

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
                    path.relative_to(build.directory).as_posix(): sha256_file(path)
                    for path in build.directory.rglob("*")
                    if path.is_file()
                }
            self.store.clear(artifact.stage_name, artifact.fingerprint)
        before = {entry.name: entry.sha256 for entry in standing.files}
        different = sorted(name for name in before.keys() | again.keys() if before.get(name) != again.get(name))
        there, here = numerics_class(standing.environment), numerics_class(build.environment)
        if different and there != here:
            changes = " and ".join(f"{was} → {now}" for was, now in zip(there, here, strict=True) if was != now)
            self.events.message(artifact, f"{artifact.title}: other bits are allowed, it was made elsewhere: {changes}")
        return different


def build_here(
    targets: Sequence[Artifact], store: Store | Path | str, machine: Machine | None = None, events: Events | None = None
) -> list[Artifact]:
    """Build the targets in this process, without Prefect. Returns them bound to the store."""
    at = store if isinstance(store, Store) else Store(store)
    Engine(at, machine or Machine(), events or Events()).ensure_all(targets)
    return [target.bound(at) for target in targets]
