"""Samples/s of a pre-training step (forward, backward, AdamW): ours against transformers, same work for both.

    python tests/benchmarks/pretrain.py [--cases mini-fp32 base-bf16] [--rounds 7] [--threads 1] [--device cuda]

Peer: transformers.VisualBertForPreTraining in training mode with dynamic padding (each batch to its longest text and
its most regions). Same batches, masked positions, labels, dtype (bf16: autocast), sizes, dropout and AdamW.
Limit: the bare matrix products of the real tokens, forward and backward, logits at masked positions only.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import alternate, print_result, result
from torch import Tensor

from vbert.model.config import VisualBertConfig
from vbert.model.heads import PretrainingModel
from vbert.model.visualbert import PackedBatch


@dataclass(frozen=True)
class Size:
    """A model, its batches (tokens of a text and regions drawn uniformly, both ends included), steps a round."""

    config: VisualBertConfig
    batch: int
    text: tuple[int, int]
    regions: tuple[int, int]
    steps: int


def _size(batch: int, text: tuple[int, int], regions: tuple[int, int], steps: int, **sizes: Any) -> Size:
    config = VisualBertConfig(box_input="none", standardise=False, **sizes)
    return Size(config, batch, text, regions, steps)


SIZES = {
    # The demo's: no dropout. Captions of about 16 pieces.
    "mini": _size(
        64, (8, 24), (1, 10), 20,
        layers=2, hidden_size=128, heads=4, vocab_size=300, visual_dim=262, hidden_dropout=0.0, attention_dropout=0.0,
    ),
    # BERT base's, with its dropout; 36 regions as in most published work.
    "base": _size(16, (12, 28), (36, 36), 1, vocab_size=30522, visual_dim=2048),
}  # fmt: skip
BATCHES = 4
GPU = {"mini": (1024, 10), "base": (256, 5)}  # batch and steps a round on a GPU


@dataclass(frozen=True)
class Batch:
    packed: PackedBatch  # read at the masked tokens
    padded: dict[str, Tensor]
    labels: Tensor  # their words
    match: Tensor


def make_batch(size: Size, draw: np.random.Generator) -> Batch:
    """Random ids, features, 15 % masked positions (at least one a text) and matching labels, in both forms."""
    vocab, dim = size.config.vocab_size, size.config.visual_dim
    texts = [draw.integers(1, vocab, n) for n in draw.integers(size.text[0], size.text[1] + 1, size.batch)]
    regions = draw.integers(size.regions[0], size.regions[1] + 1, size.batch)
    visuals = [draw.normal(size=(n, dim)).astype(np.float32) for n in regions]
    packed = PackedBatch.of(texts, [np.zeros(len(t), int) for t in texts], visuals)
    longest, most = max(len(t) for t in texts), int(max(regions))
    ids = np.zeros((size.batch, longest), np.int64)
    text_mask, visual_mask = np.zeros_like(ids), np.zeros((size.batch, most), np.int64)
    features = np.zeros((size.batch, most, dim), np.float32)
    labels = np.full((size.batch, longest + most), -100)
    masked = []
    for i, (text, visual, start) in enumerate(zip(texts, visuals, packed.starts().tolist(), strict=True)):
        ids[i, : len(text)], text_mask[i, : len(text)] = text, 1
        features[i, : len(visual)], visual_mask[i, : len(visual)] = visual, 1
        chosen = np.sort(draw.choice(len(text), max(1, round(0.15 * len(text))), replace=False))
        labels[i, chosen] = text[chosen]
        masked.append(start + chosen)
    match = torch.from_numpy(draw.integers(0, 2, size.batch))
    padded = {
        "input_ids": ids,
        "attention_mask": text_mask,
        "token_type_ids": np.zeros_like(ids),
        "visual_embeds": features,
        "visual_attention_mask": visual_mask,
        "visual_token_type_ids": np.zeros_like(visual_mask),
        "labels": labels,
    }
    tensors = {name: torch.from_numpy(array) for name, array in padded.items()} | {"sentence_image_labels": match}
    words = torch.from_numpy(labels[labels != -100])
    return Batch(replace(packed, at=torch.from_numpy(np.concatenate(masked))), tensors, words, match)


def batches_of(size: Size, device: str) -> list[Batch]:
    """Ready on the device: what is measured is the step."""
    draw = np.random.default_rng(0)
    made = []
    for _ in range(BATCHES):
        batch = make_batch(size, draw)
        padded = {name: tensor.to(device) for name, tensor in batch.padded.items()}
        rest = [tensor.to(device) for tensor in (batch.labels, batch.match)]
        made.append(Batch(batch.packed.to(device), padded, *rest))
    return made


def autocast(dtype: str, device: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16, enabled=dtype == "bf16")


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def trainer(size: Size, dtype: str, batches: list[Batch], model: Any, loss_of: Callable[[Any, Batch], Tensor]) -> Any:
    """A function that trains `size.steps` steps and returns samples/s."""
    model.to(batches[0].labels.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    turn = iter(range(1 << 30))
    model.train()
    device = batches[0].labels.device.type

    def run() -> float:
        began = now(device)
        for _ in range(size.steps):
            batch = batches[next(turn) % len(batches)]
            with autocast(dtype, device):
                loss = loss_of(model, batch)
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        return size.steps * size.batch / (now(device) - began)

    return run


def ours(size: Size, dtype: str, batches: list[Batch]) -> Any:
    def loss_of(model: PretrainingModel, batch: Batch) -> Tensor:
        words, matching = model(batch.packed)
        return F.cross_entropy(words.float(), batch.labels) + F.cross_entropy(matching.float(), batch.match)

    model = PretrainingModel(size.config, torch.Generator().manual_seed(0))
    return trainer(size, dtype, batches, model, loss_of)


def peer(size: Size, dtype: str, batches: list[Batch]) -> Any:
    from transformers import VisualBertConfig as Config
    from transformers import VisualBertForPreTraining

    ours = size.config
    config = Config(
        vocab_size=ours.vocab_size,
        visual_embedding_dim=ours.visual_dim,
        hidden_size=ours.hidden_size,
        num_hidden_layers=ours.layers,
        num_attention_heads=ours.heads,
        intermediate_size=ours.intermediate_size,
        hidden_dropout_prob=ours.hidden_dropout,
        attention_probs_dropout_prob=ours.attention_dropout,
        pad_token_id=0,
    )
    return trainer(size, dtype, batches, VisualBertForPreTraining(config), lambda model, b: model(**b.padded).loss)


def limit(size: Size, dtype: str, batches: list[Batch]) -> Any:
    """The products alone: x W, and for the gradients g Wᵀ and gᵀ x; attention's six per group of equal length."""
    kind = torch.bfloat16 if dtype == "bf16" else torch.float32
    config, device = size.config, batches[0].labels.device
    hidden, inner = config.hidden_size, config.intermediate_size

    def linear(rows: int, inputs: int, outputs: int, times: int, input_gradient: bool = True) -> list[Any]:
        x, w, g = (
            torch.randn(a, b, device=device).to(kind) for a, b in ((rows, inputs), (outputs, inputs), (rows, outputs))
        )
        products = [(x, w.t()), (g.t(), x)] + ([(g, w)] if input_gradient else [])
        return [(torch.mm, *pair, times) for pair in products]

    def attention(count: int, length: int) -> list[Any]:
        shape = (count * config.heads, length, hidden // config.heads)
        q, k, v = (torch.randn(shape, device=device).to(kind) for _ in range(3))
        p = torch.randn(count * config.heads, length, length, device=device).to(kind)
        pairs = [(q, k.mT), (p, v), (p.mT, q), (v, k.mT), (p, k), (p.mT, q)]
        return [(torch.bmm, *pair, config.layers) for pair in pairs]

    plans = []
    for batch in batches:
        tokens = int(batch.packed.lengths.sum())
        plan = linear(len(batch.packed.visual), config.visual_dim, hidden, 1, input_gradient=False)
        for inputs, outputs in ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)):
            plan += linear(tokens, inputs, outputs, config.layers)
        plan += linear(len(batch.labels), hidden, hidden, 1) + linear(len(batch.labels), hidden, config.vocab_size, 1)
        plan += linear(size.batch, hidden, hidden, 1)
        for length, count in zip(*np.unique(batch.packed.lengths.numpy(), return_counts=True), strict=True):
            plan += attention(int(count), int(length))
        plans.append(plan)
    turn = iter(range(1 << 30))

    def run() -> float:
        began = now(device.type)
        for _ in range(size.steps):
            for product, a, b, times in plans[next(turn) % len(plans)]:
                for _ in range(times):
                    product(a, b)
        return size.steps * size.batch / (now(device.type) - began)

    return run


