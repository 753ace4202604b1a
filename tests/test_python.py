"""`import vbert`: its names, and the examples of README and docstrings on a small finished store."""

from __future__ import annotations

import ast
import doctest
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docs_blocks import all_blocks

import vbert
from vbert.errors import UnknownImage

TINY = str(Path(__file__).parent / "tiny.yaml")

ROOT = Path(__file__).parents[1]
PYTHON = [block for block in all_blocks() if block.language == "python" and block.runs_alone()]


@pytest.fixture
def demo(demo_folder: Path) -> vbert.Finished:
    """`demo` as a run finds it, done; `features` holds its region features, `exported/vqa` its model."""
    from vbert.export.folder import detector_behind, write_export

    done = vbert.run("demo")
    (demo_folder / "features").symlink_to(done.artifact("regions[easy_vqa]", vbert.Shards).path)
    model = done.artifact("finetune[vqa]", vbert.Model)
    out = demo_folder / "exported/vqa"
    write_export(out, model, detector_behind(model), title="vqa", card="", made_from={})
    done.artifact("images[easy_vqa]", vbert.Images).open("test/100").save(demo_folder / "cat.jpg")
    return done


def test_a_run_gives_metrics_report_and_artifacts(demo: vbert.Finished) -> None:
    assert demo.metrics["vqa/easy_vqa/test/accuracy"] >= 0
    assert demo.report is not None
    assert demo.report.read_text().startswith("<!doctype html>")
    assert demo.run_id in vbert.Store("store").runs()
    with pytest.raises(vbert.UserError, match="did you mean 'prefect'"):
        vbert.run("demo", how="prefct")  # type: ignore[arg-type]
    with pytest.raises(vbert.UserError, match="is of the kind Images, not Shards"):
        demo.artifact("images[shapes]", vbert.Shards)
    with pytest.raises(vbert.UserError, match=r"name one: regions\[shapes\], regions\[easy_vqa\]"):
        demo.artifact("regions", vbert.Shards)


def test_a_run_builds(tmp_path: Path) -> None:
    recipe = vbert.resolve(Path(TINY), {"data.shapes.images": 12})
    done = vbert.run(recipe, changes={"limit": 2}, store=tmp_path, until="images[shapes]", how="local")
    assert done.report is None
    images = done.artifact("images[shapes]", vbert.Images)
    found = [str(image_id) for image_id in images.table().column("image_id").to_pylist()]
    assert done.metrics["images[shapes]/images"] == len(found)
    # opened by its directory it still knows its files; elsewhere it says what it needs
    assert vbert.Images.at(images.path).open(found[0]).mode == "RGB"
    shutil.copy(images.file("images.parquet"), tmp_path)
    with pytest.raises(vbert.BuildError, match=r"Images\.at\(…\)\.over\({'generated': RawFiles\.at\(…\)}\)"):
        vbert.Images.at(tmp_path).open(found[0])
    with pytest.raises(UnknownImage, match=f"holds no image 'x{found[0]}'; near: '{found[0]}'"):
        images.open(f"x{found[0]}")


def test_shards_are_a_mapping(demo: vbert.Finished) -> None:
    shards = vbert.Shards.at(Path("features"))
    assert len(shards) == len(list(shards)) == 180
    assert list(shards) == shards.image_ids()
    assert all(len(shards[image_id].features) for image_id in shards)
    with pytest.raises(KeyError) as caught:
        shards["test/100.png"]
    assert str(caught.value).startswith("Shards(features) holds no image 'test/100.png'; near: 'test/100'")


@pytest.mark.parametrize("page", sorted({block.page for block in PYTHON}))
def test_the_documentation_s_python_runs(page: str, demo: vbert.Finished) -> None:
    """The blocks of a page share their names."""
    names: dict[str, object] = {}
    for block in PYTHON:
        if block.page == page:
            exec(compile(block.text, str(block), "exec"), names)


def test_docstrings_have_examples_that_run(demo: vbert.Finished) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    parser = doctest.DocTestParser()
    for name in ["", *vbert.__all__]:
        thing = getattr(vbert, name) if name else vbert
        if name != "__version__":
            examples = parser.get_doctest(thing.__doc__ or "", {"vbert": vbert, "Path": Path}, name, None, None)
            assert examples.examples, f"vbert.{name} shows no example"
            assert runner.run(examples).failed == 0, name


def test_import_is_instant_and_types_are_those_of_the_names() -> None:
    code = (
        "import sys, json, vbert; print(json.dumps([[m for m in sys.modules if m[:6] in ('vbert', 'vbert.', 'flows')],"
    )
    code += " sorted(m for m in sys.modules if m.partition('.')[0] in ('pydantic', 'torch', 'numpy'))]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout) == [["vbert"], []]
    stub = ast.parse((ROOT / "vbert/__init__.pyi").read_text())
    typed = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == vbert._PLACES
    assert all(getattr(vbert, name).__module__ == place for name, place in typed.items())
    assert all((ROOT / package / "py.typed").is_file() for package in ("vbert", "flows"))
    assert vbert.__version__ in (ROOT / "pyproject.toml").read_text()
    with pytest.raises(AttributeError, match="did you mean 'Images'"):
        vbert.Image  # noqa: B018
