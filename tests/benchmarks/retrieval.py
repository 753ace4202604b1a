"""Pairs/s of a cross-encoder over all pairs of texts and images: ours against transformers, same weights and pairs.

    python tests/benchmarks/retrieval.py [--cases mini-longest base-oscar] [--rounds 5] [--threads 1] [--device cuda]

Peer: transformers.VisualBertModel in eval mode and a linear layer on its pooled vector, a batch of pairs at a time,
each image with every text: padded to the longest text of a batch (longest), or to 70 tokens and 50 regions as Oscar
does (oscar). Ours counts from ids and features to scores, the embedding of every text and image once included.
Limit: the bare matrix products of what ours computes, on real tokens: in the first layer queries, keys and values once
a text and image, in the last one what [CLS] needs.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from measure import alternate, print_result, result
from torch import Tensor

from vbert.model.config import VisualBertConfig
from vbert.model.convert import sources
from vbert.model.retrieval import PairScorer, RetrievalModel

REGIONS = 36
OSCAR = 70, 50  # tokens and regions that a pair is padded to
BARE = [101, 102]


@dataclass(frozen=True)
class Size:
    """A model, texts and images of a round, pairs of a peer's batch."""

    config: VisualBertConfig
    texts: int
    images: int
    batch: int


def _size(texts: int, images: int, batch: int, **sizes: Any) -> Size:
    return Size(VisualBertConfig(box_input="none", standardise=False, visual_dim=2048, **sizes), texts, images, batch)


SIZES = {
    "mini": _size(48, 32, 48, layers=2, hidden_size=128, heads=4, vocab_size=8000),
    "base": _size(16, 4, 16, vocab_size=30522),
}  # fmt: skip
GPU = {"mini": (512, 512, 1024), "base": (128, 128, 256)}  # texts, images and a peer's batch on a GPU
TEXT = 8, 22  # tokens of a caption: a COCO caption has 10.5 words


@dataclass(frozen=True)
class Pairs:
    texts: list[list[int]]
    visuals: list[np.ndarray]
    model: RetrievalModel


def make_pairs(size: Size, device: str) -> Pairs:
    draw = np.random.default_rng(0)
    vocab = size.config.vocab_size
    lengths = draw.integers(TEXT[0], TEXT[1] + 1, size.texts)
    texts = [[101, *draw.integers(1000, vocab, n - 2).tolist(), 102] for n in lengths]
    visuals = [draw.normal(size=(REGIONS, size.config.visual_dim)).astype(np.float32) for _ in range(size.images)]
    model = RetrievalModel(size.config, 0, 0, torch.Generator().manual_seed(0)).eval().to(device)
    return Pairs(texts, visuals, model)


