"""Real miniatures of NLVR2, NLVR, VQA v2 and Flickr30k Entities from their official files to metrics and a submission,
which `vbert score` scores as the evaluation did. The figures mean nothing: the detector has seen six batches of drawn
scenes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from e2e.finished import TINY
from PIL import Image

import vbert
from vbert.metrics.evaluation import Evaluation
from vbert.objectives.trained import Model
from vbert.objectives.zero_shot import HeadAnalysis
from vbert.regions.shards import Shards

SHARED = Path(__file__).parents[3] / "shared" / "data"
FOLDERS = ("nlvr2", "nlvr1", "vqa_v2", "flickr30k_entities")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all((SHARED / name).is_dir() for name in FOLDERS),
        reason="the real NLVR2, NLVR, VQA v2 and Flickr30k Entities (../shared/data) are not here",
    ),
]
BRIEF = "steps: 4, batch_size: 4, learning_rate: 1.0e-3, validation_examples: 4, start: none, evaluate: {resamples: 50}"


def as_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def spec(folder: Path, name: str, photos: Path, splits: Mapping[str, str], **more: str) -> None:
    """A spec of official files under `folder`/NAME and photos where they lie."""
    part = {"reader": {"nlvr1": "nlvr"}.get(name, name), "options": {"splits": splits}}
    described = {
        **{"name": name, "title": name, "licence": "as ../shared/data says", "images": part, **more},
        "sources": {"texts": {"path": str(folder / name)}, "photos": {"path": str(photos)}},
        "examples": part | {"sources": ["texts"]},
    }
    (folder / f"{name}.yaml").write_text(json.dumps(described))


def nlvr2(folder: Path) -> None:
    """Of the eight statements those of two pairs to train on, those of the other two to test on."""
    rows = lines(SHARED / "nlvr2" / "tiny-dev.json")
    for split, pairs in (("train", "01"), ("test", "23")):
        own = [row for row in rows if row["identifier"].split("-")[2] in pairs]
        assert {row["label"] for row in own} == {"True", "False"}
        as_lines(folder / "nlvr2" / f"{split}.json", own)
    spec(folder, "nlvr2", SHARED / "nlvr2" / "images", {"train": "train.json", "test": "test.json"})


def nlvr1(folder: Path) -> None:
    """Of the directory's statements eight to train on, and three presentations to test on."""
    rows = lines(SHARED / "nlvr1" / "dev" / "dev.json")
    presented = list(dict.fromkeys(row["identifier"].partition("-")[0] for row in rows))
    for split, chosen in (("train", presented[:2]), ("test", presented[2:5])):
        own = [row for row in rows if row["identifier"].partition("-")[0] in chosen][:8]
        assert {row["label"] for row in own} == {"true", "false"}
        as_lines(folder / "nlvr1" / split / "dev.json", own)
    splits = {"train": "train/dev.json", "test": "test/dev.json"}
    spec(folder, "nlvr1", SHARED / "nlvr1" / "dev" / "images", splits)


def vqa_v2(folder: Path) -> None:
    """Two of the three questions to train on; all are about one photo."""
    (folder / "vqa_v2").mkdir()
    for part in ("questions", "annotations"):
        document = json.loads((SHARED / "vqa_v2" / f"{part}.json").read_text())
        for split, chosen in (("train", document[part][:2]), ("test", document[part][2:])):
            (folder / "vqa_v2" / f"{split}_{part}.json").write_text(json.dumps({part: chosen}))
    splits = {split: f"{split}_questions.json" for split in ("train", "test")}
    spec(folder, "vqa_v2", SHARED / "vqa_v2" / "images", splits, known_overlap="there are questions about one photo")


SCORED = {
    "nlvr2": "nlvr2 --annotations nlvr2/test.json --predictions predictions.csv",
    "nlvr1": "nlvr --annotations nlvr1/test/dev.json --predictions predictions.csv",
    "vqa_v2": "vqa --questions vqa_v2/test_questions.json --annotations vqa_v2/test_annotations.json "
    "--predictions results.json",
}
SCORED_ROWS = {"nlvr2": 4, "nlvr1": 48, "vqa_v2": 1}


