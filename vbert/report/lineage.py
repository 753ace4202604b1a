"""The chain behind a report: every artifact with its settings, figures, environment and place in the picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.store.manifest import Manifest
from vbert.errors import BuildError
from vbert.report.layout import GraphLayout, essential, layered_layout

FAMILIES = {
    "download": "raw",
    "generate": "raw",
    "bert": "raw",
    "checkpoint": "raw",
    "images": "data",
    "examples": "data",
    "overlaps": "data",
    "vocabulary": "data",
    "bert_vocabulary": "data",
    "detector": "regions",
    "regions": "regions",
    "pretrain": "model",
    "finetune": "model",
    "evaluate": "result",
    "heads": "result",
    "explain": "result",
}
# The most informative figures first; an artifact's first two are drawn in its node.
TELLING = (
    *("accuracy", "map50", "attribute_accuracy", "mlm_accuracy", "itm_accuracy", "images", "regions", "pieces"),
    *("examples", "train", "test", "files", "loss", "bytes"),
)
DRAWN = 2
VALIDATED = {"pretrain": "val", "finetune": "val"}  # stage → the split that its figures are of


@dataclass(frozen=True)
class LineageNode:
    """An artifact. `manifest` is None where it is no longer in the store; `settings` are the arguments in its
    fingerprint, inputs by their fingerprints."""

    artifact: Artifact
    manifest: Manifest | None
    settings: Mapping[str, Any]
    inputs: list[str]

    @property
    def key(self) -> str:
        return self.artifact.fingerprint

    @property
    def stage(self) -> str:
        return self.artifact.stage_name

    @property
    def label(self) -> str:
        return self.artifact.label or ""

    @property
    def title(self) -> str:
        return self.artifact.title

    @property
    def family(self) -> str:
        return FAMILIES.get(self.stage, "other")

    @property
    def figures(self) -> Mapping[str, Any]:
        figures = self.manifest.figures if self.manifest else {}
        return {name: value for name, value in figures.items() if name != "notes"}

    @property
    def notes(self) -> list[str]:
        """Sentences about rows and files left out."""
        return self.manifest.figures.get("notes", []) if self.manifest else []

    @property
    def seconds(self) -> float:
        return self.manifest.seconds if self.manifest else 0.0

    def split(self, name: str) -> str:
        """The split that the figure `name` was measured on; "" for counts, training losses, and detectors, whose
        settings don't state it."""
        if not isinstance(self.figures[name], float) or name == "loss":
            return ""
        return str(self.settings["split"]) if self.stage in ("evaluate", "explain") else VALIDATED.get(self.stage, "")

    @property
    def headline(self) -> list[tuple[str, Any]]:
        return [(name, self.figures[name]) for name in TELLING if name in self.figures][:DRAWN]

    @property
    def numerics(self) -> Mapping[str, Any]:
        """Threads, processes and precision of a computing stage; empty for others."""
        numerics = self.settings.get("numerics")
        return numerics if isinstance(numerics, Mapping) else {}


@dataclass(frozen=True)
class Lineage:
    """The artifacts, inputs first, and how they are drawn."""

    nodes: list[LineageNode]
    layout: GraphLayout

    @property
    def seconds(self) -> float:
        """Wall seconds of all steps, one after the other."""
        return sum(node.seconds for node in self.nodes)

    @property
    def size(self) -> int:
        """Bytes of all artifacts."""
        return sum(node.manifest.size for node in self.nodes if node.manifest)


def trace_lineage(roots: Iterable[Artifact]) -> Lineage:
    """Everything behind `roots`, each fingerprint once. Loose artifacts have no lineage and are left out."""
    nodes: dict[str, LineageNode] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.step is None or artifact.fingerprint in nodes:
            return
        inputs = artifact.inputs()
        for parent in inputs:
            visit(parent)
        try:
            manifest: Manifest | None = artifact.manifest
        except BuildError:
            manifest = None
        settings = artifact.step.hashed["arguments"]
        nodes[artifact.fingerprint] = LineageNode(
            artifact, manifest, settings, [parent.fingerprint for parent in inputs]
        )

    for root in roots:
        visit(root)
    return Lineage(list(nodes.values()), layered_layout(essential({node.key: node.inputs for node in nodes.values()})))
