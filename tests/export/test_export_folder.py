"""An exported folder is whole, or refused by the name of the file that is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from export.export_world import contract_of, make_detector, make_model

from vbert.artifacts.store.digests import seal
from vbert.artifacts.store.store import Store
from vbert.errors import UserError
from vbert.export.folder import (
    DETECTOR,
    DETECTOR_FILES,
    MODEL_FILES,
    RECORD,
    detector_behind,
    read_export,
    read_record,
    write_export,
)
from vbert.inference.visualbert import VisualBert


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("export")
    detector = make_detector(at / "d")
    model = make_model(at / "m", contract_of(detector))
    write_export(at / "out", model, detector, title="vqa", card="# vqa\n", made_from={"stage": "finetune"})
    return at / "out"


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy, to be damaged."""
    shutil.copytree(exported, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path / "copy"


def test_what_is_read_is_what_was_written(exported: Path, folder: Path) -> None:
    model, detector = read_export(folder)
    original = exported.parent
    assert detector is not None
    assert detector.digest() == model.contract().weights
    assert detector.about() == json.loads((original / "d/detector.json").read_text())
    assert model.labels() == ["no", "yes", "red"]
    for name in ("model.safetensors", "config.json", "vocab.txt", "contract.json", "head.json", "curves.jsonl"):
        assert (folder / name).read_bytes() == (original / "m/model" / name).read_bytes()
    record = read_record(folder)
    assert (record.title, record.objective, record.made_from) == ("vqa", "vqa", {"stage": "finetune"})
    assert (folder / "README.md").read_text() == "# vqa\n"


def test_the_card_may_be_edited_and_hidden_files_are_nobodys(folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    (folder / ".git").mkdir()
    (folder / ".git/HEAD").write_text("x")
    read_export(folder)
    (folder / "README.md").unlink()
    read_export(folder)


def flip(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)

    return change


def resealed(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        record = json.loads((folder / RECORD).read_text())
        del record["digest"]
        (folder / RECORD).write_bytes(seal(record | changes))

    return change


ENTRY = {"size": 0, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip("model.safetensors"), "model.safetensors is damaged: other bytes"),
        (flip("detector/weights.safetensors"), "detector/weights.safetensors is damaged: other bytes"),
        (flip(RECORD), "export.json is damaged"),
        (lambda f: (f / "head.json").write_bytes(b"{"), r"head.json is damaged: 1 bytes instead of"),
        (lambda f: (f / "vocab.txt").unlink(), "vocab.txt is missing: copy the folder again"),
        (lambda f: shutil.rmtree(f / "detector"), "detector/detector.json is missing"),
        (lambda f: (f / "extra.bin").write_bytes(b""), "extra.bin is not of this export"),
        (lambda f: (f / RECORD).unlink(), "export.json is missing: copy the folder again"),
        (lambda f: ((f / RECORD).unlink(), (f / "head.json").unlink()), "no export.json in it: this is no exported"),  # type: ignore[func-returns-value]
        (lambda f: (f / RECORD).write_text("{"), "export.json is damaged"),
        (lambda f: shutil.rmtree(f), "no such folder"),
        (resealed(format=2), "format 2, this version of vbert reads 1; upgrade vbert"),
        (resealed(files={"../../etc/passwd": ENTRY}), "is no name of a file that an export holds"),
        (resealed(files={"/etc/passwd": ENTRY}), "is no name of a file that an export holds"),
        (resealed(files=[]), "not a record of an export"),
        (resealed(surprise=1), "not a record of an export"),
        (resealed(layout="transformers"), "was exported for transformers"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(folder: Path, change: Callable[[Path], None], said: str) -> None:
    read_export(folder)
    change(folder)
    with pytest.raises(UserError, match=said) as refused:
        read_export(folder)
    assert str(folder) in refused.value.message


def test_files_of_an_export_are_its_own_and_may_be_edited(exported: Path, tmp_path: Path) -> None:
    model, detector = read_export(exported)
    write_export(tmp_path / "out", model, detector, title="vqa", card="", made_from={})
    for name in (*MODEL_FILES, *(f"{DETECTOR}/{name}" for name in DETECTOR_FILES), RECORD):
        stat = (tmp_path / "out" / name).stat()
        assert (stat.st_nlink, stat.st_mode & 0o777) == (1, 0o644), name


def test_without_its_record_nothing_else_of_a_folder_is_blamed(folder: Path) -> None:
    (folder / RECORD).unlink()
    with pytest.raises(UserError, match=r"export\.json is missing: copy the folder again"):
        VisualBert.load(folder)


def test_an_export_goes_into_no_model(exported: Path, finished_store: Path) -> None:
    model, detector = read_export(exported)
    store = Store(finished_store)
    (made, *_) = store.manifests("finetune")
    for whole in (exported, exported.parent / "m/model", store.whole(made), store.whole(made).parent):
        before = sorted(whole.iterdir())
        with pytest.raises(UserError, match=r"is inside .*, which holds a model already"):
            write_export(whole / "deep/inner", model, detector, title="", card="", made_from={})
        assert sorted(whole.iterdir()) == before


def test_an_export_takes_no_other_folders_place(exported: Path, tmp_path: Path) -> None:
    model, detector = read_export(exported)
    out = tmp_path / "out"

    def write() -> None:
        write_export(out, model, detector, title="again", card="", made_from={})

    out.mkdir()
    write()
    write()  # in an earlier one's place
    assert read_record(out).title == "again"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/cat.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="holds other things"):
        write_export(tmp_path / "photos", model, None, title="", card="", made_from={})
    with pytest.raises(UserError, match="is a file"):
        write_export(tmp_path / "photos/cat.jpg", model, None, title="", card="", made_from={})
    assert (tmp_path / "photos/cat.jpg").read_bytes() == b"x"


def test_a_model_whose_features_were_imported_has_no_detector(exported: Path, tmp_path: Path) -> None:
    model, _ = read_export(exported)
    imported = make_model(tmp_path / "m", model.contract().model_copy(update={"weights": None}))
    write_export(tmp_path / "out", imported, None, title="vqa", card="", made_from={})
    again, detector = read_export(tmp_path / "out")
    assert detector is None
    assert detector_behind(again) is None


def test_another_detector_is_refused(exported: Path, tmp_path: Path) -> None:
    model, detector = read_export(exported)
    other = make_model(tmp_path / "m", model.contract().model_copy(update={"weights": "1" * 64}))
    with pytest.raises(UserError, match=r"the detector isn't the one .*weights is '1111"):
        write_export(tmp_path / "out", other, detector, title="vqa", card="", made_from={})
    assert not (tmp_path / "out").exists()


def test_the_detector_is_found_by_the_models_lineage(finished_store: Path) -> None:
    from vbert.objectives.trained import Model

    store = Store(finished_store)
    (made,) = store.manifests("detector")
    for stage in ("pretrain", "finetune"):
        for manifest in store.manifests(stage):
            model = Model.at(Path(store.where(manifest)).parent)
            detector = detector_behind(model)
            assert detector is not None
            assert detector.path == store.whole(made)
            assert torch.is_tensor(next(iter(model.load().parameters())))


def test_a_detector_that_is_gone_is_said_to_be(finished_store: Path, tmp_path: Path) -> None:
    from vbert.errors import BuildError
    from vbert.objectives.trained import Model

    shutil.copytree(finished_store, tmp_path / "store")
    store = Store(tmp_path / "store")
    (manifest, *_) = store.manifests("finetune")
    model = Model.at(store.whole(manifest))
    shutil.copytree(model.path, tmp_path / "bare")
    bare = Model.at(tmp_path / "bare")
    assert detector_behind(bare) is None
    found = detector_behind(bare, store)
    assert found is not None
    assert found.digest() == bare.contract().weights
    shutil.rmtree(tmp_path / "store/artifacts/detector")
    with pytest.raises(BuildError, match=r"the detector of .* is no longer in .*--until detector"):
        detector_behind(model, Store(tmp_path / "store"))
