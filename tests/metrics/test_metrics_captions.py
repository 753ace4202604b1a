"""Caption metrics: pycocoevalcap's own values, with intervals; absent with a reason where Java is missing or fails."""

from __future__ import annotations

import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metrics.odd_captions import captions as texts_within_reach
from metrics.odd_captions import odd
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from vbert.errors import UserError
from vbert.metrics import captions
from vbert.metrics.captions import figures, metrics
from vbert.metrics.ptb import tokenized

caption = st.lists(st.sampled_from(["a", "dog", "runs.", "(the)", "Cat's", ""]), max_size=7).map(" ".join)


def official(given: list[str], references: list[list[str]], tokenize: Any = tokenized) -> dict[str, Any]:
    """Figures and per-image values of the library, as its `eval.py` calls it."""
    res = {i: [text] for i, text in enumerate(tokenize(given))}
    flat = iter(tokenize([text for texts in references for text in texts]))
    gts = {i: [next(flat) for _ in texts] for i, texts in enumerate(references)}
    found: dict[str, Any] = {f"Bleu_{n}": v for n, v in enumerate(Bleu(4).compute_score(gts, res, verbose=0)[0], 1)}
    return found | {"ROUGE_L": Rouge().compute_score(gts, res), "CIDEr": Cider().compute_score(gts, res)}


@settings(max_examples=60)
@given(st.lists(st.tuples(caption, st.lists(caption, min_size=1, max_size=4)), min_size=1, max_size=5))
def test_figures_are_the_library_s(images: list[tuple[str, list[str]]]) -> None:
    """Empty captions and references among them, and one image alone."""
    given, references = [text for text, _ in images], [texts for _, texts in images]
    found = figures(given, references)
    assert found.tokenizer == "vbert"
    wordless = not any(tokenized([text])[0] for texts in references for text in texts)  # the library fails
    assert set(found.absent) == {"METEOR", "SPICE"} | ({"CIDEr"} if len(images) == 1 or wordless else set())
    if wordless:
        return
    wanted = official(given, references)
    for n in range(1, 5):
        assert found.values[f"Bleu_{n}"] == pytest.approx(wanted[f"Bleu_{n}"], abs=1e-9)
    assert found.values["ROUGE_L"] == pytest.approx(wanted["ROUGE_L"][0], abs=1e-9)
    if len(images) > 1:
        assert found.values["CIDEr"] == pytest.approx(wanted["CIDEr"][0], abs=1e-9)


def test_of_one_image_there_is_no_cider() -> None:
    """The library gives a perfect caption 0."""
    found = figures(["a dog runs"], [["a dog runs"]])
    assert official(["a dog runs"], [["a dog runs"]])["CIDEr"][0] == 0
    assert "CIDEr" not in found.values
    assert "one image alone" in found.absent["CIDEr"]
    assert "no reference has a word" in figures(["a", "a"], [["."], ["."]]).absent["CIDEr"]
    assert set(metrics(["a dog", "a"], [["a dog"], None])) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l"}
    assert "cider" in metrics(["a dog", "a"], [["a dog"], ["cat"]])


def test_an_empty_caption_is_right_of_empty_references_alone() -> None:
    """As the library has it, for ROUGE-L."""
    for references, value in ((["", "."], 1), (["", "a"], 1), (["a"], 0)):
        assert figures([""], [references]).values["ROUGE_L"] == value


def drawn(images: int) -> tuple[list[str], list[list[str]]]:
    rng, words = random.Random(0), "a the red big dog cat runs sits on mat bus".split()  # noqa: SIM905
    texts = [[" ".join(rng.choices(words, k=rng.randrange(3, 9))) for _ in range(4)] for _ in range(images)]
    return [" ".join(rng.sample(own[0].split(), 3)) for own in texts], [own[1:] + own[:1] for own in texts]


def test_metrics_of_an_objective_are_the_same_figures_with_intervals() -> None:
    given, references = drawn(60)
    wanted = official(given, references)
    found = metrics(["left out", *given], [None, *references])
    images = [f"{i}" for i in range(61)]
    for name in ("bleu_1", "bleu_4"):
        assert found[name].value() == pytest.approx(wanted[name.capitalize()], abs=1e-9)
    assert found["rouge_l"].value() == pytest.approx(wanted["ROUGE_L"][0], abs=1e-9)
    assert found["cider"].value() == pytest.approx(wanted["CIDEr"][0], abs=1e-9)
    assert {len(metric.counted()) for metric in found.values()} == {60}
    for metric in found.values():
        bounds = metric.interval(images, 200)
        value = metric.value()
        assert value is not None
        assert bounds.low < value < bounds.high
        assert bounds.method == "bootstrap"
    each = wanted["CIDEr"][1]  # of CIDEr it is that of the mean over images
    spread = 1.96 * float(np.std(each)) / 60**0.5
    bounds = found["cider"].interval(images, 2000)
    assert bounds.high - bounds.low == pytest.approx(2 * spread, rel=0.15)
    assert metrics(["a"], [None]) == {}


