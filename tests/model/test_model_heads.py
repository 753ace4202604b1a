"""The heads of downstream tasks against transformers' classes: forward, loss and gradients, and their files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from model.model_batches import Both, hf_config, randomised, small_config
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    VisualBertForMultipleChoice,
    VisualBertForRegionToPhraseAlignment,
    VisualBertForVisualReasoning,
)

from vbert.model.convert import UNUSED, load_pretrained, save_pretrained
from vbert.model.visualbert import VisualBert

TEXTS, REGIONS = [5, 9, 3, 7], [4, 1, 7, 2]
ALIGNED = [[(0, 2), (0, 3), (2, 1)], [], [(6, 1), (5, 1), (6, 2)], [(1, 6)]]
LABELS = torch.tensor([1, 0, 1, 1])
PLACES = [[2], [8, 1, 4], [1], []]  # of phrases


def reasoning(ours: Any, theirs: Any) -> tuple[Both, Tensor, Tensor, Any]:
    """NLVR2: the regions of two images, told apart by their segment."""
    both = Both(TEXTS, REGIONS, torch.float32, "mixed")
    out = theirs(**both.padded, labels=LABELS)
    mine = ours(both.packed)
    return both, mine, F.cross_entropy(mine, LABELS), out


def choosing(ours: Any, theirs: Any) -> tuple[Both, Tensor, Tensor, Any]:
    """VCR: two examples of two choices, whose words name regions."""
    both = Both(TEXTS, REGIONS, torch.float32, aligned=ALIGNED)
    padded = {
        name: t if name == "image_text_alignment" else t.view(2, 2, *t.shape[1:]) for name, t in both.padded.items()
    }
    out = theirs(**padded, labels=LABELS[:2])
    mine = ours(both.packed).view(2, 2)
    return both, mine, F.cross_entropy(mine, LABELS[:2]), out


def grounding(ours: Any, theirs: Any) -> tuple[Both, Tensor, Tensor, Any]:
    """Flickr30k Entities: phrases to regions, KL against a share of each right region."""
    both = Both(TEXTS, REGIONS, torch.float32)
    draw = torch.Generator().manual_seed(0)
    longest = max(map(len, PLACES))
    positions = torch.tensor([[*places, *[-1] * (longest - len(places))] for places in PLACES])
    wanted = torch.zeros(len(TEXTS), longest, max(REGIONS))
    for b, places in enumerate(PLACES):
        for p in range(len(places)):
            right = torch.randperm(REGIONS[b], generator=draw)[: 1 + p]
            wanted[b, p, right] = 1 / len(right)
    out = theirs(**both.padded, region_to_phrase_position=positions, labels=wanted)
    starts = both.packed.starts()
    at = torch.cat(
        [start + torch.tensor(places, dtype=torch.int64) for start, places in zip(starts, PLACES, strict=True)]
    )
    scores = ours(replace(both.packed, at=at))
    owners = [b for b, places in enumerate(PLACES) for _ in places]
    for row, b in zip(scores, owners, strict=True):
        assert row.isneginf().nonzero().flatten().tolist() == list(range(REGIONS[b], max(REGIONS)))
    each = [row[: REGIONS[b]] for row, b in zip(scores, owners, strict=True)]
    targets = [wanted[b, p, : REGIONS[b]] for b, places in enumerate(PLACES) for p in range(len(places))]
    terms = [F.kl_div(s.log_softmax(-1), t, reduction="sum") for s, t in zip(each, targets, strict=True)]
    real = [out.logits[b, : len(places), : REGIONS[b]].reshape(-1) for b, places in enumerate(PLACES)]
    return both, torch.cat(each), sum(terms) / len(TEXTS), replace_logits(out, torch.cat(real))


def replace_logits(out: Any, logits: Tensor) -> Any:
    out.logits = logits
    return out


CASES = [
    (VisualBertForVisualReasoning, reasoning),
    (VisualBertForMultipleChoice, choosing),
    (VisualBertForRegionToPhraseAlignment, grounding),
]


@pytest.mark.parametrize(("kind", "compute"), CASES, ids=["NLVR2", "VCR", "Flickr30k"])
def test_heads_are_those_of_transformers(
    kind: Any, compute: Callable[..., tuple[Both, Tensor, Tensor, Any]], tmp_path: Path
) -> None:
    theirs = randomised(kind(hf_config(num_labels=2)))
    with torch.no_grad():
        theirs.visual_bert.embeddings.visual_projection.weight *= 40  # or all regions come out alike
    theirs.save_pretrained(tmp_path / "theirs")
    ours, report = load_pretrained(tmp_path / "theirs")
    assert report.created == ()
    _, mine, loss, out = compute(ours, theirs)
    torch.testing.assert_close(mine, out.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, out.loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    out.loss.backward()
    encoder = theirs.visual_bert
    pairs = [
        (ours.encoder.embeddings.word.weight, encoder.embeddings.word_embeddings.weight),
        (ours.encoder.embeddings.position.weight, encoder.embeddings.position_embeddings.weight),
        (ours.encoder.embeddings.visual_token_type.weight, encoder.embeddings.visual_token_type_embeddings.weight),
        (ours.encoder.embeddings.visual_projection.weight, encoder.embeddings.visual_projection.weight),
        (ours.encoder.layers[0].up.weight, encoder.encoder.layer[0].intermediate.dense.weight),
    ]
    if hasattr(ours, "phrase"):
        pairs += [(ours.phrase.query.weight, theirs.attention.query.weight)]
        pairs += [(ours.phrase.key.weight, theirs.attention.key.weight)]
    else:
        pairs += [
            (ours.answer.dense.weight, theirs.cls.weight),
            (ours.encoder.pooler.weight, encoder.pooler.dense.weight),
        ]
    largest = max(there.grad.abs().max() for _, there in pairs)
    for here, there in pairs:
        assert float((here.grad - there.grad).abs().max() / max(there.grad.abs().max(), 0.1 * largest)) <= 1e-4

    save_pretrained(ours, tmp_path / "back")
    back, loading = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    with torch.no_grad():
        again = compute(load_pretrained(tmp_path / "back")[0], back.eval())
    assert torch.equal(again[1], mine.detach())
    torch.testing.assert_close(again[3].logits, out.logits.detach(), atol=0, rtol=0)
    if hasattr(ours, "phrase"):
        written = load_file(tmp_path / "back" / "model.safetensors")
        assert not any(written[name].any() for name in UNUSED)


def test_a_region_without_a_name_has_visual_position_0_alone() -> None:
    """As without any alignment; one with a name has not."""
    model = randomised(VisualBert(small_config()))
    named, plain = Both(TEXTS, REGIONS, torch.float32, aligned=ALIGNED), Both(TEXTS, REGIONS, torch.float32)
    with torch.no_grad():
        here, there = model.embeddings(named.packed), model.embeddings(plain.packed)
    starts = plain.packed.starts().tolist()
    differs = {
        (b, k)
        for b, (start, n) in enumerate(zip(starts, TEXTS, strict=True))
        for k in range(REGIONS[b])
        if not torch.equal(here[start + n + k], there[start + n + k])
    }
    assert differs == {(b, region) for b, pairs in enumerate(ALIGNED) for region, _ in pairs}
