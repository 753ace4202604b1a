"""The stage `checkpoint` on every kind of source, and the names, folders and repositories that a start may be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from artifacts.golden import check_here
from model.model_batches import bert as write_checkpoint
from model.published_world import (
    ANSWERS,
    mmf_names,
    original_names,
    save_pth,
    save_transformers,
    spec,
    transformers_model,
    words_in,
)
from pytest_httpserver import HTTPServer
from safetensors.torch import load_file
from werkzeug import Request, Response

from flows.graph import graph
from flows.models import published
from flows.recipe import as_yaml, resolve
from tasks.checkpoint import checkpoint, make_checkpoint
from vbert.artifacts.making.engine import Engine
from vbert.artifacts.making.plan import walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Job, Machine
from vbert.artifacts.store.store import Store
from vbert.errors import UserError
from vbert.model.bert import BertWeights
from vbert.model.checkpoint import write_bert
from vbert.model.config import VisualBertConfig
from vbert.model.convert import save_pretrained
from vbert.model.heads import AnswerModel
from vbert.model.published import objective_of, published_names, published_spec
from vbert.objectives import bound
from vbert.objectives.bound import NOTE, not_accepted
from vbert.objectives.trained import Model
from vbert.objectives.vqa import VqaSettings
from vbert.report.lineage import Lineage
from vbert.report.overview import facts

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")


def made(tmp_path: Path, where: str | Path, **options: Any) -> Model:
    """The stage's function, in this process; its inputs come from a store."""
    step = published(str(where), **options).step
    assert step is not None
    store = Store(tmp_path / "store")
    inputs = [value for value in step.arguments.values() if isinstance(value, Artifact)]
    Engine(store, Machine()).ensure_all(inputs)
    arguments = {k: v.bound(store) if isinstance(v, Artifact) else v for k, v in step.arguments.items()}
    job = Job(tmp_path / "directory", tmp_path / "scratch", Machine())
    job.directory.mkdir()
    make_checkpoint(job, **arguments)
    assert not list(job.scratch.iterdir())
    return Model.at(job.directory)


