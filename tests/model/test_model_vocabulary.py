from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from model.model_batches import small_config
from transformers import BertTokenizer

from vbert.errors import UserError
from vbert.model.heads import PretrainingModel
from vbert.model.visualbert import PackedBatch
from vbert.model.vocabulary import (
    SPECIAL,
    TextRules,
    Vocabulary,
    VocabularySettings,
    read_tokens,
    train_tokens,
    write_vocabulary,
)

TEXTS = [
    "what color is the rectangle?",
    "is there a red circle left of the teal triangle?",
    "two small blue circles and a large gray rectangle",
    "naïve don't co-operate",
    "一只猫在桌子上。",
    "这是一只猫。",
    "yes",
] * 3
CHINESE = "这是一只猫。"

TRAIN = """
import hashlib, json, random, sys
from vbert.model.vocabulary import VocabularySettings, train_tokens
texts = json.loads(sys.stdin.read())
random.shuffle(texts)
print(hashlib.sha256("\\n".join(train_tokens(texts, VocabularySettings(size=160))).encode()).hexdigest())
"""


@pytest.fixture
def trained(tmp_path: Path) -> Vocabulary:
    write_vocabulary(tmp_path, train_tokens(TEXTS, VocabularySettings(size=200)), TextRules())
    return Vocabulary.at(tmp_path)


def test_training_gives_the_same_pieces_in_every_process_and_order() -> None:
    def run(seed: str) -> str:
        command = [sys.executable, "-c", TRAIN]
        environment = {"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run(command, input=json.dumps(TEXTS), capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert len({run(seed) for seed in ("1", "2", "3", "4")}) == 1


def test_pieces_are_whole_frequent_words_and_all_characters(trained: Vocabulary) -> None:
    encoder = trained.encoder()
    assert encoder.tokens[:5] == SPECIAL
    assert (encoder.pad, encoder.unk, encoder.cls, encoder.sep, encoder.mask) == (0, 1, 2, 3, 4)
    assert encoder.special == {0, 1, 2, 3, 4}
    assert {"rectangle", "circle", "##s", "猫", "。", "?"} <= set(encoder.tokens)
    assert encoder.unk not in encoder("a zebra quickly jumps over 25 words never seen").ids
    assert encoder("éléphant").ids == encoder("elephant").ids


def test_the_encoder_is_transformers_tokenizer(trained: Vocabulary) -> None:
    encoder = trained.encoder()
    from_folder = BertTokenizer.from_pretrained(trained.path)
    for text in [*TEXTS, "Don't  STOP\tme\u200b", "x" * 101, "", "🙂 ok", "a##b"]:
        expected = from_folder(text, add_special_tokens=False).input_ids
        assert list(encoder(text).ids) == expected == trained.encode(text)
        assert trained.tokenizer()(text).input_ids == [encoder.cls, *expected, encoder.sep]


def test_words_number_the_pieces_of_each_word(trained: Vocabulary) -> None:
    encoder = trained.encoder()
    ids, words, spans = encoder("circlesque rectangle")
    assert words == (0,) * (len(ids) - 1) + (1,)
    assert len(ids) > 2
    assert encoder.text(ids) == "circlesque rectangle"
    assert [spans[0][0], spans[-2][1], spans[-1]] == [0, 10, (11, 20)]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("naïve cat", ["naïve", "cat"]),
        ("nai\u0308ve cat", ["nai\u0308ve", "cat"]),  # the same as two characters, of which one goes
        ("这是cat", ["这", "是", "cat"]),  # the normaliser sets spaces around
        ("İn cat", ["İ", "n", "cat"]),  # longer in lower case
        ("한 cat", ["한", "한", "한", "cat"]),  # one character, three in its decomposed form
        ("\x00n\u200b  cat.", ["n", "cat", "."]),
        ("x" * 101 + " cat", ["x" * 101, "cat"]),  # a word too long is [UNK]
        ("\u200b \u0308", []),
    ],
)
def test_pieces_keep_their_characters_of_the_given_text(tmp_path: Path, text: str, parts: list[str]) -> None:
    pieces = ["naive", "cat", "这", "是", "i", "##n", "n", "x", ".", "\u1112", "##\u1161", "##\u11ab"]
    spans = write_vocabulary(tmp_path, [*SPECIAL, *pieces], TextRules())(text).spans
    assert [text[start:end] for start, end in spans] == parts


def test_special_tokens_written_in_a_text_are_plain_text(trained: Vocabulary) -> None:
    encoder = trained.encoder()
    assert not {encoder.sep, encoder.mask, encoder.cls} & set(encoder("red [SEP] circle [MASK] [CLS]").ids)


def test_the_encoder_travels_to_workers_without_its_cache(trained: Vocabulary) -> None:
    encoder = trained.encoder()
    encoder("is there a red circle")
    again = pickle.loads(pickle.dumps(encoder))
    assert again("is there a red circle") == encoder("is there a red circle")
    assert "transformers" not in pickle.dumps(encoder).decode("latin-1")


@pytest.mark.parametrize("cased", [False, True])
def test_chinese_goes_through_tokenising_masking_and_encoding(tmp_path: Path, cased: bool) -> None:
    """With a vocabulary as those of BERT's Chinese and multilingual models."""
    tokens = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"。一上只在子是桌猫这", "##猫", "Cat", "cat"]
    encoder = write_vocabulary(tmp_path, tokens, TextRules(do_lower_case=not cased))
    ids, words, _ = encoder(CHINESE)
    assert encoder.text(ids).split() == list(CHINESE)
    assert words == tuple(range(6)), "each character is a word"
    assert encoder.text(encoder("Cat").ids) == ("Cat" if cased else "cat")
    masked = [encoder.cls, *ids, encoder.sep]
    masked[5] = encoder.mask  # 猫
    batch = PackedBatch.of([masked], [[0] * len(masked)], [np.ones((2, 10), np.float32)], at=[[5]])
    model = PretrainingModel(small_config(vocab_size=encoder.size), torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    wanted = torch.tensor([ids[4]])
    for _ in range(30):
        words_logits, _ = model(batch)
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(words_logits, wanted).backward()
        optimiser.step()
    assert encoder.tokens[int(model.eval()(batch)[0].argmax())] == "猫"


def test_a_vocabulary_may_hold_other_line_separators_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_bytes("\r\n".join([*SPECIAL, "a\u2028b", "\x85", "c"]).encode() + b"\r\n")
    assert read_tokens(path) == [*SPECIAL, "a\u2028b", "\x85", "c"]


def test_what_is_no_bert_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \[CLS\], \[SEP\]"):
        write_vocabulary(tmp_path, ["[PAD]", "[UNK]", "[MASK]", "a"], TextRules())
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        read_tokens(tmp_path / "vocab.txt")
