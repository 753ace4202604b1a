"""`vbert score` of whole files: the official evaluators' figures, figures by hand, and what must not change them."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from metrics import vqa_answers
from scoring import official_inputs, score_world

from vbert.scoring.classification import score_classification
from vbert.scoring.nlvr import score_nlvr, score_nlvr2
from vbert.scoring.vqa import score_vqa

HERE = Path(__file__).parent
OFFICIAL = json.loads((HERE / "official.json").read_text())
DATA = Path(__file__).parents[2].parent / "shared" / "data"


LABELS = {"accuracy": 3 / 4, "macro_f1": (4 / 5 + 2 / 3) / 2, "weighted_f1": (4 / 5 + 2 / 3) / 2}
VCR = {"answer": 2 / 3, "rationale": 2 / 3, "joint": 1 / 3}


@pytest.fixture
def world(vbert: Any, tmp_path: Path) -> Path:
    """The working directory, with the small files."""
    score_world.write(tmp_path)
    return tmp_path


@pytest.fixture
def score(vbert: Any) -> Callable[[str], Any]:
    """`vbert score …` with --json: its last line."""

    def call(line: str) -> Any:
        code, out, said = vbert("score", *line.split(), "--json")
        assert code == 0, said
        return json.loads(out.splitlines()[-1])

    return call


def test_vqa_is_scored_as_by_the_official_code(tmp_path: Path, score: Callable[[str], Any]) -> None:
    official = json.loads((HERE.parent / "metrics/official_vqa.json").read_text())
    for name, document in zip(("questions", "annotations", "results"), vqa_answers.make(), strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    found = score("vqa --questions questions.json --annotations annotations.json --predictions results.json")
    assert list(found) == ["accuracy", "per_question_type", "per_answer_type", "scored", "of", "missing"]
    assert (found["scored"], found["of"]) == (6000, 6000)
    assert found["accuracy"] == pytest.approx(sum(official["each"]) / 6000 / 100, abs=1e-9)
    assert round(100 * found["accuracy"], 2) == official["accuracy"]
    for figure in ("per_question_type", "per_answer_type"):
        assert {kind: round(100 * share, 2) for kind, share in found[figure].items()} == official[figure]


def test_the_other_tasks_are_scored_as_by_the_official_code(tmp_path: Path, score: Callable[[str], Any]) -> None:
    official_inputs.write(tmp_path / "files")
    assert official_inputs.digest(tmp_path / "files") == OFFICIAL["inputs"]
    found = score(
        "nlvr2 --annotations files/nlvr2/dev.json --predictions files/nlvr2/predictions.csv --subset "
        "files/nlvr2/balanced_dev.json --categories files/nlvr2/annotated_dev_examples.txt"
    )
    expected = OFFICIAL["nlvr2"]
    assert found["accuracy"] == pytest.approx(expected["accuracy"], abs=1e-9)
    assert found["consistency"] == pytest.approx(expected["consistency"], abs=1e-9)
    assert 100 * found["subset"] == pytest.approx(expected["subset"], abs=1e-9)
    assert {kind: round(100 * share, 2) for kind, share in found["per_category"].items()} == expected["per_category"]
    found = score("nlvr --annotations files/nlvr/dev.json --predictions files/nlvr/predictions.csv")
    assert {figure: found[figure] for figure in OFFICIAL["nlvr"]} == pytest.approx(OFFICIAL["nlvr"], abs=1e-9)
    found = score(
        "vqa --protocol aokvqa --annotations files/aokvqa/aokvqa_v1p0_val.json --predictions "
        "files/aokvqa/predictions.json --missing wrong"  # the official code leaves missing ones wrong
    )
    assert {figure: 100 * found[figure] for figure in OFFICIAL["aokvqa"]} == pytest.approx(OFFICIAL["aokvqa"], abs=1e-9)
    arrays = "--answers files/vcr/answers.npy --rationales files/vcr/rationales.npy"
    found = score(f"vcr --annotations files/vcr/val.jsonl {arrays}")
    assert {figure: found[figure] for figure in OFFICIAL["vcr"]} == pytest.approx(OFFICIAL["vcr"], abs=1e-9)


@pytest.mark.parametrize(
    ("line", "figures"),
    [
        (
            "vqa --annotations annotations.json --predictions results.json",
            {
                "accuracy": 1.3 / 3,
                "per_question_type": {"how many": 0.5, "what is": 0.3},
                "per_answer_type": {"other": 1.3 / 3},
            },
        ),
        (
            "vqa --protocol aokvqa --annotations aokvqa_v1p0_val.json --predictions aokvqa.json",
            {"direct_answer": 2 / 3, "multiple_choice": 1 / 3},
        ),
        ("vqa --protocol gqa --questions gqa.json --predictions gqa_predictions.json", {"accuracy": 2 / 3}),
        ("vqa --protocol gqa --annotations gqa.json --predictions gqa_predictions.json", {"accuracy": 2 / 3}),
        ("vqa --protocol exact --annotations truth.json --predictions answers.json", {"accuracy": 2 / 3}),
        ("vqa --protocol exact --annotations truth.json --predictions results.json", {"accuracy": 0}),
        (
            "nlvr2 --annotations dev.json --predictions nlvr2.csv --subset balanced_dev.json "
            "--categories annotated_dev_examples.txt",
            {
                "accuracy": 3 / 4,
                "consistency": 1 / 2,
                "subset": 1 / 2,
                "per_category": {"coordination": 1, "negation": 3 / 4},
            },
        ),
        ("nlvr --annotations nlvr_dev.json --predictions nlvr.csv", {"accuracy": 17 / 18, "consistency": 1 / 2}),
        ("classification --annotations labels.jsonl --predictions labels.csv", LABELS | {"auroc": 3.5 / 4}),
        ("classification --annotations labels.jsonl --predictions labels.csv --positive 0", LABELS | {"auroc": 1 / 8}),
        ("classification --annotations labels.jsonl --predictions only_labels.csv", LABELS),
        ("vcr --annotations val.jsonl --answers answers.npy --rationales rationales.npy", VCR),
        ("vcr --annotations val.jsonl --predictions leaderboard.csv", VCR),
    ],
)  # fmt: skip
def test_figures_by_hand(line: str, figures: dict[str, Any], world: Path, score: Callable[[str], Any]) -> None:
    found = score(line)
    assert list(found) == [*figures, "scored", "of", "missing"]
    assert found["scored"] == found["of"]
    for figure, share in figures.items():
        assert found[figure] == pytest.approx(share, abs=1e-12)


def test_it_prints_percent(vbert: Any, world: Path) -> None:
    code, out, said = vbert("score", "nlvr2", "--annotations", "dev.json", "--predictions", "nlvr2.csv")
    assert (code, said) == (0, "")
    assert out == "accuracy      75.00\nconsistency   50.00\nscored 4 of 4, in percent\n"


def test_rows_in_another_order_case_of_labels_and_blanks_change_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("files")
    score_world.write(folder)
    truth, guesses = folder / "dev.json", folder / "nlvr2.csv"
    nlvr2 = score_nlvr2(truth, guesses, folder / "balanced_dev.json", folder / "annotated_dev_examples.txt")
    nlvr = score_nlvr(folder / "nlvr_dev.json", folder / "nlvr.csv")
    labels = score_classification(folder / "labels.jsonl", folder / "labels.csv", positive="1")
    vqa = score_vqa(folder / "questions.json", folder / "annotations.json", folder / "results.json", "error")

    @given(st.randoms(use_true_random=False), st.sampled_from(["", " ", "\t"]), st.sampled_from(["\n", "\r\n", "\n\n"]))
    @settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def same(draw: random.Random, blank: str, end: str) -> None:
        def mixed(name: str) -> Path:
            lines = (folder / name).read_text().splitlines()
            head, rows = (lines[:1], lines[1:]) if name == "labels.csv" else ([], lines)
            draw.shuffle(rows)
            if name.endswith(".csv"):
                cased = [draw.choice((str.upper, str.lower))(row.rpartition(",")[2]) for row in rows]
                rows = [f"{row.rpartition(',')[0]}{blank},{blank}{c}" for row, c in zip(rows, cased, strict=True)]
            path = folder / f"mixed_{name}"
            path.write_bytes(end.join([*head, *rows]).encode(draw.choice(("utf-8", "utf-8-sig"))))
            return path

        phenomena = folder / "annotated_dev_examples.txt"
        assert score_nlvr2(mixed("dev.json"), mixed("nlvr2.csv"), mixed("balanced_dev.json"), phenomena) == nlvr2
        assert score_nlvr(mixed("nlvr_dev.json"), mixed("nlvr.csv")) == nlvr
        assert score_classification(mixed("labels.jsonl"), mixed("labels.csv"), positive="1") == labels
        rows = json.loads((folder / "annotations.json").read_text())["annotations"]
        results = json.loads((folder / "results.json").read_text())
        draw.shuffle(rows)
        draw.shuffle(results)
        for row in rows:
            draw.shuffle(row["answers"])
        score_world.as_json(folder / "a.json", {"annotations": rows})
        spaced = [
            row | {"answer": f"{blank}{row['answer']}{end}", "question_id": str(row["question_id"])} for row in results
        ]
        score_world.as_json(folder / "r.json", spaced)
        assert score_vqa(folder / "questions.json", folder / "a.json", folder / "r.json", "error") == vqa

    same()


def test_labels_of_words_may_differ_in_case(world: Path, score: Callable[[str], Any]) -> None:
    (world / "truth.csv").write_text('name,mood,"more, text"\n1,Positive,"a\nb"\n2,negative,x\n')
    (world / "mine.tsv").write_text("mood\tname\npositive\t2\nPOSITIVE\t1\n")
    found = score("classification --annotations truth.csv --predictions mine.tsv --id name --label mood")
    assert found["accuracy"] == 0.5
    assert found["macro_f1"] == pytest.approx(1 / 3)


def test_a_table_may_have_semicolons_and_long_cells(world: Path, score: Callable[[str], Any]) -> None:
    (world / "truth.csv").write_text(f"id;label;text\n1;a;{'x' * 140_000}\n2;b,c;y\n")
    (world / "mine.csv").write_text("id;label\n1;a\n2;b,c\n")
    assert score("classification --annotations truth.csv --predictions mine.csv")["accuracy"] == 1


@pytest.mark.parametrize(("kept", "figure"), [("answer_", "answer"), ("rationale_", "rationale")])
def test_a_leaderboard_file_may_hold_one_of_both(
    kept: str, figure: str, world: Path, score: Callable[[str], Any]
) -> None:
    lines = [line.split(",") for line in (world / "leaderboard.csv").read_text().splitlines()]
    at = [k for k, name in enumerate(lines[0]) if name.startswith(("annot_id", kept))]
    (world / "leaderboard.csv").write_text("\n".join(",".join(line[k] for k in at) for line in lines))
    found = score("vcr --annotations val.jsonl --predictions leaderboard.csv")
    assert found == {figure: VCR[figure], "scored": 3, "of": 3, "missing": 0}


def test_answers_that_the_official_rule_does_not_count_fully_are_noted(vbert: Any, world: Path) -> None:
    line = ["score", "vqa", "--annotations", "annotations.json", "--predictions", "results.json"]
    assert vbert(*line)[2] == ""
    rows = json.loads((world / "annotations.json").read_text())["annotations"]
    for answer in rows[2]["answers"]:
        answer["answer_id"] = 1
    rows[0]["answers"] = rows[0]["answers"][:3]
    score_world.as_json(world / "annotations.json", {"annotations": rows})
    score_world.as_json(world / "results.json", [{"question_id": n, "answer": "yes"} for n in (1, 2, 3)])
    code, out, said = vbert(*line)
    assert (code, out.splitlines()[0].split()) == (0, ["accuracy", "0.00"]), "all ten are left out together"
    first, second = said.splitlines()
    assert first.startswith("vbert: annotations.json: 1 question with answers of the same `answer_id`, or without one")
    assert second.startswith("vbert: annotations.json: 1 question with fewer than four answers, so that no answer")
    assert "--protocol exact" in second


def test_missing_ones_count_as_wrong_or_are_left_out(vbert: Any, world: Path) -> None:
    (world / "labels.csv").write_text("id,proba,label\n0,0.2,0\n1,0.9,1\n2,0.2,0\n")
    (world / "nlvr2.csv").write_text("dev-1-0-0,True\ndev-2-0-0,true\ndev-2-3-0,false\n")
    lines = (world / "leaderboard.csv").read_text().splitlines()
    (world / "leaderboard.csv").write_text("\n".join(lines[:-1]))
    score_world.as_json(world / "results.json", [{"question_id": 2, "answer": "two"}])
    score_world.as_json(world / "aokvqa.json", {"b": {"multiple_choice": "cat"}, "c": {"direct_answer": "skis"}})
    cases = {
        "classification --annotations labels.jsonl --predictions labels.csv --positive 1": (
            # 3 (negative) has no label and ranks above both positives
            ({"accuracy": 2 / 4, "macro_f1": (1 / 2 + 2 / 3) / 2, "auroc": 1.5 / 4}, 4, 4, 1),
            ({"accuracy": 2 / 3, "macro_f1": 2 / 3, "auroc": 1.5 / 2}, 3, 4, 1),
        ),
        "nlvr2 --annotations dev.json --predictions nlvr2.csv --subset balanced_dev.json": (
            ({"accuracy": 2 / 4, "consistency": 0, "subset": 1 / 2}, 4, 4, 1),
            ({"accuracy": 2 / 3, "consistency": 1 / 2, "subset": 1 / 2}, 3, 4, 1),
        ),
        "vqa --annotations annotations.json --predictions results.json": (
            ({"accuracy": 1 / 3, "per_question_type": {"how many": 1 / 2, "what is": 0}}, 3, 3, 2),
            ({"accuracy": 1, "per_question_type": {"how many": 1}}, 1, 3, 2),
        ),
        "vqa --protocol aokvqa --annotations aokvqa_v1p0_val.json --predictions aokvqa.json": (
            ({"direct_answer": 1 / 2, "multiple_choice": 1 / 3}, 3, 3, 2),
            ({"direct_answer": 1, "multiple_choice": 1}, 2, 3, 2),
        ),
        "vcr --annotations val.jsonl --predictions leaderboard.csv": (
            ({"answer": 2 / 3, "rationale": 1 / 3, "joint": 1 / 3}, 3, 3, 1),
            ({"answer": 1, "rationale": 1 / 2, "joint": 1 / 2}, 2, 3, 1),
        ),
    }  # fmt: skip
    for line, results in cases.items():
        for policy, (figures, scored, of, missing) in zip(("wrong", "skip"), results, strict=True):
            code, out, said = vbert("score", *line.split(), "--missing", policy, "--json")
            assert code == 0, said
            assert f"{missing} of {of} have no" in said
            assert ("count as wrong" if policy == "wrong" else "are left out") in said
            found = json.loads(out)
            assert (found["scored"], found["of"], found["missing"]) == (scored, of, missing), line
            for figure, share in figures.items():
                assert found[figure] == pytest.approx(share), f"{line} {policy} {figure}"


@pytest.mark.skipif(not DATA.is_dir(), reason="no real miniatures beside the checkout")
def test_real_files(vbert: Any, tmp_path: Path, score: Callable[[str], Any]) -> None:
    document = json.loads((DATA / "vqa_v2/annotations.json").read_text())
    rows = document["annotations"]
    answers = [{"question_id": row["question_id"], "answer": row["answers"][0]["answer"]} for row in rows]
    score_world.as_json(tmp_path / "results.json", answers)
    files = f"--questions {DATA / 'vqa_v2/questions.json'} --annotations {DATA / 'vqa_v2/annotations.json'}"
    assert score(f"vqa {files} --predictions results.json")["accuracy"] == 1  # said six times or more
    rows = [json.loads(line) for line in (DATA / "nlvr2/tiny-dev.json").read_text().splitlines()]
    (tmp_path / "p.csv").write_text("".join(f"{row['identifier']},{row['label']}\n" for row in rows))
    found = score(f"nlvr2 --annotations {DATA / 'nlvr2/tiny-dev.json'} --predictions p.csv")
    assert (found["accuracy"], found["consistency"], found["scored"]) == (1, 1, len(rows))


def test_no_torch_no_tables_and_no_recipe_is_imported(world: Path) -> None:
    code = """
import sys
from flows.cli import app
for line in {lines!r}:
    app(line.split(), result_action="return_value")
print(*{{name.split(".")[0] for name in sys.modules}}, *(n for n in sys.modules if n.startswith("flows.")))
"""
    lines = [
        "score vqa --annotations annotations.json --predictions results.json",
        "score classification --annotations labels.jsonl --predictions labels.csv --positive 1",
        "score vcr --annotations val.jsonl --answers answers.npy --rationales rationales.npy",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code.format(lines=lines)], capture_output=True, text=True, check=True, cwd=world
    )
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"numpy", "flows.cli_score"} <= loaded
    assert loaded.isdisjoint({"torch", "pyarrow", "scipy", "prefect", "PIL", "flows.recipe", "flows.graph"})
