"""The recipes of published models: their plans, and whole runs on miniatures of their data in the official formats."""

from __future__ import annotations

import csv
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipe_world import WORLDS, by_hand

from flows.graph import graph
from flows.recipe import recipe_names, resolve
from vbert.data.spec import dataset
from vbert.errors import UserError

PUBLISHED = [name for name in recipe_names() if name.startswith("visualbert_")]
BASES = [name for name in PUBLISHED if not name.endswith("_large")]


def as_options(changes: dict[str, Any]) -> list[str]:
    return [part for key, value in changes.items() for part in ("--set", f"{key}={json.dumps(value)}")]


def test_all_are_tried() -> None:
    assert sorted(WORLDS) == PUBLISHED


def test_they_are_planned_without_a_network(vbert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise AssertionError("the network")

    monkeypatch.setattr(socket, "getaddrinfo", refused)
    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setenv("VBERT_DATA", str(tmp_path / "data"))
    changes = by_hand(tmp_path / "data")
    for name in PUBLISHED:
        code, out, err = vbert("run", name, "--limit", "100", "--dry-run", "--json", *as_options(changes[name]))
        assert code == 0, err
        stages = [row["stage"] for row in json.loads(out.splitlines()[-1])["stages"]]
        assert {"pretrain", "finetune", "evaluate", "report"} <= {stage.partition("[")[0] for stage in stages}


def test_what_a_person_must_fetch_is_said(vbert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features: the steps, then what is missing of them; a place of one's own instead."""
    code, _, err = vbert("run", "visualbert_vqa2", "--dry-run")
    place = tmp_path / "data/coco_2014_trainval/pythia_visual_genome_X_101"
    assert code == 2
    assert f"data set coco: features is fetched by hand into {place}, and it isn't there" in err
    assert "`--set data.coco.features.path=FOLDER`" in err
    assert "1. Fetch https://dl.fbaipublicfiles.com/pythia/features/detectron_fix_100.tar.gz" in err
    by_hand(tmp_path / "data")
    placed = graph(resolve("visualbert_vqa2")).fingerprint
    own = {f"data.{name}.features.path": str(place) for name in ("coco", "vqa")}
    assert graph(resolve("visualbert_vqa2", own)).fingerprint == placed
    (place / "COCO_val2014_1.npy").unlink()
    with pytest.raises(UserError, match=r"holds 0 of \*COCO_val2014_\*\.npy, not 1"):
        graph(resolve("visualbert_vqa2"))
    with pytest.raises(UserError, match=r"features: give the path of the features, or say in `manual` how to get them"):
        resolve("visualbert_vqa2", {"data.vqa.features": {"detector": "unknown"}})


def test_a_large_one_differs_in_its_bert_alone() -> None:
    for name in PUBLISHED:
        if name not in BASES:
            base = resolve(name.removesuffix("_large"), {"model.init": "bert_large_uncased", "name": name})
            assert resolve(name) == base


def test_steps_are_the_epochs_of_the_original() -> None:
    """By its rule, int(examples / batch) × epochs, and the published counts."""
    counts = {name: dataset(name).examples.counts["train"] for name in ("coco_2017", "vqa_v2_trainval", "nlvr2", "vcr")}
    captions, questions, pairs, choices = counts.values()
    sentences, split_captions, expressions, flickr = (
        dataset(name).examples.counts["train"]
        for name in ("flickr30k_entities", "coco_captions", "refcoco_plus", "flickr30k")
    )
    asked = choices // 2  # an example for answers, one for reasons
    expected = {
        "visualbert_vqa2": {"coco": captions // 48 * 10, "task": questions // 64 * 10, "vqa": questions // 64 * 10},
        "visualbert_nlvr2": {"coco": captions // 64 * 10, "task": pairs // 64 * 10, "nlvr2": pairs // 64 * 10},
        "visualbert_vcr": {
            "coco": captions // 128 * 10,
            "task": asked * 8 // 32,  # choices
            "answer": asked // 32 * 8,
            "rationale": asked // 32 * 12,
        },
        "visualbert_flickr30k_entities": {
            "coco": captions // 32 * 10, "task": sentences // 32 * 10, "phrases": sentences // 32 * 5
        },
        "visualbert_refcoco_plus": {"": split_captions // 64 * 10, "expressions": expressions // 256 * 20},
        "visualbert_coco_retrieval": {"": split_captions // 64 * 10, "retrieval": split_captions // 64 * 10},
        "visualbert_coco_captioning": {"": split_captions // 64 * 10, "captioning": split_captions // 256 * 30},
        "visualbert_flickr30k_retrieval": {"": captions // 64 * 10, "retrieval": flickr // 64 * 20},
    }  # fmt: skip
    for name, steps in expected.items():
        recipe = resolve(name)
        assert {key: entry.steps for key, entry in (recipe.pretrainings() | recipe.downstream).items()} == steps


def of_vqa(made: Callable[[str, str], Path], metrics: dict[str, float]) -> None:
    answers = json.loads(made("evaluate[vqa]", "results.json").read_text())
    assert sorted(row["question_id"] for row in answers) == sorted(10 * n + k for n in range(61, 65) for k in (0, 1))
    assert {row["answer"] for row in answers} <= {"yes", "no", "maybe"}
    assert "vqa/vqa/val/accuracy" in metrics
    assert not any("/test/" in name for name in metrics)


def of_nlvr2(made: Callable[[str, str], Path], metrics: dict[str, float]) -> None:
    """test2 has no features: none of its pairs is in a file, and they count as wrong."""
    rows = list(csv.reader(made("evaluate[nlvr2]", "predictions-test1.csv").read_text().splitlines()))
    assert [name for name, _ in rows] == [f"test1-{n}-{pair}-0" for n in range(4) for pair in (0, 1)]
    right = sum(said == str(int(name[8]) == int(name[6]) % 2) for name, said in rows)
    assert metrics["nlvr2/nlvr2/test/accuracy/test1"] == right / 8
    assert metrics["nlvr2/nlvr2/test/accuracy"] == right / 16


def of_vcr(made: Callable[[str, str], Path], metrics: dict[str, float]) -> None:
    answers = list(csv.DictReader(made("evaluate[answer]", "predictions.csv").read_text().splitlines()))
    reasons = list(csv.DictReader(made("evaluate[rationale]", "predictions.csv").read_text().splitlines()))
    assert (
        [row["annot_id"] for row in answers] == [row["annot_id"] for row in reasons] == [f"test-{n}" for n in range(6)]
    )
    assert (len(answers[0]), len(reasons[0])) == (5, 17)
    assert {"answer/vcr/val/accuracy", "rationale/vcr/val/accuracy"} <= metrics.keys()


def of_memes(made: Callable[[str, str], Path], metrics: dict[str, float]) -> None:
    """A file each of the challenge's phases, of which the first has no labels."""
    for part in ("seen", "unseen"):
        rows = list(csv.DictReader(made("evaluate[memes]", f"predictions-test_{part}.csv").read_text().splitlines()))
        assert (list(rows[0]), len(rows)) == (["id", "proba", "label"], 6)
    assert {"memes/memes/val/auroc/dev_unseen", "memes/memes/test/auroc/test_unseen"} <= metrics.keys()
    assert "memes/memes/test/accuracy/test_seen" not in metrics


def of_entities(made: Callable[[str, str], Path], metrics: dict[str, float]) -> None:
    rows = json.loads(made("evaluate[phrases]", "results.json").read_text())
    assert [(row["image_id"], row["sentence_id"]) for row in rows] == [
        (str(n), k) for n in range(17, 21) for k in (0, 1)
    ]
    assert {len(row["boxes"]) for row in rows} == {1}
    assert {f"phrases/flickr/test/{name}" for name in ("r1", "r5", "r10", "upper_bound")} <= metrics.keys()


def of_refcoco(made: Callable[[str, str], Path], metrics: dict[str, float]) -> None:
    """testA and testB are parts of test."""
    rows = json.loads(made("evaluate[expressions]", "results.json").read_text())
    assert sorted(row["sent_id"] for row in rows) == [22, 23, 24, 25]
    assert {f"expressions/refcoco/test/accuracy/{part}" for part in ("testA", "testB")} <= metrics.keys()


def of_retrieval(made: Callable[[str, str], Path], metrics: dict[str, float]) -> None:
    rows = [json.loads(line) for line in made("evaluate[retrieval]", "rankings.jsonl").read_text().splitlines()]
    texts, images = ([row for row in rows if key in row] for key in ("text_id", "image_id"))
    assert len(texts) == 5 * len(images) > 0
    assert any(name.endswith("/test/rsum") for name in metrics)


def of_captioning(made: Callable[[str, str], Path], metrics: dict[str, float]) -> None:
    """A caption of each of Karpathy's test photos, by COCO's numbers."""
    rows = json.loads(made("evaluate[captioning]", "captions.json").read_text())
    assert sorted(row["image_id"] for row in rows) == [18, 19, 20]
    assert {type(row["caption"]) for row in rows} == {str}
    assert any(name.startswith("captioning/coco/test/") for name in metrics)


MADE = {
    "visualbert_flickr30k_entities": of_entities,
    "visualbert_refcoco_plus": of_refcoco,
    "visualbert_coco_retrieval": of_retrieval,
    "visualbert_coco_captioning": of_captioning,
    "visualbert_flickr30k_retrieval": of_retrieval,
    "visualbert_vqa2": of_vqa,
    "visualbert_nlvr2": of_nlvr2,
    "visualbert_vcr": of_vcr,
    "visualbert_hateful_memes": of_memes,
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name == "visualbert_vqa2" else pytest.mark.slow) for name in PUBLISHED]
)
def test_it_runs_to_report_and_submission(name: str, vbert: Any, tmp_path: Path) -> None:
    options = as_options(WORLDS[name](tmp_path / "world") | {"limit": 100})
    code, out, err = vbert("run", name, "--local", "--json", *options)
    assert code == 0, err
    done = json.loads(out.splitlines()[-1])

    def made(stage: str, file: str) -> Path:
        code, out, err = vbert("path", name, stage, *options)
        assert code == 0, err
        return next(Path(out.strip()).rglob(file))

    assert "<html" in made("report", "report.html").read_text()

    MADE[name.removesuffix("_large")](made, done["metrics"])
