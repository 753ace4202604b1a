"""The submission of a published `Evaluation`, scored by `vbert score`, gives metrics.json again, digit for digit."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import pytest
from metrics import vqa_answers
from PIL import Image
from scoring.score_world import as_json, as_lines

from vbert.metrics.evaluation import Evaluation, write_evaluation
from vbert.metrics.nlvr import nlvr2_group
from vbert.scoring.vcr import rationale_columns

NONE = {"question_type": None, "part": None}


@pytest.fixture
def published(tmp_path: Path) -> Callable[..., Evaluation]:
    """The evaluation of predictions by an objective, as the stage writes it."""

    def publish(
        name: str, rows: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]], head: dict[str, Any]
    ) -> Evaluation:
        objective = import_module(f"vbert.objectives.{name}")
        write_evaluation(
            tmp_path,
            predictions=predictions,
            metrics=objective.metrics(rows, predictions, head),
            images=[row["example_id"] for row in rows],
            resamples=0,
            counts={"examples": len(rows)},
            files=objective.submission(rows, predictions, head),
        )
        return Evaluation.at(tmp_path)

    return publish


@pytest.fixture
def score(vbert: Any) -> Callable[[str], dict[str, Any]]:
    def call(line: str) -> dict[str, Any]:
        code, out, said = vbert("score", *line.split(), "--json")
        assert code == 0, said
        return dict(json.loads(out.splitlines()[-1]))

    return call


def flat(figures: Mapping[str, Any]) -> dict[str, float]:
    """As metrics.json has them: the parts of a figure beside the whole, figure/part."""
    found = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            found |= {f"accuracy/{part}": share for part, share in value.items()}
        elif name not in ("scored", "of", "missing"):
            found[name] = value
    return found


def test_vqa(tmp_path: Path, published: Callable[..., Evaluation], score: Callable[[str], dict[str, Any]]) -> None:
    from vbert.data.readers._answers import soft_targets
    from vbert.data.readers._odd import Odd

    questions, annotations, results = vqa_answers.make(1500)
    rows, predictions = [], []
    for annotation, result in zip(annotations["annotations"], results, strict=True):
        for at, answer in enumerate(annotation["answers"]):
            answer["answer_id"] = at
        given = [answer["answer"] for answer in annotation["answers"]]
        types = {key: annotation[key] for key in ("question_type", "answer_type")}
        name = str(annotation["question_id"])
        rows.append({"example_id": name, "given": given, "answers": soft_targets(given, Odd(), name)} | types)
        predictions.append({"example_id": name, "answer": result["answer"], "score": 0.5})
    predictions[7] = {"example_id": "7", "answer": "", "score": 0.0, "quarantined": True}
    evaluation = published("vqa", rows, predictions, {})
    for name, document in (("questions", questions), ("annotations", annotations)):
        as_json(tmp_path / f"{name}.json", document)
    found = score("vqa --questions questions.json --annotations annotations.json --predictions results.json")
    assert flat(found) == evaluation.metrics()
    assert found["scored"] == evaluation.counts()["accuracy"] == 1500


def test_one_answer(
    tmp_path: Path, published: Callable[..., Evaluation], score: Callable[[str], dict[str, Any]]
) -> None:
    rows = [
        {"example_id": f"q{n}", "given": None, "answers": [{"answer": answer, "score": 1.0}]}
        | {"question_type": None, "answer_type": None}
        for n, answer in enumerate(["yes", "no", "red"])
    ]
    predictions = [{"example_id": f"q{n}", "answer": "yes", "score": 0.5} for n in range(3)]
    evaluation = published("vqa", rows, predictions, {})
    as_json(tmp_path / "truth.json", {row["example_id"]: row["answers"][0]["answer"] for row in rows})
    assert (
        flat(score("vqa --protocol exact --annotations truth.json --predictions results.json")) == evaluation.metrics()
    )


def test_classification(
    tmp_path: Path, published: Callable[..., Evaluation], score: Callable[[str], dict[str, Any]]
) -> None:
    draw, labels = np.random.default_rng(0), ["a", "b, c", "d"]
    rows = [{"example_id": f"m{n}", "label": labels[int(draw.integers(3))], **NONE} for n in range(300)]
    shares = draw.dirichlet([1, 1, 1], 300).round(2)  # so that some are equal
    predictions = [
        {"example_id": row["example_id"], "answer": labels[int(share.argmax())], "probabilities": share.tolist()}
        for row, share in zip(rows, shares, strict=True)
    ]
    predictions[7] = {"example_id": "m7", "answer": "", "score": 0.0, "quarantined": True}
    evaluation = published("classification", rows, predictions, {"labels": labels, "positive": "d"})
    as_lines(tmp_path / "truth.jsonl", [{"id": row["example_id"], "label": row["label"]} for row in rows])
    files = "--annotations truth.jsonl --predictions predictions.csv"
    found = score(f"classification {files} --positive d --missing wrong")
    assert flat(found) == {name: evaluation.metrics()[name] for name in flat(found)}
    assert {"accuracy", "macro_f1", "weighted_f1", "auroc"} == set(flat(found))


def test_labels_of_parts_by_the_names_of_their_own_files(
    tmp_path: Path, published: Callable[..., Evaluation], score: Callable[[str], dict[str, Any]]
) -> None:
    """Hateful Memes' two files of one split, whose ids are in both; the annotations' columns have other names."""
    draw, rows, truth = np.random.default_rng(6), [], dict[str, list[dict[str, Any]]]()
    for part in ("seen", "unseen"):
        for n in range(80):
            label = str(int(draw.integers(2)))
            name = f"{part}/{n}" if part == "unseen" and n < 20 else str(n + 100 * (part == "unseen"))
            rows.append({"example_id": name, "label": label, "question_type": None, "part": part})
            truth.setdefault(part, []).append({"meme": int(name.rpartition("/")[2]), "hateful": int(label)})
    predictions = []
    for row in rows:
        share = round(float(draw.random()), 1)
        predictions.append(
            {"example_id": row["example_id"], "answer": str(int(share > 0.5)), "probabilities": [1 - share, share]}
        )
    evaluation = published("classification", rows, without(predictions, 3), {"labels": ["0", "1"], "positive": "1"})
    metrics, names = evaluation.metrics(), {"accuracy", "macro_f1", "weighted_f1", "auroc"}
    assert metrics.keys() == names | {f"{name}/{part}" for name in names for part in truth}
    for part, lines in truth.items():
        as_lines(tmp_path / "truth.jsonl", lines)
        files = f"--annotations truth.jsonl --predictions predictions-{part}.csv"
        found = score(f"classification {files} --id meme --label hateful --positive 1 --missing wrong")
        assert flat(found) == {name: metrics[f"{name}/{part}"] for name in names}
        assert found["scored"] == evaluation.counts()[f"accuracy/{part}"] == 80


def without(predictions: Sequence[dict[str, Any]], *gone: int) -> list[dict[str, Any]]:
    """Those numbers have no regions."""
    return [
        {"example_id": p["example_id"], "answer": "", "score": 0.0, "quarantined": True} if n in gone else p
        for n, p in enumerate(predictions)
    ]


def labelled(names: Sequence[str], draw: np.random.Generator, **more: Any) -> list[dict[str, Any]]:
    """Statements that are true or false."""
    flags = ("false", "true")
    return [{"example_id": name, "label": flags[int(draw.integers(2))], **NONE} | more for name in names]


def guessed(rows: Sequence[dict[str, Any]], draw: np.random.Generator, right: float) -> list[dict[str, Any]]:
    """The share `right` of them right; every thirtieth has no regions."""
    other = {"true": "false", "false": "true"}
    found = [
        {"example_id": row["example_id"], "answer": row["label"] if draw.random() < right else other[row["label"]]}
        for row in rows
    ]
    return without(found, *range(7, len(rows), 30))


@pytest.mark.parametrize("parts", [("test1",), ("test1", "test2")])
def test_nlvr2(
    parts: Sequence[str],
    tmp_path: Path,
    published: Callable[..., Evaluation],
    score: Callable[[str], dict[str, Any]],
) -> None:
    """One file a part of the split."""
    draw, rows = np.random.default_rng(1), []
    for part in parts:
        names = [f"{part}-{photos}-{pair}-{s}" for photos in range(20) for pair in range(4) for s in range(2)]
        own = labelled(names, draw, part=part if len(parts) > 1 else None)
        rows += [row | {"group": nlvr2_group(row["example_id"])} for row in own]
    evaluation = published("nlvr2", rows, guessed(rows, draw, 0.9), {})
    metrics, every = evaluation.metrics(), 0
    for part in parts:
        own = [row for row in rows if row["example_id"].startswith(part)]
        as_lines(tmp_path / "truth.json", [{"identifier": r["example_id"], "label": r["label"].title()} for r in own])
        tail = f"-{part}" if len(parts) > 1 else ""
        found = score(f"nlvr2 --annotations truth.json --predictions predictions{tail}.csv --missing wrong")
        under = f"/{part}" if len(parts) > 1 else ""
        assert flat(found) == {name: metrics[f"{name}{under}"] for name in ("accuracy", "consistency")}
        assert 0.3 < found["consistency"] < found["accuracy"] < 0.95
        every += found["scored"]
    assert every == evaluation.counts()["accuracy"] == len(rows)
    assert metrics.keys() == {"accuracy", "consistency"} | {
        f"{name}/{part}" for name in ("accuracy", "consistency") for part in parts if len(parts) > 1
    }


def test_nlvr(tmp_path: Path, published: Callable[..., Evaluation], score: Callable[[str], dict[str, Any]]) -> None:
    """Drawings by the names of their PNGs; those presented together are a group."""
    draw, truth, rows = np.random.default_rng(2), [], []
    for n in range(30):
        for m in range(3):
            (one,) = labelled([f"{n}-{m}"], draw)
            truth.append({"identifier": one["example_id"], "label": one["label"]})
            rows += [one | {"example_id": f"dev-{n}-{m}-{k}.png", "group": f"dev-{n}"} for k in range(6)]
    evaluation = published("nlvr2", rows, guessed(rows, draw, 0.99), {})
    as_lines(tmp_path / "truth.json", truth)
    found = score("nlvr --annotations truth.json --predictions predictions.csv --missing wrong")
    assert flat(found) == evaluation.metrics()
    assert 0.2 < found["consistency"] < found["accuracy"] < 1
    assert found["scored"] == evaluation.counts()["accuracy"] == 540


def chosen(rows: Sequence[dict[str, Any]], draw: np.random.Generator) -> list[dict[str, Any]]:
    """Half of the labelled ones right."""
    found = []
    for row in rows:
        shares = draw.dirichlet([1] * 4).round(1)  # so that some are equal
        if row["label"] is not None and draw.random() < 0.4:
            shares[int(row["label"])] = 2
        best = str(int(shares.argmax()))
        found.append({"example_id": row["example_id"], "answer": best, "probabilities": shares.tolist()})
    return found


def still(n: int, draw: np.random.Generator) -> dict[str, Any]:
    """A line of VCR's files."""
    lists = {f: [["it", "is", [0], f"{f[0]}{k}"] for k in range(4)] for f in ("answer_choices", "rationale_choices")}
    labels = {f"{kind}_label": int(draw.integers(4)) for kind in ("answer", "rationale")}
    names = {"annot_id": f"val-{n}", "img_fn": "m/0.jpg", "metadata_fn": "m/0.json"}
    return {**names, "objects": ["person"], "question": ["who", "?"], **lists, **labels}


