"""Every command and option of `vbert` has help and an example that runs: README's, the docs', its help's, or one from
here."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclopts import App
from docs_blocks import all_blocks, shell_lines
from inference.inference_world import make_detector, make_export
from objectives.retrieval_world import finetune, make_retrieval_world
from PIL import Image
from regions import interop_files
from scoring import score_world

from flows.cli import app
from vbert.artifacts.store.store import Store

WRITTEN = [line for b in all_blocks() if b.language == "sh" and b.runs_alone() for line in shell_lines(b)]
MORE = """
vbert run demo --limit 3 --machine units_at_once=1 --shared --prefect --dry-run
vbert run demo --force 'examples[shapes]' --local --store store --json
vbert status demo --set seed=1 --store store --json
vbert verify --json
vbert datasets --store store --json
vbert schedule demo --cron '0 3 * * *' --set seed=1 --machine units_at_once=1 --store store
vbert init demo --to mine.yaml
vbert init --list
vbert init --table data.csv --images photos --label sentiment --detector NAME --to labels
vbert init --table data.csv --images photos --image image --text tweet --answer sentiment --split part --to asked
vbert init --table data.csv --images photos --id id --label sentiment --weights weights.pth --to named
vbert init --table data.csv --images photos --image-2 image --label sentiment --detector shapes_cnn --to pairs
vbert init --table data.csv --images photos --caption tweet --detector shapes_cnn --to captions
vbert doctor --store store --json
vbert show demo --json
vbert why demo detector --set seed=1 --store store --json
vbert path demo detector --set seed=0 --store store --json
vbert build step.json --machine units_at_once=1 --shared
vbert runs --store store --json
vbert keep 20261124-101500-demo-25757 --store store
vbert gc --days 1 --grace 0 --store store --json
vbert preprocess photos --detector NAME --out few --boxes 3 --strict --set regions.batch=2 --json
vbert preprocess photos --detector shapes_cnn --weights $(vbert path demo detector) --out features --local \
    --machine units_at_once=1 --store store --shared
vbert features show cat.jpg --detector shapes_cnn --weights $(vbert path demo detector) --out all.png \
    --boxes 5 --most 3 --device cpu --store store --shared --json
vbert features import own.tsv --detector unknown --layer fc6 --format lxmert_tsv --boxes-in original --dtype float32
vbert features import own.tsv --detector unknown --layer fc7 --ids '_0*([0-9]+)' --id-form 'img/{}.png' --cap 3 \
    --sizes sizes.csv --store store
vbert features import own.tsv --detector unknown --layer fc7 --images photos --classes words --attributes words --shared
vbert features import own.tsv --detector unknown --layer fc7 --images-per-shard 1 --quarantine 0.5 --weights SHA256
vbert features import own.tsv --detector unknown --layer fc7 --machine units_at_once=1 --json
vbert features export own.tsv --to npy --out a --format lxmert_tsv --ids '_0*([0-9]+)' --sizes sizes.csv --json
vbert features export own.tsv --to npy --out b --boxes-in original --dtype float32 --images photos
vbert features inspect own.tsv --format lxmert_tsv --ids '_0*([0-9]+)' --boxes-in original --dtype float32 --count 1
vbert features inspect own.tsv --sizes sizes.csv --boxes 2 --json
vbert features inspect own.tsv --images photos --out boxes.jpg
vbert features compare own.tsv own.tsv --ids-a '_0*([0-9]+)' --ids-b '_0*([0-9]+)' --rows 1 --table rows.csv --json
vbert features compare own.tsv own.tsv --format-a lxmert_tsv --format-b lxmert_tsv --dtype-a float32 --dtype-b float32
vbert features compare own.tsv own.tsv --boxes-in-a original --boxes-in-b original --images photos
vbert features compare own.tsv own.tsv --sizes sizes.csv
vbert predict exported/pairs --image cat.jpg --image-2 dog.jpg --statement "both are dogs" --device cpu --json
vbert predict exported/phrases --image cat.jpg --text "the cat on the left" --phrase "the cat" --top 3
vbert predict exported/entailment --image cat.jpg --text "a cat" --text-b "an animal"
vbert predict exported/choices --image cat.jpg --question "what is it?" --choice "a cat" --choice "a dog"
vbert predict exported/pretrained --image cat.jpg --text "a cat" --ask match
vbert predict exported/vqa --table rows.csv --images photos --column question=asked --out predictions.csv \\
    --store other --machine units_at_once=1 --shared --json
