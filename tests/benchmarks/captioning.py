"""Captions/s of decoding, greedy and with five beams: with the cache against the same model without it.

    python tests/benchmarks/captioning.py [--beams 1 5] [--images 16] [--rounds 3] [--threads 2] [--device cuda]

Peer: the same weights, search and pieces, every text computed anew at each step, regions and all, without padding, as a
user of the encoder's forward pass would (transformers' VisualBERT knows neither causal texts nor a cache). BERT base,
36 regions, captions of 20 pieces, random weights: the search runs to the full length for both.
Limit: the matrix products of the tokens that a cache leaves (the regions once, then a word and a [MASK] a step and
beam), and the vocabulary's logits, with nothing else.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from measure import alternate, print_result, result
from torch import Tensor

from vbert.model.beams import SearchRules, search
from vbert.model.config import VisualBertConfig
from vbert.model.heads import CaptioningModel
from vbert.model.visualbert import PackedBatch

REGIONS, LENGTH = 36, 20
CLS, SEP, MASK = 101, 102, 103
Read = Callable[[Tensor, Tensor | None], Tensor]


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


class Cached:
    """The next piece's log-probabilities from a cache, as the objective reads them."""

    def __init__(self, model: CaptioningModel, visuals: Sequence[np.ndarray], device: str) -> None:
        nothing: list[list[int]] = [[] for _ in visuals]
        self.model, self.device = model, device
        self.cache = model.encoder.begin(PackedBatch.of(nothing, nothing, visuals).to(device))

    def __call__(self, last: Tensor, rows: Tensor | None) -> Tensor:
        tokens = torch.stack([last, torch.full_like(last, MASK)], 1).to(self.device)
        rows = None if rows is None else rows.to(self.device)
        hidden = self.model.encoder.step(self.cache, tokens, rows, kept=1)[:, -1]
        return self.model.words(hidden, torch.arange(len(hidden), device=self.device)).float().log_softmax(-1)


class Recomputed:
    """The same without a cache."""

    def __init__(self, model: CaptioningModel, visuals: Sequence[np.ndarray], device: str) -> None:
        self.model, self.visuals, self.device = model, visuals, device
        self.texts: list[list[int]] = [[] for _ in visuals]

    def __call__(self, last: Tensor, rows: Tensor | None) -> Tensor:
        order = range(len(last)) if rows is None else rows.tolist()
        self.texts = [[*self.texts[row], piece] for row, piece in zip(order, last.tolist(), strict=True)]
        texts, width = [[*text, MASK] for text in self.texts], len(last) // len(self.visuals)
        batch = PackedBatch.of(
            texts,
            [[0] * len(text) for text in texts],
            [self.visuals[k // width] for k in range(len(texts))],
            at=[(len(text) - 1,) for text in texts],
            causal=[len(text) for text in texts],
        )
        return self.model(batch.to(self.device)).float().log_softmax(-1)


def rules(beams: int, vocabulary: int) -> SearchRules:
    allowed = torch.ones(vocabulary, dtype=torch.bool)
    allowed[:999] = False  # [PAD], unused and special pieces of BERT's vocabulary
    return SearchRules(beams, LENGTH, LENGTH, 1.0, 0, SEP, allowed, allowed)


def decoder(read: Any, model: CaptioningModel, visuals: Sequence[np.ndarray], beams: int, device: str) -> Any:
    def run() -> float:
        began = now(device)
        with torch.no_grad():
            search(read(model, visuals, device), CLS, len(visuals), rules(beams, model.encoder.config.vocab_size))
        return len(visuals) / (now(device) - began)

    return run


def products(model: CaptioningModel, images: int, beams: int, device: str) -> Callable[[], float]:
    """The bare products: of the regions, then of two tokens a step and beam with one read at the vocabulary."""
    layers = [(one.qkv, one.out, one.up, one.down) for one in model.encoder.layers]
    words = model.encoder.embeddings.word.weight
    config = model.encoder.config
    regions = torch.randn(images * REGIONS, config.hidden_size, device=device)

    def through(rows: Tensor) -> None:
        inner = rows.new_zeros(len(rows), config.intermediate_size)
        for qkv, out, up, down in layers:
            rows @ qkv.weight.T
            rows @ out.weight.T
            rows @ up.weight.T
            inner @ down.weight.T

    def run() -> float:
        began = now(device)
        with torch.no_grad():
            through(regions)
            for place in range(LENGTH):
                texts = images * (beams if place else 1)
                through(regions.new_zeros(2 * texts, config.hidden_size))
                regions.new_zeros(texts, config.hidden_size) @ words.T
        return images / (now(device) - began)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5])
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    config = VisualBertConfig(vocab_size=30522, visual_dim=2048, box_input="none", standardise=False)
    model = CaptioningModel(config, torch.Generator().manual_seed(0)).eval().to(given.device)
    draw = np.random.default_rng(0)
    visuals = [draw.normal(size=(REGIONS, 2048)).astype(np.float32) for _ in range(given.images)]
    for beams in given.beams:
        work = {
            "ours": decoder(Cached, model, visuals, beams, given.device),
            "peer": decoder(Recomputed, model, visuals, beams, given.device),
            "limit": products(model, given.images, beams, given.device),
        }
        taken = alternate(work, given.rounds)
        settings = {
            "beams": beams, "images": given.images, "regions": REGIONS, "length": LENGTH, "size": "12x768",
            "threads": given.threads, "device": given.device, "rounds": given.rounds,
        }  # fmt: skip
        print_result(
            result(
                "captioning", **taken, peer_name="the same model without a cache", unit="captions/s", settings=settings
            )
        )


if __name__ == "__main__":
    main()
