"""Training on regions that aren't of the contract of the start, where an entry accepts them in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vbert.artifacts.steps.stage import Figures
from vbert.model.start import Initialization
from vbert.objectives.bound import NOTE
from vbert.objectives.trained import OVERRIDDEN, Model
from vbert.regions.contract import Contract, differences, in_words, overridden


def accepted_contract(start: Model, given: Contract, accepted: Sequence[str]) -> tuple[Contract, dict[str, Any]]:
    """(the contract of a model that is trained from `start` on regions of the contract `given`, what head.json takes
    note of): OVERRIDDEN, field → the start's value and that of the regions, also of trainings before it."""
    contract = start.contract()
    different = overridden(contract, given, accepted, (f"the start ({start.title})", "the regions"))
    if different:
        contract = given.with_box_input(start.config().box_input)
    noted = {**start.head().get(OVERRIDDEN, {}), **{field: list(pair) for field, pair in different.items()}}
    return contract, {OVERRIDDEN: noted} if noted else {}


def notes(start: Model | Initialization, given: Contract) -> Figures:
    """What a manifest notes of regions of the contract `given` that were accepted although they aren't the start's."""
    different = differences(start.contract(), given) if isinstance(start, Model) else {}
    said = in_words(different, ("the start", "its regions"))
    return {"notes": [f"{NOTE}{one}" for one in said]} if said else {}