def check(run: Any, name: str, call: Any) -> None:
    """The published submission, scored, is metrics.json."""
    evaluation = run.artifact(f"evaluate[{name}]", Evaluation)
    for file in evaluation.path.iterdir():
        if file.name.startswith(("predictions.csv", "results")):
            shutil.copy(file, file.name)
    code, out, said = call("score", *SCORED[name].split(), "--json")
    assert code == 0, said
    found, metrics = json.loads(out.splitlines()[-1]), evaluation.metrics()
    assert found["scored"] == found["of"] == evaluation.counts()["accuracy"] == SCORED_ROWS[name]
    assert {figure: metrics[figure] for figure in ("accuracy", "consistency") if figure in metrics} == {
        figure: found[figure] for figure in ("accuracy", "consistency") if figure in found
    }
    assert ("consistency" in found) == (name != "vqa_v2")


def test_from_official_files_to_a_submission(finished_store: Path, tmp_path: Path, vbert: Any) -> None:
    """Regions of a detector; the three of them in one recipe."""
    for make in (nlvr2, nlvr1, vqa_v2):
        make(tmp_path)
    tiny, entries = Path(TINY).read_text(), {"nlvr2": "nlvr2", "nlvr1": "nlvr2", "vqa_v2": "vqa"}
    recipe = tiny.partition("pretrain:")[0].replace("  easy_vqa: {spec: easy_vqa}\n", "")
    recipe = recipe.replace("data:\n", "data:\n" + "".join(f"  {name}: {{spec: ./{name}.yaml}}\n" for name in entries))
    recipe += "downstream:\n" + "".join(
        f"  {name}: {{objective: {task}, data: {name}, {BRIEF}}}\n" for name, task in entries.items()
    )
    (tmp_path / "miniatures.yaml").write_text(recipe)
    run = run_here(finished_store, tmp_path, "miniatures")
    for name in entries:
        check(run, name, vbert)


def test_nlvr_s_own_boxes_as_regions(finished_store: Path, tmp_path: Path, vbert: Any) -> None:
    nlvr1(tmp_path)
    recipe = Path(TINY).read_text().partition("pretrain:")[0]
    recipe = recipe.replace("  easy_vqa: {spec: easy_vqa}\n", "  nlvr1: {spec: ./nlvr1.yaml}\n")
    recipe = recipe.replace("{rule: adaptive, minimum: 1, maximum: 4, score: 0.1}", "{rule: given}")
    recipe += f"downstream:\n  nlvr1: {{objective: nlvr2, data: nlvr1, {BRIEF}}}\n"
    (tmp_path / "boxes.yaml").write_text(recipe)
    run = run_here(finished_store, tmp_path, "boxes")
    check(run, "nlvr1", vbert)


def run_here(finished_store: Path | None, folder: Path, name: str, until: str | Sequence[str] = ()) -> Any:
    if finished_store is not None:
        shutil.copytree(finished_store, folder / "store", ignore=shutil.ignore_patterns("unfinished", "locks"))
    return vbert.run(str(folder / f"{name}.yaml"), store=folder / "store", until=until, how="local")


PHOTOS = SHARED / "flickr30k_entities" / "images"


def annotate(folder: Path, photo: str, regions: Sequence[Sequence[float]]) -> None:
    """XML of the official form. Of a photo's chains two of three have the box of a region, every second of these
    another one besides; the third has a box where none is; every fifth is a scene without any."""
    with Image.open(PHOTOS / f"{photo}.jpg") as picture:
        width, height = picture.size
    text, objects = (folder / "Sentences" / f"{photo}.txt").read_text("utf-8"), ""
    for n, chain in enumerate(dict.fromkeys(re.findall(r"\[/EN#(\d+)/", text))):
        own: Sequence[Sequence[float]] = [regions[n % len(regions)], regions[(n + 1) % len(regions)]] if regions else []
        boxes = [] if n % 5 == 4 or chain == "0" else own[: 1 + n % 2] if n % 3 and own else [(1, 1, 4, 4)]
        for box in boxes:
            sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
            inner = "".join(f"<{side}>{round(value)}</{side}>" for side, value in sides)
            objects += f"<object><name>{chain}</name><bndbox>{inner}</bndbox></object>"
        if not boxes:
            objects += f"<object><name>{chain}</name><scene>1</scene><nobndbox>1</nobndbox></object>"
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    (folder / "Annotations" / f"{photo}.xml").write_text(f"<annotation>{size}{objects}</annotation>")


