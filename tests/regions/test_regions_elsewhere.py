"""Specs of detectors that only features can be imported from."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.graph import weights_of
from vbert.errors import UserError
from vbert.regions.boxes import Fixed
from vbert.regions.detector import DETECTORS, detector_file, load_backend

# name → layer, numbers a region, regions an image
MADE = {
    "detectron1_mask_rcnn_R_101_FPN_2x": ("fc6", 1024, 150),
    "pythia_visual_genome_X_101": ("fc6", 2048, 100),
    "pythia_visual_genome_X_152": ("fc6", 2048, 100),
}


@pytest.mark.parametrize("name", MADE)
def test_it_says_how_its_features_were_made_and_that_it_can_not_be_run(name: str) -> None:
    file = detector_file(name)
    assert isinstance(file.boxes, Fixed)
    assert (file.layer, file.dim, file.boxes.count) == MADE[name]
    assert (file.nms.rule, file.nms.iou, file.preprocessing.resize) == ("proposals", 0.5, "opencv")
    with pytest.raises(UserError, match=f"{name} can't be run from images: it needs"):
        weights_of(file)
    with pytest.raises(UserError, match="imported, but not made from images"):
        load_backend(file.spec().backend.name)


def test_a_detector_elsewhere_says_why(tmp_path: Path) -> None:
    shipped = DETECTORS.folder / "pythia_visual_genome_X_152.yaml"
    own = tmp_path / "pythia_visual_genome_X_152.yaml"
    own.write_text("".join(line for line in shipped.open() if not line.startswith("import_only")))
    with pytest.raises(UserError, match="import_only: say why"):
        detector_file(str(own))
