"""How often each attention head looks at a right region, against a loop and against heads that know nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from objectives.grounding_world import MISSING, make_grounding_world
from objectives.objectives_world import MODEL, World, job
from objectives.tasks_world import finetune

from vbert.artifacts.steps.settings import Numerics
from vbert.errors import UserError
from vbert.model.start import Initialization
from vbert.objectives import load
from vbert.objectives.batches import ExampleRows
from vbert.objectives.dataset import ObjectiveDataset
from vbert.objectives.grounding_protocols import ZeroShotSettings
from vbert.objectives.naming_words import naming_words
from vbert.objectives.zero_shot import HeadAnalysis, RandomHeads, run_zero_shot


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_grounding_world(tmp_path_factory.mktemp("grounding") / "world", 40)


def test_heads_are_counted_as_a_loop_counts_them(world: World, tmp_path: Path) -> None:
    start = Initialization(world.vocabulary, MODEL.model_copy(update={"layers": 2, "initializer_range": 0.3}))
    model = finetune(tmp_path / "start", world, "grounding", start, steps=1, batch_size=8)
    settings = ZeroShotSettings(random=40, batch_size=7)
    figures = run_zero_shot(job(tmp_path / "heads"), model, world.examples, world.shards, settings, "test", Numerics())
    told = HeadAnalysis.at(tmp_path / "heads" / "out").read()

    encoder: Any = model.load().encoder
    rows = ExampleRows(world.examples, world.shards, ["test"], ["phrases"])
    head = {"protocol": "any", "iou": "inclusive", "as_original": False, "images": "own", "max_text": 40}
    side = ObjectiveDataset(load("grounding"), head, model.vocabulary().encoder(), rows, world.shards, "append6")
    right, asked, chance = torch.zeros(2, 2), 0, 0.0
    for i, row in enumerate(rows):
        batch, _ = side.batch([(i, None)])
        (maps,) = encoder.trace(batch.packed)[1]
        text = len(batch.packed.text_ids)
        for place, phrase in zip(batch.packed.at.tolist(), row["phrases"], strict=True):
            if phrase["boxes"]:
                asked += 1
                near = [any(abs(b[0] - box[0]) < 3 and abs(b[1] - box[1]) < 3 for box in phrase["boxes"])
                        for b in world.shards.read(row["image_ids"][0]).boxes]  # fmt: skip
                chance += sum(near) / len(near)
                right += torch.tensor([[near[int(h[place, text:].argmax())] for h in layer] for layer in maps])
    assert MISSING not in [row["image_ids"][0] for row in rows]
    asked += 2  # of the image without regions
    assert told["phrases"] == asked == figures["phrases"]
    torch.testing.assert_close(torch.tensor(told["right"]), right / asked)
    assert told["random_region"] == pytest.approx(chance / asked)
    assert figures["best"] == pytest.approx(float(right.max()) / asked)
    for kind in ("regions", "weights"):
        values = told["random"][kind]
        assert values["mean"] <= values["best_of_count"] <= 1
        assert values["best_of_heads"] <= values["best_of_count"] == figures[f"random_{kind}"]
        assert abs(values["mean"] - told["random_region"]) < 0.12
    _check_kinds(told["kinds"], world, encoder, side)
    with pytest.raises(UserError, match="zero_shot: false"):
        run_zero_shot(job(tmp_path / "none"), model, world.examples, world.shards,
                      settings.model_copy(update={"types": ("x",)}), "test", Numerics())  # fmt: skip


def _check_kinds(told: dict[str, Any], world: World, encoder: Any, side: Any) -> None:
    """Against a loop over words: the noun is `thing` or `one`, the colour stands before it."""
    right = {kind: torch.zeros(2, 2) for kind in ("noun", "colour")}
    words, chance = 0, 0.0
    for i, row in enumerate(side.rows):
        batch, _ = side.batch([(i, None)])
        (maps,) = encoder.trace(batch.packed)[1]
        text = len(batch.packed.text_ids)
        pieces = [side.encoder.tokens[k] for k in batch.packed.text_ids.tolist()]
        for phrase in row["phrases"]:
            if phrase["boxes"]:
                _, colour, noun = row["text"][phrase["start"] : phrase["end"]].split()
                near = [any(abs(b[0] - box[0]) < 3 and abs(b[1] - box[1]) < 3 for box in phrase["boxes"])
                        for b in world.shards.read(row["image_ids"][0]).boxes]  # fmt: skip
                words += 1
                chance += sum(near) / len(near)
                for kind, word in (("noun", noun), ("colour", colour)):
                    seen = maps[:, :, pieces.index(word), text:].argmax(-1)
                    right[kind] += torch.tensor([[near[int(one)] for one in layer] for layer in seen])
    words += 2  # of the image without regions
    assert set(told) == {"noun", "colour"}
    for kind, counted in right.items():
        assert told[kind]["words"] == words
        torch.testing.assert_close(torch.tensor(told[kind]["right"]), counted / words)
        assert told[kind]["random_region"] == pytest.approx(chance / words)
        assert 0 < told[kind]["random_model"]["mean"] <= told[kind]["random_model"]["best"] <= 1


def test_words_of_a_text_by_kind() -> None:
    text = "The small red circle is left of a blue shape near nothing; two crosses"
    boxes = [[[0.0, 0.0, 1.0, 1.0]], [[2.0, 2.0, 3.0, 3.0]], []]
    phrases = [
        {"start": text.index(words), "end": text.index(words) + len(words), "boxes": its}
        for words, its in zip(("The small red circle", "a blue shape", "two crosses"), boxes, strict=True)
    ]
    found = [
        (one.kind, text[one.start : one.end], one.boxes) for one in naming_words({"text": text, "phrases": phrases})
    ]
    first, second, _ = boxes
    assert found == [
        ("noun", "circle", first),
        ("colour", "red", first),
        ("noun", "shape", second),
        ("colour", "blue", second),
        ("relation_first", "left", first),
        ("relation_second", "left", second),
    ]


def test_random_heads_find_what_is_alike_more_often_than_random_looks() -> None:
    """Where a phrase's state is that of its region, the best of many random weights is better than of random looks."""
    random, draw = RandomHeads(1, 1, 8, 200), torch.Generator().manual_seed(0)
    for _ in range(100):
        regions = torch.randn(4, 8, generator=draw)
        random.look([regions[:1]], [regions], torch.tensor([[True, False, False, False]]))
    figures = random.figures(100)
    assert figures["regions"]["mean"] == pytest.approx(0.25, abs=0.02)
    assert figures["weights"]["best_of_count"] > figures["regions"]["best_of_count"] > 0.3
