"""The report's predictions of each kind of task: pairs side by side, choices and labels with their probabilities, the
boxes that words name, and a confusion matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from report.report_world import CONTRACT, SIDE, World, make_world, write_page
from report.test_report_page import Elements

from vbert.data.examples import Examples, write_examples
from vbert.metrics.evaluation import Evaluation, write_evaluation
from vbert.objectives import load
from vbert.objectives.trained import Model, write_model
from vbert.report.page import EvaluatedEntry


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def entry(folder: Path, world: World, name: str, rows: list[dict[str, Any]], head: dict[str, Any]) -> EvaluatedEntry:
    """The evaluation of an untrained model of the objective `name` over `rows`."""
    held = next(iter(world.downstream.values()))
    for part in ("examples", "model", "evaluation"):
        (folder / part).mkdir(parents=True)
    write_examples(folder / "examples", rows)
    examples = Examples.at(folder / "examples")
    objective, config = load(name), held.model.config()
    head = {**head, "objective": name, "images": "own", "max_text": 64}
    write_model(folder / "model", model=objective.model(config, head, 0), config=config, head=head,
                vocabulary=held.model.vocabulary(), contract=CONTRACT.with_box_input("append6"),
                curves=[{"step": 1, "loss": 1.0}])  # fmt: skip
    rows = examples.table().to_pylist()
    count = sum(len(row["choices"] or [0]) for row in rows)
    outputs = torch.arange(count * max(1, len(head.get("labels", [0])))).reshape(count, -1).float() % 5
    owners = [k for k, row in enumerate(rows) for _ in row["choices"] or [0]]
    tensors = {"example": torch.tensor(owners), **objective.targets(rows, head)}
    predictions = objective.decode(outputs, tensors, rows, head)
    write_evaluation(folder / "evaluation", predictions=predictions, metrics=objective.metrics(rows, predictions, head),
                     images=[row["image_ids"][0] for row in rows], resamples=0,
                     counts={"examples": len(rows), "answered": len(rows), "quarantined": 0}, files={})  # fmt: skip
    return replace(
        held, model=Model.at(folder / "model"), evaluation=Evaluation.at(folder / "evaluation"), examples=examples
    )


@pytest.mark.parametrize("protocol", ["none", "aokvqa"])
def test_choices_are_shown_with_their_probabilities_and_what_their_words_name(
    protocol: str, world: World, tmp_path: Path
) -> None:
    rows = [
        {"example_id": f"c{i}", "kind": "choice", "image_ids": [str(i)], "split": "test",
         "text": "why does Casey smile", "label": "1", "question_type": "answer",
         "phrases": [{"start": 9, "end": 14, "boxes": [[2, 2, 12, 12]]}],
         "choices": [{"text": "Riley waves", "phrases": [{"start": 0, "end": 5, "boxes": [[8, 8, 20, 22]]}]},
                     {"text": "it rains", "phrases": []}]}
        for i in range(3)
    ]  # fmt: skip
    one = entry(tmp_path, world, "choice", rows, {"kind": "choice", "align": True, "cut": "both", "protocol": protocol})
    page, figures = write_page(tmp_path / "page", world, downstream={"choice/toy/test": one})
    assert figures["choice/toy/test/accuracy"] in (0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)
    text = Elements(page).text
    shown = one.evaluation.predictions()[0]["probabilities"]
    assert f"{100 * max(shown):.1f}" in text.replace("\u00a0", " ")
    assert "Riley waves" in text
    assert "1 Casey" in " ".join(text.split())
    assert "2 Riley" in " ".join(text.split())
    assert page.count('class="named"') == len({p for p in page.split('class="card shot') if 'class="named"' in p})
    assert 'x="2.00" y="2.00" width="10.00" height="10.00"' in page
    assert f'viewBox="0 0 {SIDE} {SIDE}"' in page


def test_pairs_stand_side_by_side_and_labels_in_a_matrix(world: World, tmp_path: Path) -> None:
    rows = [
        {"example_id": f"p{i}", "kind": "pair", "image_ids": [str(i), str(i + 1)], "split": "test",
         "text": "both are red",         "label": ("true", "false")[i % 2]}
        for i in range(4)
    ]  # fmt: skip
    one = entry(tmp_path, world, "nlvr2", rows, {"kind": "answer", "labels": ["false", "true"]})
    page, _ = write_page(tmp_path / "page", world, downstream={"pairs/toy/test": one})
    cards = [card.partition("</article>")[0] for card in page.split('<article class="card shot')[1:]]
    assert cards
    assert all(card.count("<image ") == 2 and " several" in card.partition(">")[0] for card in cards)
    matrix = page.partition('<figure class="confusion">')[2].partition("</figure>")[0]
    cells = [cell.partition(">")[2].partition("<")[0] for cell in matrix.split("<td")[1:]]
    assert sum(int(cell or 0) for cell in cells) == 4
    assert len(cells) == 4  # all have regions, so there is no column for those without
