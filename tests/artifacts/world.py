"""A store of either kind: on a path, or in a bucket with machines that share nothing but it."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from artifacts import toy
from artifacts.s3 import Site, whole_files

from vbert.artifacts.making.engine import Built, Engine, Events
from vbert.artifacts.making.plan import walk
from vbert.artifacts.making.work import make_unit
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Build, Figures, stage
from vbert.artifacts.steps.step_json import steps_as_json
from vbert.artifacts.store import durable
from vbert.artifacts.store.lease import Lease
from vbert.artifacts.store.owner import Owner, _started
from vbert.artifacts.store.store import Store

DAY = 86_400.0


class World(Protocol):
    """Names are those of files below the root of the store, with `/`."""

    kind: str
    store: Store

    def another(self, machine: str = "another") -> Store:
        """The same store as another process sees it or, of one in a bucket, another machine without local copies."""

    def names(self, folder: str = "") -> list[str]:
        """All names below the folder, sorted."""

    def read(self, name: str) -> bytes: ...

    def write(self, name: str, data: bytes) -> None: ...

    def delete(self, name: str) -> None: ...

    def age(self, name: str, seconds: float) -> None:
        """Have the file, or all in the folder, be written so much earlier; what is local of it too."""

    def builder(self, fingerprint: str) -> None:
        """Somebody else builds it now: a live process, or another machine."""


class PathWorld:
    kind = "path"

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)

    def another(self, machine: str = "another") -> Store:
        return Store(self.root)

    def names(self, folder: str = "") -> list[str]:
        found = (self.root / folder).rglob("*")
        return sorted(path.relative_to(self.root).as_posix() for path in found if not path.is_dir())

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.chmod(0o644)
        path.write_bytes(data)
        path.chmod(0o444)

    def delete(self, name: str) -> None:
        (self.root / name).unlink()

    def age(self, name: str, seconds: float) -> None:
        age(self.root / name, seconds)

    def builder(self, fingerprint: str) -> None:
        parent = os.getppid()
        live = Owner(**{**vars(Owner.current()), "pid": parent, "started": _started(str(parent)) or ""})
        live.write(self.root / "locks" / f"{fingerprint}.holder")


class BucketWorld:
    kind = "bucket"

    def __init__(self, site: Site) -> None:
        self.site = site
        self.store = Store(site.url)

    def another(self, machine: str = "another") -> Store:
        self.site.machine(machine)
        return Store(self.site.url)

    def names(self, folder: str = "") -> list[str]:
        return self.site.keys(f"{folder}/" if folder else "")

    def read(self, name: str) -> bytes:
        return self.site.read(name)

    def write(self, name: str, data: bytes) -> None:
        self.site.server.put(self.site.bucket, self.site.key(name), data)

    def delete(self, name: str) -> None:
        self.site.server.delete(self.site.bucket, self.site.key(name))

    def age(self, name: str, seconds: float) -> None:
        self.site.age(name, seconds)
        age(self.store.root / name, seconds)

    def builder(self, fingerprint: str) -> None:
        client = Store(self.site.url).files.client  # type: ignore[attr-defined]
        body = Lease(client, "x")._body().replace(os.uname().nodename.encode(), b"another-host")
        client.put(f"locks/{fingerprint}.json", body)


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    for at in [path, *path.rglob("*")]:
        with suppress(FileNotFoundError):
            os.utime(at, (then, then), follow_symlinks=False)


def dead() -> Owner:
    """A process of this machine that is gone."""
    return Owner(**{**vars(Owner.current()), "pid": 2**22 + 1})


def artifacts(world: World) -> dict[str, bytes]:
    """Every file of every artifact but the manifests, which record times: `stage/fingerprint/name` → bytes."""
    return whole_files(world.names("artifacts"), world.read)


def manifest_name(artifact: Artifact) -> str:
    return f"artifacts/{artifact.stage_name}/{artifact.fingerprint}/manifest.json"


def file_name(world: World, artifact: Artifact, file: str) -> str:
    """Of a file of a finished artifact, wherever its content lies."""
    base = f"artifacts/{artifact.stage_name}/{artifact.fingerprint}"
    (name,) = (name for name in world.names(base) if name.endswith(f"/{file}"))
    return name


def unit_name(world: World, artifact: Artifact, key: str, file: str) -> str:
    """Of a file of a committed unit, or of its record."""
    base = f"unfinished/{artifact.stage_name}/{artifact.fingerprint}/units/{key}"
    (name,) = (name for name in world.names(base) if name.endswith(f"/{file}"))
    return name


def spoil(world: World, name: str, how: str) -> None:
    """Lose a file (`gone`), its last two bytes (`short`), or a bit of its first (`flipped`)."""
    data = world.read(name)
    if how == "gone":
        world.delete(name)
    elif how == "short":
        world.write(name, data[:-2])
    else:
        world.write(name, bytes([data[0] ^ 1]) + data[1:])


def replace_manifest(world: World, artifact: Artifact, **fields: object) -> None:
    """Put a manifest with other fields, sealed as one is."""
    from vbert.artifacts.store.digests import seal, unseal

    name = manifest_name(artifact)
    world.write(name, seal(unseal(world.read(name)) | json.loads(json.dumps(fields))))


def in_process(title: str, works: object, done: object) -> None:
    """A runner of units that starts no child."""
    for work in works:  # type: ignore[attr-defined]
        done(make_unit(work))  # type: ignore[operator]


@stage("both_doubled", makes=toy.Numbers, version=1)
def doubled(build: Build, numbers: toy.Numbers) -> Figures:
    """Made of an input, and by no child process."""
    (build.directory / "numbers.json").write_text(json.dumps([2 * n for n in numbers.read()]))
    return {}


def pair(count: int, order: str = "up") -> toy.Numbers:
    return doubled(toy.numbers(count, order))


class Heard(Events):
    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.outcomes: dict[str, str] = {}

    def message(self, artifact: Artifact, sentence: str) -> None:
        self.sentences.append(sentence)

    def finished(self, built: Built) -> None:
        self.outcomes[built.artifact.title] = built.outcome


def made(store: Store, *targets: Artifact) -> Heard:
    heard = Heard()
    Engine(store, events=heard, run_units=in_process).ensure_all(targets)
    return heard


def marks(*targets: Artifact) -> set[str]:
    return {artifact.fingerprint for target in targets for artifact in walk(target)}


def there(world: World) -> set[str]:
    """Fingerprints of all that lies in artifacts/."""
    return {name.split("/")[2] for name in world.names("artifacts")}


def run(store: Store, run_id: str, target: Artifact, **record: Any) -> None:
    steps = [artifact.fingerprint for artifact in walk(target)]
    known = {"recipe": "toy", "targets": [target.fingerprint], "steps": steps, "started": time.time(), "status": "done"}
    store.record_run(run_id, known | record)


def built(world: World, *targets: Artifact) -> Store:
    """Built longer ago than the grace."""
    for target in targets:
        made(world.store, target)
    world.age("artifacts", 8 * DAY)
    return world.store


def unfinished(store: Store, target: Artifact) -> None:
    """As a builder of `target` that is dead left it."""
    store.prepare()
    store.describe(target.stage_name, target.fingerprint, steps_as_json(target))
    scratch = durable.make_directories(store.unfinished(target.stage_name, target.fingerprint) / "scratch")
    (scratch / "1" / "content").mkdir(parents=True, exist_ok=True)
    (scratch / "1" / "content" / "checkpoint").write_text("here")
    dead().write(scratch / "1.owner")
