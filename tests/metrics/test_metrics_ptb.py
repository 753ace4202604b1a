"""The tokenizer of captions: equal to CoreNLP's, by a recorded sample and, where Java is, by CoreNLP itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from metrics.odd_captions import DATA, captions, odd

from vbert.metrics.ptb import tokenized

# [caption, CoreNLP's tokens] of `odd(captions(real=False), 400)`, by pycocoevalcap 1.2.
SAMPLE = json.loads((Path(__file__).parent / "ptb_sample.json").read_text("utf-8"))


def test_a_recorded_sample_is_tokenized_as_by_corenlp() -> None:
    texts, tokens = zip(*SAMPLE, strict=True)
    for text, ours, theirs in zip(texts, tokenized(texts), tokens, strict=True):
        assert ours == theirs, text


def test_captions_are_lines_whatever_they_hold() -> None:
    """A line end of any kind is a blank, and half a pair of UTF-16 is no error."""
    assert tokenized([]) == []
    assert tokenized(["", "a\nb", "c\r\nd\u2028e", "\ud800 f", ""]) == ["", "a b", "c d e", "f", ""]
    assert tokenized(['<a href="x', 'y"> z']) == ['<a\u00a0href="x', 'y"> z']


@pytest.mark.slow
def test_captions_within_reach_and_odd_ones_are_tokenized_as_by_corenlp() -> None:
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    known = captions(real=DATA.is_dir())
    texts = known + odd(known, 5000)
    theirs = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    differ = [
        (text, ours, theirs[i][0])
        for i, (text, ours) in enumerate(zip(texts, tokenized(texts), strict=True))
        if ours != theirs[i][0]
    ]
    assert not differ, differ[:5]
