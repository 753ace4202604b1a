"""Metrics of the downstream tasks: VQA's accuracy against the official code's, the others against scikit-learn or by
hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics import vqa_answers
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from vbert.metrics import choice, classification, nlvr, vqa
from vbert.metrics.means import mean, mean_by, smallest

OFFICIAL = json.loads(Path(__file__).with_name("official_vqa.json").read_text())


def test_vqa_accuracy_is_the_official_code_s() -> None:
    """6,000 questions with every quirk on both sides, a fifth of them unanimous, a tenth without ids of answers."""
    made = vqa_answers.make()
    assert vqa_answers.digest(made) == OFFICIAL["inputs"]
    _, annotations, results = made
    rows = annotations["annotations"]
    each = []
    for row, result in zip(rows, results, strict=True):
        texts = [answer["answer"] for answer in row["answers"]]
        fields = [(answer["answer_confidence"], answer.get("answer_id")) for answer in row["answers"]]
        each.append(vqa.accuracy(result["answer"], texts, fields))
        if "answer_id" in row["answers"][0]:
            assert vqa.accuracy(result["answer"], texts) == each[-1]
    assert [100 * share for share in each] == pytest.approx(OFFICIAL["each"], abs=1e-9)
    assert {0.0, 0.3, 0.6, 0.9, 1.0} < set(each)
    assert round(100 * mean(each), 2) == OFFICIAL["accuracy"]
    for figure, field in (("per_question_type", "question_type"), ("per_answer_type", "answer_type")):
        found = mean_by(each, [row[field] for row in rows])
        assert {kind: round(100 * share, 2) for kind, share in found.items()} == OFFICIAL[figure]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("\tThe  Red car.\n", "red car"),
        ("none, ten", "0 10"),
        ("a", ""),
        ("1,000", "1000"),
        ("1,000 e-mails (all)", "1000 emails all"),  # a comma between digits deletes every sign
        ("ski-ing", "ski ing"),
        ("ski- and snow-boards", "ski and snowboards"),  # so does a blank beside one of its kind
        ("3.5 km.", "3.5 km"),
        ("." * 40 + "x", "." * 8 + "x"),
        ("5:30 o'clock", "5:30 o'clock"),
        ("dont somebody'd Im", "don't somebodyd im"),
        ("y'alldve couldnt've", "y'alldve couldn't've"),
        ("٣,٤", "٣ ٤"),  # only 0–9 are digits
    ],
)
def test_vqa_normalisation(text: str, normal: str) -> None:
    assert vqa.normalise(text) == normal


def test_vqa_accuracy_of_unanimous_and_few_answers() -> None:
    assert vqa.accuracy("The cat.", ["the cat"] * 10) == 0  # compared as they are
    assert vqa.accuracy(" The cat.\t", ["The cat."] * 10) == 1
    assert vqa.accuracy("The cat.", [*["the cat"] * 9, "dog"]) == 1
    assert vqa.accuracy("yes", ["yes"]) == 0  # nobody else says so
    assert vqa.accuracy("yes", ["yes", "no"]) == pytest.approx(1 / 6)


def test_aokvqa_and_exact_match_compare_strings_as_they_are() -> None:
    answers = ["ski", "ski", "Ski", "the ski", *["skis"] * 6]
    assert [vqa.direct_answer(text, answers) for text in ("ski", "Ski", "skis", "x")] == [2 / 3, 1 / 3, 1, 0]
    assert (vqa.exact("yes", "yes"), vqa.exact("yes", "yes ")) == (1, 0)


words = st.sampled_from(["cat", "The", "dont", "two", "1,000", "a.b", "-", "x"])
answers = st.lists(st.lists(words, max_size=3).map(" ".join), min_size=10, max_size=10)


@given(answers, st.data())
@settings(deadline=None)
def test_order_and_blanks_change_no_vqa_accuracy_and_case_none_where_answers_differ(
    texts: list[str], data: st.DataObject
) -> None:
    answer = data.draw(st.sampled_from([*texts, "cat"]))
    score = vqa.accuracy(answer, texts)
    assert vqa.accuracy(answer, data.draw(st.permutations(texts))) == score
    assert vqa.accuracy(f"\t{answer}\n", [f" {text} " for text in texts]) == score
    assert vqa.accuracy(answer.replace(" ", "\t"), texts) == score
    if len({vqa.plain(text) for text in texts}) > 1:
        assert vqa.accuracy(answer.upper(), [text.upper() for text in texts]) == score
        assert vqa.accuracy(answer.upper(), [text.title() for text in texts]) == vqa.accuracy(
            answer, [text.lower() for text in texts]
        )
    same = Counter(map(vqa.normalise, texts))[vqa.normalise(answer)]
    if len({vqa.plain(text) for text in texts}) > 1:
        assert score == pytest.approx(min(1, 0.3 * same))


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=40))
@settings(deadline=None)
def test_f1_is_scikit_learn_s(rows: list[tuple[str, str]]) -> None:
    truth, named = [a for a, _ in rows], [b for _, b in rows]
    assert classification.accuracy(truth, named) == pytest.approx(accuracy_score(truth, named), abs=1e-9)
    for ours, average in ((classification.macro_f1, "macro"), (classification.weighted_f1, "weighted")):
        assert ours(truth, named) == pytest.approx(f1_score(truth, named, average=average, zero_division=0), abs=1e-9)
        assert ours(truth[::-1], named[::-1]) == ours(truth, named)


def test_f1_of_a_missing_prediction_counts_for_no_label() -> None:
    """As one outside the labels: 3 of a, one of them found; the only b found."""
    assert classification.f1(["a", "a", "a", "b"], ["a", None, None, "b"]) == {"a": 0.5, "b": 1}
    assert classification.macro_f1(["a", "a", "a", "b"], ["a", None, None, "b"]) == 0.75
    assert classification.weighted_f1(["a", "a", "a", "b"], ["a", None, None, "b"]) == 0.625


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=60))
@settings(deadline=None)
def test_auroc_with_ties_is_scikit_learn_s(rows: list[tuple[bool, int]]) -> None:
    truth, scores = [a for a, _ in rows], [b / 5 for _, b in rows]
    if len(set(truth)) < 2:
        with pytest.raises(ValueError, match="positive and negative"):
            classification.auroc(truth, scores)
        return
    found = classification.auroc(truth, scores)
    assert found == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert classification.auroc(truth[::-1], scores[::-1]) == found
    assert classification.auroc(truth, [-score for score in scores]) == pytest.approx(1 - found, abs=1e-9)


def test_auroc_of_infinite_scores() -> None:
    inf = float("inf")
    assert classification.auroc([True, False], [-inf, inf]) == 0
    assert classification.auroc([True, True, False, False], [-inf, 0.9, 0.1, -inf]) == (2 + 0.5) / 4


def test_nlvr_groups() -> None:
    assert nlvr.nlvr2_group("dev-850-2-0") == nlvr.nlvr2_group("dev-850-0-0") != nlvr.nlvr2_group("dev-850-0-1")
    assert nlvr.nlvr_group("1373-0") == nlvr.nlvr_group("1373-3") != nlvr.nlvr_group("137-0")
    assert nlvr.nlvr_picture("dev-1373-0-5.png") == nlvr.nlvr_pictures("1373-0")[5]
    assert (nlvr.right("TRUE", "true"), nlvr.right("True", "False")) == (1, 0)
    for wrong in ("dev-850-2", "dev", "dev-850-2-0-1"):
        with pytest.raises(ValueError, match="unpack"):
            nlvr.nlvr2_group(wrong)


def test_a_group_counts_as_its_smallest_score() -> None:
    assert smallest([1, 0.5, 1, 0], ["a", "b", "a", "b"]) == {"a": 1, "b": 0}
    assert mean_by([1, 0, 0.5], ["b", "b", "a"]) == {"a": 0.5, "b": 0.5}
    assert mean([0.1] * 10) == 0.1  # summed one after the other they are 0.09999999999999999


def test_choices() -> None:
    scores = np.array([[0, 1, 1, 0], [3, 2, 1, 0], [0, 0, 0, 1]])
    hits = choice.right(scores, [1, 0, 0])  # the first of equal ones
    assert hits == [1, 1, 0]
    assert choice.joint(hits, [0, 1, 1]) == [0, 1, 0]


labelled = st.tuples(st.sampled_from("abcd"), st.sampled_from([*"abcde", None]), st.integers(0, 5), st.integers(0, 3))


@given(st.lists(labelled, min_size=1, max_size=60))
@settings(deadline=None)
def test_figures_of_examples_that_count_several_times_have_the_same_digits(
    rows: list[tuple[str, str | None, int, int]],
) -> None:
    times = np.array([n for *_, n in rows])
    every = [row for row in rows for _ in range(row[3])]
    if not every:
        return
    confusion = classification.Confusion([a for a, *_ in rows], [b for _, b, *_ in rows])
    truth, named = [a for a, *_ in every], [b for _, b, *_ in every]
    assert confusion.macro_f1(times) == classification.macro_f1(truth, named)
    assert confusion.weighted_f1(times) == classification.weighted_f1(truth, named)
    ranking = classification.Ranking([a == "a" for a, *_ in rows], [score / 3 for *_, score, _ in rows])
    chosen = [a == "a" for a in truth]
    if len(set(chosen)) < 2:
        assert ranking.auroc(times) is None
    else:
        assert ranking.auroc(times) == classification.auroc(chosen, [score / 3 for *_, score, _ in every])
