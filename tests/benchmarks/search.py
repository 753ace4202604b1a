"""Seconds of a search by a text among 10,000 images, the index being there: the dual encoder alone, and re-ranked.

    python tests/benchmarks/search.py [--images 10000] [--rerank 0 128] [--rounds 5] [--threads 2]

A model of the demo's size (2×128) and 36 regions an image. Ours: `ImageSearch.by_text`, which reads the features of
the re-ranked images alone. Peer: the same model's cross-encoder over all images, which are in memory and embedded
before. Limit: of the dual encoder alone one product of all vectors and their order, by numpy; re-ranked the
cross-encoder on images that are embedded before. In the settings, seconds to make the index of all images, to open it
(the digest of the model, the tables), and of the whole command with the interpreter's imports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
from measure import alternate, print_result, result

from vbert.artifacts.steps.settings import Plugin
from vbert.model.config import VisualBertConfig
from vbert.model.retrieval import PairScorer, RetrievalModel
from vbert.model.vocabulary import SPECIAL, TextRules, Vocabulary, write_vocabulary
from vbert.objectives.retrieval_search import ImageSearch
from vbert.objectives.trained import write_model
from vbert.regions.boxes import Fixed, Nms
from vbert.regions.contract import Contract, Preprocessing
from vbert.regions.shards import RegionSample, write_contents, write_shard

CHECKOUT = Path(__file__).parents[2]
DIM, REGIONS, WORDS, SHARD = 256, 36, 2000, 500
CONTRACT = Contract(
    detector="none", backend=Plugin(name="none", version=1), weights="0" * 64, layer="fc7", dim=DIM,
    boxes=Fixed(count=REGIONS), nms=Nms(), features_of="proposals", preprocessing=Preprocessing(),
)  # fmt: skip


def write_features(folder: Path, images: int) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)

    def sample(i: int) -> RegionSample:
        corners = draw.uniform(0, 300, (REGIONS, 2))
        boxes = np.concatenate([corners, corners + draw.uniform(10, 300, (REGIONS, 2))], 1).astype(np.float32)
        features = draw.standard_normal((REGIONS, DIM)).astype(np.float16)
        return RegionSample(
            f"{i:08d}", "0" * 64, 640, 640, features, boxes, [1.0] * REGIONS, ["thing"] * REGIONS, [[]] * REGIONS
        )

    numbers = np.array_split(np.arange(images), -(-images // SHARD))
    parts = [write_shard(folder, k, map(sample, part.tolist())) for k, part in enumerate(numbers)]
    write_contents(folder, parts, [], CONTRACT)


def write_trained(folder: Path) -> None:
    folder.mkdir()
    tokens = [*SPECIAL, *(f"w{i}" for i in range(WORDS))]
    write_vocabulary(folder, tokens, TextRules())
    config = VisualBertConfig(
        layers=2, hidden_size=128, heads=4, vocab_size=len(tokens), visual_dim=DIM, max_positions=96, standardise=False
    )
    model = RetrievalModel(config, 256, 0, torch.Generator().manual_seed(0))
    head = {
        "objective": "retrieval",
        "kind": "retrieval",
        "dual": 256,
        "negatives": "random",
        "images": "own",
        "max_text": 96,
    }
    write_model(
        folder, model=model, config=config, vocabulary=Vocabulary.at(folder), contract=CONTRACT, head=head, curves=[]
    )


def texts(count: int) -> list[str]:
    draw = np.random.default_rng(1)
    return [" ".join(f"w{i}" for i in draw.integers(WORDS, size=int(n))) for n in draw.integers(6, 14, count)]


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rerank", type=int, nargs="+", default=[0, 128])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory(prefix="vbert-search-") as folder:
        model, features = Path(folder) / "model", Path(folder) / "features"
        write_features(features, given.images)
        write_trained(model)
        about = {"images": given.images, "regions": REGIONS, "threads": given.threads, "rounds": given.rounds}
        about["index_s"] = round(seconds(lambda: ImageSearch.open(model, features)), 1)  # type: ignore[assignment]
        about["open_s"] = round(seconds(lambda: ImageSearch.open(model, features)), 2)  # type: ignore[assignment]
        command = [sys.executable, "-m", "flows.cli", "search", texts(1)[0], "--model", model, "--features", features]
        about["command_s"] = round(seconds(lambda: subprocess.run(command, cwd=CHECKOUT, check=True, stdout=-3)), 1)  # type: ignore[assignment]
        search = ImageSearch.open(model, features)
        asked = texts(given.rounds + 1)
        queries = [search.query(text) for text in asked]
        bare = [search.encoder.cls, search.encoder.sep]
        every = PairScorer(
            search.network, [q.tokens for q in queries], bare, map(search.visuals, search.index.image_ids)
        )
        vectors, of_texts = search.index.vectors, every.text_vectors()
        for rerank in given.rerank:
            turn, other, third = (cycle(range(len(queries))) for _ in range(3))

            def exhaustive(turn: cycle[int] = other) -> object:
                at = np.full(given.images, next(turn))
                return np.argsort(-every.scores(at, np.arange(given.images)), kind="stable")

            def least(turn: cycle[int] = third, count: int = rerank) -> object:
                k = next(turn)
                return (
                    every.scores(np.full(count, k), np.arange(count)) if count else np.argsort(-vectors @ of_texts[k])
                )

            def ours(turn: cycle[int] = turn, count: int = rerank) -> object:
                return search.by_text(asked[next(turn)], 10, count)

            taken = alternate(
                {
                    "ours": lambda ours=ours: seconds(ours),
                    "peer": lambda exhaustive=exhaustive: seconds(exhaustive),
                    "limit": lambda least=least: seconds(least),
                },
                given.rounds,
            )
            print_result(
                result(
                    "search",
                    ours=taken["ours"],
                    peer=taken["peer"],
                    peer_name="the cross-encoder over all images",
                    limit=taken["limit"],
                    unit="s",
                    settings={**about, "rerank": rerank},
                    lower_is_better=True,
                )
            )


if __name__ == "__main__":
    main()
