"""Answers explained: what is asked, as examples, their predictions, and the relevances of words and regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from vbert.errors import UserError
from vbert.explain.explanation import Explanation
from vbert.inference.asked import Asked
from vbert.inference.encoding import MaskedEncoder
from vbert.inference.rows import choice_row, phrase_row, read_rows

if TYPE_CHECKING:
    from vbert.explain.relevance import Explainer
    from vbert.objectives.entry import Prediction, Row

PAIRED = "nlvr2"  # the objective of two images


def asked_row(objective: str, text: str, text_b: str, choices: Sequence[str], phrase: str | None) -> Row:
    """The example that is asked about. Raises UserError where something is missing."""
    if objective == "choice":
        return choice_row(text, choices)
    if objective == "grounding":
        return phrase_row(text, phrase or "")
    kind = {"vqa": "question", PAIRED: "pair", "classification": "sentiment", "visual_entailment": "sentiment"}
    return {"kind": kind.get(objective, "caption"), "text": text, **({"text_b": text_b} if text_b else {})}


def explanations(
    model: Any, given: Asked, rows: Sequence[Row], method: str, layer: int | None, head: int | None
) -> list[Explanation]:
    """model: a `VisualBert`."""
    from vbert.explain.told import explanation

    explainer = _explainer(model, given, rows)
    found = []
    for k in range(len(rows)):
        row, prediction = explainer.side.rows.row(k), _prediction(model, explainer, k)
        parts = explainer.explain(k, prediction, method, layer, head)
        if not parts:
            raise UserError(f"{row['text']!r:.80}: of this the model reads nothing that could be explained")
        images = [given.regions[name] for name in given.images[k]]
        shown = [given.pictures.get(name) for name in given.images[k]]
        found.append(explanation(row, prediction, parts, images, method, shown))
    return found


def _explainer(model: Any, given: Asked, rows: Sequence[Row]) -> Explainer:
    from vbert.explain.relevance import Explainer
    from vbert.objectives import OBJECTIVES, load
    from vbert.objectives.dataset import ObjectiveDataset

    objective = load(model.objective) if model.objective in OBJECTIVES else cast(Any, Pretraining)
    read, memory = read_rows(given, rows, model.contract, objective.KINDS)
    head = {"images": "own", "max_text": model.longest, **model.head}
    side = ObjectiveDataset(objective, head, model.encoder, read, memory, model.box_input)
    return Explainer(model.network, objective, side)


def _prediction(model: Any, explainer: Explainer, k: int) -> Prediction:
    """Of example k, as the objective makes it; of retrieval and of pre-training, that the text is true of the image, or
    that it isn't, or the word that is masked."""
    import torch

    from vbert.objectives.captioning import CaptioningEvaluateSettings
    from vbert.objectives.entry import EvaluateSettings

    side, objective = explainer.side, explainer.objective
    paired = model.objective == "retrieval"
    with model.computing():
        if not paired and cast(Any, objective) is not Pretraining:
            settings = CaptioningEvaluateSettings() if model.objective == "captioning" else EvaluateSettings()
            (made,) = objective.predict(model.network, side, [k], settings)
            return dict(made)
        (one,) = explainer.inputs(k)
        batch = explainer.pack([one])
        if one.at:
            words, _ = model.network(batch)
            likely = words.float().softmax(-1)[0]
            piece = int(likely.argmax())
            return {"answer": model.encoder.tokens[piece], "score": round(float(likely[piece]), 6), "target": piece}
        logits = model.network.matching(model.network.encoder.pool(model.network.encoder(batch), batch))
        likely = torch.softmax(logits.float(), -1)[0]
        target = 1 if paired else int(likely.argmax())
        told = "match" if target else "no match"
        return {"answer": told, "score": round(float(likely[target]), 6), "target": target}


class Pretraining:
    """A pre-trained model as an objective whose predictions are explained: of a text with [MASK] the first one's word,
    else whether it is true of the image."""

    KINDS = ("caption",)

    @staticmethod
    def inputs(rows: Any, i: int, encoder: Any, head: Any, draw: Any) -> list[Any]:
        from vbert.objectives.batches import Input, sentence

        row = rows.row(i)
        texts = [(row["text"], "")] + ([(row["text_b"], "")] if row["text_b"] else [])
        text = sentence(cast(Any, MaskedEncoder(encoder)), texts, head["max_text"])
        at = [place for place, piece in enumerate(text.ids) if piece == encoder.mask]
        return [Input(text, row["image_ids"], at[:1])]

    @staticmethod
    def examined(inputs: Any, row: Row, prediction: Prediction, encoder: Any, head: Any) -> list[Any]:
        from vbert.objectives.examined import Examined

        return [Examined(inputs[0], prediction["target"])]

    @staticmethod
    def explained(network: Any, batch: Any, targets: Any, head: Any) -> Any:
        """Log-odds of the word, or of match or mismatch."""
        from vbert.objectives.examined import log_odds

        words, matching = network(batch)
        return log_odds(words if len(batch.at) else matching, targets)
