"""The manifest of a finished artifact: what is in it, what made it, where, and how long it took."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vbert.artifacts.store.digests import dumps, seal, sha256, unseal
from vbert.artifacts.store.files import FileEntry

NAME = "manifest.json"
FORMAT = 1
LIBRARIES = ("torch", "torchvision", "transformers", "accelerate", "numpy", "pyarrow", "pillow", "tokenizers")


class Manifest(BaseModel):
    """`alias_of` is set where an artifact made under another fingerprint is known to be this one (early cut-off)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = FORMAT
    stage: str
    version: int
    fingerprint: str
    label: str | None = None
    alias_of: str | None = None
    hashed: dict[str, Any]
    step: dict[str, Any]
    files: list[FileEntry] = []
    content: str = ""
    resolved: str = ""
    figures: dict[str, Any] = {}
    environment: dict[str, Any] = {}
    seconds: float = 0.0
    created: str = ""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def dumps(self) -> bytes:
        return seal(self.model_dump())

    @classmethod
    def loads(cls, data: bytes) -> Manifest:
        """The inverse of `dumps`. Raises ValueError where the bytes are not a whole manifest of a known format."""
        body = unseal(data)
        if body.get("format") != FORMAT:
            raise ValueError(f"format {body.get('format')}, this version reads {FORMAT}")
        try:
            return cls.model_validate(body)
        except ValidationError as error:
            raise ValueError(str(error)) from error


def content_digest(files: list[FileEntry]) -> str:
    """Digest of the sorted file names and sha256: what the artifact is, whoever made it."""
    return sha256(dumps(sorted((entry.name, entry.sha256) for entry in files)))


@lru_cache(maxsize=1)
def environment() -> dict[str, Any]:
    """Facts that can't be chosen or promised and so are recorded: processor, versions, commit."""
    libraries = {}
    for name in LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "libraries": libraries,
        **_commit(),
    }


def used_device() -> str:
    """`cpu`, or the name of the GPU that this process has put to use; torch is not imported to find out."""
    torch = sys.modules.get("torch")
    return str(torch.cuda.get_device_name()) if torch is not None and torch.cuda.is_initialized() else "cpu"


def numerics_class(recorded: dict[str, Any]) -> tuple[Any, ...]:
    """Within one of these the same bits are promised: processor family, library versions, and the kind of GPU."""
    device = recorded.get("device")
    return recorded.get("processor"), dumps(recorded.get("libraries")), None if device == "cpu" else device


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in facts.items()}
    flags = set(named.get("flags", "").split())
    widest = [flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags]
    return f"{named.get('model name', platform.machine())} ({' '.join(widest)})"


def _commit() -> dict[str, Any]:
    """Commit and dirty flag of the checkout this code runs from; None outside a checkout."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments],
                capture_output=True,
                text=True,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit, "dirty": None if commit is None else bool(git("status", "--porcelain"))}
