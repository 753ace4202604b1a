from __future__ import annotations

import pytest
from regions.regions_tiny import CONTRACT

from vbert.artifacts.steps.fingerprint import digest
from vbert.artifacts.steps.settings import Plugin
from vbert.errors import UserError
from vbert.regions.boxes import Adaptive, Fixed, Nms
from vbert.regions.contract import Contract, Preprocessing, check, differences
from vbert.regions.detector import RegionSettings, detector_file, detector_names

CHANGED = {
    "detector": "other",
    "backend": Plugin(name="torchvision", version=2),
    "weights": "cd" * 32,
    "layer": "fc6",
    "dim": 1024,
    "boxes": Adaptive(minimum=1, maximum=10, score=0.2),
    "nms": Nms(iou=0.3),
    "features_of": "regressed",
    "preprocessing": Preprocessing(colours="BGR"),
    "coordinates": "none",
}
NAMED = {
    "backend": "backend.version",
    "boxes": "boxes.score",
    "nms": "nms.iou",
    "preprocessing": "preprocessing.colours",
}


@pytest.mark.parametrize("field", CHANGED)
def test_a_mismatch_names_its_field_and_both_values(field: str) -> None:
    other = CONTRACT.model_copy(update={field: CHANGED[field]})
    with pytest.raises(UserError, match=f"region features don't fit: {NAMED.get(field, field)} is "):
        check(CONTRACT, other)
    assert list(differences(CONTRACT, other)) == [NAMED.get(field, field)]


def test_every_field_that_can_differ_is_tried() -> None:
    fixed = {"ties", "dtype"}  # one value so far
    assert set(CHANGED) | fixed | {"box_input"} == set(Contract.model_fields)


def test_box_input_is_open_in_shards_and_fixed_by_the_model() -> None:
    model = CONTRACT.with_box_input("append6")
    check(model, CONTRACT)
    check(CONTRACT, model)
    with pytest.raises(UserError, match="box_input"):
        check(model, CONTRACT.with_box_input("none"))
    with pytest.raises(UserError, match="box_input"):
        model.with_box_input("none")


def test_other_box_rules_are_named_by_their_rule() -> None:
    other = CONTRACT.model_copy(update={"boxes": Fixed(count=36)})
    with pytest.raises(UserError, match=r"boxes\.rule is 'adaptive' for the model, 'fixed' for the shards"):
        check(CONTRACT, other)


def test_it_reads_what_it_wrote(tmp_path) -> None:
    CONTRACT.write(tmp_path)
    assert Contract.read(tmp_path / "contract.json") == CONTRACT


def test_shipped_specs_load_and_prose_changes_no_fingerprint() -> None:
    for name in detector_names():
        found = detector_file(name)
        reworded = found.model_copy(update={"title": "another", "licence": "MIT"})
        assert digest(found.spec()) == digest(reworded.spec())
        assert RegionSettings().resolved(found).boxes == found.boxes


def test_an_unknown_detector_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="did you mean 'shapes_cnn'"):
        detector_file("shape_cnn")


def test_features_without_boxes_fit_no_model_that_reads_boxes() -> None:
    bare = CONTRACT.model_copy(update={"coordinates": "none"})
    assert bare.with_box_input("none").box_input == "none"
    with pytest.raises(UserError, match="box_input 'append6': the features have no boxes"):
        bare.with_box_input("append6")
