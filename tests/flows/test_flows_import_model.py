"""`vbert import-model`: an exported folder in another store, with the same bits; damaged ones are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from export.export_world import contract_of, make_detector, make_model, said

from flows.models import published
from vbert.artifacts.making.engine import build_here
from vbert.artifacts.store.store import Store
from vbert.errors import UserError
from vbert.export.folder import write_export
from vbert.inference.visualbert import VisualBert


def last(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.slow
def test_a_model_goes_into_another_store_and_is_the_same_there(vbert: Any, demo_folder: Path) -> None:
    assert vbert("export", "demo", "finetune[vqa]", "--out", "out")[0] == 0
    code, out, err = vbert("import-model", "out", "--store", "other", "--json")
    assert code == 0, err
    done = last(out)
    other = Store(demo_folder / "other")
    before = len(other.names())
    (demo_folder / "out").rename(demo_folder / "moved")
    code, out, err = vbert("import-model", "moved", "--store", "other", "--json")
    assert code == 0, err
    assert last(out) == done, "known by its content, whatever it is called"
    assert len(other.names()) == before
    (own,) = Store(demo_folder / "store").manifests("finetune")
    (made,) = other.manifests("checkpoint")
    assert made.content == own.content
    first, second = (said(VisualBert.load(path, device="cpu")) for path in (demo_folder / "moved", done["model"]))
    assert first[0] == second[0]
    assert first[1][:2] == second[1][:2]
    assert torch.equal(first[1][2], second[1][2])
    shutil.rmtree(demo_folder / "store")
    code, out, err = vbert("export", done["model"], "--out", "again", "--store", "other")
    assert code == 0, err
    card = (demo_folder / "again/README.md").read_text()
    assert "| accuracy |" in card, "what was known of it is known in the other store too"
    assert "easy-VQA" in card


@pytest.mark.slow
def test_what_a_start_was_trained_on_stands_in_the_next_card(vbert: Any, demo_folder: Path) -> None:
    """And with `steps: 0` an exported folder predicts what the model predicted, for transformers too."""
    assert vbert("export", "demo", "finetune[vqa]", "--out", "out")[0] == 0
    assert vbert("export", "demo", "finetune[vqa]", "--out", "hf", "--format", "hf")[0] == 0
    recipe = (demo_folder / "recipes/demo.yaml").read_text()
    entries = "".join(
        f"  from_{name}: {{objective: vqa, data: easy_vqa, start: ../{name}, steps: 0, learning_rate: 1.0e-3}}\n"
        for name in ("out", "hf")
    )
    (demo_folder / "recipes/more.yaml").write_text(recipe.replace("machine:", f"{entries}machine:"))
    code, _, err = vbert("run", "recipes/more.yaml", "--local", "--until", "evaluate")
    assert code == 0, err
    store = Store(demo_folder / "store")
    paths = [store.whole(manifest) for manifest in store.manifests("evaluate")]
    assert len(paths) == 3
    assert len({(path / "predictions.jsonl").read_bytes() for path in paths}) == 1
    assert vbert("export", "recipes/more.yaml", "finetune[from_out]", "--out", "next")[0] == 0
    card = (demo_folder / "next/README.md").read_text()
    assert "pre-training, of finetune[vqa]" in card
    assert "| out | VisualBERT that training started from |  |  | those of its data and weights, told here |" in card


def test_it_says_how_to_go_on(vbert: Any, tmp_path: Path) -> None:
    """Of a model whose features were imported there is no detector."""
    detector = make_detector(tmp_path / "d")
    contract = contract_of(detector).model_copy(update={"weights": None, "backend": None, "detector": "unknown"})
    model = make_model(tmp_path / "m", contract)
    write_export(tmp_path / "out", model, None, title="t", card="", made_from={})
    code, out, err = vbert("import-model", "out", "--store", "store")
    assert code == 0, err
    path, start = out.splitlines()
    for name in ("model.safetensors", "head.json", "contract.json", "vocab.txt"):
        assert (Path(path) / name).read_bytes() == model.file(name).read_bytes()
    assert start == f"train on from it by `start: {path}` in an entry of a recipe"
    assert last(vbert("import-model", "out", "--store", "store", "--json")[1])["detector"] is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("head.json", "head.json is missing: copy the folder again"),
        ("export.json", "export.json is missing: copy the folder again"),
    ],
)
def test_what_is_not_whole_is_refused(vbert: Any, tmp_path: Path, damage: str, said: str) -> None:
    detector = make_detector(tmp_path / "d")
    write_export(
        tmp_path / "out", make_model(tmp_path / "m", contract_of(detector)), detector, title="t", card="", made_from={}
    )  # fmt: skip
    (tmp_path / "out" / damage).unlink()
    code, _, err = vbert("import-model", "out", "--store", "store")
    assert code == 2
    assert said in err
    assert not (tmp_path / "store").exists()


def test_a_start_that_is_damaged_is_refused(tmp_path: Path) -> None:
    """Named as a start of a recipe, an exported folder goes through the stage `checkpoint` alone."""
    detector = make_detector(tmp_path / "d")
    out = tmp_path / "out"
    write_export(out, make_model(tmp_path / "m", contract_of(detector)), detector, title="t", card="", made_from={})
    build_here([published(str(out))], tmp_path / "store")
    (out / "detector/weights.safetensors").unlink()
    (out / "detector/weights.safetensors").write_bytes(b"other")
    with pytest.raises(
        UserError, match=r"detector/weights\.safetensors is damaged: other bytes than export\.json says"
    ):
        build_here([published(str(out))], tmp_path / "store")
    (out / "detector/weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"detector/weights\.safetensors is missing: copy the folder again"):
        build_here([published(str(out))], tmp_path / "store")
