"""Scenes: the same everywhere, boxes tight by pixels, easy-VQA's look within their variety, settings with bounds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tasks.generate import generate
from vbert.data.examples import Examples, write_examples
from vbert.data.images import Images, write_images
from vbert.data.raw import RawFiles
from vbert.data.readers import shapes as reader
from vbert.data.shapes.draw import pixels, png
from vbert.data.shapes.language import ExactCount, Exists, Noun, Relation, SceneFacts, SplitScenes, WholeScene, facts
from vbert.data.shapes.oracles import caption_scores, retrieval
from vbert.data.shapes.scene import COLOURS, GAP, Scene, SceneObject
from vbert.data.shapes.scenes import ShapesSettings, scene
from vbert.data.shapes.write import texts, write
from vbert.data.spec import dataset

GENERATED = {
    "generate": 3,
    "pixels": "07a01543ee4fb2c8",
    "scenes.jsonl": "db63eafc74ebfdcc",
    "texts.jsonl": "5fed1b5b6ef24c90",
    "oracles.json": "3d26c0504e3323f4",
}
READ = {"reader": 2, "rows": "00c51a970221e10d"}
PLAIN: dict[str, Any] = {"varied": 0.0, "jitter": 0}


def make(directory: Path, settings: ShapesSettings) -> RawFiles:
    directory.mkdir()
    write(directory, settings, lambda done, total: None)
    return RawFiles.at(directory)


def digest(directory: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(directory.iterdir()))).hexdigest()


def test_other_processes_and_hash_seeds_give_the_same_bytes(tmp_path: Path) -> None:
    make(tmp_path / "here", ShapesSettings(images=48, seed=3))
    script = (
        "import sys; from pathlib import Path; from vbert.data.shapes.scenes import ShapesSettings\n"
        "from vbert.data.shapes.write import write\n"
        "write(Path(sys.argv[1]), ShapesSettings(images=48, seed=3), lambda done, total: None)"
    )
    for seed in ("0", "1"):
        there = tmp_path / seed
        there.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script, str(there)], check=True, env=environment, timeout=60)
        assert digest(there) == digest(tmp_path / "here")
    make(tmp_path / "other", ShapesSettings(images=48, seed=4))
    assert digest(tmp_path / "other") != digest(tmp_path / "here")


def test_a_scene_and_its_texts_do_not_depend_on_how_many_there_are() -> None:
    few, many = ShapesSettings(images=200), ShapesSettings(images=420)
    assert [png(scene(few, i)) for i in range(8)] == [png(scene(many, i)) for i in range(8)]
    made = [facts(scene(many, i)) for i in range(420)]
    rows = {row["example_id"]: row for row in texts(many, made)[0]}
    changed = []
    for row in texts(few, made[:200])[0]:
        for name in ("unique", "false_of"):  # a matter of the whole split, as is the description that is unique
            row.pop(name, None)
        other = (
            {key: value for key, value in rows[row["example_id"]].items() if key in row}
            if (row["example_id"] in rows)
            else None
        )
        if row != other:
            changed.append(row)
    assert {(row["kind"], row["question_type"]) for row in changed} <= {
        ("caption", "description"),
        ("caption", "list"),  # which avoids the description's words
        *(("pair", kind) for kind in ("one", "both", "same", "different", "total")),  # of an unfinished block
    }
    assert len(changed) < 100


@pytest.mark.parametrize("changes", [{"smooth": 0.0}, {"smooth": 0.0, "size": 56, "shapes": ("cross", "diamond")}])
def test_boxes_are_tight_around_visible_pixels(changes: dict[str, Any]) -> None:
    settings = ShapesSettings(**PLAIN, **changes)
    hidden = 0
    for i in range(120):
        made = scene(settings, i)
        image = pixels(made)
        for item in made.objects:
            if sum(other.colour == item.colour for other in made.objects) > 1:
                continue
            rows, columns = np.nonzero((image == np.array(item.rgb)).all(-1))
            assert item.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            x, y, width, height = item.frame
            hidden += item.box != (x // 4, y // 4, (x + width) // 4, (y + height) // 4)
    assert hidden  # some were partly covered (or end in a point)


def test_boxes_of_smooth_shapes_hold_the_pixels_that_are_at_least_half_covered() -> None:
    settings = ShapesSettings(**PLAIN, smooth=1.0, objects_max=1)
    partly = 0
    for i in range(60):
        made = scene(settings, i)
        ground, rgb = np.array(made.background[1]), np.array(made.objects[0].rgb)
        channel = int(np.argmax(abs(ground - rgb)))
        covered = (pixels(made)[..., channel] - ground[channel]) / (rgb - ground)[channel]
        x1, y1, x2, y2 = made.objects[0].box
        rows, columns = np.nonzero(covered > 0.48)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x1, y1, x2, y2)
        partly += bool(((covered > 0.05) & (covered < 0.95)).any())
    assert partly > 40


def test_little_is_hidden_and_objects_of_one_colour_stay_apart() -> None:
    settings = ShapesSettings(**PLAIN, smooth=0.0, objects_min=5, objects_max=9)
    least = 1.0
    for i in range(60):
        made = scene(settings, i)
        image = pixels(made)
        assert 5 <= len(made.objects) <= 9
        for k, item in enumerate(made.objects):
            alone = Scene(0, "train", made.size, (item,), made.background, smooth=False)
            whole = (pixels(alone) == np.array(item.rgb)).all(-1)
            least = min(least, (image[whole] == np.array(item.rgb)).all(-1).mean())
            for other in made.objects[:k]:
                if other.colour == item.colour:
                    (x, y, w, h), (u, v, p, q) = item.frame, other.frame
                    assert x >= u + p + 4 * GAP or u >= x + w + 4 * GAP or y >= v + q + 4 * GAP or v >= y + h + 4 * GAP
    assert 0.7 < least < 0.9  # a quarter at most, in samples; a little more may show in whole pixels


def test_the_default_holds_easy_vqas_look() -> None:
    """easy-VQA, as measured on its images: one shape of 8–34 px, these colours, a plain ground of 230–255."""
    settings = ShapesSettings()
    made = [scene(settings, i) for i in range(600)]
    assert COLOURS == {
        "black": (0, 0, 0),
        "blue": (0, 0, 255),
        "brown": (165, 42, 42),
        "gray": (128, 128, 128),
        "green": (0, 255, 0),
        "red": (255, 0, 0),
        "teal": (0, 128, 128),
        "yellow": (255, 255, 0),
    }
    sides = [side for one in made for x1, y1, x2, y2 in (o.box for o in one.objects) for side in (x2 - x1, y2 - y1)]
    assert min(sides) <= 8
    assert max(sides) in (34, 35)  # between pixels 34 may show in 35
    single = [one for one in made if len(one.objects) == 1]
    assert 0.2 < len(single) / len(made) < 0.3
    alike = [one for one in single if one.background[0] == "plain" and one.objects[0].rgb in COLOURS.values()]
    assert {one.objects[0].shape for one in alike} == {"circle", "rectangle", "triangle"}
    grounds = np.array([one.background[1] for one in alike])
    assert grounds.min() < 230
    assert grounds.max() >= 250
    assert {one.smooth for one in alike} == {True, False}
    assert {one.background[0].partition("-")[0] for one in made} == {"plain", "gradient", "stripes", "grain"}
    assert {one.split for one in made[:8]} == {"train", "val", "test"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 0}, "images"),
        ({"size": 8}, "size"),
        ({"objects_min": 6}, "objects_min 6 is above objects_max 5"),
        ({"smallest": 0.5}, "smallest 0.5 is above largest 0.425"),
        ({"size": 24}, "below 4 pixels"),
        ({"objects_max": 16}, "objects_max 16 of 8 pixels may not fit into 80 × 80"),
        ({"shapes": ("circle", "circle")}, "shapes: one is named twice"),
        ({"shapes": ("circle", "star")}, "shapes.1"),
        ({"colours": ("red", "blue")}, "colours"),
        ({"overlap": 0.9}, "overlap"),
        ({"images_": 3}, "images_"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words.replace(".", r"\.")):
        ShapesSettings(**changes)


def test_crowded_scenes_are_finished() -> None:
    settings = ShapesSettings(objects_min=16, objects_max=16, smallest=0.05, overlap=0.0)
    assert all(len(scene(settings, i).objects) == 16 for i in range(20))


def test_the_reader_gives_rows_that_fit_the_tables(tmp_path: Path) -> None:
    raw = make(tmp_path / "raw", ShapesSettings(images=24, size=48, held_out_every=4, choices=1))
    raws = {"generated": raw}
    rows = []
    for row in reader.images(raws):
        data = raw.read(row["path"])
        with Image.open(io.BytesIO(data)) as image:
            assert (image.size, image.mode) == ((48, 48), "RGB")
        path = f"generated/{row['path']}"
        sha256 = hashlib.sha256(data).hexdigest()
        rows.append({**row, "path": path, "sha256": sha256, "width": 48, "height": 48})
    figures = write_images(tmp_path, rows, reader.boxes(raws))
    boxes: Any = Images.at(tmp_path).boxes()
    assert figures["images"] == 24
    assert figures["boxes"] == boxes.num_rows > 24
    assert {attributes[0] for attributes in boxes["attributes"].to_pylist()} <= set(COLOURS)
    kept = {f"{i:06d}" for i in range(12)}
    counts = write_examples(tmp_path, reader.examples(raws, kept))
    assert set(counts) == {"train", "val", "test"}
    table: Any = Examples.at(tmp_path).table()
    assert {i for ids in table["image_ids"].to_pylist() for i in ids} <= kept
    assert set(table["kind"].to_pylist()) == {"caption", "question", "pair", "phrases", "sentiment", "choice"}
    assert not any(table["group"].to_pylist())
    grouped = [
        row["group"]
        for row in reader.examples(raws, {f"{i:06d}" for i in range(24)}, group_pairs=True)
        if row["kind"] == "pair"
    ]
    assert len(grouped) == 4 * len(set(grouped)) > 0


def test_choices_add_rows_and_change_none() -> None:
    scenes = [facts(scene(ShapesSettings(), i)) for i in range(60)]
    without, oracles = texts(ShapesSettings(images=60), scenes)
    rows, found = texts(ShapesSettings(images=60, choices=1), scenes)
    assert [row for row in rows if row["kind"] != "choice"] == without
    assert len(rows) == len(without) + 60
    assert {name: value for name, value in found.items() if name != "choice"} == oracles


def test_shapes_tasks_has_held_out_examples_enough_to_tell_figures_apart() -> None:
    """That is, what its spec says of the test split."""
    settings = ShapesSettings.model_validate(dataset("shapes_tasks").generate)
    scenes = [facts(scene(settings, i)) for i in range(3, settings.images, settings.held_out_every)]
    rows, _ = texts(settings.model_copy(update={"false_of": 0}), scenes)
    counts = Counter(row["kind"] for row in rows)
    assert (counts["pair"], counts["sentiment"], counts["question"], counts["choice"]) == (1600, 1200, 2400, 1600)
    types = Counter(row["question_type"] for row in rows if row["kind"] == "question")
    assert (types["count"], types["relation"]) == (400, 210)


def test_other_bits_need_another_version(tmp_path: Path) -> None:
    """Golden digests: where they differ, raise `version` of the stage `generate` (or the reader's) and record them.
    Pixels are compared, not PNG files, which may differ with the compressor."""
    raw = make(tmp_path / "raw", ShapesSettings(images=24, size=48, held_out_every=4, seed=1))
    image = hashlib.sha256()
    for row in reader.images({"generated": raw}):
        with Image.open(io.BytesIO(raw.read(row["path"]))) as picture:
            image.update(picture.tobytes())
    found = {"pixels": image.hexdigest()[:16]}
    for name in ("scenes.jsonl", "texts.jsonl", "oracles.json"):
        found[name] = raw.sha256(name)[:16]
    assert {"generate": generate.version, **found} == GENERATED, "raise the version of the stage `generate`"
    rows = [*reader.images({"generated": raw}), *reader.boxes({"generated": raw})]
    rows += reader.examples({"generated": raw}, {f"{i:06d}" for i in range(24)})
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
    assert {"reader": reader.VERSION, "rows": digest} == READ, "raise VERSION of the reader `shapes`"


def test_generated_oracles_are_bounds(tmp_path: Path) -> None:
    oracles = json.loads(make(tmp_path / "raw", ShapesSettings(images=160, held_out_every=8)).read("oracles.json"))
    for split in ("val", "test"):
        found = oracles["retrieval"][split]
        assert found["description_to_image_r1"] == found["image_to_caption_r1"] == 1.0
        assert 1 / found["images"] < found["caption_to_image_r1"] < found["caption_to_image_r5"] < 1.0
        scores = oracles["captioning"][split]
        assert 0 < scores["leave_one_out"] < scores["list"] < scores["list_reworded"] < 10
        assert scores["list"] < scores["copied"] < 10
        assert oracles["question"][split]["majority"] < 0.5
        assert 0 < oracles["phrases"][split]["random_box"] < 1


def red(*shapes: str) -> SceneFacts:
    """A scene of red shapes, from left to right."""
    made = tuple(
        SceneObject(shape, "red", "medium", (20 * k, 30, 20 * k + 10, 40), (255, 0, 0), (0, 0, 0, 0))
        for k, shape in enumerate(shapes)
    )
    return facts(Scene(0, "test", 80, made, ("plain", (255, 255, 255)), True))


def test_retrieval_is_the_chance_among_the_images_a_caption_is_true_of() -> None:
    split = SplitScenes([red("circle"), red("circle", "triangle"), red("circle", "circle"), red("triangle")])
    circle, triangle = Exists(Noun("circle")), Exists(Noun("triangle"))
    assert split.candidates(circle) == (0, 1, 2)
    assert split.candidates(Exists(Noun("circle"), True)) == (3,)
    assert split.candidates(ExactCount(Noun("circle"), 1)) == (0, 1)
    assert split.candidates(Relation(Noun("circle"), "left of", Noun("triangle"))) == (1,)
    assert split.candidates(Relation(Noun("circle"), "right of", Noun("triangle"))) == ()
    whole = WholeScene((Noun("circle", "red"), Noun("triangle", "red")))
    assert split.candidates(whole) == (1,)
    figures = retrieval(split, [(0, "place", circle), (1, "description", whole), (3, "place", triangle)])
    assert figures["caption_to_image_r1"] == pytest.approx((1 / 3 + 1 + 1 / 2) / 3, abs=1e-6)
    assert figures["caption_to_image_r5"] == 1.0
    # Image 0: its own caption; 1: its description before the others; 2: only another's caption; 3: its own.
    assert figures["image_to_caption_r1"] == pytest.approx(3 / 4, abs=1e-6)
    assert figures["drawn_image_to_caption_r1"] == pytest.approx((1 + 1 / 3 + 0 + 1) / 4, abs=1e-6)


def test_caption_scores_follow_cider_d() -> None:
    def rows(image: str, *captions: str) -> list[dict[str, Any]]:
        return [{"image_ids": [image], "question_type": "list", "text": text} for text in captions]

    same = caption_scores(rows("a", "a red circle here", "a red circle here") + rows("b", "no blue thing there"))
    assert same["leave_one_out"] == pytest.approx(10.0)
    apart = caption_scores(rows("a", "one two three four", "five six seven eight") + rows("b", "nine"))
    assert apart["leave_one_out"] == 0.0
    assert apart["copied"] == pytest.approx((5 + 5 + 10 / 4) / 3)  # of one word: 1-grams alone


def test_a_list_in_other_wordings_is_scored_against_all_captions_of_its_image() -> None:
    """Of another implementation: n-grams as strings, vectors over all of them."""
    import numpy as np

    lists = {"a": "the image shows only a red circle", "b": "only a blue triangle can be seen"}
    more = {"a": "there is exactly one red circle in the image", "b": "a blue triangle is present"}
    rows = [
        {"image_ids": [image], "question_type": kind, "text": text}
        for kind, texts in (("list", lists), ("count", more))
        for image, text in texts.items()
    ]
    others = {
        "a": ["only a red circle can be seen", "a red circle and nothing else"],
        "b": ["the image shows only a blue triangle", "a blue triangle and nothing else"],
    }

    def grams(text: str, n: int) -> list[str]:
        said = text.split()
        return [" ".join(said[i : i + n]) for i in range(len(said) - n + 1)]

    def similarity(one: str, other: str) -> float:
        total = 0.0
        for n in (1, 2, 3, 4):
            known = sorted({gram for text in (one, other) for gram in grams(text, n)})
            found = [sum(gram in {*grams(lists[i], n), *grams(more[i], n)} for i in "ab") for gram in known]
            weight = np.log(2) - np.log(np.maximum(found, 1))
            mine, theirs = (np.array([grams(text, n).count(gram) for gram in known]) * weight for text in (one, other))
            norm = np.linalg.norm(mine) * np.linalg.norm(theirs)
            total += np.minimum(mine, theirs) @ theirs / norm if norm else 0.0
        return 10 / 4 * total * np.exp(-((len(one.split()) - len(other.split())) ** 2) / 72)

    each = [similarity(text, of[i]) for i in "ab" for text in others[i] for of in (lists, more)]
    assert caption_scores(rows)["list_reworded"] == pytest.approx(sum(each) / len(each), abs=1e-6)
