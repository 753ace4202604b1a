"""`vbert export` as a user calls it: the folder, away from its store, answers the same bits; what can't be exported."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from artifacts.as_user import prefix, why_not
from export.export_world import picture, said

from vbert.artifacts.store.store import Store
from vbert.inference.visualbert import VisualBert
from vbert.model.int8 import is_int8
from vbert.regions.shards import RegionSample, write_contents, write_shard


def test_the_folder_answers_the_same_bits_without_its_store(
    vbert: Any, demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = vbert("export", "demo", "finetune[vqa]", "--out", "out")
    assert code == 0, err
    assert out.splitlines()[0] == "out"
    store = Store(demo_folder / "store")
    (made,) = store.manifests("finetune")
    before = said(VisualBert.load(store.where(made), device="cpu"))
    shutil.move(demo_folder / "out", tmp_path / "elsewhere")
    shutil.rmtree(demo_folder / "store")
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    there = VisualBert.load(tmp_path / "elsewhere", device="cpu")
    after = said(there)
    assert after[0] == before[0]
    assert after[1][:2] == before[1][:2]
    assert torch.equal(after[1][2], before[1][2])
    assert there.detector is not None
    card = (tmp_path / "elsewhere/README.md").read_text()
    assert "vbert run tiny.yaml" in card
    assert "of the recipe `tiny`" in card
    assert str(tmp_path) not in card, "a card is for others: it names no places of this machine"


def test_an_artifact_by_its_path_and_a_folder_again(vbert: Any, demo_folder: Path) -> None:
    _, path, _ = vbert("path", "demo", "finetune[vqa]")
    code, out, err = vbert("export", path.strip(), "--out", "a", "--json")
    assert code == 0, err
    done = json.loads(out.splitlines()[-1])
    assert (done["out"], done["objective"], done["detector"], done["format"]) == ("a", "vqa", "shapes_cnn", "vbert")
    assert vbert("export", "a", "--out", "b")[0] == 0
    one, other = ((demo_folder / name / "README.md").read_text() for name in "ab")
    whole, _, made = one.partition("\n\n```\ncat > tiny.yaml")
    assert made
    assert other.startswith(whole), "what was known of it goes with the folder"
    code, out, err = vbert("export", "b", "--out", "c", "--format", "hf", "--json")
    assert code == 0, err
    assert json.loads(out.splitlines()[-1])["architecture"] == "VisualBertForQuestionAnswering"
    from transformers import VisualBertForQuestionAnswering

    there = VisualBertForQuestionAnswering.from_pretrained(demo_folder / "c")
    model = VisualBert.load(demo_folder / "a", device="cpu")
    assert [there.config.id2label[k] for k in range(len(model.head["labels"]))] == model.head["labels"]
    answered = lines_of_card(demo_folder / "c", model)
    for answer in model.answer(picture(), "What colour is the cat?", top=100):
        assert abs(answered[answer.text] - answer.score) <= 2e-6  # scores are rounded to six places


def lines_of_card(folder: Path, model: VisualBert) -> dict[str, float]:
    """What the lines for transformers in the folder's card say of `picture()`: probabilities by answer."""
    found, features = model.regions(picture()), folder.parent / "features"
    features.mkdir()
    count = len(found.features)
    sample = RegionSample(
        "photo", "0" * 64, 64, 64, found.features, found.boxes, [1.0] * count, ["thing"] * count, [[]] * count
    )  # fmt: skip
    write_contents(features, [write_shard(features, 0, [sample])], [], model.contract)
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(folder)), names)
    scores = names["logits"].softmax(-1)[0].tolist()
    return {names["model"].config.id2label[k]: score for k, score in enumerate(scores)}


