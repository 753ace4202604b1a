"""Describing and planning a graph stays instant: no heavy library is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = (
    "torch",
    "torchvision",
    "transformers",
    "webdataset",
    "prefect",
    "pyarrow",
    "numpy",
    "PIL",
    "accelerate",
    "scipy",
)
ROOT = Path(__file__).parents[2]

PLAN = """
import sys, json
from flows.graph import graph
from flows.recipe import resolve
from vbert.artifacts.making.plan import plan
from vbert.artifacts.store.store import Store
lines = plan([graph(resolve({recipe!r}))], Store({store!r}))
print(json.dumps([len(lines), sorted({{name.split(".")[0] for name in sys.modules}})]))
"""


def test_planning_imports_nothing_heavy(tmp_path: Path) -> None:
    code = PLAN.format(recipe="demo", store=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    stages, modules = json.loads(done.stdout)
    assert stages > 8
    assert set(modules).isdisjoint(HEAVY)


@pytest.mark.parametrize(
    "module",
    [
        "flows.cli",
        "flows.cli_features",
        "tasks.import_features",
        "flows.running",
        "flows.terminal",
        "flows.listing",
        "flows.doctor",
    ],
)
def test_the_command_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert set(done.stdout.split()).isdisjoint(HEAVY)


def test_reading_raw_files_imports_no_pandas(tmp_path: Path) -> None:
    """Every child process that begins with raw files would wait for it."""
    from vbert.data.raw import RawMember, write_index

    write_index(tmp_path, [RawMember("a", "a", 0, 1, 1)])
    code = "import sys; from pathlib import Path; from vbert.data.raw import RawFiles; "
    code += f"print(*RawFiles.at(Path({str(tmp_path)!r})).members(), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split()[0] == "a"
    assert {"pandas", "torch"}.isdisjoint(done.stdout.split())
