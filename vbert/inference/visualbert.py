"""`VisualBert`: a trained model as one asks it, with images as they come."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vbert.data.names import given_path
from vbert.errors import BuildError, UserError, nearest
from vbert.explain import DEFAULT, METHODS
from vbert.inference.asked import Asked, asked, check_top
from vbert.inference.elsewhere import named
from vbert.inference.encoding import BATCH, Encoding, probability
from vbert.inference.photos import Looker
from vbert.inference.results import Answer, Caption, GroundedRegion, Match, Verdict
from vbert.inference.rows import choice_row, phrase_row, read_rows

if TYPE_CHECKING:
    from torch import Tensor, nn

    from vbert.model.vocabulary import WordPieceEncoder
    from vbert.objectives import Objective
    from vbert.objectives.dataset import ObjectiveDataset
    from vbert.objectives.entry import Row
    from vbert.objectives.trained import Model
    from vbert.regions.contract import Contract
    from vbert.regions.detector import DetectorWeights

PRETRAINING = "mlm_itm"
# What is asked of a model, and the objectives that it is trained for by; `encode` and `regions` can all.
ASKED_OF: Mapping[str, tuple[str, ...]] = {
    "answer": ("vqa",),
    "true": ("nlvr2",),
    "classify": ("classification", "visual_entailment"),
    "choose": ("choice",),
    "ground": ("grounding",),
    "match": ("retrieval", PRETRAINING),
    "caption": ("captioning",),
    "fill": (PRETRAINING,),
}
HEAD_OF = {"match": "matching", "fill": "masked_language"}  # of pre-training
SENTIMENTS = {"positive", "negative", "neutral"}


class VisualBert:
    """A trained model with its vocabulary, its detector and its feature contract.

    Images are paths, bytes, Pillow images or uint8 arrays; `regions=` gives regions in their place, which
    `regions(images)` finds, or an entry of `vbert.Shards` is. A list, of images or of texts, is answered by a list.
    An answer's bits don't hang on what it is asked beside, on a CPU. Texts are cut at the `max_text` word pieces that
    the model was trained with (`longest`), and refused beyond 10,000 characters.

    >>> model = vbert.VisualBert.load("exported/vqa")  # or an artifact's path, or a name in data_specs/models
    >>> model.can
    ('answer', 'explain', 'encode', 'regions')
    >>> model.answer("cat.jpg", "What colour is the cat?", top=1)
    [Answer(text='...', score=...)]
    >>> len(model.answer(["cat.jpg", "cat.jpg"], ["What colour is it?", "What is it?"]))
    2
    >>> model.encode("cat.jpg", "这是一只猫。").last_hidden_state.shape[1] == model.network.encoder.config.hidden_size
    True
    """

    def __init__(self, model: Model, detector: DetectorWeights | None, device: str = "auto") -> None:
        """detector: None where regions are always given. Raises UserError for a control, which was trained without
        looking, and for a detector that makes other regions than the model reads."""
        from vbert.device import device_of

        self.device = device_of(device)
        self.title, self.detector = _title(model), detector
        self.head: dict[str, Any] = model.head()
        self.objective: str = str(self.head["objective"])
        for side in ("images", "text"):
            if (shown := self.head.get(side, "own")) != "own":
                raise UserError(
                    f"{self.title}: a control, trained with `{side}: {shown}`: it never learnt to read both; give the "
                    "entry that it is beside"
                )
        self.contract: Contract = model.contract()
        self.box_input = model.config().box_input
        self.encoder: WordPieceEncoder = model.vocabulary().encoder()
        self.network: nn.Module = model.load().to(self.device)
        self.longest = int(self.head.get("max_text") or min(128, model.config().max_positions))

    @classmethod
    def load(cls, where: str | os.PathLike[str], *, device: str = "auto") -> Self:
        """From an exported folder, or the path of an artifact of the stages `finetune`, `pretrain` or `checkpoint`,
        whose detector its store knows. Raises UserError for anything else.

        device: auto (a GPU if there is one), cpu or cuda.
        """
        from vbert.inference.found import found

        return cls(*found(Path(given_path(where, "the model"))), device=device)

    @property
    def can(self) -> tuple[str, ...]:
        """What may be asked of it: names of methods."""
        return able(self.head)

    def __getattr__(self, name: str) -> Any:
        methods = [one for one in dir(type(self)) if not one.startswith("_")]
        raise AttributeError(f"VisualBert has no {name!r}; {nearest(name, methods)}")

    def __repr__(self) -> str:
        return f"VisualBert({self.title}: {', '.join(self.can)})"

    # ---- what may be asked -------------------------------------------------------------------------------------------

    @named
    def answer(self, image: Any, question: Any, *, regions: Any = None, top: int = 5) -> Any:
        """The `top` answers of a question, best first, as list[Answer]."""
        check_top(top)
        given = self._asked("answer", [image], regions, question=question)
        rows = [{"kind": "question", "text": text} for text in given.texts["question"]]
        return given.shaped(self._labels(given, rows, top))

    @named
    def classify(self, image: Any, text: Any, text_b: Any = None, *, regions: Any = None) -> Any:
        """The classes of a text (and a second one) beside an image, most probable first, as list[Answer]."""
        given = self._asked("classify", [image], regions, text=text, text_b=text_b)
        both = zip(given.texts["text"], given.texts["text_b"], strict=True)
        rows = [{"kind": "sentiment", "text": a, "text_b": b} for a, b in both]
        return given.shaped(self._labels(given, rows, len(self.head["labels"])))

    @named
    def sentiment(self, image: Any, text: Any, *, regions: Any = None) -> Any:
        """`classify`, of a model of sentiment."""
        if "classify" in self.can and "sentiment" not in self.can:
            known = ", ".join(self.head["labels"])
            raise UserError(f"{self.title} knows the classes {known:.200}, and no sentiment: use `classify`")
        self._needs("sentiment")
        return self.classify(image, text, regions=regions)

    @named
    def true(self, left: Any, right: Any, statement: Any, *, regions: Any = None) -> Any:
        """Whether a statement about two images is true, as Verdict; right: None for a statement about one.

        regions: a pair (left, right) in place of two images, or a list of pairs.
        """
        given = self._asked("true", [left, right], regions, statement=statement)
        rows = [{"kind": "pair", "text": text} for text in given.texts["statement"]]
        found = self._labels(given, rows, 2)
        likely = [next(one.score for one in answers if one.text == "true") for answers in found]
        return given.shaped([Verdict(answers[0].text == "true", p) for answers, p in zip(found, likely, strict=True)])

    @named
    def choose(self, image: Any, question: Any, choices: Any, *, regions: Any = None) -> Any:
        """The choices, most probable first, as list[Answer]. Several questions have one list of choices, or one
        each."""
        given = self._asked("choose", [image], regions, question=question)
        count = len(given.images)
        each = list(choices) if choices and not isinstance(choices[0], str) else [choices] * count
        if len(each) != count:
            raise UserError(f"choices: {len(each)} lists for {count} questions; give one for all, or one each")
        rows = [choice_row(text, its) for text, its in zip(given.texts["question"], each, strict=True)]
        found = []
        for prediction, its in zip(self._predicted(given, rows), each, strict=True):
            ranked = sorted(zip(its, prediction["probabilities"], strict=True), key=lambda pair: -pair[1])
            found.append([Answer(text, round(score, 6)) for text, score in ranked])
        return given.shaped(found)

    @named
    def ground(self, image: Any, text: Any, phrase: Any = None, *, regions: Any = None, strict: bool = True) -> Any:
        """The regions that a phrase of the text may mean, most probable first, as list[GroundedRegion].

        phrase: as it stands in the text, its first occurrence; None: the whole text. strict: a phrase behind what the
        model reads of the text is an error; else it is answered by None.
        """
        given = self._asked("ground", [image], regions, text=text, phrase=phrase)
        both = zip(given.texts["text"], given.texts["phrase"], strict=True)
        rows = [phrase_row(one, part) for one, part in both]
        found: list[list[GroundedRegion] | None] = []
        for objective, outputs, tensors, its, at in self._outputs(given, rows):
            place, predictions = 0, objective.decode(outputs, tensors, its, self.head)
            for k, prediction in enumerate(predictions, at):
                (ranked,), names = prediction["ranked"], given.regions[given.images[k][0]].classes
                boxes = prediction["regions"]
                if not ranked and boxes:
                    if strict:
                        raise UserError(f"phrase: the model reads {self.longest} pieces of a text, and none of it")
                    found.append(None)
                    continue
                each = outputs[place].double().softmax(-1).tolist() if ranked else []
                place += bool(ranked)
                found.append([GroundedRegion(tuple(boxes[n]), round(each[n], 6), n, names[n]) for n in ranked])
        return given.shaped(found)

    @named
    def match(self, image: Any, text: Any, *, regions: Any = None) -> Any:
        """How likely a text is true of an image, as Match."""
        given = self._asked("match", [image], regions, text=text)
        return given.shaped([Match(round(probability(logit), 6), logit) for logit in Encoding(self, given).matching()])

    @named
    def caption(self, image: Any, *, regions: Any = None, beams: int = 5, length: int = 20) -> Any:
        """A sentence about an image, as Caption, by beam search."""
        from vbert.objectives.captioning import CaptioningEvaluateSettings

        given = self._asked("caption", [image], regions)
        rows = [{"kind": "caption", "text": ""} for _ in given.images]
        settings = CaptioningEvaluateSettings(beams=beams, length=length)
        return given.shaped([Caption(p["answer"], p["score"]) for p in self._predicted(given, rows, settings)])

    @named
    def fill(self, image: Any, text: Any, *, regions: Any = None, top: int = 5) -> Any:
        """The `top` words for each [MASK] of a text, best first, as list[list[Answer]]."""
        check_top(top)
        given = self._asked("fill", [image], regions, text=text)
        return given.shaped(Encoding(self, given, masked=True).filled(top))

    @named
    def encode(self, image: Any, text: Any, text_b: Any = None, *, regions: Any = None) -> Any:
        """The states of the last layer, of the text's word pieces and of the image's regions, as Encoded. text_b: a
        second text, segment 1."""
        given = self._asked("encode", [image], regions, text=text, text_b=text_b)
        return given.shaped(Encoding(self, given).encoded())

    @named
    def explain(
        self,
        image: Any,
        text: Any = None,
        *,
        right: Any = None,
        text_b: Any = None,
        choices: Sequence[str] = (),
        phrase: str | None = None,
        regions: Any = None,
        method: str = DEFAULT,
        layer: int | None = None,
        head: int | None = None,
    ) -> Any:
        """Why the model answers as it does, as Explanation: the relevance of each word and region, to be drawn
        (`.save("why.png")`, `.svg`) and as numbers.

        text: the question, statement or text; none for a caption, which the model writes. right: the second image of a
        statement; choices, phrase: as of `choose` and `ground`. method: one of `vbert.explain.METHODS`. layer, head: of
        the method attention, from 0.
        """
        from vbert.explain import methods_of
        from vbert.inference.explained import PAIRED, asked_row, explanations

        if not isinstance(method, str):
            raise UserError(
                f"method: {type(method).__name__} is none; give one method, by its name: {', '.join(METHODS)}"
            )
        methods_of([method])
        what = next((name for name, its in ASKED_OF.items() if self.objective in its), "encode")
        images = [image, right] if self.objective == PAIRED else [image]
        if text is None and self.objective != "captioning":
            raise UserError(f"text: give the one that is asked with {what}")
        texts = {} if self.objective == "captioning" else {"text": text, "text_b": text_b}
        given = self._asked(what, images, regions, **texts)
        nothing = [""] * len(given.images)
        both = zip(given.texts.get("text", nothing), given.texts.get("text_b", nothing), strict=True)
        rows = [asked_row(self.objective, one, second, choices, phrase) for one, second in both]
        return given.shaped(explanations(self, given, rows, method, layer, head))

    @named
    def regions(self, image: Any) -> Any:
        """The image's regions (features, boxes, classes, scores) by the model's own detector, as Regions."""
        given = self._asked("regions", [image], None)
        return given.shaped([given.regions[key] for (key,) in given.images])

    # ---- how ---------------------------------------------------------------------------------------------------------

    def detector_of(self) -> DetectorWeights | None:
        """The detector that made the features it was trained on, asked for with the first image."""
        return self.detector

    @cached_property
    def looker(self) -> Looker:
        detector = self.detector_of()
        if detector is None:
            raise UserError(
                f"{self.title}: the detector of its features ({self.contract.detector}) isn't there: give regions= "
                "made as its contract says, or export the model with its detector"
            )
        if self.contract.boxes is not None and self.contract.boxes.rule == "given":
            raise UserError(f"{self.title}: it reads boxes that people gave, which no detector finds: give regions=")
        return Looker(detector, self.contract, self.device)

    def _needs(self, what: str) -> None:
        """Raises UserError for what the model was not trained for."""
        if what not in self.can:
            raise UserError(
                f"{self.title} was trained for {self.objective}, not for `{what}`; it can {', '.join(self.can)}"
            )

    def _asked(self, what: str, images: Sequence[Any], regions: Any, **texts: Any) -> Asked:
        """The question, checked and with the regions of its images."""
        self._needs(what)
        return asked(images, regions, texts, self.contract, lambda photos: self.looker.regions(photos))

    def side(self, given: Asked, rows: Sequence[Mapping[str, Any]]) -> ObjectiveDataset[Any]:
        """Rows of EXAMPLES_SCHEMA beside their images, as the objective makes batches of them."""
        from vbert.objectives import load

        objective = load(self.objective)
        read, memory = read_rows(given, rows, self.contract, objective.KINDS)
        return objective.dataset(objective, self.head, self.encoder, read, memory, self.box_input)

    def _predicted(self, given: Asked, rows: Sequence[Mapping[str, Any]], settings: Any = None) -> list[dict[str, Any]]:
        """The objective's predictions."""
        from vbert.objectives import load
        from vbert.objectives.entry import EvaluateSettings

        objective, side = load(self.objective), self.side(given, rows)
        with self.computing():
            settings = EvaluateSettings(batch_size=BATCH) if settings is None else settings
            return list(objective.predict(self.network, side, range(len(rows)), settings))

    def _outputs(
        self, given: Asked, rows: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[Objective, Any, Mapping[str, Tensor], list[Row], int]]:
        """(the objective, the model's outputs, the batch's tensors and rows, the number of its first), by batch."""
        from vbert.objectives import load

        objective, side = load(self.objective), self.side(given, rows)
        for at in range(0, len(rows), BATCH):
            items = [(k, None) for k in range(at, min(at + BATCH, len(rows)))]
            with self.computing():
                batch, its = side.batch(items)
                batch = batch.to(self.device)
                outputs = self.network(batch.packed)
            yield objective, outputs, batch.tensors, its, at

    def _labels(self, given: Asked, rows: Sequence[Mapping[str, Any]], top: int) -> list[list[Answer]]:
        """The `top` labels of each row, best first."""
        labels, found = self.head["labels"], []
        for objective, outputs, *_ in self._outputs(given, rows):
            scores = objective.label_scores(outputs, self.head)
            best = scores.topk(min(top, len(labels)), -1)
            for places, values in zip(best.indices.tolist(), best.values.tolist(), strict=True):
                found.append([Answer(labels[k], round(value, 6)) for k, value in zip(places, values, strict=True)])
        return found

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Without gradients; on a CPU each input for itself."""
        import torch

        from vbert.model.independent import IndependentRows

        with torch.no_grad():
            if self.device != "cpu":
                yield
                return
            with IndependentRows():
                yield


def able(head: Mapping[str, Any]) -> tuple[str, ...]:
    """What a model with this head.json may be asked."""
    fresh = head.get("untrained", ())  # heads of pre-training that a published checkpoint lacks
    asked = [name for name, objectives in ASKED_OF.items() if head["objective"] in objectives]
    own = tuple(name for name in asked if HEAD_OF.get(name) not in fresh)
    own += ("sentiment",) if "classify" in own and set(head.get("labels", ())) <= SENTIMENTS else ()
    return (*own, *(("explain",) if own else ()), "encode", "regions")


def _title(model: Model) -> str:
    """Of an artifact `finetune 773735be`, of a folder its path."""
    from contextlib import suppress

    with suppress(BuildError, UserError):
        made = model if model.step is not None else model.made()
        return f"{made.title} {made.fingerprint[:8]}"
    return str(model.path)