def entities(folder: Path) -> list[str]:
    """Flickr30k Entities: real sentences and photos. Returns the photos."""
    own = folder / "entities"
    shutil.copytree(SHARED / "flickr30k_entities" / "sentences", own / "Sentences")
    (own / "Annotations").mkdir()
    photos = sorted(path.stem for path in (own / "Sentences").iterdir())
    for photo in photos:
        annotate(own, photo, [])
    for split, chosen in (("train", photos[:2]), ("val", photos[2:3]), ("test", photos[3:])):
        (own / f"{split}.txt").write_text("".join(f"{photo}\n" for photo in chosen))
    caption = {"raw": "Nobody .", "sentid": 0, "imgid": 0, "tokens": ["nobody"]}
    listed = {"filename": f"{photos[0]}.jpg", "imgid": 0, "sentids": [0], "split": "train", "sentences": [caption]}
    (folder / "captions").mkdir()
    content = {"dataset": "flickr30k", "images": [listed]}
    (folder / "captions" / "dataset_flickr30k.json").write_text(json.dumps(content))
    described = {
        **{"name": "entities", "title": "entities", "licence": "as ../shared/data says"},
        "known_overlap": "the miniature has one photo under several names",
        "sources": {
            "texts": {"path": str(own)},
            "photos": {"path": str(PHOTOS)},
            "captions": {"path": str(folder / "captions")},
        },
        "images": {
            "reader": "karpathy",
            "options": {"of": "flickr30k", "unlisted": "keep"},
            "sources": ["photos", "captions"],
        },
        "examples": {"reader": "flickr30k_entities", "sources": ["texts"]},
    }
    (folder / "entities.yaml").write_text(json.dumps(described))
    return photos


def test_phrases_from_official_files_to_a_submission(finished_store: Path, tmp_path: Path, vbert: Any) -> None:
    """Scored, the submission has every figure of the evaluation, by type too; the bound and the heads are told. Boxes
    are those of regions, which are made first."""
    photos = entities(tmp_path)
    recipe = Path(TINY).read_text().replace("  easy_vqa: {spec: easy_vqa}\n", "  entities: {spec: ./entities.yaml}\n")
    recipe = recipe.partition("downstream:")[0].replace("easy_vqa", "entities")
    entry = f"{{objective: grounding, data: entities, floor: 0.1, {BRIEF.replace('none', 'pretrained')}}}"
    recipe += f"downstream:\n  phrases: {entry}\n"
    (tmp_path / "phrases.yaml").write_text(recipe)
    run = run_here(finished_store, tmp_path, "phrases", "regions[entities]")
    shards = run.artifact("regions[entities]", Shards)
    for photo in photos:
        annotate(tmp_path / "entities", photo, shards.read(photo).boxes.tolist())
    run = run_here(None, tmp_path, "phrases")
    evaluation = run.artifact("evaluate[phrases]", Evaluation)
    metrics, counts = evaluation.metrics(), evaluation.counts()
    shutil.copy(evaluation.path / "results.json", "results.json")
    asked = "grounding --annotations entities --split test.txt --predictions results.json --protocol"
    for under in ("any", "merged"):
        code, out, said = vbert("score", *asked.split(), under, "--json")
        assert code == 0, said
        found, end = json.loads(out.splitlines()[-1]), "" if under == "any" else "_merged"
        assert found["phrases"] == counts["r1"] > 20
        for name in ("r1", "r5", "r10", "upper_bound"):
            assert metrics[f"{name}{end}"] == pytest.approx(found[name], abs=1e-12), name
            for kind, its in found["per_type"].items():
                assert metrics[f"{name}{end}/{kind}"] == pytest.approx(its[name], abs=1e-12), kind
    assert 0.3 < metrics["upper_bound"] < 1
    assert metrics["r1"] < metrics["upper_bound"] > metrics["upper_bound_merged"]
    model = run.artifact("finetune[phrases]", Model)
    assert {"upper_bound/train", "upper_bound_merged/val"} <= model.figures.keys()
    heads = run.artifact("heads[phrases]", HeadAnalysis).read()
    assert heads["phrases"] == counts["r1"]
    assert heads["random_region"] == pytest.approx(metrics["random_region"])
