"""Rows/s of a table of questions: ours, as `vbert predict --table` answers them, against a plain transformers loop.

    python tests/benchmarks/predict.py [--cases mini-longest base-unpadded] [--rounds 3] [--threads 1]

Both begin with questions as texts and regions in memory (10 to 36 of 2,048 numbers an image), same weights and
vocabulary, and end with the best answer and its probability; 3,129 answers. Peer: BertTokenizerFast and
transformers.VisualBertForQuestionAnswering in eval mode, BATCH rows at a time in the order of the table, padded to the
longest of a batch (longest), or to 20 tokens and 36 regions (padded); or row by row, without any padding (unpadded).
Ours: `VisualBert.answer` on all rows, each row's bits those that it has alone, which the peer doesn't promise.
Limit: the bare matrix products of the real tokens, in the batches in which ours computes them.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import alternate, print_result, result
from regions.regions_tiny import CONTRACT
from torch import Tensor

from vbert.inference.encoding import BATCH as OURS
from vbert.inference.visualbert import VisualBert
from vbert.model.config import VisualBertConfig
from vbert.model.convert import save_pretrained
from vbert.model.heads import AnswerModel
from vbert.model.vocabulary import SPECIAL, TextRules, Vocabulary, write_vocabulary
from vbert.objectives.trained import Model, write_model
from vbert.regions.shards import Regions, RegionSample

BATCH = 32  # of the peer
ANSWERS = 3129
DIM, REGIONS = 2048, (10, 36)
PADDED = 20, 36  # tokens and regions
SIZES = {"mini": (512, {"layers": 2, "hidden_size": 128, "heads": 4}), "base": (64, {})}


@dataclass(frozen=True)
class Work:
    """Rows of a table with the regions of their images, and a model for both sides, in `folder`."""

    folder: Path
    config: VisualBertConfig
    questions: list[str]
    regions: list[Regions]


def make_work(folder: Path, rows: int, sizes: dict[str, Any]) -> Work:
    draw = np.random.default_rng(0)
    words = [f"word{n}" for n in range(2000)]
    for name in ("vocabulary", "ours", "theirs"):
        (folder / name).mkdir(parents=True)
    tokens = [*SPECIAL, "?", *words]
    write_vocabulary(folder / "vocabulary", tokens, TextRules())
    config = VisualBertConfig(
        vocab_size=len(tokens), visual_dim=DIM, box_input="none", standardise=False, **{"max_positions": 128, **sizes}
    )
    model = AnswerModel(config, ANSWERS, "at", torch.Generator().manual_seed(0)).eval()
    labels, vocabulary = [f"answer{n}" for n in range(ANSWERS)], Vocabulary.at(folder / "vocabulary")
    head = {"kind": "answer", "objective": "vqa", "labels": labels, "answer_at": "mask", "loss": "kl"}
    write_model(
        folder / "ours",
        model=model,
        config=config,
        vocabulary=vocabulary,
        contract=CONTRACT.model_copy(update={"dim": DIM}),
        head={**head, "images": "own", "max_text": 20},
        curves=[],
    )
    save_pretrained(model, folder / "theirs", vocabulary=vocabulary, answers=labels)
    questions = [" ".join(draw.choice(words, draw.integers(4, 15))) for _ in range(rows)]
    regions = []
    for k in range(rows):
        count = int(draw.integers(REGIONS[0], REGIONS[1] + 1))
        features, boxes = draw.normal(size=(count, DIM)).astype(np.float16), np.zeros((count, 4), np.float32)
        sample = RegionSample(str(k), None, 640, 480, features, boxes, [], [], [])
        regions.append(Regions(features, boxes, sample.json()))
    return Work(folder, config, questions, regions)


Answers = Callable[[], list[tuple[str, float]]]


def ours(work: Work) -> Answers:
    model = VisualBert(Model.at(work.folder / "ours"), None, "cpu")

    def answers() -> list[tuple[str, float]]:
        found = model.answer(None, work.questions, regions=work.regions, top=1)
        return [(one.text, one.score) for (one,) in found]

    return answers


def peer(work: Work, padding: str) -> Answers:
    from transformers import BertTokenizerFast, VisualBertForQuestionAnswering

    model = VisualBertForQuestionAnswering.from_pretrained(work.folder / "theirs").eval()
    tokenizer = BertTokenizerFast.from_pretrained(work.folder / "theirs")
    mask, labels = tokenizer.mask_token_id, model.config.id2label
    size = 1 if padding == "unpadded" else BATCH

    def batch(start: int) -> tuple[dict[str, Tensor], Tensor]:
        texts = [f"{one} ? [MASK]" for one in work.questions[start : start + size]]
        how = {"padding": "max_length", "max_length": PADDED[0]} if padding == "padded" else {"padding": True}
        given = tokenizer(texts, return_tensors="pt", truncation=True, **how)
        part = [torch.from_numpy(one.features.astype(np.float32)) for one in work.regions[start : start + size]]
        longest = PADDED[1] if padding == "padded" else max(map(len, part))
        features, seen = torch.zeros(len(part), longest, DIM), torch.zeros(len(part), longest, dtype=torch.int64)
        for k, one in enumerate(part):
            features[k, : len(one)], seen[k, : len(one)] = one, 1
        shown = {"visual_embeds": features, "visual_attention_mask": seen, "visual_token_type_ids": seen * 0}
        return {**given, **shown}, (given["input_ids"] == mask).int().argmax(1)

    @torch.no_grad()
    def answers() -> list[tuple[str, float]]:
        found = []
        for start in range(0, len(work.questions), size):
            given, at = batch(start)
            hidden = model.visual_bert(**given).last_hidden_state
            logits = model.cls(hidden[torch.arange(len(at)), at])
            best = logits.softmax(-1).max(-1)
            found += [(labels[k], p) for k, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
        return found

    return answers


def limit(work: Work) -> Callable[[], None]:
    """The products of every batch of ours: linear layers over its tokens, attention length by length."""
    config = work.config
    hidden, inner, head = config.hidden_size, config.intermediate_size, config.hidden_size // config.heads
    plan: list[tuple[Any, Tensor, Tensor]] = []
    made: dict[tuple[int, ...], Tensor] = {}

    def of(*shape: int) -> Tensor:
        if shape not in made:
            made[shape] = torch.randn(shape)
        return made[shape]

    def linear(rows: int, inputs: int, outputs: int) -> None:
        plan.append((torch.mm, of(rows, inputs), of(outputs, inputs).t()))

    for start in range(0, len(work.questions), OURS):
        part = slice(start, start + OURS)
        regions = [len(one.features) for one in work.regions[part]]
        lengths = [n + len(one.split()) + 4 for n, one in zip(regions, work.questions[part], strict=True)]
        linear(sum(regions), DIM, hidden)
        for _ in range(config.layers):
            for inputs, outputs in ((hidden, 3 * hidden), (hidden, hidden), (hidden, inner), (inner, hidden)):
                linear(sum(lengths), inputs, outputs)
            for length, count in zip(*map(np.ndarray.tolist, np.unique(lengths, return_counts=True)), strict=True):
                n = count * config.heads
                plan.append((torch.bmm, of(n, length, head), of(n, length, head).mT))
                plan.append((torch.bmm, of(n, length, length), of(n, length, head)))
        linear(len(lengths), hidden, ANSWERS)

    @torch.no_grad()
    def products() -> None:
        for product, a, b in plan:
            product(a, b)

    return products


def rate(rows: int, do: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        began = time.perf_counter()
        do()
        return rows / (time.perf_counter() - began)

    return run


def main() -> None:
    cases = [f"{size}-{padding}" for size in SIZES for padding in ("longest", "padded", "unpadded")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=cases, choices=cases)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = []
    for case in given.cases:
        name, padding = case.split("-")
        rows, sizes = SIZES[name]
        with tempfile.TemporaryDirectory() as folder:
            work = make_work(Path(folder), rows, sizes)
            mine, theirs = ours(work), peer(work, padding)
            a, b = mine(), theirs()
            assert [one[0] for one in a] == [one[0] for one in b], "other answers"
            apart = max(abs(x[1] - y[1]) for x, y in zip(a, b, strict=True))
            do = {"ours": mine, "peer": theirs, "limit": limit(work)}
            taken = alternate({who: rate(rows, what) for who, what in do.items()}, given.rounds)
        line = result(
            "predict",
            ours=taken["ours"],
            peer=taken["peer"],
            peer_name=f"transformers {version('transformers')} VisualBertForQuestionAnswering, {padding}",
            limit=taken["limit"],
            unit="rows/s",
            settings={
                "case": case,
                "rows": rows,
                "answers": ANSWERS,
                "peer_batch": 1 if padding == "unpadded" else BATCH,
                "threads": given.threads,
                "rounds": given.rounds,
                "probabilities_apart": apart,
            },
        )
        lines.append(line)
        print(f"{case}: ours {line['ours']}, peer {line['peer']}, ratio {line['ratio']}, of limit {line['of_limit']}")
        gc.collect()
    print_result({**lines[0], "cases": {line["settings"]["case"]: line for line in lines}})


if __name__ == "__main__":
    main()
