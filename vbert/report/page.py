"""The report's artifact and the arguments of its stage; importing it is cheap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Settings, Wiring
from vbert.data.examples import Examples
from vbert.data.images import Images
from vbert.metrics.evaluation import Evaluation
from vbert.objectives.trained import Model
from vbert.regions.shards import Shards

PAGE = "report.html"


@dataclass(frozen=True)
class EvaluatedEntry:
    """A downstream entry evaluated on one split, with the images, examples and regions of its predictions."""

    model: Model
    evaluation: Evaluation
    images: Images
    examples: Examples
    shards: Shards


class ReportSettings(Settings):
    """The amount that is shown; with the defaults the page stays below about 3 MB."""

    scenes: int = Field(8, ge=0, description="held-out images with the detector's boxes")
    predictions: int = Field(9, ge=0, description="each of wrong, least certain and right ones")
    attention: int = Field(6, ge=0, description="predictions that are explained")
    again: Annotated[str, Wiring] = Field("", description="lines for a shell that make it again; shown, never hashed")
    side: int = Field(320, ge=16, description="longer side of a picture in pixels, at most")


class Report(Artifact):
    """report.html: opens from disk, needs no network.

    >>> vbert.run("demo").artifact("report", vbert.Report).page().name
    'report.html'
    """

    def page(self) -> Path:
        return self.file(PAGE)
