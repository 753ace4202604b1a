"""Specs by name: the files of one folder of `data_specs`, or a .yaml file of the user's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from vbert.data.yaml import is_yaml, read_yaml
from vbert.errors import UserError, nearest

M = TypeVar("M", bound=BaseModel)

DATA_SPECS = Path(__file__).parents[2] / "data_specs"


@dataclass(frozen=True)
class SpecFolder:
    """The specs in `folder`. `what` a spec describes and the `others` accepted in place of a name are words for
    errors."""

    folder: Path
    what: str
    others: str = "your own .yaml"

    def names(self) -> list[str]:
        """Sorted."""
        return sorted(path.stem for path in self.folder.glob("*.yaml"))

    def known(self, name: str) -> str:
        """`name`, if a spec or a file has it. Raises ValueError with the nearest name otherwise."""
        if is_yaml(name) or name in self.names():
            return name
        near = nearest(name, self.names())
        raise ValueError(f"no {self.what} {name!r} in data_specs/{self.folder.name}; {near}, or give {self.others}")

    def read(self, name: str, model: type[M]) -> M:
        """The spec of that name or file, with absolute paths. Raises UserError, with file:line:column."""
        try:
            self.known(name)
        except ValueError as error:
            raise UserError(str(error)) from None
        if is_yaml(name):
            return read_yaml(Path(os.path.expanduser(name)), model)
        path = self.folder / f"{name}.yaml"
        return _read_once(path, path.stat().st_mtime_ns, model)  # type: ignore[no-any-return]


@lru_cache(maxsize=128)
def _read_once(path: Path, _changed: int, model: type[M]) -> M:
    """A graph asks for the same spec several times, and YAML is slow to parse."""
    return read_yaml(path, model)
