"""Distillation: what is learnt of a teacher, by every objective with labels, and which teachers are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from objectives.objectives_world import MODEL, World, job
from objectives.tasks_world import BRIEF, COLOURS, MOODS, evaluate, make_tasks_world

from vbert.artifacts.steps.settings import Numerics
from vbert.data.examples import Examples, write_examples
from vbert.errors import UserError
from vbert.model.start import Initialization
from vbert.model.vocabulary import Vocabulary, read_rules, read_tokens, write_vocabulary
from vbert.objectives import OBJECTIVES, objective
from vbert.objectives.distillation import imitation
from vbert.objectives.downstream import run_finetune
from vbert.objectives.trained import Model

SMALL = MODEL.model_copy(update={"hidden_size": 32, "intermediate_size": 128})
ROTATED = {**dict(zip(COLOURS, [*COLOURS[1:], COLOURS[0]], strict=True)),
           **dict(zip(MOODS.values(), [*list(MOODS.values())[1:], "angry"], strict=True)),
           "true": "false", "false": "true"}  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_tasks_world(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def lying(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The world with wrong labels throughout."""

    def told(row: dict[str, Any]) -> dict[str, Any]:
        answers = [{**a, "answer": ROTATED[a["answer"]]} for a in row["answers"] or ()]
        texts = [choice["text"] for choice in row["choices"] or ()]
        label = str(texts.index("it is red")) if texts else ROTATED.get(row["label"])
        return {**row, "label": label, "answers": answers or None}

    folder = tmp_path_factory.mktemp("lying")
    write_examples(folder, [told(row) for row in world.examples.table().to_pylist()])
    return world._replace(examples=Examples.at(folder))


def taught(folder: Path, world: World, name: str, teacher: Model | None, sizes: Any = SMALL, **changes: Any) -> Model:
    settings = OBJECTIVES[name].settings(**{"objective": name, **BRIEF, **changes})
    start = sizes if isinstance(sizes, Model) else Initialization(world.vocabulary, sizes)
    plugin, here = objective(name), job(folder)
    run_finetune(here, world.examples, world.shards, start, plugin, settings, Numerics(), 0, None, teacher)
    return Model.at(folder / "out")


def test_the_loss_is_that_of_the_paper() -> None:
    """T² KL; its gradient T (q − p), the paper's equation 2 times T²; an answer that isn't there adds nothing."""
    draw = torch.Generator().manual_seed(0)
    student = torch.randn(5, 4, generator=draw, dtype=torch.float64).requires_grad_()
    teacher = 3 * torch.randn(5, 4, generator=draw, dtype=torch.float64)
    for temperature in (1.0, 2.0, 5.0):
        p, q = ((of / temperature).softmax(-1) for of in (teacher, student.detach()))
        loss = imitation(student, teacher, temperature)
        expected = temperature**2 * (p * (p.log() - q.log())).sum()
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
        (gradient,) = torch.autograd.grad(loss, student)
        torch.testing.assert_close(gradient, temperature * (q - p), rtol=1e-4, atol=1e-5)
    absent = torch.full((5, 1), float("-inf"), dtype=torch.float64)
    fewer = imitation(torch.cat([student, absent], 1), torch.cat([teacher, absent], 1), 5.0)
    torch.testing.assert_close(fewer, loss)
    (gradient,) = torch.autograd.grad(fewer, student)
    assert gradient.isfinite().all()
    torch.testing.assert_close(imitation(teacher, teacher, 2.0), torch.tensor(0.0), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vqa", {}),
        pytest.param("choice", {"align": False}, marks=pytest.mark.slow),
        pytest.param("vqa", {"loss": "bce"}, marks=pytest.mark.slow),
        pytest.param("nlvr2", {"steps": 120}, marks=pytest.mark.slow),
        pytest.param("classification", {"steps": 120}, marks=pytest.mark.slow),
    ],
)
def test_a_smaller_model_learns_its_teacher_s_answers(
    name: str, options: dict[str, Any], world: World, lying: World, tmp_path: Path
) -> None:
    """The teacher has learnt wrong labels, and the student, with the right ones at hand and a weight of 1, answers as
    its teacher."""
    teacher = taught(tmp_path / "teacher", lying, name, None, MODEL, **options)
    student = taught(tmp_path / "student", world, name, teacher, **options, teacher_weight=1.0)
    assert evaluate(tmp_path / "as teacher", lying, student, name).metrics()["accuracy"] >= 0.95
    curve = student.curves()[-1]
    assert curve["loss"] == pytest.approx(curve["teacher"])
    assert curve["labels"] > 1


