"""Evaluates the matching head beside baselines without images: the text alone, other images' regions, no regions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from scipy.sparse import csr_matrix

    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives.pretraining.corpus import Corpus, TextImagePair
    from vbert.objectives.pretraining.settings import PretrainSettings

NEGATIVES = ("other", "altered")
MARGIN = 0.05  # accuracy above the text alone below which a warning is given
TEXT_EXAMPLES = 5_000  # training examples of a data set that the bag of words learns from, at most
PENALTY = 1e-4  # L2, of the bag of words' weights: chosen once; over 1e-5 to 1e-3 its accuracy moves by under 0.01


@dataclass(frozen=True)
class JudgedPair:
    """A pair to be judged: a true one (kind "true") or a negative, of example `example` (a number of its own)."""

    corpus: Corpus
    example: int
    pair: TextImagePair


def judged_pairs(
    corpora: Sequence[Corpus], chosen: Sequence[Sequence[int]], settings: PretrainSettings
) -> list[JudgedPair]:
    """For each chosen example that is matched: its true pair and a negative of each kind that training draws; the same
    each time. `chosen`: rows of each corpus."""
    from vbert.training.sampler import generator

    pairs = []
    for k, (corpus, rows) in enumerate(zip(corpora, chosen, strict=True)):
        for i in rows:
            if not corpus.matched(i):
                continue
            rng = generator("matching", corpus.ids[i])
            example = (i << 8) + k
            pairs.append(JudgedPair(corpus, example, corpus.true_pair(i, rng)))
            for kind in NEGATIVES[: 1 + (settings.altered > 0)]:
                pair = corpus.negative_pair(i, rng, kind)
                if pair is not None:
                    pairs.append(JudgedPair(corpus, example, pair))
    return pairs


def accuracies(pairs: Sequence[JudgedPair], judged: Sequence[bool], altered: float) -> dict[str, float]:
    """Balanced accuracies: the mean of the shares of true pairs judged to match and of negatives judged not to.

    judged: for each pair whether it was judged to match. "other", "altered" and "altered/color" (by the change) compare
    the negatives of one kind with the true pairs of the same examples; "" mixes the kinds as training does,
    `altered` being the share of altered ones.
    """
    true = {t.example: judged for t, judged in zip(pairs, judged, strict=True) if t.pair.kind == "true"}
    groups: dict[str, list[tuple[bool, bool]]] = {}
    for t, match in zip(pairs, judged, strict=True):
        if t.pair.kind != "true":
            both = (true[t.example], not match)
            groups.setdefault(t.pair.kind, []).append(both)
            if t.pair.changed:
                groups.setdefault(f"{t.pair.kind}/{t.pair.changed}", []).append(both)
    balanced = {name: sum(map(sum, both)) / (2 * len(both)) for name, both in groups.items()}
    shares = {"other": 1 - altered, "altered": altered}
    weights = {kind: share for kind, share in shares.items() if kind in balanced and share}
    if weights:
        balanced[""] = sum(balanced[kind] * weight for kind, weight in weights.items()) / sum(weights.values())
    return balanced


def text_alone(training: Sequence[Corpus], held_out: Sequence[JudgedPair], encoder: WordPieceEncoder) -> list[bool]:
    """A bag of words' judgement of the held-out pairs: logistic regression on the counts of word pieces, trained on
    pairs of pre-training, half of them true."""
    import numpy as np
    from scipy.optimize import minimize

    from vbert.training.sampler import generator

    pairs: list[tuple[TextImagePair, bool]] = []
    for corpus in training:
        rows = [i for i in range(len(corpus.ids)) if corpus.matched(i)]
        order = generator("text alone", len(rows)).permutation(len(rows))
        for i in (rows[k] for k in order[:TEXT_EXAMPLES].tolist()):
            rng = generator("text alone", corpus.ids[i])
            pairs.append((corpus.true_pair(i, rng), True))
            if (wrong := corpus.negative_pair(i, rng)) is not None:
                pairs.append((wrong, False))
    counts = _counts([pair for pair, _ in pairs], encoder)
    sign = np.array([1.0 if match else -1.0 for _, match in pairs])

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (counts @ weights[:-1] + weights[-1])
        slope = -sign / (1 + np.exp(np.clip(margin, -500, 500))) / len(sign)
        gradient = np.append(counts.T @ slope, slope.sum()) + PENALTY * weights
        return float(np.logaddexp(0, -margin).mean() + PENALTY / 2 * weights @ weights), gradient

    if not pairs:
        return [True] * len(held_out)
    weights = minimize(loss, np.zeros(encoder.size + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}).x
    judged = _counts([t.pair for t in held_out], encoder) @ weights[:-1] + weights[-1] > 0
    return [bool(match) for match in judged]


def _counts(pairs: Sequence[TextImagePair], encoder: WordPieceEncoder) -> csr_matrix:
    """How often each piece stands in each pair's texts, float64 [pairs, pieces]."""
    import numpy as np
    from scipy.sparse import csr_matrix

    pieces = [[p for s in pair.texts for part in s for p in encoder(part).ids] for pair in pairs]
    ends = np.cumsum([0, *(len(row) for row in pieces)])
    flat = np.array([piece for row in pieces for piece in row], np.int64)
    return csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(pairs), encoder.size))


def matching_warning(figures: Mapping[str, object]) -> str | None:
    """A warning where a pre-training's figures show that its matching hardly uses the images; else None."""
    matching, text = figures.get("itm_accuracy"), figures.get("text_only_accuracy")
    if not isinstance(matching, float) or not isinstance(text, float) or matching >= text + MARGIN:
        return None
    return (
        f"matching reaches {matching:.3f} on held-out pairs (val), and the text alone {text:.3f}: it has hardly learnt "
        "to look at images; more steps, itm_draw: paired or a smaller mlm may help"
    )
