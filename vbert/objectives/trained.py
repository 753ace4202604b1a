"""Trained models: an encoder with its heads, vocabulary and feature contract, usable on another machine."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.fingerprint import digest
from vbert.errors import BuildError
from vbert.model.config import VisualBertConfig
from vbert.model.vocabulary import CONFIG, VOCABULARY, Vocabulary, read_rules, read_tokens, write_json, write_vocabulary
from vbert.objectives.bound import objection

if TYPE_CHECKING:
    from torch import nn

    from vbert.regions.contract import Contract

WEIGHTS = "model.safetensors"
OVERRIDDEN = "contract_overridden"  # of head.json: field → the value of the start's contract and that of the regions


class Model(Artifact):
    """model.safetensors, config.json, vocab.txt, contract.json, head.json, curves.jsonl.

    head.json: the objective, which builds the model of it, and what belongs to its head; labels in the order of the
    logits, with their digest.

    >>> model = vbert.run("demo").artifact("finetune[vqa]", vbert.Model)  # or vbert.Model.at(directory)
    >>> type(model.load()).__name__, model.config().hidden_size % model.config().heads
    ('AnswerModel', 0)
    >>> "yes" in model.labels()
    True
    """

    def objection(self) -> str | None:
        """Refuses a model of phrases whose regions allow less than its `floor`, and one on features that its start's
        contract excludes, where its `accept_contract` no longer says so."""
        return objection(self)

    def load(self) -> nn.Module:
        """The model on the CPU in eval mode, one of `vbert.model.heads`, as its objective builds it; of one in int8 the
        linear layers are `vbert.model.int8.Int8Linear`."""
        from vbert.data.weight_files import read_safetensors
        from vbert.model.int8 import prepare
        from vbert.objectives import built

        module = built(self.config(), self.head(), self.title)
        tensors = read_safetensors(self.file(WEIGHTS))
        prepare(module, tensors)
        try:
            module.load_state_dict(tensors)
        except RuntimeError as error:
            raise BuildError(f"{self.title}: its weights don't fit its config.json and head.json: {error}") from None
        return module.eval()

    def config(self) -> VisualBertConfig:
        return VisualBertConfig.model_validate_json(self.file("config.json").read_bytes())

    def contract(self) -> Contract:
        """The contract of the features that the model was trained on and requires."""
        from vbert.regions.contract import Contract

        return Contract.read(self.file("contract.json"))

    def vocabulary(self) -> Vocabulary:
        self.file(CONFIG)
        return Vocabulary.at(self.file(VOCABULARY).parent)

    def head(self) -> dict[str, Any]:
        """head.json, its labels checked against their digest."""
        head: dict[str, Any] = json.loads(self.file("head.json").read_bytes())
        if "labels" in head and head["digest"] != digest(head["labels"]):
            raise BuildError(f"{self.title}: head.json: the labels are not those of its digest; their order matters")
        return head

    def labels(self) -> list[str]:
        """The labels (answers, classes), in the order of the logits; empty for a head without labels."""
        return list(self.head().get("labels", ()))

    def curves(self) -> list[dict[str, float]]:
        """The training curves, one row a logged step."""
        return [json.loads(line) for line in self.file("curves.jsonl").read_text("utf-8").splitlines()]


def write_model(
    directory: Path,
    *,
    model: nn.Module,
    config: VisualBertConfig,
    vocabulary: Vocabulary,
    contract: Contract,
    head: Mapping[str, Any],
    curves: Iterable[Mapping[str, float]],
) -> None:
    """Writes the files of a `Model`. Labels in `head` get their digest; two of one name raise BuildError."""
    from safetensors.torch import save_file

    labels: Sequence[str] | None = head.get("labels")
    if labels is not None:
        if len(set(labels)) != len(labels):
            raise BuildError("two answers of one name among the labels: a prediction could not be told apart")
        head = {**head, "labels": list(labels), "digest": digest(list(labels))}
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
    write_json(directory / "config.json", config.model_dump(mode="json"))
    write_json(directory / "head.json", head)
    contract.write(directory)
    write_vocabulary(directory, read_tokens(vocabulary.file(VOCABULARY)), read_rules(vocabulary.file(CONFIG)))
    lines = (json.dumps(row, sort_keys=True, allow_nan=True) for row in curves)
    (directory / "curves.jsonl").write_bytes("".join(f"{line}\n" for line in lines).encode())
