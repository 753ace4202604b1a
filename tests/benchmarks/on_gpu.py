"""Runs everything that needs a GPU: the CUDA halves of the tests, and the GPU cases of `pretrain`, `captioning`,
`retrieval` and `extraction`.

    python tests/benchmarks/on_gpu.py [--photos FOLDER] [--seconds 480] [--images 1000] [--device cuda]
        [--only tests pretrain captioning retrieval extraction bottom_up]

Run from the root of a copy of the checkout; nothing is fetched. PHOTOS: a folder of real photos (COCO's val2017);
without one, pictures of noise and shapes in photos' sizes are drawn. Each part has a share of the seconds that are left
and is cut off behind it, so that the JSON line at the end always comes. `--device cpu` tries the script itself, with as
little work as there can be: its figures say nothing.

The peer of `extraction` is detectron2's predictor loop, or, where detectron2 is not installed, torchvision's model in
the same loop: the line says which.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, print_result
from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = (
    "tests/regions/test_regions_batches.py",
    "tests/model/test_model_visualbert.py",
    "tests/model/test_model_causal.py",
)
SIZES = ((640, 480), (480, 640), (640, 427), (500, 375), (427, 640), (640, 360))
SMALL = {"captioning": ["--images", "1", "--beams", "1"], "retrieval": ["--cases", "mini-longest"]}  # on a CPU
LEAST = 20.0  # seconds without which a part is not begun


def draw_photos(folder: Path, count: int) -> Path:
    """JPEGs in the sizes that photos of COCO have, noisy enough to decode like them."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        width, height = SIZES[number % len(SIZES)]
        coarse = random.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pen = ImageDraw.Draw(picture)
        for _ in range(12):
            x, y = int(random.integers(0, width - 60)), int(random.integers(0, height - 60))
            shape = pen.ellipse if random.random() < 0.5 else pen.rectangle
            shape(
                (x, y, x + int(random.integers(20, 200)), y + int(random.integers(20, 200))),
                fill=tuple(random.integers(0, 255, 3).tolist()),
            )
        picture.save(folder / f"{number:04d}.jpg", quality=90)
    return folder


def run(command: list[str], seconds: float) -> tuple[int, str, str]:
    """(exit code, output, errors); 124 where it was cut off."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its children too: they hold the GPU
            return 124, *process.communicate()
    return process.returncode, out, err


def failure(code: int, out: str, err: str) -> dict[str, Any]:
    what = "cut off: its share of the time was over" if code == 124 else f"exit code {code}"
    return {"failed": what, "output": (out + err).strip()[-1500:]}


def tests(given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The tests that are skipped without a GPU; what of them passed, failed and was skipped."""
    if find_spec("pytest") is None:
        return {"failed": "pytest is not installed here"}
    chosen = "cuda or gpu" if given.device == "cuda" else "plain and cpu"
    code, out, err = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, "-k", chosen], seconds)
    counts = {name: int(number) for number, name in re.findall(r"(\d+) (passed|failed|skipped|error)", out)}
    if code:
        return counts | failure(code, out, err)
    return counts if counts.get("passed") else counts | {"failed": "none of them ran"}


def benchmark(command: list[str], seconds: float) -> dict[str, Any]:
    """The JSON line of another benchmark."""
    code, out, err = run(command, seconds)
    if code:
        return failure(code, out, err)
    line: dict[str, Any] = json.loads(out.splitlines()[-1])
    return line


def pretrain(given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    cases = [] if given.device == "cuda" else ["--cases", "mini-fp32"]
    rounds = "5" if given.device == "cuda" else "1"
    return benchmark([f"{HERE}/pretrain.py", "--device", given.device, "--rounds", rounds, *cases], seconds)


def extraction(case: str, given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    command = [f"{HERE}/extraction.py", str(given.photos), "--case", case, "--device", given.device]
    if given.device == "cuda":
        command += ["--precision", "bf16", "--batch", "8", "--loaders", "8", "--children", "2", "--rounds", "2"]
        command += ["--images", str(given.images), "--peer-images", str(min(100, given.images))]
    else:
        command += ["--images", "1", "--children", "1", "--rounds", "1"]
    return benchmark(command, seconds)


def decoding(name: str, given: argparse.Namespace, seconds: float) -> dict[str, Any]:
    few = [] if given.device == "cuda" else SMALL[name]
    return benchmark(
        [f"{HERE}/{name}.py", "--device", given.device, "--rounds", "3" if not few else "1", *few], seconds
    )


def r50_fpn() -> str:
    return "torchvision" if find_spec("detectron2") is None else "detectron2"


PARTS: dict[str, tuple[float, Callable[[argparse.Namespace, float], dict[str, Any]]]] = {
    "tests": (0.25, tests),  # the share of the whole time that it may take
    "pretrain": (0.3, pretrain),
    "captioning": (0.1, lambda given, seconds: decoding("captioning", given, seconds)),
    "retrieval": (0.1, lambda given, seconds: decoding("retrieval", given, seconds)),
    "extraction": (0.4, lambda given, seconds: extraction(r50_fpn(), given, seconds)),
    "bottom_up": (1.0, lambda given, seconds: extraction("bottom_up", given, seconds)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    given = parser.parse_args()
    began = time.monotonic()
    line: dict[str, Any] = {"benchmark": "on_gpu", "torch": torch.__version__, "machine": machine()}
    if given.device == "cuda" and not torch.cuda.is_available():
        said = (
            f"torch {torch.__version__} sees no GPU here: nothing was measured (--device cpu tries the script itself)"
        )
        print(said, file=sys.stderr)
        print_result(line | {"failed": said})
        return 1
    line["device"] = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory(prefix="vbert-on-gpu-") as folder:
        if given.photos is None:
            given.photos = draw_photos(Path(folder) / "photos", 60)
            line["photos"] = "drawn: give --photos for real ones"
        for name in given.only:
            share, part = PARTS[name]
            left = given.seconds - (time.monotonic() - began)
            at = time.monotonic()
            seconds = min(left, share * given.seconds)
            found = {"failed": "no time was left"} if left < LEAST else part(given, seconds)
            line[name] = found | {"seconds": round(time.monotonic() - at, 1)}
            print(f"{name}: {json.dumps(line[name])[:300]}", flush=True)
    line["seconds"] = round(time.monotonic() - began, 1)
    print_result(line)
    return int(any("failed" in line[name] for name in given.only))


if __name__ == "__main__":
    sys.exit(main())
