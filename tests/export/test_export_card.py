"""The card: what a store knows of a model, in words that people and the Hugging Face hub read."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from export.export_world import SIZES, VQA, contract_of, make_detector
from huggingface_hub import ModelCard

from vbert.artifacts.store.manifest import NAME, Manifest
from vbert.artifacts.store.store import Store
from vbert.export.card import Card
from vbert.export.facts import DataUsed, Facts, Figure, Result, WeightsUsed, facts_of
from vbert.export.usage import TRANSFORMERS, USAGE
from vbert.inference.visualbert import ASKED_OF, VisualBert
from vbert.model.config import VisualBertConfig
from vbert.model.convert import ARCHITECTURES
from vbert.objectives import OBJECTIVES
from vbert.objectives.trained import Model


def add(store: Store, manifest: Manifest, **arguments: Any) -> Manifest:
    """The same artifact as if made of other arguments, under another fingerprint."""
    changed = {**manifest.hashed, "arguments": manifest.hashed["arguments"] | arguments}
    print_ = f"{len(store.names()):064x}"
    copied = manifest.model_copy(update={"hashed": changed, "fingerprint": print_, "label": "control"})
    there = store.root / "artifacts" / manifest.stage / manifest.fingerprint
    shutil.copytree(there, there.parent / print_)
    (there.parent / print_ / NAME).chmod(0o644)
    (there.parent / print_ / NAME).write_bytes(copied.dumps())
    return copied


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> Store:
    shutil.copytree(finished_store, tmp_path / "store")
    return Store(tmp_path / "store")


def test_what_a_store_knows_of_a_model(store: Store) -> None:
    (trained,) = store.manifests("finetune")
    (evaluated,) = store.manifests("evaluate")
    settings = trained.hashed["arguments"]["settings"]
    control = add(store, trained, settings=settings | {"images": "shuffled"})
    add(store, evaluated, model={"artifact": control.fingerprint})
    for others in ({"steps": 9}, {"objective": "choice", "images": "none"}):  # no control, and one of another task
        other = add(store, trained, settings=settings | others)
        add(store, evaluated, model={"artifact": other.fingerprint})
    facts = facts_of(Model.at(store.whole(trained)))
    assert (facts.title, facts.objective, facts.recipe, facts.seed) == ("finetune[vqa]", "vqa", "tiny", 0)
    assert facts.settings["steps"] == 8
    easy, shapes = facts.data
    assert (easy.name, easy.uses, easy.licence) == ("easy_vqa", ["fine-tuning", "pre-training"], "MIT")
    assert (shapes.name, shapes.uses) == ("shapes", ["pre-training", "training of the detector"])
    (texts,) = (one for one in store.manifests("examples") if one.label == "easy_vqa")
    assert easy.texts == {split: texts.figures[split] for split in ("train", "val", "test")}
    assert sum(easy.images.values()) > 0
    assert facts.weights == [WeightsUsed(name="shapes_cnn", what="detector, trained here", licence="Apache-2.0")]
    own, floor = facts.results
    assert (own.name, own.data, own.split, own.control) == ("vqa", "easy_vqa", "test", "")
    assert own.figures["accuracy"].value == evaluated.figures["accuracy"]
    assert own.figures["accuracy"].count == evaluated.figures["examples"]
    assert own.figures["accuracy"].low is not None
    assert (floor.name, floor.control) == ("control", "other images' regions")
    (pretrained,) = store.manifests("pretrain")
    before = facts_of(Model.at(store.whole(pretrained)))
    assert (before.title, before.objective, before.results) == ("pretrain", "mlm_itm", [])
    assert "mlm_accuracy" in before.validation


def card(**changes: Any) -> Card:
    sizes = SIZES.model_dump() | {"vocab_size": 18, "visual_dim": 256}
    figure = Figure(value=0.875, low=0.8, high=0.9, count=40, interval="20 images resampled")
    facts = Facts(
        title="finetune[vqa]", objective="vqa", stage="finetune", fingerprint="ab" * 32, recipe="tiny", seed=1,
        settings={"steps": 8}, validation={"accuracy": 0.5, "loss": 1.25},
        data=[DataUsed(name="mine", uses=["fine-tuning"], images={"train": 1200}, title="My | set", licence="CC\n0")],
        weights=[WeightsUsed(name="frcnn", what="detector, published weights", licence="research only")],
        results=[
            Result(name="vqa", data="mine", split="test",
                   figures={"a": Figure(value=142.5), "accuracy": figure, "accuracy/color": figure}),
            Result(name="floor", data="mine", split="test", control="other images' regions",
                   figures={"accuracy": Figure(value=0.25)}),
        ],
    )  # fmt: skip
    given: dict[str, Any] = {
        "facts": facts,
        "config": VisualBertConfig.model_validate(sizes),
        "head": VQA,
        "parameters": 123_456_789,
        "classes": ["circle", "square"],
        "reproduce": "vbert run tiny",
    }
    return Card(**given | changes)


@pytest.fixture
def contract(tmp_path: Path) -> Any:
    return contract_of(make_detector(tmp_path / "d"))


def test_the_card_says_what_matters(contract: Any) -> None:
    text = card(contract=contract).text()
    for said in (
        "123.5 million parameters",
        'model = VisualBert.load("path/to/this/folder")\nmodel.answer("photo.jpg", ',
        "| My \\| set (`mine`) | fine-tuning | 1,200, 0, 0 |  | CC 0 |",
        "| frcnn | detector, published weights |  |  | research only |",
        "| --- |\n| accuracy | 0.8750 | 0.8000 to 0.9000 | 40 | 0.2500 |\n| a | 142.50 |  |  |  |",
        "Of its accuracy of 0.8750, 0.2500 is reached with other images' regions.",
        "vbert run tiny",
        "| detector | shapes_cnn |",
        "It can say nothing but `no`, `yes`, `red`.",
        "| accuracy | 0.5000 |",
    ):
        assert said in text
    assert "loss | 1.25" not in text


def test_the_hub_reads_its_front_matter(contract: Any) -> None:
    data = ModelCard(card(contract=contract).text()).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("other", "vbert", "visual-question-answering")
    assert (data.datasets, data.metrics) == (["mine"], ["a", "accuracy"])
    _, result = data.eval_results
    assert (result.dataset_type, result.dataset_split, result.metric_value) == ("mine", "test", 0.875)
    unknown = ModelCard(card(contract=contract, facts=Facts(title="x", objective="captioning"), licence="mit").text())
    assert (unknown.data.license, unknown.data.pipeline_tag) == ("mit", "image-to-text")
    assert "was not exported from the store that trained it" in unknown.text
    assert "None is known" in unknown.text


def test_without_a_detector_it_asks_for_regions(contract: Any) -> None:
    text = card(contract=contract, classes=None).text()
    assert 'model.answer("photo.jpg", "What colour is the cat?", regions=regions)  # [' in text
    assert "vbert predict" not in text


def test_every_objective_has_its_lines() -> None:
    assert USAGE.keys() == {*OBJECTIVES, "mlm_itm"}
    asked = {objective: name for name, objectives in ASKED_OF.items() for objective in objectives}
    for objective, usage in USAGE.items():
        method = usage.call.partition("(")[0]
        assert callable(getattr(VisualBert, method))
        assert objective == "mlm_itm" or asked[objective] == method
    assert TRANSFORMERS.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("architecture", TRANSFORMERS)
def test_the_lines_for_transformers_are_python(architecture: str, contract: Any) -> None:
    text = card(contract=contract, architecture=architecture, conventions="original").text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "card", "exec")
    assert "torch.zeros(embeds.shape[:2]" in code
    assert ModelCard(text).data.library_name == "transformers"
    assert '--set \'regions.boxes={"rule": "adaptive"' in text