def serve_hub(server: HTTPServer, repositories: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub whose repositories stand at COMMIT; returns the log of files asked for."""
    asked: list[str] = []

    def answer(request: Request) -> Response:
        for name, folder in repositories.items():
            if request.path.startswith(f"/api/models/{name}/revision/"):
                siblings = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
                body = {"_id": "1", "id": name, "sha": COMMIT, "siblings": siblings, "private": False}
                return Response(json.dumps(body), content_type="application/json")
            if request.path.startswith(f"/{name}/resolve/{COMMIT}/"):
                file = request.path.rpartition("/")[2]
                asked.append(f"{request.method} {name} {file}")
                headers = {"ETag": f'"{file}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
                return Response((folder / file).read_bytes(), headers=headers)
        return Response("Repository not found", 404, {"X-Error-Code": "RepoNotFound"})

    server.expect_request(re.compile(".*")).respond_with_handler(answer)
    monkeypatch.setenv("HF_ENDPOINT", server.url_for("").rstrip("/"))
    return asked


def bert_spec(tmp_path: Path) -> str:
    """A BERT's spec whose files are a vocabulary: nothing else of it is read."""
    words_in(tmp_path / "words")
    spec = {"name": "words", "title": "words", "licence": "none", "homepage": "-", "source": {"path": "words"}}
    (tmp_path / "words.yaml").write_text(json.dumps(spec))
    return str(tmp_path / "words.yaml")


def answers(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "answers.txt").write_text("\n".join(ANSWERS))
    return {"source": {"path": "answers.txt"}, "count": len(ANSWERS)}


def test_a_repository_of_the_hub_with_a_spec(
    tmp_path: Path, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the published ones: no vocabulary beside the weights, its answers elsewhere, and half of its commit known."""
    save_transformers(tmp_path / "hub", transformers_model("vqa"), vocabulary=False)
    words_in(tmp_path / "words")
    asked = serve_hub(httpserver, {"me/small": tmp_path / "hub", "me/words": tmp_path / "words"}, monkeypatch)
    words = {"name": "w", "title": "w", "licence": "none", "homepage": "-"}
    (tmp_path / "w.yaml").write_text(json.dumps({**words, "source": {"hub": "me/words", "revision": COMMIT}}))
    source = {"hub": "me/small", "revision": COMMIT[:7]}
    given = {"source": source, "vocabulary": "w.yaml", "answers": answers(tmp_path), "objective": "vqa"}
    model = made(tmp_path, spec(tmp_path, form="transformers", **given))
    assert model.labels() == list(ANSWERS)
    assert model.head()["published"] == {"name": "mine", "form": "transformers", "commit": COMMIT}
    assert model.vocabulary().encode("w3 w4") == [8, 9]
    assert model.contract().detector == "theirs"
    assert {line.partition(" ")[2] for line in asked if line.startswith("GET")} == {
        "me/small config.json", "me/small model.safetensors", "me/words tokenizer_config.json", "me/words vocab.txt"
    }  # fmt: skip
    moved = spec(tmp_path, form="transformers", **{**given, "source": {"hub": "me/small", "revision": "abcdef0"}})
    with pytest.raises(
        UserError, match=r"me/small is at 0123456789.* only this beginning is known: give all 40 digits"
    ):
        made(tmp_path / "again", moved)


def test_a_repository_of_the_hub_without_a_spec(
    tmp_path: Path, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_transformers(tmp_path / "hub", transformers_model("choice"))
    serve_hub(httpserver, {"me/small": tmp_path / "hub"}, monkeypatch)
    model = made(tmp_path, f"me/small@{COMMIT}")
    assert (model.head()["kind"], model.contract().detector) == ("choice", "unknown")
    assert objective_of(f"me/small@{COMMIT}") is None
    assert objective_of(f"uclanlp/visualbert-vqa@{COMMIT}") == "vqa"


def test_an_archive_of_mmf_and_a_file_fetched_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = transformers_model("mlm_itm")
    save_pth(tmp_path / "zoo.tar.gz", mmf_names(theirs.state_dict()), "visual_bert.pretrained.coco")
    words = bert_spec(tmp_path)
    model = made(tmp_path, spec(tmp_path, form="mmf", source={"path": "zoo.tar.gz"}, vocabulary=words))
    embedded = theirs.visual_bert.embeddings.visual_projection.weight
    assert torch.equal(model.load().encoder.embeddings.visual_projection.weight, embedded)
    by_hand = {"manual": {"steps": ["Fetch it."], "files": {"*.th": {}}}}
    monkeypatch.setenv("VBERT_DATA", str(tmp_path / "data"))
    own = spec(tmp_path, source=by_hand, vocabulary=words)
    with pytest.raises(
        UserError, match=r"model mine: weights is fetched by hand into .*data/mine/weights, and it isn'"
    ):
        published(str(own))
    (tmp_path / "data" / "mine" / "weights").mkdir(parents=True)
    torch.save(original_names(theirs.state_dict()), tmp_path / "data" / "mine" / "weights" / "coco_pre_trained.th")
    (tmp_path / "second").mkdir()
    again = made(tmp_path / "second", own)
    assert torch.equal(again.load().encoder.embeddings.visual_projection.weight, embedded)


def test_folders(tmp_path: Path) -> None:
    save_transformers(tmp_path / "theirs", transformers_model("nlvr2"))
    assert objective_of(str(tmp_path / "theirs")) == "nlvr2"
    first = made(tmp_path, tmp_path / "theirs")
    (tmp_path / "second").mkdir()
    again = made(tmp_path / "second", first.path)
    assert objective_of(str(first.path)) == "nlvr2"
    for name in ("model.safetensors", "config.json", "head.json", "contract.json", "vocab.txt"):
        assert again.file(name).read_bytes() == first.file(name).read_bytes(), name
    (tmp_path / "theirs" / "vocab.txt").unlink()
    (tmp_path / "third").mkdir()
    with pytest.raises(UserError, match=r"theirs: no vocab\.txt beside its weights"):
        made(tmp_path / "third", tmp_path / "theirs")


def test_what_is_no_published_visualbert_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^uclanlp_visualbert_vq: no such folder.*; near: 'uclanlp_visualbert_vqa'"):
        published("uclanlp_visualbert_vq")
    with pytest.raises(
        UserError, match=r"^demo: no such folder.*; demo is a recipe: `vbert path demo 'finetune\[ENTRY\]'`"
    ):
        published("demo")
    with pytest.raises(UserError, match=r"^nofolder: no such folder, and no model of that name in data_specs/models$"):
        published("nofolder")
    with pytest.raises(UserError, match=r"bert_base_uncased is a BERT, which has seen no image"):
        published("bert_base_uncased")
    with pytest.raises(UserError, match=r"no VisualBERT: it holds neither a model written here"):
        published(str(tmp_path))


def test_every_shipped_spec_states_its_contract() -> None:
    assert len(published_names()) == 28
    dims = {"vqa": 2048, "nlvr2": 1024, "vcr": 512}
    for name in published_names():
        one = published_spec(name)
        assert one.name == name
        (dim,) = {dims[data] for data in dims if f"_{data}" in name} or {2048}
        assert (one.contract().dim, one.contract().box_input, one.sizes["hidden_size"]) == (dim, "none", 768)
        fine_tuned = re.search("_vqa$|_th_vqa$|finetuned_vqa2", name) is not None
        assert (one.answers is not None) == (one.objective == "vqa") == fine_tuned


def test_the_same_bits(tmp_path: Path) -> None:
    """Of a `.th` whose tensors are counted up, with more positions than it has."""
    sizes = {"hidden_size": 4, "layers": 1, "heads": 2, "max_positions": 8, "vocab_size": 61, "visual_dim": 10}
    config = VisualBertConfig.model_validate({**sizes, "box_input": "none", "standardise": False})
    save_pretrained(AnswerModel(config, 2, "pooled"), tmp_path / "theirs", conventions="original")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    counted = {name: torch.arange(float(t.numel())).view(t.shape) for name, t in sorted(tensors.items())}
    torch.save(original_names(counted), tmp_path / "counted.th")
    own = {name: sizes[name] for name in ("hidden_size", "layers", "heads", "max_positions")}
    source = {"path": "counted.th"}
    given = spec(tmp_path, objective="nlvr2", sizes=own, source=source, vocabulary=bert_spec(tmp_path))
    step = published(str(given), max_positions=10).step
    assert step is not None
    store = Store(tmp_path / "store")
    Engine(store, Machine()).ensure_all([one for one in step.arguments.values() if isinstance(one, Artifact)])
    arguments = [one.bound(store) if isinstance(one, Artifact) else one for one in step.arguments.values()]
    check_here(checkpoint, "tiny", tmp_path / "golden", *arguments)


# in a recipe

TINY = str(Path(__file__).parents[1] / "tiny.yaml")
COCO_PRE, VQA = "uclanlp_visualbert_vqa_coco_pre", "uclanlp_visualbert_vqa"
FEATURES = {"data.easy_vqa.features": {"path": "features", "detector": "pythia_visual_genome_X_101"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"model": {"init": COCO_PRE, "layers": 4}},
            f"model.layers: 4, but 12 is that of init {COCO_PRE}: leave it out",
        ),
        ({"model": {"init": COCO_PRE, "box_input": "append6"}}, "model.box_input: append6, but none is that of init"),
        (
            {"model": {"init": COCO_PRE, "attention_dropout": 0.0}},
            "model.attention_dropout: 0.0, but init uclanlp_visu",
        ),
        (
            {"model": {"init": "minilm_l6", "layers": 4}},
            "model.layers: 4, but 6 is that of init minilm_l6: leave it out",
        ),
        (
            {"model": {"init": "minilm_l6", "max_positions": 100}},
            "max_positions: 100, but 512 is that of init minilm_l6: leave it out, or give more, which extends its",
        ),
        ({"model": {"init": COCO_PRE}, "pretrain.max_text": 513}, "513 is beyond the model's 512 positions"),
        ({"model": {"init": VQA}}, f"model.init: {VQA} has the head of objective vqa, and pre-training goes on with "),
        (
            {"model": {"init": COCO_PRE}},
            f"'pythia_visual_genome_X_101' for the start {COCO_PRE}, 'shapes_cnn' for the regions of shapes",
        ),
        (
            {"downstream.vqa.start": VQA, "downstream.vqa.accept_contract": ["detector", "backend", "weights"]},
            "vqa.accept_contract: region features don't fit: layer is 'fc6' for the start uclanlp_visualbert",
        ),
        (
            {"downstream.vqa.accept_contract": ["detectr"]},
            "no field 'detectr'; did you mean 'detector'?",
        ),
        ({"downstream.vqa.accept_contract": ["dim"]}, "dim can't be overridden: the weights are made for it"),
        (
            {"downstream.vqa.start": COCO_PRE, "downstream.vqa.steps": 0},
            f"vqa.steps: 0, but {COCO_PRE} has pre-training's heads and none of vqa: it can't be evaluated as it is",
        ),
        (
            {"downstream.vqa.start": "uclanlp_visualbert_nlvr2", "downstream.vqa.steps": 0},
            "0, but uclanlp_visualbert_nlvr2 has the head of objective nlvr2 and none of vqa: it can't be evaluated",
        ),
        (
            {"downstream.vqa.start": "minilm_l6", "downstream.vqa.steps": 0},
            "0 evaluates the start as it is, and it has",
        ),
    ],
)
def test_a_start_that_does_not_fit_is_refused_at_planning(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        resolve(TINY, changes)
    assert said in refused.value.message


def test_an_init_that_is_not_there_is_told() -> None:
    for name, said in (("nofolder", "in data_specs/models"), ("bert_base_uncasd", "near: 'bert_base_uncased', 'bert_")):
        with pytest.raises(UserError, match=rf"^model.init: {name}: no such folder, .*{said}") as refused:
            graph(resolve(TINY, {"model.init": name}))
        assert len(refused.value.message) < 200


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (
            "uclanlp/visualbert-vqa",
            "the hub write uclanlp_visualbert_vqa, the spec of it, or give its commit: uclanlp/",
        ),
        ("me/visualbert-base", "of the Hugging Face hub write OWNER/NAME@COMMIT"),
        (
            "uclanlp/visualbert-base-uncased",
            "near: 'uclanlp_visualbert_vqa_pre', 'uclanlp_visualbert_vqa', 'uclanlp_visualbert_vcr'; of the",
        ),
    ],
)
def test_a_repository_without_a_commit_is_told(start: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        graph(resolve(TINY, {"downstream.vqa.start": start}))
    assert said in refused.value.message


def test_a_recipe_starts_from_a_published_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pre-training from `init`, and an entry that evaluates another as it is, on features of their contract."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "features").mkdir()
    np.save(tmp_path / "features" / "0.npy", np.zeros((4, 2048), np.float32))
    as_it_is = {"objective": "vqa", "data": "easy_vqa", "start": VQA, "steps": 0, "learning_rate": 1.0e-3}
    changes = {**FEATURES, "model": {"init": COCO_PRE}, "pretrain.data": ["easy_vqa"], "downstream.published": as_it_is}
    recipe = resolve(TINY, {**changes, "pretrain.max_text": 512})
    steps = {artifact.title: artifact for artifact in walk(graph(recipe))}
    assert f"checkpoint[{VQA}]" in steps
    assert not {"vocabulary", "bert_vocabulary"} & {artifact.stage_name for artifact in steps.values()}
    assert steps["pretrain"].step is not None
    assert steps["pretrain"].step.arguments["start"].title == f"checkpoint[{COCO_PRE}]"
    (tmp_path / "again.yaml").write_text(as_yaml(recipe))
    again = resolve(str(tmp_path / "again.yaml"))
    assert graph(again).fingerprint == graph(recipe).fingerprint
    longer = resolve(recipe, {"model": {"init": COCO_PRE, "max_positions": 600}, "pretrain.max_text": 600})
    (tmp_path / "longer.yaml").write_text(as_yaml(longer))
    for one in (longer, resolve(str(tmp_path / "longer.yaml"))):
        (start,) = (a for a in walk(graph(one)) if a.title == f"checkpoint[{COCO_PRE}]")
        assert start.step is not None
        assert start.step.arguments["settings"].max_positions == 600
    accepted = {"downstream.published.accept_contract": ["detector"], "pretrain.accept_contract": ["nms"]}
    assert graph(resolve(recipe, accepted)).fingerprint == graph(recipe).fingerprint, "accepting is no identity"


def test_the_positions_of_a_bert_are_extended(tmp_path: Path) -> None:
    plain = resolve(TINY, {"model": {"init": "minilm_l6"}})
    longer = resolve(TINY, {"model": {"init": "minilm_l6", "max_positions": 1024}, "pretrain.max_text": 1000})
    (one,), (other,) = ([a for a in walk(graph(r)) if a.stage_name == "bert"] for r in (plain, longer))
    assert one.fingerprint != other.fingerprint
    write_checkpoint(tmp_path / "mine")
    source, made = tmp_path / "mine", tmp_path / "made"
    made.mkdir()
    write_bert(made, source, 1100)
    weights = BertWeights.at(made)
    before = load_file(source / "model.safetensors")["bert.embeddings.position_embeddings.weight"]
    rows = len(before)
    after = weights.tensors()["bert.embeddings.position_embeddings.weight"]
    assert torch.equal(after, before[torch.arange(1100) % rows])
    assert weights.sizes()["max_positions"] == 1100
    with pytest.raises(UserError, match=f"max_positions {rows - 1} is below the checkpoint's {rows}"):
        write_bert(made, source, rows - 1)


def test_a_model_trained_on_accepted_features_is_refused_where_they_are_accepted_no_more() -> None:
    note = f"{NOTE}nms.iou is 0.5 for the start, 0.3 for its regions"
    assert not_accepted([note], ("nms",)) is None
    assert not_accepted([note], ("nms.iou",)) is None
    assert not_accepted(["other"], ()) is None
    said = not_accepted([note], ("detector",))
    assert said is not None
    assert "nms.iou is 0.5 for the start" in said
    assert "`accept_contract: [nms.iou]`" in said


def test_what_was_accepted_is_in_the_manifest_and_asked_at_every_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `Model.objection` reads it: settings, and the notes of the manifest."""
    made = SimpleNamespace(figures={"notes": [f"{NOTE}detector is 'a' for the start, 'b' for its regions"]})
    monkeypatch.setattr(bound, "whole", lambda *_: made)

    def model(*accepted: str) -> Any:
        settings = VqaSettings(data="d", steps=0, batch_size=1, learning_rate=1.0, accept_contract=accepted)
        step = SimpleNamespace(arguments={"settings": settings})
        return SimpleNamespace(step=step, store=object(), title="finetune[vqa]")

    assert bound.objection(model("detector")) is None
    said = bound.objection(model())
    assert said is not None
    assert said.startswith(
        "finetune[vqa]: detector is 'a' for the start, 'b' for its regions, which was accepted before"
    )


def test_the_report_names_what_was_overridden() -> None:
    run = SimpleNamespace(entry="vqa", overridden={"detector": ["a", "b"]}, data="d", evaluated=SimpleNamespace())
    run.evaluated.examples = SimpleNamespace(table=lambda: {"split": SimpleNamespace(to_pylist=lambda: ["test"])})
    run.evaluated.model = SimpleNamespace(config=lambda: VisualBertConfig(vocab_size=9, visual_dim=3))
    told = dict(facts([cast(Any, run)], Lineage([], cast(Any, None))))
    assert told["contract overridden: vqa"] == "detector is 'a' for its start, 'b' for its regions"
