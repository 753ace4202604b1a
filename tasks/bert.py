"""Stage `bert`: a published BERT checkpoint, checked and brought into one form."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from shutil import copyfileobj, rmtree
from typing import Annotated

from vbert.artifacts.steps.settings import Since
from vbert.artifacts.steps.stage import Build, Figures, Job, stage
from vbert.data.raw import RawFiles
from vbert.errors import BuildError, UserError
from vbert.model.bert import COMMIT, BertWeights, HubSource


@stage("bert", makes=BertWeights, version=1, retries=2, early=True)
def bert(
    build: Build, source: RawFiles | HubSource, max_positions: Annotated[int | None, Since(None)] = None
) -> Figures:
    """From raw files (a Python package, a folder, an archive) or from the Hugging Face hub. max_positions: rows that
    its table of positions is extended to."""
    return build.process(make_bert, source, max_positions)


def make_bert(job: Job, source: RawFiles | HubSource, max_positions: int | None = None) -> Figures:
    """Brings the checkpoint's files to scratch and writes a `BertWeights`."""
    from vbert.model.checkpoint import write_bert

    folder = job.scratch / "checkpoint"
    if isinstance(source, HubSource):
        fetch_from_hub(folder, source)
    else:
        copy_members(folder, source)
    figures = write_bert(job.directory, folder, max_positions)
    rmtree(folder)
    return figures


def copy_members(folder: Path, raw: RawFiles, also: Collection[str] = ()) -> None:
    """Copies the one checkpoint among the raw files, found by its config.json beside weights, into `folder`. also:
    names of further files beside it."""
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
    names = [name.rpartition("/")[2] for name in members if name.rpartition("/")[0] == places[0]]
    copy_files(folder, raw, places[0], [*needed(names), *(name for name in also if name in names)])


def copy_files(folder: Path, raw: RawFiles, at: str, names: Iterable[str]) -> None:
    """Copies the raw files `names` of the folder `at` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        with raw.open(_join(at, name)) as file, (folder / name).open("wb") as copy:
            copyfileobj(file, copy, 1 << 20)


def fetch_from_hub(folder: Path, source: HubSource, chosen: Callable[[Iterable[str]], list[str]] | None = None) -> str:
    """Fetches the files of a hub repository that `chosen` names, by default those of a checkpoint; keeps those already
    fetched. Returns the commit. `HF_ENDPOINT` names another hub.

    Of a revision that is the beginning of a commit, the branch `main` must stand at that commit.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    endpoint = os.environ.get("HF_ENDPOINT")
    asked = source.revision if len(source.revision) == COMMIT else "main"
    try:
        about = HfApi(endpoint=endpoint).model_info(source.hub, revision=asked)
        commit = asked if asked != "main" else str(about.sha)
        if not commit.startswith(source.revision):
            raise UserError(
                f"hub: {source.hub} is at {commit} by now, and of the commit {source.revision} only this beginning is "
                "known: give all 40 digits (the repository's history shows them)"
            )
        files = [file.rfilename for file in about.siblings or []]
        for name in (chosen or needed)(files):
            hf_hub_download(source.hub, name, revision=commit, local_dir=folder, endpoint=endpoint)
    except RepositoryNotFoundError:
        raise UserError(f"hub: no model {source.hub!r} (or it is private and HF_TOKEN is not set)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BuildError(f"hub: {source.hub} at {source.revision[:8]} can't be fetched: {error}") from error
    return commit


def needed(names: Iterable[str]) -> list[str]:
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
