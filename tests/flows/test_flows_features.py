"""`vbert features` as a user calls it: its files, its output, its errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from regions import interop_files as files
from regions.interop_files import real_features

from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.gc import gc
from vbert.regions.shards import Shards

GIVEN = files.images(6, dim=32)


@pytest.fixture
def features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `vbert features …` in this process, in a new folder: (exit code, stdout, stderr)."""
    from flows import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VBERT_STORE", raising=False)
    terminated, mask = signal.getsignal(signal.SIGTERM), os.umask(0o022)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vbert", "features", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    yield call
    signal.signal(signal.SIGTERM, terminated)
    os.umask(mask)


def last(out: str) -> dict[str, Any]:
    return json.loads(out.splitlines()[-1])


def test_in_out_and_compared(features: Any, tmp_path: Path) -> None:
    """A round through all four commands."""
    files.lxmert_tsv(tmp_path / "a.tsv", GIVEN)
    Path("words.txt").write_text("".join(f"thing {i},other name\n" for i in range(9)))
    arguments = ("import", "a.tsv", "--detector", "unknown", "--layer", "res5_pool", "--classes", "words.txt")
    code, out, err = features(*arguments, "--out", "made", "--json")
    assert code == 0
    assert "detector unknown: nothing says which features these fit" in err
    said = last(out)
    regions = sum(len(one.boxes) for one in GIVEN)
    expected = {"images": 6, "regions": regions, "quarantined": 0, "shards": 1, "dim": 32, "format": "lxmert_tsv"}
    assert expected.items() <= said.items()
    assert (said["detector"], said["layer"], said["boxes"], said["out"]) == ("unknown", "res5_pool", True, "made")
    shards = Shards.at(tmp_path / "made")
    assert shards.read(GIVEN[0].name).classes[0].startswith("thing ")
    assert sorted(p.name for p in Path("made").iterdir()) == [
        "000000.tar",
        "contract.json",
        "offsets.parquet",
        "quarantine.parquet",
    ]
    code, out, err = features(*arguments, "--out", "made", "--json")
    assert (code, "--out made is there already" in err) == (2, True)
    code, out, _ = features(*arguments)
    assert (code, (Path(out.strip()).parent / "manifest.json").is_file()) == (0, True)

    code, out, _ = features("inspect", "made", "--json")
    facts = last(out)
    assert (code, facts["images"], facts["regions"], facts["dims"]) == (0, 6, regions, {"32": 6})
    assert facts["contract"]["detector"] == "unknown"
    assert facts["with"]["boxes"] == 6
    code, out, _ = features("inspect", "a.tsv", "--count", "1", "--boxes", "2")
    assert code == 0
    assert "a.tsv: LXMERT TSV (10 columns)" in out
    assert "contract   none: nothing in the file says what made the features" in out
    assert f"{min(one.name for one in GIVEN)}  " in out

    code, out, _ = features("export", "made", "--to", "npy", "--out", "npy", "--json")
    assert (code, last(out)["images"]) == (0, 6)
    code, out, err = features("export", "made", "--to", "npy", "--out", "npy")
    assert (code, "npy is there already" in err) == (2, True)

    code, out, _ = features("compare", "made", "npy", "--json")
    assert (code, last(out)["same"], last(out)["images"]) == (0, True, 6)
    code, out, _ = features("compare", "made", "a.tsv", "--table", "rows.csv")
    assert (code, out.splitlines()[-1]) == (0, "the same: boxes and features of all 6 images agree")
    assert len(Path("rows.csv").read_text().splitlines()) == 7


def test_every_command_can_be_told_the_type_of_numbers(features: Any, tmp_path: Path) -> None:
    """A table of float64, which does not say so: as float32 its features are twice as many numbers, out of all size."""
    files.bottom_up_tsv(tmp_path / "plain.tsv", GIVEN)
    lines = [line.split("\t") for line in Path("plain.tsv").read_text().splitlines()]
    for row, one in zip(lines, GIVEN, strict=True):
        row[5] = files.b64(one.features, "<f8")
    Path("wide.tsv").write_text("\n".join("\t".join(row) for row in lines))
    code, out, _ = features("inspect", "wide.tsv", "--dtype", "float64", "--json")
    assert (code, last(out)["images"], last(out)["dims"]) == (0, 6, {"32": 6})
    code, out, _ = features("export", "wide.tsv", "--dtype", "float64", "--to", "npy", "--out", "npy", "--json")
    assert (code, last(out)["images"], last(out)["unreadable"]) == (0, 6, 0)
    for types in (("wide.tsv", "plain.tsv", "--dtype-a", "float64"), ("plain.tsv", "wide.tsv", "--dtype-b", "float64")):
        code, out, _ = features("compare", *types, "--json")
        assert (code, last(out)["same"], last(out)["images"]) == (0, True, 6)
    code, _, err = features("inspect", "npy", "--dtype", "float64")
    assert (code, "says the type of its numbers itself; leave it out" in err) == (2, True)


