"""Whether images and examples are accepted: the share of their boxes that can't be used, the published counts."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from vbert.artifacts.steps.settings import least
from vbert.data.boxes import UNUSABLE
from vbert.data.spec import SPLITS, ReaderOptions
from vbert.errors import Damaged

if TYPE_CHECKING:
    from vbert.artifacts.steps.artifact import Artifact
    from vbert.artifacts.store.manifest import Manifest
    from vbert.artifacts.store.store import Store


def objection(artifact: Artifact) -> str | None:
    """Why the index of a step is refused, with what would accept it; None if accepted or not yet made.

    Its figures say how many boxes there are, how many can't be used (see `boxes.BoxConverter`), and its notes which;
    and how many rows of each split there are.
    """
    if artifact.step is None or artifact.store is None or (made := whole(artifact, artifact.store)) is None:
        return None
    reading: ReaderOptions = artifact.step.arguments.get("reading") or ReaderOptions()
    return _unusable(artifact, made, reading) or _miscounted(artifact, made, reading)


def _unusable(artifact: Artifact, made: Manifest, reading: ReaderOptions) -> str | None:
    bad = sum(made.figures.get(f"boxes_{reason}", 0) for reason in UNUSABLE)
    total = bad + made.figures.get("boxes", 0)
    if not bad or bad / total <= reading.unusable_boxes:
        return None
    note = next((sentence for sentence in made.figures.get("notes", ()) if "boxes can't be used" in sentence), "")
    return (
        f"{artifact.title}: {note}, more than the accepted {100 * reading.unusable_boxes:.3g} %: mend them, or accept "
        f"them with `--set data.{artifact.label or 'NAME'}.unusable_boxes={least(bad, total)}` (in a spec: "
        f"`unusable_boxes` of its `images`), which reads nothing again"
    )


def _miscounted(artifact: Artifact, made: Manifest, reading: ReaderOptions) -> str | None:
    """Other numbers of rows than published. Under a limit nothing is counted; rows that the reader left out, and says
    so, may be missing."""
    assert artifact.step is not None
    images: Artifact = artifact.step.arguments.get("images", artifact)
    limited = images.step is not None and images.step.arguments.get("limit") is not None
    found: dict[str, int] = {split: made.figures[split] for split in SPLITS if split in made.figures}
    published = {str(split): count for split, count in reading.counts.items()}
    if not published or not found or limited:
        return None
    if (hold_out := reading.validation) is not None:
        for counts in (found, published):
            counts[hold_out.of] = counts.get(hold_out.of, 0) + counts.pop("val", 0)
    missing = {split: published.get(split, 0) - found.get(split, 0) for split in SPLITS}
    if min(missing.values()) >= 0 and sum(missing.values()) <= made.figures.get("left_out", 0):
        return None
    return (
        f"{artifact.title}: {_counts(found)} were read, published are {_counts(published)}; are all files there, and "
        f"of that version? If they are right, mend `counts` in the spec, which reads nothing again"
    )


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[split]:,} {split}" for split in SPLITS if split in counts)


def whole(artifact: Artifact, store: Store) -> Manifest | None:
    """The manifest of a finished artifact; None where it is absent or damaged: the artifact is made again first."""
    with suppress(Damaged):
        return store.find(artifact.stage_name, artifact.fingerprint)
    return None