def autocast(dtype: str, device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16")


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


Scores = Callable[[], Tensor]


def ours(size: Size, pairs: Pairs, device: str) -> Scores:
    def scores() -> Tensor:
        scorer = PairScorer(pairs.model, [(ids, [0] * len(ids)) for ids in pairs.texts], BARE, pairs.visuals)
        images, texts = np.divmod(np.arange(size.texts * size.images), size.texts)
        return torch.from_numpy(scorer.scores(texts, images))

    return scores


def peer(size: Size, pairs: Pairs, device: str, text: int = 0, regions: int = REGIONS) -> Scores:
    """text: tokens that a text is padded to; 0: the longest of the batch."""
    from transformers import VisualBertConfig as Config
    from transformers import VisualBertModel

    config = size.config
    theirs = VisualBertModel(
        Config(
            vocab_size=config.vocab_size, visual_embedding_dim=config.visual_dim, hidden_size=config.hidden_size,
            num_hidden_layers=config.layers, num_attention_heads=config.heads,
            intermediate_size=config.intermediate_size, pad_token_id=0,
        )
    )  # fmt: skip
    state = pairs.model.state_dict()
    with torch.no_grad():
        for name, tensor in theirs.state_dict().items():
            for ours_name, parts in sources(config, {}, "").items():
                if name in parts:
                    tensor.copy_(state[ours_name].chunk(len(parts))[parts.index(name)])
    theirs.eval().to(device)
    head = pairs.model.matching.dense
    features = torch.zeros(size.images, regions, config.visual_dim)
    visual_mask = torch.zeros(size.images, regions, dtype=torch.int64)
    for i, visual in enumerate(pairs.visuals):
        features[i, : len(visual)], visual_mask[i, : len(visual)] = torch.from_numpy(visual), 1

    def batches(image: int, start: int) -> dict[str, Tensor]:
        part = pairs.texts[start : start + size.batch]
        longest = text or max(map(len, part))
        ids = torch.tensor([one + [0] * (longest - len(one)) for one in part])
        shown = features[image : image + 1].expand(len(part), -1, -1)
        mask = visual_mask[image : image + 1].expand(len(part), -1)
        given = {
            "input_ids": ids, "attention_mask": (ids > 0).long(), "token_type_ids": torch.zeros_like(ids),
            "visual_embeds": shown, "visual_attention_mask": mask, "visual_token_type_ids": torch.zeros_like(mask),
        }  # fmt: skip
        return {name: tensor.to(device) for name, tensor in given.items()}

    @torch.no_grad()
    def scores() -> Tensor:
        found = []
        for image in range(size.images):
            for start in range(0, size.texts, size.batch):
                logits = head(theirs(**batches(image, start)).pooler_output).float()
                found.append(logits[:, 1] - logits[:, 0])
        return torch.cat(found).cpu()

    return scores


def limit(size: Size, pairs: Pairs, device: str, dtype: str) -> Scores:
    """The products alone, in the parts in which `PairScorer` computes them."""
    config, kind = size.config, torch.bfloat16 if dtype == "bf16" else torch.float32
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.hidden_size // config.heads
    lengths = np.sort(np.tile([len(ids) + REGIONS for ids in pairs.texts], size.images))
    budget = PairScorer(pairs.model, [(BARE, [0, 0])], BARE, pairs.visuals[:1]).budget
    plan: list[tuple[Any, Tensor, Tensor]] = []
    made: dict[tuple[int, ...], Tensor] = {}

    def of(*shape: int) -> Tensor:
        if shape not in made:
            made[shape] = torch.randn(shape, device=device).to(kind)
        return made[shape]

    def linear(rows: int, inputs: int, outputs: int) -> None:
        plan.append((torch.mm, of(rows, inputs), of(outputs, inputs).t()))

    linear(size.images * REGIONS, config.visual_dim, hidden)
    linear(size.images * REGIONS + sum(map(len, pairs.texts)), hidden, 3 * hidden)
    for part in np.split(lengths, np.flatnonzero(np.diff(np.cumsum(lengths) // budget)) + 1):
        tokens, count = int(part.sum()), len(part)
        groups = [(int(n), int(length)) for length, n in zip(*np.unique(part, return_counts=True), strict=True)]
        for layer in range(config.layers):
            last = layer == config.layers - 1
            rows = count if last else tokens
            if layer:
                linear(tokens, hidden, 2 * hidden if last else 3 * hidden)
            if last:
                linear(count, hidden, hidden)
            for n, length in groups:
                asked, n = 1 if last else length, n * config.heads
                plan.append((torch.bmm, of(n, asked, head), of(n, length, head).mT))
                plan.append((torch.bmm, of(n, asked, length), of(n, length, head)))
            for inputs, outputs in ((hidden, hidden), (hidden, inner), (inner, hidden)):
                linear(rows, inputs, outputs)
        linear(count, hidden, hidden)

    @torch.no_grad()
    def products() -> Tensor:
        for product, a, b in plan:
            product(a, b)
        return torch.zeros(0)

    return products


def rate(size: Size, dtype: str, device: str, work: Scores) -> Callable[[], float]:
    """A function that does the work once and returns pairs/s."""

    def run() -> float:
        began = now(device)
        with autocast(dtype, device):
            work()
        return size.texts * size.images / (now(device) - began)

    return run


def main() -> None:
    cases = [f"{size}-{padding}" for size in SIZES for padding in ("longest", "oscar")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=cases, choices=cases)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = []
    for case in given.cases:
        name, padding = case.split("-")
        size = SIZES[name]
        if given.device == "cuda":
            size = replace(size, **dict(zip(("texts", "images", "batch"), GPU[name], strict=True)))
        pairs = make_pairs(size, given.device)
        theirs = peer(size, pairs, given.device, *(OSCAR if padding == "oscar" else ()))
        mine = ours(size, pairs, given.device)
        apart = float((mine() - theirs()).abs().max())
        products = limit(size, pairs, given.device, given.dtype)
        work = {"ours": mine, "peer": theirs, "limit": products}
        taken = alternate({who: rate(size, given.dtype, given.device, do) for who, do in work.items()}, given.rounds)
        line = result(
            "retrieval",
            ours=taken["ours"],
            peer=taken["peer"],
            peer_name=f"transformers {sys.modules['transformers'].__version__} VisualBertModel and a linear layer",
            limit=taken["limit"],
            unit="pairs/s",
            settings={
                "case": case,
                "texts": size.texts,
                "images": size.images,
                "tokens": round(float(np.mean([len(ids) for ids in pairs.texts])), 1),
                "regions": REGIONS,
                "peer_batch": size.batch,
                "dtype": given.dtype,
                "threads": given.threads,
                "rounds": given.rounds,
                "scores_apart": apart,
                "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
            },
        )
        lines.append(line)
        print(
            f"{case}: ours {line['ours']}, peer {line['peer']}, ratio {line['ratio']}, of limit {line['of_limit']}; "
            f"scores apart {apart:.1e}"
        )
        gc.collect()
    first = lines[0]
    print_result({**first, "cases": {line["settings"]["case"]: line for line in lines}})


if __name__ == "__main__":
    main()
