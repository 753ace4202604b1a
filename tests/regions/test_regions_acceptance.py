"""The accepted share of unusable images decides acceptance, never the artifact: changing it costs no work."""

from __future__ import annotations

from pathlib import Path

import pytest
from regions import interop_files as files
from regions.interop_imports import step as import_step

from tasks.download import download
from tasks.images import images
from tasks.regions import regions
from vbert.artifacts.making.engine import Engine, build_here
from vbert.artifacts.making.plan import plan
from vbert.artifacts.steps.stage import Build, Figures, stage
from vbert.artifacts.store.store import Store
from vbert.data import readers
from vbert.data.source import Source
from vbert.errors import NotAccepted
from vbert.regions.acceptance import least
from vbert.regions.detector import DetectorWeights, ExtractionNumerics, RegionSettings
from vbert.regions.shards import Shards

GIF = bytes.fromhex(
    "47494638396101000100800000000000ffffff21f90401000000002c00000000010001000002024401003b"
)  # one pixel


@stage("no_detector", makes=DetectorWeights, version=1)
def no_detector(build: Build) -> Figures:
    (build.directory / "loaded").touch()
    return {}


def of_folder(folder: Path, quarantine: float) -> Shards:
    photos = images({"folder": download(Source(path=str(folder)).pinned())}, readers.reader("folder"))
    return regions(photos, no_detector(), RegionSettings(quarantine=quarantine), ExtractionNumerics()).named("photos")


def test_files_that_do_not_open_are_told_before_the_extraction(tmp_path: Path) -> None:
    folder, store = tmp_path / "photos", Store(tmp_path / "store")
    folder.mkdir()
    for number in range(24):
        (folder / f"{number}.gif").write_bytes(GIF)
    (folder / "broken.gif").write_bytes(b"no image")
    strict, lenient = of_folder(folder, 0.01), of_folder(folder, 0.04)
    assert strict.fingerprint == lenient.fingerprint
    assert plan([strict], store)[-1].objection is None, "nothing is known yet"
    for attempt in (lambda: build_here([strict], store), lambda: Engine(store).make_units(strict, range(1))):
        with pytest.raises(
            NotAccepted, match=r"regions\[photos\]: 1 of 25 images can't be used \(4 %\), more than"
        ) as at:
            attempt()
        assert "images.parquet (width 0)" in str(at.value)
        assert "--set regions.quarantine=0.04`" in str(at.value)
    assert not (store.root / "unfinished" / "regions").exists()
    assert not list(store.root.glob("artifacts/no_detector/*")), "nor is a detector trained first"
    assert plan([lenient], store)[-1].objection is None


def test_shards_that_one_recipe_accepts_another_refuses(tmp_path: Path) -> None:
    """From the manifest's figures, when it is planned, without a file being read or anything made."""
    store, table = Store(tmp_path / "store"), files.lxmert_tsv(tmp_path / "a.tsv", files.images(9))
    table.write_bytes(table.read_bytes()[:-40])
    (made,) = build_here([import_step(table, quarantine=0.5)], store)
    for tar in made.path.glob("*.tar"):
        tar.chmod(0o000)
    strict = import_step(table, quarantine=0.1)
    line = plan([strict], store)[-1]
    assert (line.status, line.artifact.fingerprint) == ("present", made.fingerprint)
    assert line.objection is not None
    assert "1 of 9 images can't be used (11.1 %), more than the accepted 10 %" in line.objection
    assert f"{made.path / 'quarantine.parquet'}" in line.objection
    with pytest.raises(NotAccepted, match=r"`--quarantine 0\.112`"):
        build_here([strict], store)
    assert build_here([import_step(table, quarantine=0.112)], store)[0].path == made.path


def test_the_share_that_is_advised_is_accepted() -> None:
    for total in range(1, 200):
        for bad in range(total + 1):
            assert bad / total <= least(bad, total) < bad / total + 0.0021


def test_damaged_shards_are_made_again_and_not_asked(tmp_path: Path) -> None:
    """An input that is made again asks what is made of it whether that will be accepted."""
    store, table = Store(tmp_path / "store"), files.lxmert_tsv(tmp_path / "a.tsv", files.images(2))
    shards = import_step(table)
    (made,) = build_here([shards], store)
    bits = made.file("000000.tar").read_bytes()
    for held in (made, *(raw.bound(store) for raw in made.step.inputs() if raw.step is not None)):  # type: ignore[union-attr]
        held.path.chmod(0o755)
        for path in held.path.iterdir():
            if path.suffix in (".tar", ".parquet"):
                path.chmod(0o644)
                path.unlink()
    (again,) = build_here([shards], store)
    assert again.file("000000.tar").read_bytes() == bits