@pytest.mark.slow
def test_with_little_weight_it_learns_its_labels(world: World, lying: World, tmp_path: Path) -> None:
    teacher = taught(tmp_path / "teacher", lying, "vqa", None, MODEL)
    free = taught(tmp_path / "free", world, "vqa", teacher, teacher_weight=0.01)
    assert evaluate(tmp_path / "as labels", world, free, "vqa").metrics()["accuracy"] >= 0.95


def test_a_student_answers_with_its_teacher_s_labels(world: World, tmp_path: Path) -> None:
    """Those that its own training examples give, in another order, would be other rows of the teacher's head."""
    teacher = taught(tmp_path / "teacher", world, "vqa", None, steps=1)
    others = _only(tmp_path / "fewer", world, teacher.labels()[1:])
    student = taught(tmp_path / "student", others, "vqa", teacher, steps=1)
    assert student.labels() == teacher.labels()
    few = taught(tmp_path / "few", others, "vqa", None, steps=1)
    assert few.labels() != teacher.labels()
    with pytest.raises(UserError, match=rf"doesn't know 1 of the 3 answers, as '{teacher.labels()[0]}'"):
        taught(tmp_path / "more", world, "vqa", few, steps=1)


def _only(folder: Path, world: World, answers: list[str]) -> World:
    """Of the questions those with these answers."""
    folder.mkdir()
    rows = [
        row
        for row in world.examples.table().to_pylist()
        if not row["answers"] or row["answers"][0]["answer"] in answers
    ]
    write_examples(folder, rows)
    return world._replace(examples=Examples.at(folder))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"answer_at": "pooled"}, "teacher Model: answer_at is 'mask' for it and 'pooled' here, and both read the"),
        ({"images": "none"}, "teacher Model: images is 'own' for it and 'none' here"),
        ({"sizes": SMALL.model_copy(update={"max_positions": 41})}, "has 40 positions: set max_text to 40"),
        ({"sizes": SMALL.model_copy(update={"box_input": "none"})}, "model.box_input is 'append6' for it and 'none' "),
        ({"name": "classification"}, "teacher Model is of objective vqa, not classification: name one of the same"),
        ({"vocabulary": True}, "teacher Model reads other word pieces: give both the same vocabulary"),
        ({"contract": True}, "region features don't fit: dim is 12 for teacher Model, 13 for the shards"),
    ],
)
def test_a_teacher_that_can_t_read_the_student_s_batches_is_refused(
    changes: dict[str, Any], said: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = dict(changes)
    teacher = taught(tmp_path / "teacher", world, "vqa", None, MODEL, steps=1)
    monkeypatch.setattr("vbert.objectives.downstream.run_training", lambda *_: pytest.fail("it began to train"))
    if given.pop("vocabulary", False):
        own = tmp_path / "vocabulary"
        own.mkdir()
        tokens, rules = (world.vocabulary.file(name) for name in ("vocab.txt", "tokenizer_config.json"))
        write_vocabulary(own, [*read_tokens(tokens), "more"], read_rules(rules))
        world = world._replace(vocabulary=Vocabulary.at(own))
    if given.pop("contract", False):
        other = world.shards.contract().model_copy(update={"dim": 13})
        monkeypatch.setattr(type(world.shards), "contract", lambda _: other)
    with pytest.raises(UserError) as refused:
        taught(tmp_path / "student", world, given.pop("name", "vqa"), teacher, given.pop("sizes", SMALL), **given)
    assert said in refused.value.message
