"""Small models and batches in both forms: packed for ours, padded for transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForPreTraining,
)
from transformers import VisualBertConfig as HuggingFaceConfig

from vbert.model.config import VisualBertConfig
from vbert.model.visualbert import PackedBatch
from vbert.model.vocabulary import SPECIAL, TextRules, write_vocabulary

VOCABULARY, VISUAL = 61, 10


def small_config(**changes: Any) -> VisualBertConfig:
    sizes = {"vocab_size": VOCABULARY, "visual_dim": VISUAL, "hidden_size": 24, "layers": 3, "heads": 4}
    return VisualBertConfig.model_validate({**sizes, "box_input": "none", "standardise": False, **changes})


def hf_config(**changes: Any) -> HuggingFaceConfig:
    return HuggingFaceConfig(
        vocab_size=VOCABULARY,
        visual_embedding_dim=VISUAL,
        hidden_size=24,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        pad_token_id=0,
        **changes,
    )


class Both:
    """One random batch. texts and regions: tokens and regions of each sequence. aligned: of each, (region, place of the
    text) of the pieces that name a region."""

    def __init__(
        self,
        texts: list[int],
        regions: list[int],
        dtype: torch.dtype,
        visual_types: str = "zero",
        aligned: Sequence[Sequence[tuple[int, int]]] = (),
    ) -> None:
        draw = np.random.default_rng(5)
        self.texts, self.regions = texts, regions
        ids = [draw.integers(1, VOCABULARY, n) for n in texts]
        types = [np.arange(n) * 2 // n for n in texts]
        visuals = [draw.normal(size=(n, VISUAL)).astype(np.float32) for n in regions]
        kinds = {
            "zero": lambda n: np.zeros(n, int),
            "one": lambda n: np.ones(n, int),
            "mixed": lambda n: np.arange(n) % 2,
        }
        visual_types_of = [kinds[visual_types](n) for n in regions]
        self.packed = PackedBatch.of(ids, types, visuals, visual_types_of, aligned=aligned)
        self.packed.visual = self.packed.visual.to(dtype)
        self.padded: dict[str, Tensor] = {
            "input_ids": _pad(ids, max(texts)),
            "token_type_ids": _pad(types, max(texts)),
            "attention_mask": _pad([np.ones(n, int) for n in texts], max(texts)),
            "visual_embeds": _pad(visuals, max(regions)).to(dtype),
            "visual_token_type_ids": _pad(visual_types_of, max(regions)),
            "visual_attention_mask": _pad([np.ones(n, int) for n in regions], max(regions)),
        }

        if aligned:
            places = np.full((len(regions), max(regions), 4), -1)
            for places_of, pairs in zip(places, aligned, strict=True):
                for region, place in pairs:
                    places_of[region][np.argmax(places_of[region] == -1)] = place
            self.padded["image_text_alignment"] = torch.from_numpy(places)

    def real(self, padded: Tensor) -> Tensor:
        """The rows of real tokens of a padded [B, L, …], in packed order."""
        longest = max(self.texts)
        rows = []
        for i, (n, k) in enumerate(zip(self.texts, self.regions, strict=True)):
            rows += [padded[i, :n], padded[i, longest : longest + k]]
        return torch.cat(rows)


def _pad(rows: list[np.ndarray], length: int) -> Tensor:
    out = np.zeros((len(rows), length, *rows[0].shape[1:]), rows[0].dtype)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return torch.from_numpy(out)


def randomised(model: Any) -> Any:
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def bert(folder: Path, kind: Any = BertForPreTraining, **changes: Any) -> Any:
    """A BERT of the small sizes with random weights and a vocabulary, as transformers saves it."""
    config = BertConfig(
        **{
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            **changes,
        }
    )
    model = randomised(kind(config))
    model.save_pretrained(folder)
    write_vocabulary(folder, [*SPECIAL, *(f"w{i}" for i in range(VOCABULARY - 5))], TextRules())
    return model
