"""Beam search against a search of every text, and its rules: ties, lengths, n-grams, allowed pieces."""

import itertools
import math

import pytest
import torch

from vbert.model.beams import FoundText, SearchRules, search

END, VOCABULARY = 0, 5


def rules(**given):
    every = torch.ones(VOCABULARY, dtype=torch.bool)
    usual = {
        "beams": 3, "length": 4, "minimum": 0, "length_penalty": 1.0, "no_repeat": 0, "end": END, "allowed": every,
        "starts": every,
    }  # fmt: skip
    return SearchRules(**{**usual, **given})


class Language:
    """Log-probabilities of the next piece that hang on the image and on the whole text before it; a stand-in for a
    model with its cache."""

    def __init__(self, images: int, seed: int = 0) -> None:
        self.images, self.seed = images, seed
        self.texts = [(image,) for image in range(images)]

    def next(self, text: tuple[int, ...]) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(hash((self.seed, *text)) % 2**31)
        return torch.randn(VOCABULARY, generator=drawn).log_softmax(-1)

    def read(self, last, rows):
        if rows is not None:
            self.texts = [(*self.texts[row], int(piece)) for row, piece in zip(rows, last, strict=True)]
        return torch.stack([self.next(text) for text in self.texts])

    def every(self, image: int, asked: SearchRules) -> list[FoundText]:
        """Every text of up to `length` pieces, scored; those of full length as they are."""
        found = []
        for n in range(asked.length + 1):
            for pieces in itertools.product(range(1, VOCABULARY), repeat=n):
                steps = [*pieces, END] if n < asked.length else list(pieces)
                total = sum(float(self.next((image, *pieces[:k]))[piece]) for k, piece in enumerate(steps))
                found.append(FoundText(pieces, total, total / max(len(steps), 1) ** asked.length_penalty))
        return sorted(found, key=lambda text: -text.score)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_with_beams_for_every_text_it_finds_the_best_one(penalty):
    asked, language = rules(beams=400, length_penalty=penalty), Language(3)
    for image, found in enumerate(search(language.read, 9, 3, asked)):
        best = language.every(image, asked)[0]
        assert found.pieces == best.pieces
        assert found.score == pytest.approx(best.score, abs=1e-5)


def test_one_beam_takes_the_most_probable_piece_until_the_end():
    language = Language(20)
    for image, found in enumerate(search(Language(20).read, 9, 20, rules(beams=1, length=6))):
        text: tuple[int, ...] = ()
        while len(text) < 6 and (piece := int(language.next((image, *text)).argmax())) != END:
            text = (*text, piece)
        assert found.pieces == text


def test_more_beams_find_no_worse_texts():
    scores = [[t.score for t in search(Language(20).read, 9, 20, rules(beams=n, length=6))] for n in (1, 400)]
    assert all(wide >= narrow - 1e-6 for narrow, wide in zip(*scores, strict=True))
    assert scores[0] != scores[1]


def test_equal_pieces_go_by_their_id():
    def even(last, rows):
        return torch.full((len(last), VOCABULARY), math.log(1 / VOCABULARY))

    (found,) = search(even, 9, 1, rules(beams=2, minimum=4))
    assert found.pieces == (1, 1, 1, 1)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_no_n_gram_occurs_twice(size):
    def stuck(last, rows):
        return torch.tensor([[-9.0, -1.0, -1.5, -2.0, -2.5]]).expand(len(last), -1).log_softmax(-1)

    (found,) = search(stuck, 9, 1, rules(beams=2, length=4, minimum=4, no_repeat=size))
    grams = [found.pieces[k : k + size] for k in range(len(found.pieces) - size + 1)]
    assert len(found.pieces) == 4
    assert len(set(grams)) == len(grams)


def test_lengths_and_allowed_pieces_hold():
    allowed = torch.tensor([False, True, False, True, True])
    starts = torch.tensor([True, False, True, True, False])
    for seed in range(5):
        for found in search(Language(9, seed).read, 9, 9, rules(minimum=2, allowed=allowed, starts=starts)):
            assert 2 <= len(found.pieces) <= 4
            assert found.pieces[0] == 3
            assert set(found.pieces) <= {1, 3, 4}


def test_where_nothing_is_allowed_the_text_is_empty():
    nothing = torch.zeros(VOCABULARY, dtype=torch.bool)
    assert [t.pieces for t in search(Language(2).read, 9, 2, rules(allowed=nothing, minimum=1))] == [(), ()]
