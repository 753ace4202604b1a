"""Why a model answers as it does: the relevance of words and regions by named methods, and how well each measures.

A further method is a function of its name in `methods`, and a line in METHODS.
"""

from __future__ import annotations

from collections.abc import Sequence

from vbert.artifacts.steps.settings import Plugin
from vbert.errors import UserError, nearest

# Method → version, raised by hand when its numbers change.
METHODS = {
    "removal": 1,
    "integrated_gradients": 1,
    "gradient_attention": 1,
    "rollout": 1,
    "attention": 1,
    "random": 1,
    "size": 1,
    "detector": 1,
}
CONTROLS = ("random", "size", "detector")  # they know nothing of the model
KINDS = ("regions", "words", "both")  # of what goes; both: words and regions in one order
MEASURED = ("vqa", "nlvr2", "classification", "visual_entailment", "choice")  # objectives that choose one answer
DEFAULT = "removal"  # see `vbert.explain.methods.removal`


def methods_of(names: Sequence[str] | None) -> tuple[Plugin, ...]:
    """Methods with their versions, in the order of METHODS, random order always among them; None: all. Raises UserError
    for an unknown one, with the nearest."""
    for name in names or ():
        if name not in METHODS:
            raise UserError(f"no method {name!r} of explaining; {nearest(name, METHODS)}")
    chosen = METHODS if names is None else {*names, "random"}
    return tuple(Plugin(name=name, version=version) for name, version in METHODS.items() if name in chosen)
