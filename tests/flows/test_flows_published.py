"""The stage `checkpoint` on every kind of source, and the names, folders and repositories that a start may be."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
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
from werkzeug import Request, Response

from flows.models import published
from tasks.checkpoint import make_checkpoint
from vbert.artifacts.making.engine import Engine
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.stage import Job, Machine
from vbert.artifacts.store.store import Store
from vbert.errors import UserError
from vbert.model.published import objective_of, published_names, published_spec
from vbert.objectives.trained import Model

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
    with pytest.raises(UserError, match=r"no model 'uclanlp_visualbert_vq'.*did you mean 'uclanlp_visualbert_vqa'"):
        published("uclanlp_visualbert_vq")
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
