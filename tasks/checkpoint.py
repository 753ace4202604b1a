"""Stage `checkpoint`: a published VisualBERT, checked and brought into the form of a trained `Model`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from shutil import copyfileobj, rmtree
from typing import TYPE_CHECKING

from tasks.bert import copy_files, copy_members, fetch_from_hub, needed
from vbert.artifacts.steps.stage import Build, Figures, Job, stage
from vbert.data.raw import RawFiles
from vbert.errors import UserError
from vbert.model.bert import HubSource
from vbert.model.published import HEAD
from vbert.objectives.published import CheckpointSettings
from vbert.objectives.trained import Model
from vbert.regions.contract import NAME as CONTRACT

if TYPE_CHECKING:
    from vbert.model.vocabulary import Vocabulary

ENDINGS = (".th", ".pth", ".pt", ".ckpt", ".bin", ".safetensors")  # of files of weights


@stage("checkpoint", makes=Model, version=1, retries=2, early=True)
def checkpoint(
    build: Build,
    source: RawFiles | HubSource,
    settings: CheckpointSettings,
    vocabulary: RawFiles | HubSource | None = None,
    answers: RawFiles | None = None,
) -> Figures:
    """From the Hugging Face hub, or from raw files: a folder, an archive, a `.th` or `.pth`. vocabulary: the BERT whose
    vocabulary it has; by default its own. answers: the file of the answers that the rows of its head stand for."""
    return build.process(make_checkpoint, source, settings, vocabulary, answers)


def make_checkpoint(
    job: Job,
    source: RawFiles | HubSource,
    settings: CheckpointSettings,
    vocabulary: RawFiles | HubSource | None = None,
    answers: RawFiles | None = None,
) -> Figures:
    """Brings the files to scratch and writes a `Model`."""
    from vbert.export.folder import check_members
    from vbert.objectives.published import copy_own, write_published

    files, commit = job.scratch / "checkpoint", None
    if isinstance(source, HubSource):
        commit = fetch_from_hub(files, source, lambda names: [*needed(names), *_beside(names)])
    elif settings.form in ("original", "mmf"):
        _copy_weights(files, source, settings)
    else:
        check_members(source)
        copy_members(files, source, (CONTRACT, HEAD, "curves.jsonl"))
    if settings.form == "vbert":
        figures = copy_own(job.directory, files, settings)
    else:
        words = _vocabulary(job.scratch / "words", files if vocabulary is None else vocabulary, settings)
        given = None if answers is None else _answers(job.scratch / "answers", answers)
        figures = write_published(job.directory, files, settings, words, given, commit)
    for name in ("checkpoint", "words", "answers", "text"):
        rmtree(job.scratch / name, ignore_errors=True)
    return dict(figures)


def _beside(names: Iterable[str]) -> list[str]:
    present = set(names)
    return [name for name in (CONTRACT, HEAD) if name in present]


def _copy_weights(folder: Path, raw: RawFiles, settings: CheckpointSettings) -> None:
    """Copies the one file of weights among the raw files into `folder`."""
    members = raw.members()
    found = [name for name in members if name.endswith(ENDINGS)]
    if len(found) != 1:
        listed = ", ".join(found[:5]) or f"none (it holds {', '.join(members[:5])})"
        raise UserError(
            f"{settings.name}: {raw.title}: one file of weights ({', '.join(ENDINGS)}) is needed, there are {listed}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with raw.open(found[0]) as file, (folder / found[0].rpartition("/")[2]).open("wb") as copy:
        copyfileobj(file, copy, 1 << 20)


def _vocabulary(folder: Path, source: RawFiles | HubSource | Path, settings: CheckpointSettings) -> Vocabulary:
    """The vocabulary of a BERT, or that in a checkpoint's own folder, in one form."""
    from vbert.model.checkpoint import read_text
    from vbert.model.vocabulary import VOCABULARY, Vocabulary, write_vocabulary

    if isinstance(source, Path):
        if not any((source / name).is_file() for name in _texts([VOCABULARY, "tokenizer.json"])):
            raise UserError(
                f"{settings.name}: no {VOCABULARY} beside its weights, so its word embeddings can't be told apart: put "
                "it there, or write a spec that says whose it is (`vocabulary: bert_base_uncased`)"
            )
        given = source
    else:
        given = folder.with_name("text")
        if isinstance(source, HubSource):
            fetch_from_hub(given, source, _texts)
        else:
            _copy_texts(given, source)
    folder.mkdir(parents=True, exist_ok=True)
    write_vocabulary(folder, *read_text(given))
    return Vocabulary.at(folder)


def _texts(names: Iterable[str]) -> list[str]:
    """The files that say how a BERT reads text."""
    from vbert.model.checkpoint import TOKENIZER
    from vbert.model.vocabulary import CONFIG, VOCABULARY

    present = set(names)
    return [name for name in (VOCABULARY, CONFIG, TOKENIZER) if name in present]


def _copy_texts(folder: Path, raw: RawFiles) -> None:
    from vbert.model.vocabulary import VOCABULARY

    places = sorted(name.rpartition("/")[0] for name in raw.members() if name.rpartition("/")[2] == VOCABULARY)
    if len(places) != 1:
        raise UserError(f"{raw.title}: one folder with {VOCABULARY} is needed, there are {len(places)}")
    inside = [name for name in raw.members() if name.rpartition("/")[0] == places[0]]
    copy_files(folder, raw, places[0], _texts(name.rpartition("/")[2] for name in inside))


def _answers(folder: Path, raw: RawFiles) -> Path:
    """The one file of answers among the raw files; of several (an archive's) the one that is named so."""
    members = raw.members()
    found = members if len(members) == 1 else [n for n in members if n.rpartition("/")[2].startswith("answers")]
    if len(found) != 1:
        raise UserError(f"{raw.title}: one file of answers is needed, there are {', '.join(found[:5]) or 'none'}")
    name = found[0].rpartition("/")[2]
    copy_files(folder, raw, found[0].rpartition("/")[0], [name])
    return folder / name
