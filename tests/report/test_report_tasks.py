"""The report's predictions of each kind of task: pairs side by side, choices and labels with their probabilities, the
boxes that words name, and a confusion matrix."""

from __future__ import annotations

import json
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
from vbert.objectives.zero_shot import HeadAnalysis
from vbert.report import results
from vbert.report.page import EvaluatedEntry


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def entry(
    folder: Path,
    world: World,
    name: str,
    rows: list[dict[str, Any]],
    head: dict[str, Any],
    predictions: list[dict[str, Any]] | None = None,
) -> EvaluatedEntry:
    """The evaluation of an untrained model of the objective `name` over `rows`; predictions: in place of its own."""
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
    if predictions is None:
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


def test_boxes_of_phrases_and_what_heads_know_without_training(world: World, tmp_path: Path) -> None:
    """Chosen boxes numbered, true ones dashed; a phrase that is wrong is told; the heads' table and its ringed best."""
    boxes = [[2.0, 2.0, 12.0, 12.0], [8.0, 8.0, 20.0, 22.0]]
    phrases = [
        {"start": 0, "end": 5, "boxes": boxes[:1], "types": ["thing"]},
        {"start": 13, "end": 21, "boxes": boxes[1:], "types": ["thing"]},
        {"start": 25, "end": 30, "boxes": [], "types": ["scene"]},
    ]
    rows = [
        {"example_id": f"{i}/0", "kind": "phrases", "image_ids": [str(i)], "split": "test",
         "text": "a box beside the disc at night", "phrases": phrases}
        for i in range(2)
    ]  # fmt: skip
    head = {
        "kind": "phrases",
        "selects": "r1",
        "protocol": "any",
        "loss": "kl",
        "iou": "inclusive",
        "as_original": False,
    }
    made: list[dict[str, Any]] = [
        {"example_id": f"{i}/0", "answer": "", "score": 0.8, "regions": boxes, "classes": [0, 1],
         "ranked": [[0, 1], [1 - i, i], [0, 1]], "sure": [0.912, 0.734, 0.5]}
        for i in range(2)
    ]  # fmt: skip
    one = entry(tmp_path, world, "grounding", rows, head, made)
    (tmp_path / "heads").mkdir()
    told = {"best_of_heads": 0.35, "best_of_count": 0.4, "mean": 0.3}
    content = {"phrases": 816, "split": "test", "right": [[0.31, 0.72], [0.2, 0.25]], "random_region": 0.3,
               "count": 1000, "random": {"regions": told, "weights": told | {"best_of_count": 0.5}}}  # fmt: skip
    kind = {
        "words": 77,
        "right": [[0.1, 0.2], [0.9, 0.6]],
        "random_region": 0.41,
        "random_model": {"best": 0.55, "mean": 0.43},
    }
    content["kinds"] = {"noun": kind, "relation_first": kind | {"words": 33, "right": [[0.1, 0.2], [0.3, 0.2]]}}
    (tmp_path / "heads" / "heads.json").write_text(json.dumps(content))
    heads = {"grounding/toy/test": HeadAnalysis.at(tmp_path / "heads")}
    page, figures = write_page(tmp_path / "page", world, downstream={"grounding/toy/test": one}, heads=heads)
    assert figures["grounding/toy/test/r1"] == 0.75
    words = " ".join(Elements(page).text.replace("\u00a0", " ").split())
    assert "the regions allow at most 100.00 %; regions drawn at random give 50.00 %" in words
    assert "1 of 2 answers are wrong" in words
    assert "2 the disc73.4 % · wrong" in words
    assert "3 night50.0 % · has no box" in words
    assert page.count('class="tone-0 true"') >= 4, "two true boxes in each picture"
    assert "layer 1, head 272.0 %" in words
    assert "the best of 1,000 of them, and their mean50.0 % · 30.0 %" in words
    assert page.count('class="above"') == 1 + 2, "of phrases one, of nouns two, of relations none"
    assert "nouns77layer 2, head 190.0 %45.0 %41.0 %55.0 %43.0 %" in words
    assert "Relations, the first thing (33)" in words
    assert 'href="#heads"' in page


def test_figures_of_given_and_of_detected_boxes_stand_apart(world: World) -> None:
    held = next(iter(world.downstream.values()))
    (run,) = results.runs({"a/toy/test": held}, False)
    groups = results.groups([run, replace(run, given=True, key="given")])
    assert [group.title for group in groups] == ["vqa on toy test", "vqa on toy test with given boxes"]


def test_figures_of_folds_are_none_of_a_part(world: World) -> None:
    held = next(iter(world.downstream.values()))
    (run,) = results.runs({"a/toy/test": held}, False)
    value = results.MetricValue(0.5)
    names = ("r1", "r1/count", "r1/unique", "r1/folds", "rsum", "rsum/folds")
    group = results.RunGroup([replace(run, metric="r1", values=dict.fromkeys(names, value))])
    assert [part.name for part in group.parts] == ["count", "unique"]
    assert [name for name, _ in group.others] == ["r1/folds", "rsum", "rsum/folds"]


def test_short_lists_stand_beside_all_pairs(world: World, tmp_path: Path) -> None:
    """Their pairs, the recalls that each gives, and a median rank that is no share."""
    rows = [
        {"example_id": f"r{i}", "kind": "caption", "image_ids": [str(i)], "split": "test", "text": f"number {i}"}
        for i in range(4)
    ]
    ranks = {"rank": 1, "tied": 0, "shorter": {"2": 3}, "among": 4}
    predictions = [
        {"example_id": f"r{i}", "answer": str(i), "score": 0.9, "text_to_image": {**ranks, "top": ["0"]},
         "image_to_text": {**ranks, "top": ["r0"]}}
        for i in range(4)
    ]  # fmt: skip
    head = {"kind": "retrieval", "loss": "cross_entropy", "negatives": "random", "dual": 8, "wrong": 1}
    one = entry(tmp_path, world, "retrieval", rows, head, predictions)
    page, figures = write_page(tmp_path / "page", world, downstream={"find/toy/test": one})
    assert figures["find/toy/test/rsum"] == 600
    table = page.partition('<figure class="confusion">')[2].partition("</figure>")[0].replace("\u00a0", " ")
    cells = [[cell.partition(">")[2].partition("<")[0] for cell in row.split("<t")[1:]] for row in table.split("<tr>")]
    assert cells[2] == ["the best 2", "16", "0.0 %", "100.0 %", "100.0 %", "0.0 %", "100.0 %", "100.0 %"]
    assert cells[3] == ["all", "16", *["100.0 %"] * 6]
    assert '<td dir="auto">text_to_image_median</td><td class="r">1</td>' in page
