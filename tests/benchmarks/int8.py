"""Examples a second of a model in int8, as `vbert export --int8` writes it, on a CPU.

    python tests/benchmarks/int8.py [--size mini base] [--batch 1 16] [--rounds 5] [--threads 1]

A model of answers with random weights, a question of 8 to 14 words and 36 regions an example, batches ready in memory.
Ours: its linear layers in int8. Peer: the same model in float32. Limit: the bare integer products of these layers, on
rows that are int8 before. In the settings, megabytes of the weights of both.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measure import alternate, print_result, result
from torch import nn

from vbert.model.config import VisualBertConfig
from vbert.model.heads import AnswerModel
from vbert.model.int8 import Int8Linear, quantise
from vbert.model.visualbert import PackedBatch

SIZES = {
    "mini": {"layers": 2, "hidden_size": 128, "heads": 4, "vocab_size": 2000, "visual_dim": 256, "labels": 13},
    "base": {"layers": 12, "hidden_size": 768, "heads": 12, "vocab_size": 30522, "visual_dim": 2048, "labels": 3129},
}
REGIONS = 36


def batches(config: VisualBertConfig, size: int, count: int) -> list[PackedBatch]:
    draw = np.random.default_rng(0)

    def one() -> PackedBatch:
        texts = [draw.integers(5, config.vocab_size, int(n)).tolist() for n in draw.integers(11, 18, size)]
        visuals = draw.standard_normal((size, REGIONS, config.visual_input)).astype(np.float32)
        return PackedBatch.of(texts, [[0] * len(text) for text in texts], list(visuals), at=[[1]] * size)

    return [one() for _ in range(count)]


def products(network: nn.Module, rows: int) -> Callable[[], object]:
    """The integer products of the network's layers for so many tokens; the heads' rows are few and left out."""
    layers = [(name, one) for name, one in network.named_modules() if isinstance(one, Int8Linear)]
    weights = [one.weight for name, one in layers if ".layers." in name]
    given = {w.shape[1]: torch.randint(-127, 127, (rows, w.shape[1]), dtype=torch.int8) for w in weights}
    return lambda: [torch._int_mm(given[w.shape[1]], w.t()) for w in weights]


def rate(work: Callable[[], object], examples: int) -> float:
    began = time.perf_counter()
    work()
    return examples / (time.perf_counter() - began)


def megabytes(network: nn.Module) -> float:
    return round(sum(t.numel() * t.element_size() for t in network.state_dict().values()) / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in given.size:
        sizes: dict[str, Any] = dict(SIZES[name])
        labels = sizes.pop("labels")
        config = VisualBertConfig(**sizes)
        whole = AnswerModel(config, labels, "at", torch.Generator().manual_seed(0)).eval()
        small = quantise(copy.deepcopy(whole))
        for batch in given.batch:
            made = batches(config, batch, 8 if name == "mini" else 2)
            bare = products(small, sum(int(one.lengths.sum()) for one in made) // len(made))

            def through(network: nn.Module, made: list[PackedBatch] = made) -> float:
                with torch.no_grad():
                    return rate(lambda: [network(one) for one in made], len(made) * len(made[0].lengths))

            taken = alternate(
                {
                    "ours": lambda run=through, network=small: run(network),
                    "peer": lambda run=through, network=whole: run(network),
                    "limit": lambda bare=bare, made=made: rate(
                        lambda: [bare() for _ in made], len(made) * len(made[0].lengths)
                    ),
                },
                given.rounds,
            )
            settings = {
                "size": name,
                "batch": batch,
                "regions": REGIONS,
                "threads": given.threads,
                "rounds": given.rounds,
            }
            print_result(
                result(
                    "int8",
                    ours=taken["ours"],
                    peer=taken["peer"],
                    peer_name="the same model in float32",
                    limit=taken["limit"],
                    unit="examples/s",
                    settings={**settings, "MB": megabytes(small), "peer_MB": megabytes(whole)},
                )
            )


if __name__ == "__main__":
    main()