vbert predict exported/vqa --table whole.csv --images photos --out predictions.jsonl --strict
vbert search "a dog" --model model --features features --rerank 0 --device cpu --json
vbert export demo 'finetune[vqa]' --out hf --format hf --conventions original --licence mit \
    --set seed=0 --store store --json
vbert export demo 'finetune[vqa]' --out small --int8 --measure 0
vbert import-model exported/vqa --store other --shared --machine units_at_once=1 --json
vbert explain exported/vqa --image cat.jpg --question "what is it?" --method attention --layer 0 --head 1 --device cpu
vbert explain exported/pairs --image cat.jpg --image-2 dog.jpg --statement "both are dogs" --out why.svg --json
vbert explain exported/phrases --image cat.jpg --text "the cat on the left" --phrase "the cat" -o why.png
vbert explain exported/entailment --image cat.jpg --text "a cat" --text-b "an animal"
vbert explain exported/choices --image cat.jpg --question "what is it?" --choice "a cat" --choice "a dog"
vbert explain demo --evaluate --entry vqa --method removal --count 8 --set seed=0 --store store \\
    --machine units_at_once=1 --json
vbert explain $(vbert path demo 'finetune[vqa]') --evaluate --count 8 --method attention \\
    --examples $(vbert path demo 'examples[easy_vqa]') --features $(vbert path demo 'regions[easy_vqa]')
vbert score vqa --annotations annotations.json --predictions results.json --missing skip --json
vbert score nlvr2 --annotations dev.json --predictions nlvr2.csv --missing wrong --json
vbert score nlvr --annotations nlvr_dev.json --predictions nlvr.csv --missing wrong --json
vbert score classification --annotations labels.jsonl --predictions labels.csv --id id --label label --missing skip
vbert score vcr --annotations val.jsonl --predictions leaderboard.csv --missing wrong --json
vbert score captioning --annotations captions.json --predictions captions_results.json --missing skip --json
vbert score retrieval --annotations captions.json --predictions rankings.jsonl --missing skip --json
vbert score grounding --annotations flickr30k_entities --predictions phrases.json --protocol merged --missing wrong
vbert score grounding --annotations flickr30k_entities --predictions phrases.json --json
vbert score refcoco --annotations instances.json --refs 'refs(unc).p' --split testA --predictions expressions.json \
    --iou exact --missing wrong --json
"""
# What stands for something of the reader's own, or is published elsewhere.
MEANT = {
    r"^vbert init$": "vbert init --list",  # on a terminal it asks: see tests/flows/test_flows_asking.py
    r"\bRECIPE\b": "demo",
    r"\bSTAGE\b": "detector",
    r"~/photos|\bFOLDER\b": "photos",
    r"\bDIR\b": "out",
    r"\bNAME\b|torchvision_\w+|bottom_up_attention_36": "shapes_cnn --weights $(vbert path demo detector)",
    r"\bSHA256\b": "0" * 64,
    r"\bIMAGE\b": "images/COCO_000000000007.jpg",
    r"runs demo": "runs tiny",
    r"learning_rate=5e-4$": "learning_rate=5e-4 --dry-run",  # test_e2e_reuse.py builds it
    r"/data/store|s3://bucket/prefix": "store",
}
SERVES = ("schedule", "serve")  # until interrupted: tests/flows/test_flows_prefect_schedule.py, tests/serve


def commands(app: App, path: str = "vbert") -> Iterator[tuple[str, App]]:
    for name in app:
        if not name.startswith("-"):
            yield from commands(app[name], f"{path} {name}")
    if app.default_command is not None and app.default_command != app.help_print:
        yield path, app


COMMANDS = dict(commands(app))


def arguments(command: str) -> list[Any]:
    return list(COMMANDS[command].assemble_argument_collection(parse_docstring=True))


def in_help(command: str) -> list[str]:
    """The examples of a command's own help."""
    text = " ".join((COMMANDS[command].default_command.__doc__ or "").split())
    told = re.search(r"Example: (`[^`]+`(?:, (?:or|then) `[^`]+`)*)", text)
    return re.findall(r"`([^`]+)`", told[1]) if told else []


def lines(command: str) -> list[str]:
    """All examples of a command, each once, in the order in which they build on each other."""
    more = MORE.replace("\\\n", "").splitlines()
    every = [part for line in [*in_help(command), *WRITTEN, *more] for part in line.split(" && ")]
    own = [line for line in every if f"{line} ".startswith(f"{command} ")]
    before = [line for line in every if "> step.json" in line] if command == "vbert build" else []
    return list(dict.fromkeys([*before, *own]))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_argument_and_option_has_help_and_an_example(command: str) -> None:
    words = {word for line in lines(command) for word in line.split()}
    for argument in arguments(command):
        assert (argument.parameter.help or "").strip(), argument.name
        options = {name for name in argument.names if name.startswith("-")}
        assert not options or options & words, f"{command} {argument.name}: no example"
    assert in_help(command), f"{command} --help shows no example"


