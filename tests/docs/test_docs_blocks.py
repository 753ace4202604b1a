"""Every code block of README and docs is checked by its language, and runs unless it says why not."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError
from docs_blocks import FENCE, PAGES, ROOT, Block, all_blocks, shell_lines, words
from ruamel.yaml import YAML

from flows.cli import app
from flows.recipe import Recipe, resolve
from vbert.data.spec import dataset
from vbert.model.bert import model_spec
from vbert.regions.detector import detector_file

BLOCKS = all_blocks()
LANGUAGES = {"sh", "python", "yaml", "jsonl", "json", "csv", "text", "mermaid"}
# What a fragment of a recipe is completed with, where it has none of its own.
WHOLE: dict[str, Any] = {
    "data": {
        "shapes": {"spec": "shapes_tasks", "images": 400},
        "easy_vqa": {"spec": "easy_vqa"},
        "captions": {"spec": "shapes", "images": 100},
    },
    "detector": {"spec": "shapes_cnn", "train": {"data": "shapes"}},
    "pretrain": {"data": ["shapes"], "steps": 1, "learning_rate": 1e-3},
}
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def of(*languages: str) -> list[Any]:
    return [pytest.param(block, id=str(block)) for block in BLOCKS if block.language in languages]


def test_every_block_has_a_language_and_output_follows_what_made_it() -> None:
    assert [f"{b}: {b.language!r}" for b in BLOCKS if b.language not in LANGUAGES] == []
    loose = [str(b) for b in BLOCKS if b.language == "text" and b.after != "sh" and b.not_run is None]
    assert loose == []
    assert [str(b) for b in BLOCKS if b.not_run is not None and len(b.not_run) < 8] == []


@pytest.mark.parametrize("block", of("sh"))
def test_commands_exist_with_their_options(block: Block) -> None:
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")
    for line in shell_lines(block):
        for inner in re.findall(r"\$\((vbert .*?)\)", line):
            app.parse_args(words(inner)[1:], exit_on_error=False, print_error=False)
        given = words(re.sub(r"\$\(.*?\)", "x", line))
        while given and re.fullmatch(r"[A-Za-z_]+=.*|srun", given[0]):
            given = given[1:]
        if given and given[0] == "vbert":
            app.parse_args(given[1:], exit_on_error=False, print_error=False)
        elif given and given[0] == "make":
            assert {word for word in given[1:] if "=" not in word} <= TARGETS
        elif block.not_run is None:
            assert not given or given[0] in ("cd", "cp", "git", "python", "source", "ls", "rm", "mkdir"), line


def test_commands_within_sentences_and_tables_exist() -> None:
    """`vbert …` in backticks; where a part is left out (…), its command alone."""
    wrong = []
    for page in PAGES:
        for said in re.findall(r"(?<!`)`(vbert [^`]+)`(?!`)", FENCE.sub("", page.read_text())):
            given = words(re.sub(r"\$\(.*?\)", "x", " ".join(said.split())))[1:]
            try:
                found, *_ = app.parse_commands(given)
                if not found or found[0] not in app:
                    wrong.append(f"{page.name}: {said}: no such command")
                elif "…" not in said and len(given) > len(found):
                    app.parse_args(given, exit_on_error=False, print_error=False)
            except CycloptsError as error:
                wrong.append(f"{page.name}: {said}: {error}")
    assert wrong == []


@pytest.mark.parametrize("block", [p for p in of("yaml") if not (p.values[0].not_run or p.values[0].file)])
def test_yaml_is_a_recipe_or_a_spec(block: Block, tmp_path: Path) -> None:
    path = tmp_path / "fragment.yaml"
    path.write_text(block.text)
    fields = YAML(typ="safe").load(block.text)
    if "sources" in fields:
        for source in fields["sources"].values():
            if "path" in source:
                (tmp_path / source["path"]).mkdir()
        assert dataset(str(path)).sources
    elif "architecture" in fields:
        assert detector_file(str(path)).name
    elif "sizes" in fields or fields.get("kind") in ("bert", "visualbert"):
        assert model_spec(str(path)).name
    else:
        assert set(fields) <= set(Recipe.model_fields), block
        completed = {**WHOLE, **fields}
        completed["data"] = {**WHOLE["data"], **fields.get("data", {})}
        for entry in completed["data"].values():
            if str(entry.get("spec", "")).endswith(".yaml"):
                entry["spec"] = "vqa_v2"
        with path.open("w") as out:
            YAML().dump(completed, out)
        assert resolve(str(path)).data


@pytest.mark.parametrize("block", of("json", "jsonl", "csv"))
def test_data_can_be_read(block: Block) -> None:
    if block.language == "csv":
        rows = list(csv.reader(block.text.splitlines()))
        assert len({len(row) for row in rows}) == 1
    elif block.language == "json":
        json.loads(block.text)
    else:
        assert [json.loads(line) for line in block.text.splitlines() if line]