def test_vcr(tmp_path: Path, published: Callable[..., Evaluation], score: Callable[[str], dict[str, Any]]) -> None:
    """What the reader gives, with rationales given each answer, as for a split without labels."""
    from data.text_world import rows_of, spec_of

    draw = np.random.default_rng(3)
    lines = [still(n, draw) for n in range(60)]
    folder = tmp_path / "raw" / "m"
    folder.mkdir(parents=True)
    as_lines(folder.parent / "val.jsonl", lines)
    as_json(folder / "0.json", {"boxes": [[1, 1, 5, 5, 1]], "names": ["person"], "width": 8, "height": 8})
    Image.new("RGB", (8, 8)).save(folder / "0.jpg")
    options = {"splits": {"val": "val.jsonl"}, "every_answer": ["val"]}
    spec = spec_of("vcr", folder.parent, options, images={"reader": "vcr", "options": {"splits": options["splits"]}})
    rows, *_ = rows_of(spec, tmp_path / "store")
    gone = [n for n, row in enumerate(rows) if row["group"] == "val-30"]
    evaluation = published("choice", rows, without(chosen(rows, draw), *gone), {"protocol": "vcr"})
    as_lines(tmp_path / "truth.jsonl", lines)
    found = score("vcr --annotations truth.jsonl --predictions predictions.csv --missing wrong")
    metrics = evaluation.metrics()
    assert metrics.keys() == {"accuracy", "accuracy/answer", "accuracy/rationale", "joint"}
    assert flat(found) == {name: metrics[f"accuracy/{name}"] for name in ("answer", "rationale")} | {
        "joint": metrics["joint"]
    }
    assert 0 < found["joint"] < found["answer"] < 1
    assert evaluation.counts()["accuracy/answer"] == evaluation.counts()["accuracy/rationale"] == 60
    assert (found["scored"], found["missing"]) == (60, 1)