@pytest.fixture
def call(vbert: Any, demo_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a line as a shell would, in a folder with what the examples speak of: (stdout, stderr)."""
    monkeypatch.setattr("vbert.metrics.captions.java", lambda: None)  # METEOR takes ten seconds to start
    given = interop_files.images(2)
    for name in ("own.tsv", "other.tsv", "train_obj36.tsv", "train2014_obj36.tsv"):
        interop_files.lxmert_tsv(demo_folder / name, given)
    (demo_folder / "photos").mkdir()
    for image in given:
        Image.new("RGB", (image.width, image.height), "grey").save(demo_folder / "photos" / f"{image.name}.png")
    for name in ("cat.jpg", "dog.jpg"):
        Image.new("RGB", (64, 48), "grey").save(demo_folder / name)
    score_world.write(demo_folder)
    score_world.four_images(demo_folder)
    rows = [f"{n},{image.name},x,good,train" for n, image in enumerate(given)]
    (demo_folder / "data.csv").write_text("\n".join(["id,image,tweet,sentiment,part", *rows]))
    (demo_folder / "words").write_text("".join(f"{n}\n" for n in range(9)))
    rows = [f"{image.name},{image.width},{image.height}" for image in given]
    rows += [f"{int(image.name.rpartition('_')[2])},{image.width},{image.height}" for image in given]
    (demo_folder / "sizes.csv").write_text("\n".join(["image_id,width,height", *rows]))

    def run(line: str) -> str:
        for pattern, meant in MEANT.items():
            line = re.sub(pattern, meant, line)
        line = re.sub(r"\$\((.*?)\)", lambda inner: run(inner[1]).strip(), line)
        store = Store(demo_folder / "store")
        for run_id, name in zip(re.findall(r"\d{8}-\d{6}-demo-\d+", line), sorted(store.runs()), strict=False):
            line = line.replace(run_id, name)
        if "3fa2c1d0" in line:
            line = line.replace("3fa2c1d0", store.manifests("detector")[0].fingerprint[:8])
        words, into = shlex.split(line.partition(" > ")[0])[1:], line.partition(" > ")[2]
        if words[0] in ("run", "preprocess") and not {"--prefect", "--local"} & set(words):
            words.append("--local")  # or a server of Prefect would be started each time
        code, out, said = vbert(*words)
        assert code == 0, f"{line}\n{said}"
        if into:
            Path(into).write_text(out)
        return str(out)

    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_its_examples_run(command: str, call: Any) -> None:
    if command.endswith(SERVES):
        for line in lines(command):
            app.parse_args(shlex.split(line)[1:], exit_on_error=False, print_error=False)
        return
    if command == "vbert runs":
        call("vbert run demo")  # a second one, to compare
    if command in ("vbert predict", "vbert explain"):
        detector = make_detector(Path("detector"))
        asked = {"vqa": "vqa", "pairs": "nlvr2", "phrases": "grounding", "entailment": "classification"}
        for name, objective in {**asked, "choices": "choice", "pretrained": "mlm_itm"}.items():
            made = make_export(Path("made") / name, objective, detector)
            shutil.copytree(made, Path("exported") / name)
        photo = next(Path("photos").iterdir()).name
        Path("rows.csv").write_text(
            f"image,question,asked\n{photo},what is red?,what is blue?\nnothere.png,why?,why?\n"
        )
        Path("whole.csv").write_text(f"image,question\n{photo},what is red?\n")
    if command == "vbert search":
        world = make_retrieval_world(Path("world"))
        shutil.copytree(finetune(Path("trained"), world, steps=1).path, "model")
        shutil.copytree(world.shards.path, "features")
    if command == "vbert import-model":
        call("vbert export demo 'finetune[vqa]' --out exported/vqa")
    if command in ("vbert features export", "vbert features inspect", "vbert features compare"):
        call("vbert features import own.tsv --detector unknown --layer res5_pool --out features/train")
        call("vbert features import own.tsv --detector unknown --layer fc6 --ids '_0*([0-9]+)' --out features/mine")
    for line in lines(command):
        call(line)
        if command == "vbert features import":
            shutil.rmtree("features", ignore_errors=True)  # each makes it afresh
