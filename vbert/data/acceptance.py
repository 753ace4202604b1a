"""Whether images and examples are accepted: the share of their boxes that can't be used."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vbert.artifacts.steps.settings import least
from vbert.data.boxes import UNUSABLE
from vbert.data.spec import ReaderOptions
from vbert.errors import Damaged

if TYPE_CHECKING:
    from vbert.artifacts.steps.artifact import Artifact
    from vbert.artifacts.store.manifest import Manifest
    from vbert.artifacts.store.store import Store


def objection(artifact: Artifact) -> str | None:
    """Why the index of a step is refused, with the setting that would accept it; None if accepted or not yet made.

    Its figures say how many boxes there are, how many can't be used (see `boxes.BoxConverter`), and its notes which.
    """
    if artifact.step is None or artifact.store is None or (made := whole(artifact, artifact.store)) is None:
        return None
    bad = sum(made.figures.get(f"boxes_{reason}", 0) for reason in UNUSABLE)
    total = bad + made.figures.get("boxes", 0)
    reading: ReaderOptions = artifact.step.arguments.get("reading") or ReaderOptions()
    if not bad or bad / total <= reading.unusable_boxes:
        return None
    note = next((sentence for sentence in made.figures.get("notes", ()) if "boxes can't be used" in sentence), "")
    return (
        f"{artifact.title}: {note}, more than the accepted {100 * reading.unusable_boxes:.3g} %: mend them, or accept "
        f"them with `--set data.{artifact.label or 'NAME'}.unusable_boxes={least(bad, total)}` (in a spec: "
        f"`unusable_boxes` of its `images`), which reads nothing again"
    )


def whole(artifact: Artifact, store: Store) -> Manifest | None:
    """The manifest of a finished artifact; None where it is absent or damaged: the artifact is made again first."""
    with suppress(Damaged):
        return store.find(artifact.stage_name, artifact.fingerprint)
    return None