def columns(evaluation: Evaluation) -> list[str]:
    return evaluation.file("predictions.csv").read_text().partition("\n")[0].split(",")


def test_vcr_s_file_has_the_columns_that_a_model_fills(published: Callable[..., Evaluation]) -> None:
    """Answers alone; rationales alone, given each answer; those given the right answer alone, which differs, fill
    none."""
    row = {"label": "0", "question_type": "answer", "group": "a", "example_id": "a/answer", "choices": [None] * 4}
    p = {"answer": "0", "probabilities": [0.7, 0.1, 0.1, 0.1]}
    answers = [row, row | {"group": "b", "example_id": "b/answer"}]
    evaluation = published("choice", answers, [p, p], {"protocol": "vcr"})
    assert columns(evaluation) == ["annot_id", *(f"answer_{k}" for k in range(4))]
    assert evaluation.metrics().keys() == {"accuracy", "accuracy/answer"}
    given = [
        row | {"example_id": f"{name}/rationale_{k}", "group": name, "question_type": "rationale"}
        for name in "ab"
        for k in range(4)
    ]
    evaluation = published("choice", given, [p] * 8, {"protocol": "vcr"})
    assert columns(evaluation) == ["annot_id", *(name for k in range(4) for name in rationale_columns(k))]
    right = [given[0], given[5]]
    evaluation = published("choice", answers + right, [p] * 4, {"protocol": "vcr"})
    assert columns(evaluation) == ["annot_id", *(f"answer_{k}" for k in range(4))]
    assert import_module("vbert.objectives.choice").submission(right, [p] * 2, {"protocol": "vcr"}) == {}


