"""Distillation (Hinton, Vinyals and Dean 2015): a model learns from the probabilities of its teacher's answers too.

The teacher reads each training batch itself, in eval mode and without gradients. What it gives is then a function of
the batch, as all else in a step: a run that goes on ends in the same bits, examples whose inputs are drawn have the
answers to those inputs, and nothing is kept: the logits of VQA v2's training questions alone are 5 GB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vbert.errors import UserError
from vbert.objectives import Objective, same_task
from vbert.objectives.batches import Batch
from vbert.objectives.entry import DownstreamSettings, Head
from vbert.objectives.trained import Model
from vbert.regions.contract import check

if TYPE_CHECKING:
    from vbert.model.config import VisualBertConfig
    from vbert.model.vocabulary import Vocabulary
    from vbert.regions.shards import Shards

LABELS, TEACHER = "labels", "teacher"  # the two losses
OWN = {"max_text", "name", "digest", "objective", "protocol", "segment", "types", "evaluated_types"}  # may differ


class Teacher:
    """A trained model as the teacher of another: its logits for the other's batches, and the loss against them."""

    def __init__(self, model: Model, objective: Objective, settings: DownstreamSettings, bf16: bool) -> None:
        self.model, self.objective, self.head, self.bf16 = model.load().eval(), objective, model.head(), bf16
        self.temperature, self.weight = settings.teacher_temperature, settings.teacher_weight

    @property
    def weights(self) -> dict[str, float]:
        """Of the losses in their sum."""
        return {LABELS: 1 - self.weight, TEACHER: self.weight}

    def counts(self, own: Mapping[str, int], batch: Batch) -> dict[str, int]:
        """With the teacher's: its loss is a mean over examples. own: the objective's."""
        return {**_renamed(own), TEACHER: int(batch.tensors["example"][-1]) + 1}

    def losses(self, own: Mapping[str, Tensor], outputs: Any, batch: Batch) -> dict[str, Tensor]:
        """With the teacher's, summed over the batch. own: the objective's; outputs: the student's."""
        device = batch.packed.order.device
        self.model.to(device)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
            given = self.model(batch.packed)
        mine, its = (self.objective.logits(of, batch.tensors, self.head) for of in (outputs, given))
        return {**_renamed(own), TEACHER: imitation(mine, its, self.temperature)}


def _renamed(own: Mapping[str, Any]) -> dict[str, Any]:
    """A single loss is called "loss", as the sum with the teacher's is."""
    return {LABELS if name == "loss" else name: value for name, value in own.items()}


def imitation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² Σ KL(softmax(teacher / T) ‖ softmax(student / T)) over the last dimension of logits, whose gradient is that of
    the paper's cross entropy; by T² it weighs the same at every T. -inf in both: an answer that isn't there."""
    its = (teacher.float() / temperature).softmax(-1)
    mine = (student.float() / temperature).log_softmax(-1)
    mine = mine.masked_fill(its == 0, 0.0)  # 0 · -inf
    return temperature**2 * (torch.xlogy(its, its) - its * mine).sum()


def taught_head(teacher: Model, name: str, head: Head, given: bool) -> Head:
    """The student's head with the labels of its teacher, in their order. name: the student's objective; given: whether
    its labels are those of a file. Raises UserError where the teacher answers something else."""
    theirs, ours = teacher.head(), head.get("labels", [])
    if not same_task(str(theirs.get("objective")), name):
        raise UserError(
            f"teacher {teacher.title} is of objective {theirs.get('objective')}, not {name}: name one of the same "
            "objective"
        )
    known = theirs.get("labels", [])
    if unknown := [label for label in ours if label not in set(known)]:
        raise UserError(
            f"teacher {teacher.title} doesn't know {len(unknown)} of the {len(ours)} answers, as {unknown[0]!r:.80}: "
            "train both on the same data"
        )
    if ours and not given:
        head = {**head, "labels": known, **({"name": "the teacher's"} if "name" in head else {})}
    return head


def check_teacher(teacher: Model, head: Head, config: VisualBertConfig, vocabulary: Vocabulary, shards: Shards) -> None:
    """Raises UserError where the teacher can't read the student's batches, and names what differs. head, config,
    vocabulary: the student's."""
    title, theirs, its = f"teacher {teacher.title}", teacher.head(), teacher.config()
    check(teacher.contract(), shards.contract(), (title, "the shards"))
    read = [(of.tokens, of.rules) for of in (vocabulary.encoder(), teacher.vocabulary().encoder())]
    if read[0] != read[1]:
        raise UserError(f"{title} reads other word pieces: give both the same vocabulary, or the same model.init")
    both = {f"model.{name}": (getattr(its, name), getattr(config, name)) for name in ("box_input", "type_vocab")}
    both |= {name: (theirs.get(name), head.get(name)) for name in sorted((head.keys() | theirs.keys()) - OWN)}
    for name, (one, other) in both.items():
        if one != other:
            said = (
                "its labels are in another order"
                if name == "labels"
                else f"{name} is {one!r} for it and {other!r} here"
            )
            raise UserError(f"{title}: {said}, and both read the same batches: set the same")
    if head["max_text"] > its.max_positions:
        raise UserError(f"{title} has {its.max_positions} positions: set max_text to {its.max_positions}")
