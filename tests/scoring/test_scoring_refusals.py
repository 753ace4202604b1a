"""What `vbert score` refuses: ids that don't agree (exit code 1), and files that aren't what they must be (2)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring import score_world

VQA = "vqa --questions questions.json --annotations annotations.json --predictions results.json"
AOKVQA = "vqa --protocol aokvqa --annotations aokvqa_v1p0_val.json --predictions aokvqa.json"
GQA = "vqa --protocol gqa --questions gqa.json --predictions gqa_predictions.json"
EXACT = "vqa --protocol exact --annotations truth.json --predictions answers.json"
NLVR2 = "nlvr2 --annotations dev.json --predictions nlvr2.csv"
SUBSET = f"{NLVR2} --subset balanced_dev.json --categories annotated_dev_examples.txt"
NLVR = "nlvr --annotations nlvr_dev.json --predictions nlvr.csv"
LABELS = "classification --annotations labels.jsonl --predictions labels.csv --positive 1"
ARRAYS = "vcr --annotations val.jsonl --answers answers.npy --rationales rationales.npy"
LEADERBOARD = "vcr --annotations val.jsonl --predictions leaderboard.csv"

Edit = Callable[[Path], Any]


@pytest.fixture
def world(vbert: Any, tmp_path: Path) -> Path:
    score_world.write(tmp_path)
    return tmp_path


@pytest.fixture
def refused(vbert: Any, world: Path) -> Callable[[str, int], str]:
    """What `vbert score …` says, which must end with the exit code and print no figure."""

    def call(line: str, expected: int = 2) -> str:
        code, out, said = vbert("score", *line.split())
        assert (code, out) == (expected, ""), said
        return str(said).removeprefix("vbert: ").strip()

    return call


def swap(old: str, new: str) -> Edit:
    """Of the first place where the old text stands."""

    def edit(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return edit


def write(data: bytes) -> Edit:
    return lambda path: path.write_bytes(data)


def nothing(path: Path) -> None:
    pass


def test_missing_doubled_and_unknown_ids_are_counted_and_the_first_five_named(
    world: Path, refused: Callable[..., str]
) -> None:
    names = [f"dev-{n}-0-0" for n in range(20)]
    rows = [{"identifier": name, "label": "True", "sentence": "?"} for name in names]
    score_world.as_lines(world / "dev.json", rows)
    given = [*names[7:], *names[10:16], *(f"dev-{n}-1-0" for n in range(2))]
    (world / "nlvr2.csv").write_text("".join(f"{name},True\n" for name in given))
    assert refused(NLVR2, 1).splitlines() == [
        "nlvr2.csv is not of the 20 ids of dev.json: 6 doubled, 2 unknown, 7 missing",
        "nlvr2.csv: doubled: dev-10-0-0, dev-11-0-0, dev-12-0-0, dev-13-0-0, dev-14-0-0, …",
        "nlvr2.csv: unknown: dev-0-1-0, dev-1-1-0",
        "nlvr2.csv: missing: dev-0-0-0, dev-1-0-0, dev-2-0-0, dev-3-0-0, dev-4-0-0, …",
        "`--missing wrong` counts missing ones as 0, `--missing skip` leaves them out",
    ]
    for policy in ("wrong", "skip"):  # these forgive missing ones alone
        said = refused(f"{NLVR2} --missing {policy}", 1)
        assert "6 doubled, 2 unknown\n" in said
        assert "missing" not in said


@pytest.mark.parametrize(
    ("line", "file", "edit", "said"),
    [
        (VQA, "results.json", swap('"question_id": 1', '"question_id": 2'), "1 doubled, 1 missing"),
        (VQA, "results.json", swap('"question_id": 1', '"question_id": 9'), "1 unknown, 1 missing"),
        (VQA, "annotations.json", swap('"question_id": 1', '"question_id": 2'), "1 doubled"),
        (VQA, "questions.json", swap('"question_id": 1', '"question_id": 4'), "questions.json: unknown: 4"),
        (VQA, "annotations.json", write(b'{"annotations": []}'), "holds no example"),
        (AOKVQA, "aokvqa.json", swap('"a": {', '"b": {'), "aokvqa.json: doubled: b"),
        (AOKVQA, "aokvqa.json", swap('"a": {', '"z": {'), "aokvqa.json: unknown: z"),
        (AOKVQA, "aokvqa.json", swap('"multiple_choice": "cat",', ""), "(multiple_choice): missing: a"),
        (AOKVQA, "aokvqa_v1p0_val.json", swap('"question_id": "a"', '"question_id": "b"'), "1 doubled"),
        (GQA, "gqa_predictions.json", swap('"1"', '"2"'), "1 doubled, 1 missing"),
        (GQA, "gqa_predictions.json", swap('"1"', '"7"'), "1 unknown, 1 missing"),
        (GQA, "gqa.json", swap('"2": {', '"1": {'), "gqa.json: doubled: 1"),
        (EXACT, "answers.json", swap('"1"', '"2"'), "1 doubled, 1 missing"),
        (EXACT, "truth.json", swap('"1"', '"2"'), "truth.json: doubled: 2"),
        (NLVR, "nlvr.csv", swap("dev-7-0-0", "test-7-0-1"), "nlvr.csv: doubled: 7-0-1"),
        (NLVR, "nlvr.csv", swap("dev-7-0-0", "dev-7-1-0"), "nlvr.csv: unknown: 7-1-0"),
        (SUBSET, "balanced_dev.json", swap("dev-2-0-0", "dev-5-0-0"), "balanced_dev.json: unknown: dev-5"),
        (LABELS, "labels.csv", swap("\n3,", "\n4,"), "labels.csv: unknown: 4"),
        (LABELS, "labels.jsonl", swap('"id": 3', '"id": 2'), "labels.jsonl: doubled: 2"),
        (LABELS, "labels.jsonl", write(b"id,label\n"), "labels.jsonl: holds no example"),
        (LABELS.replace("--positive 1", ""), "labels.jsonl", write(b"id,label\n"), "labels.jsonl: holds no example"),
        (LEADERBOARD, "leaderboard.csv", swap("v3,", "v1,"), "leaderboard.csv: missing: v3"),
        (ARRAYS, "val.jsonl", swap('"v3"', '"v1"'), "val.jsonl: doubled: v1"),
    ],
)
def test_ids_that_do_not_agree(
    line: str, file: str, edit: Edit, said: str, world: Path, refused: Callable[..., str]
) -> None:
    edit(world / file)
    assert said in refused(line, 1)


def test_questions_of_other_annotations_cannot_be_forgiven(world: Path, refused: Callable[..., str]) -> None:
    swap('"question_id": 1', '"question_id": 4')(world / "questions.json")
    for policy in ("error", "skip"):
        said = refused(f"{VQA} --missing {policy}", 1)
        assert said.startswith("questions.json is not of the 3 ids of annotations.json: 1 unknown, 1 missing")
        assert "--missing" not in said


def test_nothing_to_score_is_no_score(world: Path, refused: Callable[..., str]) -> None:
    (world / "results.json").write_text("[]")
    for policy in ("error", "wrong", "skip"):
        assert "results.json: missing: 1, 2, 3" in refused(f"{VQA} --missing {policy}", 1)


def array(change: Callable[[Any], Any]) -> Edit:
    return lambda path: np.save(path, change(np.load(path)), allow_pickle=True)


def put(value: Any) -> Callable[[Any], Any]:
    def change(scores: Any) -> Any:
        scores[1, 2] = value
        return scores

    return change


@pytest.mark.parametrize(
    ("line", "file", "edit", "said"),
    [
        # an answer that is no string
        (VQA, "results.json", swap('"Two."', "2"), "results.json:8: [1]: answer: must be string, not 2"),
        (VQA, "results.json", swap('"Two."', "null"), "results.json:8: [1]: answer: must be string, not null"),
        (VQA, "results.json", swap('"Two."', "NaN"), "results.json:8: [1]: answer: must be string, not NaN"),
        (VQA, "results.json", swap('"answer": "Two."', '"x": 1'), "results.json:6: [1]: answer: is missing"),
        (VQA, "results.json", swap('"Two."', '"Two.'), "results.json: not JSON: "),
        (VQA, "annotations.json", swap('"net"', "7"), "annotations.json:9: annotations[0]: answers[0]: answer: "),
        (
            VQA,
            "annotations.json",
            swap('"answers": [', '"answers": [], "x": ['),
            "annotations.json:7: annotations[0]: answers: is empty",
        ),
        (AOKVQA, "aokvqa.json", swap('"ski"', "3"), "aokvqa.json:4: a.direct_answer: must be string, not 3"),
        (AOKVQA, "aokvqa.json", write(b'{"a": {"direct_answr": "ski"}}'), "no prediction holds a direct_answer"),
        (
            AOKVQA,
            "aokvqa_v1p0_val.json",
            swap('"correct_choice_idx": 0', '"correct_choice_idx": 4'),
            "aokvqa_v1p0_val.json:10: [0]: correct_choice_idx: 4 is none of the 4 choices",
        ),
        (
            AOKVQA,
            "aokvqa_v1p0_val.json",
            swap('"correct_choice_idx": 0,', ""),
            "correct_choice_idx: is missing: is this a split without answers?",
        ),
        (AOKVQA, "aokvqa.json", write(b'{"a": {}}'), "no prediction holds a direct_answer or a multiple_choice"),
        (GQA, "gqa_predictions.json", swap('"red"', "1"), "gqa_predictions.json:8: [1]: prediction: "),
        (EXACT, "answers.json", swap('"red"', "1"), "answers.json:3: 2: must be string, not 1"),
        # a label outside the annotations'
        (
            AOKVQA,
            "aokvqa.json",
            swap('"cat"', '"cats"'),
            "aokvqa.json:3: a.multiple_choice: 'cats' is none of its choices; did you mean 'cat'?",
        ),
        (
            NLVR2,
            "nlvr2.csv",
            swap("FALSE", "0"),
            "nlvr2.csv:2: prediction of 'dev-1-1-0': must be True or False, not '0'",
        ),
        (NLVR2, "nlvr2.csv", swap("FALSE", "FALSE,1"), "nlvr2.csv:2: must be two fields, as in `dev-850-0-0,True`"),
        (NLVR2, "dev.json", swap('"True"', '"yes"'), "dev.json:1: label: must be True or False, not 'yes'"),
        (NLVR2, "dev.json", swap('"label": "True"', '"label": true'), "dev.json:1: label: must be string, not true"),
        (NLVR2, "dev.json", swap("dev-1-0-0", "dev-1-0"), "dev.json:1: identifier: must be 4 parts"),
        (SUBSET, "balanced_dev.json", swap('"True"', '"False"'), "balanced_dev.json:1: label: is False, in dev.json"),
        (
            SUBSET,
            "annotated_dev_examples.txt",
            swap("* negation", "negation"),
            "annotated_dev_examples.txt:2: must be `* ",
        ),
        (SUBSET, "annotated_dev_examples.txt", write(b"A.\n* b"), "none of its 1 sentences is one of dev.json"),
        (
            NLVR,
            "nlvr.csv",
            swap("True", "1"),
            "nlvr.csv:1: prediction of 'dev-7-0-0.png': must be True or False, not '1'",
        ),
        (
            LABELS,
            "labels.csv",
            swap("0.1,0", "0.1,2"),
            "labels.csv:5: label: '2' is no label of the annotations; valid: 0, 1",
        ),
        (
            LABELS,
            "labels.jsonl",
            swap('"label": 1', '"label": 1.5'),
            "labels.jsonl:2: label: must be text or a whole number",
        ),
        (LABELS, "labels.jsonl", swap('"label": 1', '"label": null'), "labels.jsonl:2: label: is null"),
        (LABELS.replace("--positive 1", "--positive yes"), "labels.csv", nothing, "--positive: 'yes' is no label"),
        (
            LABELS.replace("--positive 1", "--label lable"),
            "labels.csv",
            nothing,
            "labels.jsonl:1: lable: is missing; did you mean 'label'?",
        ),
        (LABELS, "labels.csv", swap("proba", "prob"), "labels.csv:1: there is no column 'proba'; did you mean 'prob'?"),
        (LABELS, "labels.csv", swap("proba", "id"), "labels.csv:1: the column 'id' occurs twice"),
        (LABELS, "labels.csv", swap("0.1,0", "0.1"), "labels.csv:5: has 2 fields, the header 3"),
        (LABELS, "labels.csv", swap("0.1,0", "0.1,"), "labels.csv:5: label: is empty"),
        (LABELS, "labels.csv", swap("0.1,0", '"0.1,0'), "labels.csv:5: no CSV: unexpected end of data"),
        # NaN, and arrays that are not what they must be
        (LABELS, "labels.csv", swap("0.9", "nan"), "labels.csv:3: proba: must be a finite number, not 'nan'"),
        (LABELS, "labels.csv", swap("0.9", "high"), "labels.csv:3: proba: must be a number, not 'high'"),
        (LABELS, "labels.csv", swap("0.9", "1_0"), "labels.csv:3: proba: must be a number, not '1_0'"),
        (LABELS, "labels.csv", swap("0.9", ""), "labels.csv:3: proba: is empty"),
        (
            LABELS.replace("--positive 1", ""),
            "labels.csv",
            swap("0.9", ""),
            "labels.csv:3: proba: is empty, and others' are not; fill it or take the column out",
        ),
        (
            LABELS,
            "labels.jsonl",
            lambda p: score_world.as_json(p, [json.loads(line) for line in p.read_text().splitlines()]),
            "labels.jsonl: must be JSON lines, one object a line",
        ),
        (NLVR2, "dev.json", write(b'[{"identifier": "dev-1-0-0", "label": "True"}]'), "dev.json: must be JSON lines"),
        (
            LEADERBOARD,
            "leaderboard.csv",
            swap("v2,0.1", "v2,NaN"),
            "leaderboard.csv:3: answer_0: must be a finite number",
        ),
        (
            LEADERBOARD,
            "leaderboard.csv",
            swap("answer_3", "answer_4"),
            "leaderboard.csv:1: there is no column 'answer_3'",
        ),
        (ARRAYS, "val.jsonl", swap('"answer_label": 1', '"answer_label": 4'), "val.jsonl:1: answer_label: "),
        (ARRAYS, "answers.npy", array(put(float("nan"))), "answers.npy: row 1, column 2: is NaN"),
        (
            ARRAYS,
            "answers.npy",
            array(put(float("-inf"))),
            "answers.npy: row 1, column 2: is infinite; 1 of its numbers",
        ),
        (
            ARRAYS,
            "answers.npy",
            array(lambda a: a[:, :3]),
            "answers.npy: must have the shape (3, 4), one row for each line of val.jsonl, not (3, 3)",
        ),
        (ARRAYS, "rationales.npy", array(lambda a: a[:2]), "rationales.npy: must have the shape (3, 4)"),
        (ARRAYS, "answers.npy", array(lambda a: a.astype(object)), "answers.npy: holds a pickle"),
        (ARRAYS, "answers.npy", array(lambda a: a.astype(str)), "answers.npy: must hold real numbers, not <U32"),
        (ARRAYS, "answers.npy", lambda p: p.write_bytes(p.read_bytes()[:-1]), "answers.npy: no whole .npy: "),
        (
            ARRAYS,
            "answers.npy",
            lambda p: p.write_bytes(p.read_bytes().replace(b"(3, 4)", b"(3, 9)")),
            "answers.npy: no whole .npy: ",
        ),
        (ARRAYS, "answers.npy", write(b"\x80\x04\x95"), "answers.npy: must be an array of numpy (.npy)"),
        (ARRAYS, "answers.npy", lambda p: p.unlink(), "answers.npy: there is no such file"),
        (
            f"{ARRAYS} --predictions leaderboard.csv",
            "val.jsonl",
            nothing,
            "give --answers and --rationales, or --predictions alone",
        ),
        (f"{ARRAYS} --missing skip", "answers.npy", array(lambda a: a[:2]), "must have the shape (3, 4)"),
        # what is no text
        (VQA, "results.json", write(b"[\xff]"), "results.json: must be VQA results; byte 1 is not UTF-8"),
        (NLVR2, "nlvr2.csv", write(b"a\0b,True"), "nlvr2.csv: must be NLVR2 predictions; it holds NUL"),
        (LABELS, "labels.csv", write(b"PK\3\4\xff"), "labels.csv: must be rows with id and label; it is a ZIP archive"),
        (f"{EXACT} --questions questions.json", "truth.json", nothing, "the protocol exact reads no questions"),
        (
            VQA.replace("--annotations annotations.json", ""),
            "truth.json",
            nothing,
            "give the annotations with --annotations",
        ),
    ],
)
def test_refused_with_file_line_and_field(
    line: str, file: str, edit: Edit, said: str, world: Path, refused: Callable[..., str]
) -> None:
    edit(world / file)
    found = refused(line)
    assert said in found.splitlines()[0]


def test_auroc_needs_two_labels(vbert: Any, world: Path, refused: Callable[..., str]) -> None:
    (world / "labels.csv").write_text("id,proba,label\n1,0.9,1\n2,0.2,0\n")
    said = "labels.jsonl: AUROC needs another label beside '1'"
    assert refused(f"{LABELS} --missing skip") == f"{said}; leave out --positive"
    code, out, err = vbert("score", *LABELS.replace("--positive 1", "--missing skip").split())
    assert (code, "auroc" in out) == (0, False)
    assert f"{said} among the scored examples, and is left out" in err


COCO = json.dumps([{"image_id": 42, "caption": "a red square"}])
OTHER = {
    "coco.json": "COCO results, not {}; use `vbert score captioning --predictions`",
    "results.json": "VQA results, not {}; use `vbert score vqa --predictions`",
    "annotations.json": "VQA annotations, not {}; use `vbert score vqa --annotations`",
    "questions.json": "VQA questions, not {}; use `vbert score vqa --questions`",
    "aokvqa_v1p0_val.json": "A-OKVQA annotations, not {}; use `vbert score vqa --protocol aokvqa --annotations`",
    "aokvqa.json": "A-OKVQA predictions, not {}; use `vbert score vqa --protocol aokvqa --predictions`",
    "gqa.json": "GQA questions, not {}; use `vbert score vqa --protocol gqa --questions`",
    "gqa_predictions.json": "GQA predictions, not {}; use `vbert score vqa --protocol gqa --predictions`",
    "truth.json": "answers by id, not {}; use `vbert score vqa --protocol exact`",
    "dev.json": "NLVR2 examples, not {}; use `vbert score nlvr2 --annotations`",
    "nlvr2.csv": "NLVR2 predictions, not {}; use `vbert score nlvr2 --predictions`",
    "nlvr_dev.json": "NLVR examples, not {}; use `vbert score nlvr --annotations`",
    "nlvr.csv": "NLVR predictions, not {}; use `vbert score nlvr --predictions`",
    "labels.jsonl": "rows with id and label, not {}; use `vbert score classification`",
    "labels.csv": "rows with id and label, not {}; use `vbert score classification`",
    "val.jsonl": "VCR examples, not {}; use `vbert score vcr --annotations`",
    "leaderboard.csv": "a VCR leaderboard file, not {}; use `vbert score vcr --predictions`",
    "answers.npy": "an array of numpy (.npy), not {}; use `vbert score vcr --answers` or `--rationales`",
}
# Each file that a command reads: the title of its format, and what it also takes.
WANTED = [
    (VQA, "results.json", "VQA results", ()),
    (VQA, "annotations.json", "VQA annotations", ()),
    (VQA, "questions.json", "VQA questions", ()),
    (AOKVQA, "aokvqa.json", "A-OKVQA predictions", ()),
    (AOKVQA, "aokvqa_v1p0_val.json", "A-OKVQA annotations", ()),
    (GQA, "gqa.json", "GQA questions", ()),
    (GQA, "gqa_predictions.json", "GQA predictions", ()),
    (EXACT, "answers.json", "answers by id", ("truth.json", "results.json")),
    (NLVR2, "nlvr2.csv", "NLVR2 predictions", ()),
    (NLVR2, "dev.json", "NLVR2 examples", ()),
    (SUBSET, "annotated_dev_examples.txt", "NLVR2 sentences with their phenomena", ()),
    (NLVR, "nlvr.csv", "NLVR predictions", ()),
    (NLVR, "nlvr_dev.json", "NLVR examples", ()),
    (LABELS, "labels.csv", "rows with id and label", ("labels.jsonl",)),
    (ARRAYS, "answers.npy", "an array of numpy (.npy)", ()),
    (ARRAYS, "val.jsonl", "VCR examples", ()),
    (LEADERBOARD, "leaderboard.csv", "a VCR leaderboard file", ()),
]


@pytest.mark.parametrize(("line", "file", "title", "also"), WANTED)
def test_a_file_of_another_format_is_recognised(
    line: str, file: str, title: str, also: tuple[str, ...], world: Path, refused: Callable[..., str]
) -> None:
    """Every format in the place of every other one; JSON now on one line, now on several."""
    (world / "coco.json").write_text(COCO)
    contents = {name: (world / name).read_bytes() for name in OTHER}
    for at, (name, sentence) in enumerate(OTHER.items()):
        if name in (file, *also):
            continue
        data = contents[name]
        if (at + len(file)) % 2 and data[:2] in (b"{\n", b"[\n"):
            data = json.dumps(json.loads(data)).encode()
        (world / file).write_bytes(data)
        found = refused(line)
        protocol = line.split()[2] if "--protocol" in line else ""
        of_default = "`vbert score vqa --" in sentence and "--protocol" not in sentence
        also_said = f" and leave out --protocol {protocol}" if protocol and of_default else ""
        assert found == f"{file}: this looks like {sentence.format(title)}{also_said}", name