def test_aokvqa(tmp_path: Path, published: Callable[..., Evaluation], score: Callable[[str], dict[str, Any]]) -> None:
    """Direct answers by `vqa`, multiple choice by `choice`, of the reader's rows; two choices may be the same text."""
    from vbert.data.readers import aokvqa

    draw, words = np.random.default_rng(4), ("ski", "Ski", "snow", "hat", "cap")
    truth = [
        {
            "question_id": f"q{n}",
            "image_id": n,
            "question": "what?",
            "choices": [words[int(k)] for k in draw.integers(0, 5, 4)],
            "correct_choice_idx": int(draw.integers(4)),
            "direct_answers": [words[int(k)] for k in draw.integers(0, 5, 10)],
            "difficult_direct_answer": n % 7 == 0,
        }
        for n in range(80)
    ]
    as_json(tmp_path / "aokvqa_v1p0_val.json", truth)
    none = {"question_type": None, "answer_type": None, "group": None, "given": None, "answers": None}
    file = Mock(split="val", read=(tmp_path / "aokvqa_v1p0_val.json").read_bytes)
    file.name = "aokvqa_v1p0_val.json"
    with patch.object(aokvqa, "split_files", return_value=[file]):
        every = [none | row for row in aokvqa.examples({}, ()) if isinstance(row, dict)]
    line = "vqa --protocol aokvqa --annotations aokvqa_v1p0_val.json --predictions predictions.json"
    rows = [row for row in every if row["kind"] == "choice"]
    evaluation = published("choice", rows, without(chosen(rows, draw), 11), {"protocol": "aokvqa"})
    assert score(f"{line} --missing wrong")["multiple_choice"] == evaluation.metrics()["accuracy"]
    assert evaluation.metrics().keys() == {"accuracy"}
    rows = [row for row in every if row["kind"] == "question"]
    answers = [{"example_id": row["example_id"], "answer": words[int(draw.integers(5))]} for row in rows]
    evaluation = published("vqa", rows, without(answers, 11), {"protocol": "aokvqa"})
    found = score(line)
    assert flat(found) == {"direct_answer": evaluation.metrics()["accuracy"]}
    assert found["scored"] == evaluation.counts()["accuracy"] == 68


@pytest.mark.parametrize("protocol", ["gqa", "exact"])
def test_exact_match(
    protocol: str, tmp_path: Path, published: Callable[..., Evaluation], score: Callable[[str], dict[str, Any]]
) -> None:
    draw, words = np.random.default_rng(5), ("yes", "no", "Yes")
    rows = [
        {"example_id": f"0{n}", "given": None, "answers": [{"answer": words[int(draw.integers(3))], "score": 1.0}]}
        | {"question_type": "verify", "answer_type": None}
        for n in range(200)
    ]
    answers = [{"example_id": row["example_id"], "answer": words[int(draw.integers(3))]} for row in rows]
    evaluation = published("vqa", rows, without(answers, 7), {"protocol": protocol})
    truth: dict[str, Any] = {row["example_id"]: row["answers"][0]["answer"] for row in rows}
    if protocol == "gqa":
        truth = {name: {"answer": answer} for name, answer in truth.items()}
    as_json(tmp_path / "truth.json", truth)
    found = score(f"vqa --protocol {protocol} --annotations truth.json --predictions predictions.json")
    assert flat(found) == {"accuracy": evaluation.metrics()["accuracy"]}
    assert 0.2 < found["accuracy"] < 0.5