def test_a_difference_is_exit_code_1_with_its_cause(features: Any, tmp_path: Path) -> None:
    files.lxmert_tsv(tmp_path / "a.tsv", GIVEN)
    for one in GIVEN:
        one.features *= 2
    files.lxmert_tsv(tmp_path / "b.tsv", GIVEN)
    for one in GIVEN:
        one.features /= 2
    code, out, _ = features("compare", "a.tsv", "b.tsv", "--rows", "2")
    assert code == 1
    assert out.splitlines()[-1] == "not the same: the same features times a constant (6 of 6 images); B is 2 × A"
    assert "… 4 more images" in out
    code, out, _ = features("compare", "a.tsv", "b.tsv", "--json")
    facts = last(out)
    assert (code, facts["same"], facts["causes"]) == (1, False, {"norm": 6})
    assert facts["rows"][0]["norm_ratio"] == pytest.approx(2, abs=1e-4)
    assert facts["median"]["cosine"] == pytest.approx(1, abs=1e-6)


@real_features
def test_boxes_are_drawn_on_their_photos(features: Any, tmp_path: Path) -> None:
    from PIL import Image

    files.mmf_npy(tmp_path / "npy", files.detected(), padding=0)
    photos = files.SHARED / "vqa_v2" / "images"
    code, _, err = features("inspect", "npy", "--images", photos, "-o", "boxes.png", "--count", "2", "--boxes", "8")
    assert code == 0, err
    drawn = Image.open(tmp_path / "boxes.png").convert("RGB")
    assert drawn.width > 900
    pixels = np.asarray(drawn).reshape(-1, 3)
    assert (pixels == [0xE6, 0x19, 0x4B]).all(1).sum() > 100  # the first box's colour
    code, _, err = features("inspect", "npy", "-o", "boxes.png")
    assert (code, "give their folder with --images" in err) == (2, True)
    for folder, said in (("nlvr2/images", "none of the features' images is there"), ("coco/annotations", "neither")):
        code, _, err = features("inspect", "npy", "--images", files.SHARED / folder, "-o", "boxes.png")
        assert (code, said in err) == (2, True)


WRONG = [
    (["a.tsv"], "--detector"),
    (
        ["a.tsv", "--detector", "shapes_cn"],
        "no detector 'shapes_cn' in data_specs/detectors; did you mean 'shapes_cnn'",
    ),
    (["b.tsv", "--detector", "unknown"], "b.tsv: no such file"),
    (["a.tsv", "--detector", "unknown", "--format", "lxmert"], "did you mean 'lxmert_tsv'"),
    (["a.tsv", "--detector", "unknown", "--boxes-in", "resize:800"], "give original, recorded, resized:SHORT"),
    (["a.tsv", "--detector", "unknown", "--images", ".", "--sizes", "s.csv"], "give one of them"),
    (["a.tsv", "--detector", "unknown", "--ids", "x(.*)"], "--ids 'x(.*)': finds nothing in 'COCO_"),
    (["a.tsv", "--detector", "unknown", "--layer", "fc8"], "fc8"),
    (["o.tsv", "--detector", "unknown"], "give --images FOLDER or --sizes FILE"),
]


@pytest.mark.parametrize(("arguments", "said"), WRONG)
def test_wrong_usage_is_a_sentence_and_exit_code_2(
    features: Any, tmp_path: Path, arguments: list[str], said: str
) -> None:
    files.lxmert_tsv(tmp_path / "a.tsv", GIVEN)
    files.oscar_tsv(tmp_path / "o.tsv", GIVEN)
    code, out, err = features("import", *arguments)
    assert (code, said in " ".join((out + err).split())) == (2, True), out + err


def test_an_import_is_kept_by_gc(features: Any, tmp_path: Path) -> None:
    """Each file's last import counts as wanted, like each recipe's last run."""
    files.lxmert_tsv(tmp_path / "a.tsv", GIVEN)
    code, out, _ = features("import", "a.tsv", "--detector", "unknown")
    assert code == 0
    gc(Store("store"), dry_run=False, grace=0, recent=0)
    assert (Path(out.strip()) / "contract.json").is_file()


def test_importing_and_inspecting_start_without_torch_or_prefect(tmp_path: Path) -> None:
    files.lxmert_tsv(tmp_path / "a.tsv", GIVEN)
    code = """
import sys
from flows import cli
sys.argv = ["vbert", "features", "inspect", sys.argv[1]]
try:
    cli.main()
except SystemExit:
    pass
print(*sorted({"torch", "prefect", "transformers", "datasets"} & {name.split(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.tsv"], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""