def test_int8_is_measured_and_told(vbert: Any, demo_folder: Path) -> None:
    """Against the evaluation of the store; the folder is smaller, loads by itself, and can't be trained from."""
    code, out, err = vbert("export", "demo", "finetune[vqa]", "--out", "small", "--int8", "--measure", "90", "--json")
    assert code == 0, err
    told = json.loads(out.splitlines()[-1])["int8"]
    (evaluated,) = Store(demo_folder / "store").manifests("evaluate")
    assert (told["data"], told["split"], told["metric"]) == ("easy_vqa", "test", "accuracy")
    assert (told["examples"], told["of"]) == (90, evaluated.figures["answered"])
    assert abs(told["value"]["fp32"] - evaluated.figures["accuracy"]) < 0.2, "of 90 drawn"
    value, low, high = told["difference"]
    assert value == pytest.approx(told["value"]["int8"] - told["value"]["fp32"])
    assert low <= value <= high
    assert told["same"] > 0.9
    assert told["per_second"]["int8"] > 0
    assert told["bytes"]["int8"] < 0.8 * told["bytes"]["fp32"]
    assert json.loads((demo_folder / "small/export.json").read_text())["int8"] == told
    card = (demo_folder / "small/README.md").read_text()
    assert "## In int8" in card
    assert f"accuracy {told['value']['fp32']:.4f}, in int8 {told['value']['int8']:.4f}" in card.replace(
        "\n- A", "\n- a"
    )
    model = VisualBert.load(demo_folder / "small", device="cpu")
    assert is_int8(model.network)
    assert len(said(model)[0]) == len(model.head["labels"])

    assert vbert("export", "small", "--out", "again")[0] == 0, "what was measured goes with it"
    assert json.loads((demo_folder / "again/export.json").read_text())["int8"] == told
    for words, expected in (
        (("small", "--int8"), "is of int8 already; leave --int8 out"),
        (("small", "--format", "hf"), "small is of int8, for predictions on CPUs alone: export for transformers the"),
    ):
        code, _, err = vbert("export", *words, "--out", "none")
        assert code in (1, 2)
        assert expected in err
    code, _, err = vbert("show", "demo", "--set", "downstream.vqa.start=small")
    assert code == 2
    assert err.startswith("vbert: --set downstream.vqa.start: nothing to start from is called 'small'")
    assert err.rstrip().endswith("or a folder: ./small")
    code, _, err = vbert("show", "demo", "--set", "downstream.vqa.start=./small")
    assert code == 2
    assert re.match(r"vbert: --set downstream\.vqa\.start: \S+small is of int8, for predictions on CPUs alone", err)
    code, _, err = vbert("show", "demo", "--set", "model={init: ./small}", "--set", "downstream.vqa.start=none")
    assert code == 2
    assert "model.init: " in err
    assert "is of int8" in err
    code, out, err = vbert("import-model", "small", "--store", "other")
    assert code == 0, err
    assert "train on from it" not in out


def test_the_command_that_is_printed_can_be_pasted(vbert: Any, demo_folder: Path) -> None:
    code, out, err = vbert("export", "demo", "finetune[vqa]", "--out", "sp ace/ünï 猫")
    assert code == 0, err
    assert "`vbert predict 'sp ace/ünï 猫'`" in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("demo", "finetune[vqa]", "--int8", "--format", "hf"), "--int8 belongs to vbert's own format"),
        (("demo", "finetune[vqa]", "--measure", "5"), "--measure belongs to --int8"),
        (("demo", "regions[shapes]"), "regions[shapes] makes no model; models of tiny: pretrain, finetune[vqa]"),
        (("demo", "finetune[vqaa]"), "no stage 'finetune[vqaa]' in this recipe; did you mean 'finetune[vqa]'?"),
        (("demo",), "demo: no folder of a model. Of a recipe name the stage too: `vbert export demo 'finetune"),
        (("photos",), "photos: no folder of a model"),
        (("dmeo",), "dmeo: no such folder, and no recipe of that name; near: 'demo'. `vbert path RECIPE 'finetune"),
        (("demo", "finetune[vqa]", "--conventions", "original"), "--conventions belongs to --format hf"),
        (("photos", "--set", "seed=1"), "--set belongs to a recipe"),
        (("demo", "finetune[vqa]", "--set", "seed=7"), "`vbert run RECIPE --until finetune[vqa]` builds it"),
    ],
)
def test_what_cannot_be_exported(vbert: Any, demo_folder: Path, words: tuple[str, ...], expected: str) -> None:
    (demo_folder / "photos").mkdir()
    code, _, err = vbert("export", *words, "--out", "out")
    assert code in (1, 2)
    assert expected in err
    assert not (demo_folder / "out").exists()


ASKED = """
import hashlib, sys
from vbert.inference.visualbert import VisualBert
from vbert.regions.shards import RegionSample, write_contents, write_shard
from export.export_world import picture, said
answers, (features, boxes, encoded) = said(VisualBert.load(sys.argv[1], device="cpu"))
print(hashlib.sha256(repr(answers).encode() + features + boxes + encoded.numpy().tobytes()).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_another_account_without_a_store_gets_the_same_bits(vbert: Any, demo_folder: Path) -> None:
    """Another user with an empty home, who may read the folder and write nowhere in it."""
    assert vbert("export", "demo", "finetune[vqa]", "--out", "out")[0] == 0
    store, uid = Store(demo_folder / "store"), 54321
    (made,) = store.manifests("finetune")
    with tempfile.TemporaryDirectory() as place:
        home, folder = Path(place) / "home", Path(place) / "model"
        Path(place).chmod(0o755)
        home.mkdir()
        os.chown(home, uid, uid)
        shutil.copytree(demo_folder / "out", folder)
        tests = Path(__file__).parents[1]
        env = {"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONPATH": f"{tests}:{tests.parent}"}

        def asked(before: list[str], where: str) -> str:
            command = [*before, sys.executable, "-c", ASKED, where]
            return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True, check=True).stdout

        assert asked(prefix(uid), str(folder)) == asked([], store.where(made))
        assert not any(path.stat().st_uid == uid for path in folder.rglob("*"))