def test_bleu_of_resampled_images_is_the_library_s_of_those_images() -> None:
    given, references = drawn(12)
    rng = np.random.default_rng(0)
    metric = metrics(given, references)["bleu_4"]
    for _ in range(5):
        chosen = rng.integers(0, 12, 12)
        wanted = official([given[i] for i in chosen], [references[i] for i in chosen])["Bleu_4"]
        times = np.bincount(chosen, minlength=12)
        assert metric.of(times) == pytest.approx(wanted, abs=1e-9)  # type: ignore[union-attr]


def test_without_the_library_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.tokenizer", None)
    with pytest.raises(UserError, match=r"\[captions\]"):
        figures(["a"], [["a"]])


def test_what_java_can_t_compute_is_absent_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `java` that isn't there or fails leaves our tokens; a program that takes too long is ended."""
    found = figures(["a dog.", "a"], [["a dog"], ["a"]], java="/nowhere/java", seconds=0.01)
    assert found.tokenizer == "vbert"
    assert set(found.absent) == {"METEOR", "SPICE"}
    assert "longer than" in found.absent["METEOR"]
    monkeypatch.setattr(captions, "SPICE", "raise SystemExit('Unable to access jarfile')")
    assert figures(["a"], [["a"]], java="false").absent["SPICE"] == "its program failed: Unable to access jarfile"
    monkeypatch.setattr(captions, "METEOR", "print('NaN?')")
    assert "said" in figures(["a"], [["a"]], java="false").absent["METEOR"]


def test_a_meteor_that_fails_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's own waits for a lock that nobody holds any more."""
    monkeypatch.setattr(captions, "SPICE", "raise SystemExit()")
    java = tmp_path / "java"
    java.write_text(
        "#!/bin/sh\nread line; echo 1 2 3; read line\necho 'Exception in thread \"main\" java.lang.Odd: no heap' >&2\n"
        'echo "  at Meteor.main" >&2; exit 1\n'
    )
    java.chmod(0o755)
    begun = time.monotonic()
    found = figures(["a", "a b c"], [["a"], ["b"]], java=str(java))
    assert found.absent["METEOR"] == "its program failed: at caption 2 of 2, of 3 words: java.lang.Odd: no heap"
    assert time.monotonic() - begun < 60


@pytest.mark.slow
def test_a_caption_too_long_for_meteor_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    if (java := shutil.which("java")) is None:
        pytest.skip("needs Java")
    monkeypatch.setattr(captions, "SPICE", "raise SystemExit()")
    found = figures(["a dog", "a dog " * 5000], [["a dog"], ["a dog on a sofa"]], java)
    assert "at caption 2 of 2, of 10,000 words: java.lang.OutOfMemoryError" in found.absent["METEOR"]


@pytest.mark.slow
def test_in_java_the_figures_are_those_of_the_whole_official_evaluation() -> None:
    """CoreNLP's tokens and ours give the same figures; METEOR is the library's."""
    if (java := shutil.which("java")) is None:
        pytest.skip("needs Java")
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    known = texts_within_reach(real=False)
    rng = random.Random(0)
    given, references = odd(known, 80), [rng.sample(known, 4) + odd(known, 1, i) for i in range(80)]
    found = figures(given, references, java)
    assert found.tokenizer == "corenlp"
    ours = figures(given, references)
    assert {name: found.values[name] for name in ours.values} == pytest.approx(dict(ours.values), abs=1e-12)
    rows = {i: [{"caption": text}] for i, text in enumerate(given)}
    res = PTBTokenizer().tokenize(rows)
    gts = PTBTokenizer().tokenize({i: [{"caption": t} for t in texts] for i, texts in enumerate(references)})
    assert found.values["METEOR"] == pytest.approx(Meteor().compute_score(gts, res)[0], abs=1e-9)
    assert found.values["CIDEr"] == pytest.approx(Cider().compute_score(gts, res)[0], abs=1e-9)
    assert "SPICE" in found.values or found.absent["SPICE"]
