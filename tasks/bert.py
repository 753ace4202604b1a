"""Stage `bert`: a published BERT checkpoint, checked and brought into one form."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from shutil import copyfileobj, rmtree

from vbert.artifacts.steps.stage import Build, Figures, Job, stage
from vbert.data.raw import RawFiles
from vbert.errors import BuildError, UserError
from vbert.model.bert import BertWeights, HubSource


@stage("bert", makes=BertWeights, version=1, retries=2, early=True)
def bert(build: Build, source: RawFiles | HubSource) -> Figures:
    """From raw files (a Python package, a folder, an archive) or from the Hugging Face hub."""
    return build.process(make_bert, source)


def make_bert(job: Job, source: RawFiles | HubSource) -> Figures:
    """Brings the checkpoint's files to scratch and writes a `BertWeights`."""
    from vbert.model.checkpoint import write_bert

    folder = job.scratch / "checkpoint"
    if isinstance(source, HubSource):
        fetch_from_hub(folder, source)
    else:
        copy_members(folder, source)
    figures = write_bert(job.directory, folder)
    rmtree(folder)
    return figures


def copy_members(folder: Path, raw: RawFiles) -> None:
    """Copies the one checkpoint among the raw files, found by its config.json beside weights, into `folder`."""
    from vbert.model.checkpoint import WEIGHTS

    members = raw.members()
    weights = {name.rpartition("/")[0] for name in members if name.rpartition("/")[2] in WEIGHTS}
    places = sorted(at for at in weights if _join(at, "config.json") in members)
    if len(places) != 1:
        listed = f"{len(places)} ({', '.join(places[:5])})" if places else f"none (it holds {', '.join(members[:5])})"
        raise UserError(
            f"{raw.title}: one folder with config.json and weights ({' or '.join(WEIGHTS[::2])}) is needed, there are "
            f"{listed}"
        )
    names = [name for name in members if name.rpartition("/")[0] == places[0]]
    folder.mkdir(parents=True, exist_ok=True)
    for name in _needed(n.rpartition("/")[2] for n in names):
        with raw.open(_join(places[0], name)) as file, (folder / name).open("wb") as copy:
            copyfileobj(file, copy, 1 << 20)


def fetch_from_hub(folder: Path, source: HubSource) -> None:
    """Fetches the needed files of a hub repository; keeps those already fetched. `HF_ENDPOINT` names another hub."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    endpoint = os.environ.get("HF_ENDPOINT")
    try:
        files = HfApi(endpoint=endpoint).model_info(source.hub, revision=source.revision).siblings or []
        for name in _needed(file.rfilename for file in files):
            hf_hub_download(source.hub, name, revision=source.revision, local_dir=folder, endpoint=endpoint)
    except RepositoryNotFoundError:
        raise UserError(f"hub: no model {source.hub!r} (or it is private and HF_TOKEN is not set)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BuildError(f"hub: {source.hub} at {source.revision[:8]} can't be fetched: {error}") from error


def _needed(names: Iterable[str]) -> list[str]:
    """The files of a checkpoint that are read: one form of the weights, the configuration, the vocabulary."""
    from vbert.model.checkpoint import FILES, TOKENIZER, WEIGHTS
    from vbert.model.vocabulary import CONFIG, VOCABULARY

    present = set(names)
    form = next((name for name in WEIGHTS if name in present), None)
    chosen = [name for name in FILES if name in present and (name not in WEIGHTS or name == form)]
    if {VOCABULARY, CONFIG} <= present and TOKENIZER in present:
        chosen.remove(TOKENIZER)  # it has the same content
    if form is not None and form.endswith(".index.json"):
        stem, ending = form.removesuffix(".index.json").split(".")
        chosen += sorted(n for n in present if n.startswith(f"{stem}-") and n.endswith(f".{ending}"))
    return chosen


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
