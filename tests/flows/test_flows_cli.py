"""The command: wrong usage is one sentence and exit code 2 before anything runs; each command's output and results."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from processes import until

TINY = Path(__file__).parents[1] / "tiny.yaml"


@pytest.fixture
def store(finished_store: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished_store, tmp_path / "finished", symlinks=True)


# ---------------------------------------------------------------------- wrong usage


# in tiny.yaml, instead of it, the place and field that are named, and what else must be: the nearest name, the value
WRONG = [
    ("pretrain: {", "pretrain: {stepz: 7, ", "11:12: pretrain.stepz", "'steps'"),
    ("steps: 6,", "steps: -6,", "7:59: detector.train.steps", "-6"),
    ("limit: 60", "limit: many", "3:8: limit", "many"),
    ("images: 100", "images: 0", "5:34: data.shapes.images", "0"),
    ("{spec: easy_vqa}", "{spec: easy_vqq}", "6:20: data.easy_vqa.spec", "'easy_vqa'"),
    ("{spec: shapes_cnn", "{spec: shapes", "7:18: detector.spec", "'shapes_cnn'"),
    ("vqa: {data: easy_vqa", "vqa: {data: easyvqa", "13:15: downstream.vqa.data", "'easy_vqa'"),
    ("[shapes, easy_vqa]", "[shape, easy_vqa]", "11:19: pretrain.data.0", "'shapes'"),
    ("heads: 2", "heads: 3", "10:8: model", "heads 3"),
    ("  vqa: {", "  vqa: {start: x, ", "13:16: downstream.vqa.start", "'x'"),
    ("seed: 0", "seed: [", "4:5: ", "YAML"),
    ("model: {layers: 1", "model: {init: minilm_l6", "10:39: model.hidden_size", "384"),
    ("data: easy_vqa, steps: 8", "data: easy_vqa, steps: 0", "13:32: downstream.vqa.steps", "0"),
]


@pytest.mark.parametrize(("was", "wrong", "place", "named"), WRONG, ids=[place for _, _, place, _ in WRONG])
def test_a_wrong_recipe_is_refused_with_its_place(
    was: str, wrong: str, place: str, named: str, vbert: Any, tmp_path: Path
) -> None:
    text = TINY.read_text()
    assert was in text
    Path("r.yaml").write_text(text.replace(was, wrong, 1))
    code, _, error = vbert("run", "r.yaml", "--local")
    assert code == 2
    assert error.startswith(f"vbert: r.yaml:{place}"), error
    assert named in error.removeprefix(f"vbert: r.yaml:{place}"), error
    assert error.count("\n") == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("run dmo", "'dmo' 'demo'"),
        ("run nix.yaml", "nix.yaml"),
        ("run demo --set pretrain.stepz=3", "--set pretrain.stepz"),
        ("run demo --set seed", "--set 'seed' KEY=VALUE"),
        ("run demo --until regionz", "'regionz' 'regions'"),
        ("run demo --force regionz", "'regionz' 'regions'"),
        ("run demo --machine units=4", "--machine units"),
        ("run demo --limit -3", "limit -3"),
        ("run demo --local --prefect", "--local --prefect"),
        ("run demo --local --store /proc/none", "/proc/none --store"),
        ("run demo --set model.init=foo", "model.init: foo data_specs/models"),
        ("path demo regions", "regions[shapes] regions[easy_vqa]"),
        ("build nix.json", "nix.json"),
        ("schedule demo", "--cron --every"),
        ("init dmo", "'dmo' 'demo'"),
        ("gc", "store --store"),
        ("verify --store other", "other"),
        ("keep 2026-demo", "store --store"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: str, named: str, vbert: Any, tmp_path: Path) -> None:
    """It names what is wrong, and the nearest that is right."""
    code, _, error = vbert(*arguments.split())
    assert code == 2
    assert error.startswith("vbert: "), error
    assert [word for word in named.split() if word not in error] == [], error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "meant"), [("rnu demo", '"run"'), ("run demo --lokal", "--local"), ("run", "RECIPE")]
)
def test_a_wrong_word_on_the_line_names_the_nearest(arguments: str, meant: str, vbert: Any) -> None:
    code, _, error = vbert(*arguments.split())
    assert code == 2
    assert meant in error


# ---------------------------------------------------------------------- recipes


def test_show_reads_back_to_the_same_graph(vbert: Any) -> None:
    from flows.graph import graph
    from flows.recipe import resolve

    code, text, _ = vbert("show", "demo", "--set", "seed=3")
    assert code == 0
    Path("demo.yaml").write_text(text)
    assert graph(resolve("demo.yaml")).fingerprint == graph(resolve("demo", {"seed": 3})).fingerprint


def test_init_lists_copies_and_overwrites_nothing(vbert: Any) -> None:
    assert vbert("init", "--list")[1].split()[0] == "demo"
    code, said, _ = vbert("init", "demo")
    assert (code, said) == (0, "demo.yaml: change it, then `vbert run demo.yaml`\n")
    Path("demo.yaml").write_text("mine")
    code, _, error = vbert("init", "demo")
    assert code == 2
    assert "demo.yaml exists; give another name with --to" in error
    assert Path("demo.yaml").read_text() == "mine"
    assert vbert("init", "demo", "--to", "other.yaml")[0] == 0


def test_datasets_say_what_is_present(vbert: Any, store: Path) -> None:
    code, out, _ = vbert("datasets", "--json", "--store", store)
    rows = {row["name"]: row for row in json.loads(out)["datasets"]}
    assert code == 0
    assert rows["easy_vqa"]["present"]
    assert (rows["easy_vqa"]["images"], rows["easy_vqa"]["examples"]) == (5000, 48248)
    assert rows["easy_vqa"]["licence"] == "MIT"
    assert "vqa" in rows["easy_vqa"]["tasks"]
    assert rows["mvsa_single"]["tasks"] == rows["mvsa_multiple"]["tasks"] == ["classification"]
    shown = {line.split()[0]: line for line in vbert("datasets")[1].splitlines()}
    for name, download in (("shapes", "generated"), ("vqa_v2", "not stated"), ("mvsa_single", "by hand")):
        assert download in shown[name]
    assert not {row["name"]: row for row in json.loads(vbert("datasets", "--json")[1])["datasets"]}["easy_vqa"][
        "present"
    ]


# ---------------------------------------------------------------------- about a store


def test_status_and_path_of_a_finished_recipe(vbert: Any, store: Path) -> None:
    code, out, _ = vbert("status", TINY, "--store", store, "--json")
    rows = json.loads(out)["stages"]
    assert code == 0
    assert {row["status"] for row in rows} == {"present"}
    shapes = next(row for row in rows if (row["stage"], row["label"]) == ("regions", "shapes"))
    code, out, _ = vbert("path", TINY, "regions[shapes]", "--store", store)
    assert Path(out.strip()).parent == store / "artifacts" / "regions" / shapes["fingerprint"]
    assert sum(f.stat().st_size for f in Path(out.strip()).rglob("*") if f.is_file()) >= shapes["size"]
    other = json.loads(vbert("status", TINY, "--store", store, "--set", "pretrain.steps=9", "--json")[1])["stages"]
    changed = {row["stage"] for row in other if row["status"] == "missing"}
    assert changed == {"pretrain", "finetune", "evaluate", "report"}


def test_the_plan_of_nothing_and_of_all(vbert: Any, store: Path, tmp_path: Path) -> None:
    _, nothing, said = vbert("run", TINY, "--dry-run")
    assert "15 of 15 stages to build" in nothing
    assert "time: unknown" in nothing
    assert "size: about 3.2 MB and 14 unknown" in nothing, "the spec says how large the download is"
    assert said == ""
    assert not (tmp_path / "store").exists()
    _, everything, _ = vbert("run", TINY, "--dry-run", "--store", store)
    assert "everything is there" in everything
    plan = json.loads(vbert("run", TINY, "--dry-run", "--store", store, "--json")[1])
    assert {row["status"] for row in plan["stages"]} == {"present"}


def test_what_is_missing_is_estimated_from_the_last_seen_scaled(vbert: Any, store: Path) -> None:
    before = {row["stage"]: row for row in rows_of(vbert, "status", TINY, "--store", store) if row["label"] != "shapes"}
    rows = rows_of(vbert, "run", TINY, "--dry-run", "--store", store, "--set", "downstream.vqa.steps=80")
    there = {row["stage"]: row for row in rows}
    assert there["finetune"]["seconds"] == pytest.approx(10 * before["finetune"]["seconds"], abs=0.06)
    assert there["finetune"]["size"] == before["finetune"]["size"]
    assert there["evaluate"]["seconds"] == pytest.approx(before["evaluate"]["seconds"], abs=0.06)
    _, out, _ = vbert("run", TINY, "--dry-run", "--store", store, "--set", "downstream.vqa.steps=80")
    assert "3 of 15 stages to build" in out
    assert "time: about " in out


def rows_of(vbert: Any, *arguments: Any) -> list[dict[str, Any]]:
    return json.loads(vbert(*arguments, "--json")[1])["stages"]


def test_why_names_the_field(vbert: Any, store: Path) -> None:
    code, out, _ = vbert("why", TINY, "finetune", "--set", "downstream.vqa.learning_rate=0.5", "--store", store)
    assert code == 0
    assert "learning_rate 0.0007 → 0.5" in out


def test_why_of_a_fingerprint_is_its_lineage(vbert: Any, store: Path) -> None:
    row = next(row for row in rows_of(vbert, "status", TINY, "--store", store) if row["stage"] == "detector")
    code, out, _ = vbert("why", row["fingerprint"][:12], "--store", store)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["generate[shapes]", "images[shapes]", "detector"]
    assert row["fingerprint"][:8] in out.splitlines()[-1]
    code, _, error = vbert("why", "0000000000", "--store", store)
    assert (code, error.startswith("vbert: no artifact begins with '0000000000'")) == (2, True)
    assert "name a stage of demo" in vbert("why", "demo", "--store", store)[2]


def test_force_builds_again_and_finds_the_same_bits(vbert: Any, store: Path) -> None:
    code, _, said = vbert("run", TINY, "--force", "regions[shapes]", "--store", store)
    assert code == 0
    assert "regions[shapes]: same bits" in said


def test_every_command_that_builds_can_share_and_a_look_makes_no_store(vbert: Any, store: Path, tmp_path: Path) -> None:
    for command in (["run"], ["preprocess"], ["build"], ["features", "import"], ["features", "show"]):
        assert "--shared" in vbert(*command, "--help")[1]
    assert vbert("run", TINY, "--dry-run", "--shared")[0] == 0
    assert not (tmp_path / "store").exists()
    (tmp_path / "step.json").write_text(vbert("path", TINY, "vocabulary", "--step")[1])
    assert vbert("build", "step.json", "--shared", "--store", store)[0] == 0
    assert store.stat().st_mode & 0o2070 == 0o2070
    assert vbert("build", "step.json", "--units", "²-³", "--store", store)[0] == 2


def test_verify_names_a_damaged_file_and_run_mends_it(vbert: Any, store: Path) -> None:
    assert vbert("verify", "--store", store)[:2] == (0, "every file is what its manifest says\n")
    folder = Path(vbert("path", TINY, "evaluate", "--store", store)[1].strip())
    file = next(f for f in folder.rglob("*") if f.is_file() and f.name != "manifest.json")
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    code, out, error = vbert("verify", "--store", store, "--json")
    assert code == 1
    assert file.name in error
    assert file.name in json.dumps(json.loads(out))
    code, out, said = vbert("run", TINY, "--store", store, "--local", "--json")
    assert (code, "1 stages built" in said) == (0, True), "the report is whole, and its metrics are back"
    assert [s["stage"] for s in json.loads(out.splitlines()[-1])["stages"] if s["status"] == "built"] == ["evaluate"]
    assert (folder / file.name).exists()
    assert vbert("verify", "--store", store)[0] == 0


def test_gc_says_first_and_keeps_what_a_run_needs(vbert: Any, store: Path) -> None:
    assert vbert("run", TINY, "--store", store)[0] == 0  # notes its run, though it builds nothing
    run = json.loads(vbert("run", TINY, "--store", store, "--json", "--until", "vocabulary")[1].splitlines()[-1])[
        "run_id"
    ]
    runs = sorted((store / "runs").glob("*.json"))
    assert run in {path.stem for path in runs}
    assert "would remove 0 B" in vbert("gc", "--grace", "0", "--store", store)[1], "both are of these days"
    assert "would remove 0 B" in vbert("gc", "--days", "0", "--grace", "0", "--store", store)[1], "each the last of its"
    file = store / "runs" / f"{run}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"until": []}))
    code, said, _ = vbert("gc", "--days", "0", "--grace", "0", "--store", store)
    assert code == 0
    assert "report" in said, "what only the run before the last needs is not needed"
    assert "would remove 0 B" in vbert("gc", "--days", "0", "--store", store)[1], "it was made within the grace"
    assert (store / "artifacts" / "report").exists()
    before = next(json.loads(p.read_text()) | {"id": p.stem} for p in runs if p.stem != run)
    assert len(before["steps"]) == 15
    assert vbert("keep", before["id"], "--store", store)[:2] == (0, f"kept {before['id']}\n")
    assert "would remove 0 B" in vbert("gc", "--days", "0", "--grace", "0", "--store", store)[1]
    code, _, error = vbert("keep", run[:-1], "--store", store)
    assert code == 2
    assert run in error


def test_a_step_is_built_in_parts_from_its_file(vbert: Any, store: Path) -> None:
    _, step, _ = vbert("path", TINY, "regions[shapes]", "--step")
    Path("step.json").write_text(step)
    here = Path(vbert("path", TINY, "regions[shapes]", "--store", store)[1].strip())
    digests = {f.name: f.read_bytes() for f in here.glob("*.tar")}
    for gone in (
        here.parent,
        *(store / "artifacts" / stage for stage in ("pretrain", "finetune", "evaluate", "report")),
    ):
        shutil.rmtree(gone)  # or nothing would need the shards
    code, said, _ = vbert("build", "step.json", "--units", "0-1", "--store", store)
    assert (code, said) == (0, "2 of 3 units are there\n")
    _, out, _ = vbert("status", TINY, "--store", store, "--json")
    (row,) = [r for r in json.loads(out)["stages"] if r["status"] == "unfinished"]
    assert (row["stage"], row["label"]) == ("regions", "shapes")
    assert row["kept"] == {"done": 2, "total": 3, "of": "units"}
    assert "unfinished (2 of 3 units kept)" in vbert("status", TINY, "--store", store)[1]
    code, said, _ = vbert("build", "step.json", "--units", "2-9", "--store", store)
    assert (code, said) == (0, "3 of 3 units are there\n")
    assert not here.exists()
    code, said, _ = vbert("build", "step.json", "--store", store)
    assert (code, said) == (0, f"{here}\n")
    assert {f.name: f.read_bytes() for f in here.glob("*.tar")} == digests
    assert vbert("build", "step.json", "--units", "3-1", "--store", store)[0] == 2
    before = {path: path.stat().st_mtime_ns for path in here.iterdir()}
    for units in (["--units", "0-1"], []):
        assert vbert("build", "step.json", *units, "--store", store)[:2] == (0, f"{here}\n"), "nothing is made again"
    assert {path: path.stat().st_mtime_ns for path in here.iterdir()} == before
    assert not list((store / "unfinished" / "regions").glob("*"))
    (row,) = [row for row in json.loads(vbert("runs", "--json", "--store", store)[1])["runs"] if "build" in row["run"]]
    assert (row["status"], row["metrics"]["regions[shapes]/shards"]) == ("done", 3), "one record of all its parts"
    assert vbert("gc", "--days", "1", "--grace", "0", "--store", store)[1].count("regions/") == 0


# ---------------------------------------------------------------------- ended from outside


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_says_so_and_leaves_a_checkpoint(how: signal.Signals, store: Path) -> None:
    long = ["--set", "downstream.vqa.steps=100000", "--set", "downstream.vqa.validate_every=100000"]
    command = [sys.executable, "-m", "flows.cli", "run", str(TINY), "--store", str(store), "--local", *long]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in background
    )
    try:
        until(lambda: checkpoints(store) or process.poll() is not None)
        os.killpg(process.pid, how)  # as a terminal does
        _, said = process.communicate(timeout=60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 75, said
    assert "vbert: stopped; finished work is kept, the same command goes on from here" in said
    assert "Traceback" not in said
    assert checkpoints(store)


def checkpoints(store: Path) -> list[Path]:
    return list((store / "unfinished" / "finetune").glob("*/scratch/*/content/checkpoints/[0-9]*[0-9]"))
