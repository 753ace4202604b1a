"""The start of training without a trained VisualBERT: sizes and a vocabulary, or a BERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vbert.model.bert import BertWeights
from vbert.model.config import ModelSettings, VisualBertConfig
from vbert.model.vocabulary import Vocabulary

if TYPE_CHECKING:
    from vbert.model.heads import PretrainingModel


@dataclass(frozen=True)
class Initialization:
    """A start without a trained VisualBERT: sizes and vocabulary, and a BERT's weights if there is one."""

    vocabulary: Vocabulary
    model: ModelSettings
    bert: BertWeights | None = None

    def config(self, visual_dim: int) -> VisualBertConfig:
        """The sizes, including those of the vocabulary (or the BERT) and the regions."""
        if self.bert is not None:
            return self.bert.model_config(self.model, visual_dim)
        sizes = self.model.model_dump(include=set(ModelSettings.model_fields))
        return VisualBertConfig(**sizes, vocab_size=self.vocabulary.encoder().size, visual_dim=visual_dim)

    def build(self, visual_dim: int, seed: int) -> PretrainingModel:
        """Weights drawn from `seed`, then the BERT's where there is one."""
        import torch

        from vbert.model.convert import load_bert
        from vbert.model.heads import PretrainingModel
        from vbert.training.sampler import derive

        drawn = torch.Generator().manual_seed(derive(seed, "initial weights"))
        model = PretrainingModel(self.config(visual_dim), drawn)
        if self.bert is not None:
            load_bert(model, self.bert)
        return model
