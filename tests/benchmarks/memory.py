"""Peak resident memory of extracting 2,000 images against 200: it must not grow with the data.

    python tests/benchmarks/memory.py [--detector shapes_cnn]

Photos of 320 × 240 pixels, 100 to a shard, one child process, an untrained detector (its weights cost as much memory as
trained ones). The figure is the peak of the child that extracts; that of the process which plans and publishes stands
beside it. The limit is the peer: it can't be less than at a tenth of the data.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import torch
from measure import print_result, result
from PIL import Image

from flows.cli_preprocess import folder_recipe
from flows.graph import cut
from vbert.artifacts.making.engine import build_here
from vbert.artifacts.steps.stage import Machine
from vbert.regions.detector import detector_file, load_backend, write_weights


def photos(folder: Path, count: int) -> None:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number % 50).integers(0, 255, (15, 20, 3), np.uint8)
        Image.fromarray(pixels).resize((320, 240)).save(folder / f"{number:06d}.jpg")


def untrained(folder: Path, name: str) -> None:
    folder.mkdir()
    spec = detector_file(name).spec()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = load_backend(spec.backend.name).network(spec, 3)
    write_weights(folder, spec, ["a", "b", "c"], network.state_dict())


def peak_mib(pid: int) -> float:
    """Peak resident MiB of a living process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def extract(count: int, detector: str) -> None:
    with tempfile.TemporaryDirectory(prefix="vbert-memory-") as folder:
        at = Path(folder)
        photos(at / "photos", count)
        untrained(at / "weights", detector)
        changes = ["regions.images_per_shard=100"]
        recipe = folder_recipe(at / "photos", detector, str(at / "weights"), None, changes)
        build_here(cut(recipe, ["regions"]), at / "store", Machine(units_at_once=1, device="cpu"))
        child = max(peak_mib(process.pid) for process in psutil.Process().children())
        print(child, peak_mib(psutil.Process().pid))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detector", default="shapes_cnn")
    parser.add_argument("--images", type=int, help="extract so many in this process, and print the two peaks")
    given = parser.parse_args()
    if given.images:
        extract(given.images, given.detector)
        return
    peaks = {}
    for count in (2000, 200):
        command = [sys.executable, __file__, "--images", str(count), "--detector", given.detector]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[count] = [float(part) for part in done.stdout.split()[-2:]]
    line = result(
        "memory",
        ours=[peaks[2000][0]],
        peer=[peaks[200][0]],
        peer_name="200 images",
        limit=[peaks[200][0]],
        unit="MiB",
        settings={"detector": given.detector, "builder": {count: round(both[1], 1) for count, both in peaks.items()}},
        lower_is_better=True,
    )
    print_result(line)


if __name__ == "__main__":
    main()
