"""Checks of generated texts against what an image is known to hold.

A reader that knows it gives its captions a `scene`: JSON of one key, the name of a check, `{"shapes": {…}}`. A check is
a module with the function `check(text, scene) -> SceneCheck` and a line here.
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import NamedTuple

from vbert.errors import BuildError, nearest

CHECKS = {"shapes": "vbert.data.shapes.checking"}


class SceneCheck(NamedTuple):
    """says: the kind of what the text says; None: the check doesn't understand it, and then it isn't true either.
    true: nothing that it says is false of the image. named: of the `things` in the image, those that it names."""

    says: str | None
    true: bool
    named: int
    things: int


def check(text: str, scene: str) -> SceneCheck:
    """What the text says of the image that `scene` describes. Raises BuildError where no check fits `scene`."""
    try:
        ((name, content),) = json.loads(scene).items()
    except (ValueError, AttributeError):
        raise BuildError(f"scene: {scene!r:.80} is no JSON object of one key, the name of a check") from None
    if name not in CHECKS:
        raise BuildError(f"scene: unknown check {name!r:.80}; {nearest(name, CHECKS)}")
    found: SceneCheck = import_module(CHECKS[name]).check(text, content)
    return found
