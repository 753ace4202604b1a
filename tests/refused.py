"""Errors are held to what they name (file, line, field, the value to give), not to their wording."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vbert.errors import BuildError, UserError
from vbert.regions.interop.raw_regions import BadEntry


@contextmanager
def refused(
    *named: object, error: type[Exception] | tuple[type[Exception], ...] = (UserError, BuildError, BadEntry)
) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """What runs inside raises `error`, whose one sentence names all of `named`, in any order."""
    with pytest.raises(error) as caught:
        yield caught
    absent = [str(name) for name in named if str(name) not in str(caught.value)]
    assert not absent, f"{absent} not named in: {caught.value}"
