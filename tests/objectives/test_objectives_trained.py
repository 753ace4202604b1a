from __future__ import annotations

import hashlib
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model.model_batches import Both, small_config

from vbert.errors import BuildError
from vbert.model.heads import AnswerModel, PretrainingModel
from vbert.model.vocabulary import SPECIAL, TextRules, Vocabulary, write_vocabulary
from vbert.objectives.trained import Model, write_model


class StandInContract:
    """The one method of a feature contract that writing a model calls."""

    def write(self, directory: Path) -> None:
        (directory / "contract.json").write_text("{}")


def write(directory: Path, model: torch.nn.Module, head: dict[str, Any], **changes: Any) -> Model:
    directory.mkdir()
    words = directory.parent / "words"
    words.mkdir(exist_ok=True)
    write_vocabulary(words, [*SPECIAL, *(f"w{i}" for i in range(56))], TextRules(do_lower_case=False))
    write_model(
        directory,
        model=model,
        config=small_config(**changes),
        vocabulary=Vocabulary.at(words),
        contract=StandInContract(),  # type: ignore[arg-type]
        head=head,
        curves=[{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}],
    )
    return Model.at(directory)


def digests(directory: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(directory.iterdir())}


def test_a_pretrained_model_comes_back_bit_by_bit(tmp_path: Path) -> None:
    model = PretrainingModel(small_config(standardise=True), torch.Generator().manual_seed(0)).eval()
    model.encoder.set_statistics(torch.arange(10.0), torch.arange(10.0) + 1)
    artifact = write(tmp_path / "one", model, {"objective": "mlm_itm"}, standardise=True)
    loaded = pickle.loads(pickle.dumps(artifact)).load()
    both = Both([4, 6], [2, 3], torch.float32)
    batch = replace(both.packed, at=torch.tensor([1, 8]))
    assert all(torch.equal(a, b) for a, b in zip(loaded(batch), model(batch), strict=True))
    assert artifact.config() == small_config(standardise=True)
    assert artifact.labels() == []
    assert artifact.curves() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    assert artifact.vocabulary().encoder().tokens[5] == "w0"
    assert not artifact.vocabulary().encoder().rules.do_lower_case
    write(tmp_path / "two", model, {"objective": "mlm_itm"}, standardise=True)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")


@pytest.mark.parametrize("answer_at", ["mask", "pooled"])
def test_an_answer_model_keeps_its_labels_and_where_it_reads(tmp_path: Path, answer_at: Any) -> None:
    labels = ["yes", "no", "bleu clair", "圆"]
    reads = "at" if answer_at == "mask" else "pooled"
    model = AnswerModel(small_config(), 4, reads, torch.Generator().manual_seed(0)).eval()
    artifact = write(tmp_path / "one", model, {"objective": "vqa", "labels": labels, "answer_at": answer_at})
    both = Both([4, 6], [2, 3], torch.float32)
    here, there = (replace(both.packed, at=torch.tensor(at)) for at in ([2, 9], [1, 7]))
    loaded: Any = artifact.load()
    assert torch.equal(loaded(here), model(here))
    assert torch.equal(loaded(here), loaded(there)) == (answer_at == "pooled")
    assert artifact.labels() == labels


def test_labels_in_another_order_are_refused(tmp_path: Path) -> None:
    artifact = write(
        tmp_path / "one",
        AnswerModel(small_config(), 2),
        {"objective": "vqa", "labels": ["yes", "no"], "answer_at": "mask"},
    )
    path = artifact.path / "head.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": ["no", "yes"]}))
    with pytest.raises(BuildError, match="labels are not those of its digest"):
        artifact.load()
    with pytest.raises(BuildError, match="two answers of one name"):
        write(tmp_path / "two", AnswerModel(small_config(), 2), {"objective": "vqa", "labels": ["yes", "yes"]})


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    artifact = write(tmp_path / "one", PretrainingModel(small_config()), {"objective": "mlm_itm"}, layers=2)
    with pytest.raises(BuildError, match="weights don't fit"):
        artifact.load()
    artifact = write(tmp_path / "two", PretrainingModel(small_config()), {"objective": "mlm_it"})
    with pytest.raises(BuildError, match="did you mean 'mlm_itm'"):
        artifact.load()


def test_dropout_of_the_answer_head_is_for_training_only() -> None:
    model = AnswerModel(small_config(hidden_dropout=0.5, attention_dropout=0.0), 3)
    vectors = torch.from_numpy(np.ones((2, 24), np.float32))
    assert not torch.equal(model.train().answer(vectors), model.answer(vectors))
    assert torch.equal(model.eval().answer(vectors), model.answer(vectors))