WHO = {"ours": ours, "peer": peer, "limit": limit}


def peak_mib() -> float:
    """Peak resident MiB of this process (getrusage would count the parent's, from before exec)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peak_memory(case: str, who: str, threads: int) -> float:
    """Peak resident MiB of a fresh process that trains one round of `case`."""
    command = [sys.executable, __file__, "--memory", who, "--cases", case, "--threads", str(threads)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    cases = [f"{size}-{dtype}" for size in SIZES for dtype in ("fp32", "bf16")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=cases, choices=cases)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--memory", choices=WHO, help="one round of one side; print the peak of resident memory in MiB")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = []
    for case in given.cases:
        name, dtype = case.split("-")
        size = SIZES[name]
        if given.device == "cuda":
            size = replace(size, batch=GPU[name][0], steps=GPU[name][1])
        batches = batches_of(size, given.device)
        if given.memory:
            WHO[given.memory](size, dtype, batches)()
            print(peak_mib())
            return
        taken = alternate({who: make(size, dtype, batches) for who, make in WHO.items()}, given.rounds)
        real = sum(int(b.packed.lengths.sum()) for b in batches)
        computed = sum(b.padded["labels"].numel() for b in batches)
        settings = {
            "case": case,
            "batch": size.batch,
            "threads": given.threads,
            "rounds": given.rounds,
            "padding": round(1 - real / computed, 3),
            "dropout": size.config.hidden_dropout,
            "optimiser": "AdamW, fused",
            "device": torch.cuda.get_device_name() if given.device == "cuda" else "cpu",
        }
        if given.device == "cpu":
            settings["peak_mib"] = {who: round(peak_memory(case, who, given.threads)) for who in ("ours", "peer")}
        line = result(
            "pretrain",
            ours=taken["ours"],
            peer=taken["peer"],
            peer_name=f"transformers {sys.modules['transformers'].__version__} VisualBertForPreTraining",
            limit=taken["limit"],
            unit="samples/s",
            settings=settings,
        )
        lines.append(line)
        print(f"{case}: ours {line['ours']}, peer {line['peer']}, ratio {line['ratio']}, of limit {line['of_limit']}")
        gc.collect()
    first = lines[0]
    print_result({**first, "cases": {line["settings"]["case"]: line for line in lines}})


if __name__ == "__main__":
    main()
