"""Checkpoints: the full state of the loop, written atomically and checked when read.

`checkpoints/000400/`: model.safetensors, optimizer.safetensors, mined.safetensors where samples are made with what
earlier weights said, state.json (step, curves, digests of the others and of itself). `best-000300/` holds a model
alone. Random numbers are functions of (seed, step), so no state of a generator needs keeping; the learning rate is a
function of the step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vbert.artifacts.store import durable
from vbert.artifacts.store.digests import sha256_file
from vbert.errors import BuildError

log = logging.getLogger("vbert.training")
STATE = "state.json"
KEPT = 2  # whole checkpoints kept, besides the best model


@dataclass
class TrainingState:
    """The contents of state.json. `window`: figures of the steps since the last row of `curves`; `due`: whether a row,
    with its validation, is still to be written; `mined_until`: the step up to which the part `mined` reaches."""

    digest: str
    step: int = 0
    curves: list[dict[str, float]] = field(default_factory=list)
    window: list[dict[str, float]] = field(default_factory=list)
    best_step: int = 0
    best_value: float | None = None
    due: bool = False
    mined_until: int = 0


class DamagedCheckpoint(Exception):
    """A checkpoint's bytes are not those that were written."""


class Checkpoints:
    """The checkpoints of one run in one directory. `digest` names the settings they belong to."""

    def __init__(self, directory: Path, digest: str) -> None:
        self.directory, self.digest = directory, digest

    def _named(self, prefix: str) -> dict[int, Path]:
        steps = {}
        for path in self.directory.glob(f"{prefix}*"):
            if path.is_dir() and path.name[len(prefix) :].isdigit():
                steps[int(path.name[len(prefix) :])] = path
        return dict(sorted(steps.items()))

    def save(self, state: TrainingState, parts: dict[str, dict[str, Tensor]]) -> None:
        """Write the checkpoint of `state.step`, part → tensors; keep the last two."""
        self._write(f"{state.step:06d}", asdict(state), parts)
        for path in list(self._named("").values())[:-KEPT]:
            durable.remove_tree(path)

    def save_best(self, step: int, model: dict[str, Tensor]) -> None:
        """Keep the model of `step` as the best so far."""
        earlier = self._named("best-")
        self._write(f"best-{step:06d}", {"digest": self.digest, "step": step}, {"model": model})
        for other, path in earlier.items():
            if other != step:
                durable.remove_tree(path)

    def _write(self, name: str, state: dict[str, Any], parts: dict[str, dict[str, Tensor]]) -> None:
        from safetensors.torch import save_file

        target = self.directory / name
        making = durable.make_fresh(durable.make_directories(self.directory) / f"{uuid.uuid4().hex}.part")
        try:
            files = {}
            for part, tensors in parts.items():
                path = making / f"{part}.safetensors"
                save_file(tensors, path)
                durable.sync_file(path)
                files[path.name] = sha256_file(path)
            body = json.dumps({**state, "files": files})
            sealed = {"sha256": hashlib.sha256(body.encode()).hexdigest(), "state": body}
            durable.write_file(making / STATE, json.dumps(sealed).encode())
            durable.sync_directory(making)
            durable.remove_tree(target)
            durable.rename(making, target)
        finally:
            durable.remove_tree(making)

    @staticmethod
    def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
        """(state, part → tensors), every byte compared with what was written. Raises DamagedCheckpoint."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            sealed = json.loads((path / STATE).read_bytes())
            if hashlib.sha256(sealed["state"].encode()).hexdigest() != sealed["sha256"]:
                raise DamagedCheckpoint(f"{STATE} has another sha256")
            state = json.loads(sealed["state"])
            for name, digest in state["files"].items():
                if sha256_file(path / name) != digest:
                    raise DamagedCheckpoint(f"{name} has another sha256")
            parts = {name.split(".")[0]: load_file(path / name) for name in state.pop("files")}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise DamagedCheckpoint(f"{type(error).__name__}: {error}") from None
        return state, parts

    def _belongs(self, path: Path, state: dict[str, Any]) -> None:
        if state["digest"] != self.digest:
            raise BuildError(
                f"{path} is a checkpoint of other settings: check out the commit that wrote it to go on from it, or "
                f"delete {self.directory} to train from the start"
            )

    def latest(self) -> tuple[TrainingState, dict[str, dict[str, Tensor]]] | None:
        """(state, its parts: model, optimizer, and mined where there is one) of the newest whole checkpoint, None where
        there is none.

        A damaged one is named in the log and removed. So is one whose best model is lost, unless a later best model
        is there (the best of a step behind this checkpoint, which the run will find again). Leftovers of a killed
        writer are removed: they are as large as a checkpoint.
        """
        for left in self.directory.glob("*.part"):
            durable.remove_tree(left)
        for path in reversed(self._named("").values()):
            try:
                raw, parts = self._read(path)
                self._belongs(path, raw)
                state = TrainingState(**raw)
                if state.best_step and not any(best >= state.best_step for best in self._named("best-")):
                    raise DamagedCheckpoint(f"the best model, of step {state.best_step}, is missing")
                if state.best_step in self._named("best-"):
                    self.best(state.best_step)
                return state, parts
            except DamagedCheckpoint as error:
                log.warning("checkpoint %s is damaged (%s): training goes on from the one before it", path, error)
                durable.remove_tree(path)
        return None

    def best(self, step: int) -> dict[str, Tensor]:
        """The model kept as the best, of `step`. Raises DamagedCheckpoint."""
        path = self.directory / f"best-{step:06d}"
        raw, parts = self._read(path)
        self._belongs(path, raw)
        return parts["model"]
