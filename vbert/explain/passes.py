"""Passes of a model that are watched: its attention, and the slope of a score by it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vbert.errors import UserError
from vbert.model.attention import attention_maps, attention_slopes
from vbert.model.visualbert import PackedBatch

Score = Callable[[PackedBatch, Tensor], Tensor]  # (batch, targets int64 [B]) → [B]


@dataclass(frozen=True)
class Watched:
    """Of each sequence maps, its attention, and slopes, the gradient of its score by that, both [layers, heads, L, L],
    on the CPU."""

    maps: list[Tensor]
    slopes: list[Tensor]


def attention_of(encoder: Any, batch: PackedBatch, score: Callable[[], Tensor]) -> list[Tensor]:
    """The `maps` of `Watched`, without gradients."""
    with torch.no_grad(), _caught(encoder) as (qkv, _):
        score()
    layout = batch.layout(encoder.config.heads)
    return _by_sequence([attention_maps(its.detach().float(), layout) for its in qkv])


def watch(encoder: Any, batch: PackedBatch, score: Callable[[], Tensor]) -> Watched:
    """One pass through `encoder` and one back. score: runs the model on `batch` and gives [B], each of its own sequence
    alone. Raises UserError for a model without gradients."""
    with torch.inference_mode(False), torch.enable_grad(), _caught(encoder) as (qkv, contexts):
        try:
            above = torch.autograd.grad(score().sum(), contexts, allow_unused=True)
        except RuntimeError as error:
            raise UserError(f"this model has no gradients to explain by ({error}): use removal, or attention") from None
    layout = batch.layout(encoder.config.heads)
    maps, slopes = [], []
    for its, context, slope in zip(qkv, contexts, above, strict=True):
        its, slope = its.detach().float(), torch.zeros_like(context) if slope is None else slope
        maps.append(attention_maps(its, layout))
        slopes.append(attention_slopes(its, slope.float(), layout))
    return Watched(_by_sequence(maps), _by_sequence(slopes))


@contextmanager
def _caught(encoder: Any) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    """Of each layer, as it runs, its queries, keys and values, and what its attention gives."""
    qkv: list[Tensor] = []
    contexts: list[Tensor] = []
    handles = [encoder.embeddings.register_forward_hook(lambda _, __, out: out.detach().requires_grad_())]
    for layer in encoder.layers:
        handles.append(layer.qkv.register_forward_hook(lambda _, __, out: qkv.append(out)))
        handles.append(layer.out.register_forward_pre_hook(lambda _, given: contexts.append(given[0])))
    try:
        yield qkv, contexts
    finally:
        for handle in handles:
            handle.remove()


def _by_sequence(layers: list[list[Tensor]]) -> list[Tensor]:
    return [torch.stack(its).cpu() for its in zip(*layers, strict=True)]


@contextmanager
def embedded(encoder: Any, tokens: Tensor) -> Iterator[None]:
    """The encoder begins with `tokens`, [T, H], in place of the embeddings of its batch."""
    handle = encoder.embeddings.register_forward_hook(lambda _, __, ___: tokens)
    try:
        yield
    finally:
        handle.remove()


def repeated(batch: PackedBatch, times: int) -> PackedBatch:
    """The sequences of `batch`, `times` times one after the other."""
    text, regions, tokens = len(batch.text_ids), len(batch.visual), len(batch.order)

    def shifted(rows: Tensor, by: int) -> Tensor:
        """rows: [..., N]; those of copy k are k · `by` further."""
        steps = by * torch.arange(times, device=rows.device)
        return (rows[..., None, :] + steps[:, None]).flatten(-2)

    is_text = batch.order < text
    order = torch.cat([
        torch.where(is_text, batch.order + k * text, batch.order - text + times * text + k * regions)
        for k in range(times)
    ])  # fmt: skip
    aligned = torch.stack([shifted(batch.aligned[0], regions), shifted(batch.aligned[1], text)])
    return replace(
        batch,
        text_ids=batch.text_ids.repeat(times),
        text_types=batch.text_types.repeat(times),
        text_positions=batch.text_positions.repeat(times),
        visual=batch.visual.repeat(times, 1),
        visual_types=batch.visual_types.repeat(times),
        order=order,
        lengths=batch.lengths.repeat(times),
        at=shifted(batch.at, tokens),
        aligned=aligned,
        causal=None if batch.causal is None else batch.causal.repeat(times),
    )
