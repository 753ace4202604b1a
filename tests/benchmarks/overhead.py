"""Seconds of a whole run as a Prefect flow on a running server, against the same stages built here (`--local`).

    make bench NAME=overhead  # or
    PYTHONPATH=tests python tests/benchmarks/overhead.py [--recipe demo] [--rounds 1]
    PYTHONPATH=tests python tests/benchmarks/overhead.py --recipe tests/tiny.yaml --rounds 5

Each run is the command `vbert run` on a fresh store; what was downloaded is kept, so that no network is timed. The
limit is the peer: a flow can't be faster than its stages. Shown apart: what a finished run takes as a command, here,
on the server, and with a Prefect server of its own (ephemeral).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from measure import alternate, print_result, result
from prefect_server import start

CHECKOUT = Path(__file__).parents[2]
BARE = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


def vbert(recipe: str, store: Path, how: str, environment: dict[str, str]) -> float:
    """Wall seconds of one `vbert run`."""
    command = [sys.executable, "-m", "flows.cli", "run", recipe, "--store", str(store), how, "--json"]
    began = time.monotonic()
    done = subprocess.run(command, cwd=CHECKOUT, env=BARE | environment, capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{done.stderr}")
    json.loads(done.stdout.splitlines()[-1])
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vbert-overhead-") as folder:
        at = Path(folder)
        server = {"PREFECT_HOME": str(at / "prefect")}
        server["PREFECT_API_URL"] = start(at / "prefect", lives_with=os.getpid())
        alone = {"PREFECT_HOME": str(at / "alone")}
        store, downloads = at / "store", at / "downloads"

        def fresh(how: str, environment: dict[str, str]) -> float:
            shutil.rmtree(store, ignore_errors=True)
            shutil.copytree(downloads, store / "artifacts" / "download", dirs_exist_ok=True)
            return vbert(given.recipe, store, how, environment)

        vbert(given.recipe, store, "--local", {})  # a first run, untimed, for the downloads and the file cache
        (store / "artifacts" / "download").mkdir(exist_ok=True)  # a recipe may generate all its data
        shutil.copytree(store / "artifacts" / "download", downloads)
        taken = alternate(
            {"ours": lambda: fresh("--prefect", server), "peer": lambda: fresh("--local", {})}, given.rounds, warm_up=0
        )
        again = alternate(
            {
                "local": lambda: vbert(given.recipe, store, "--local", {}),
                "server": lambda: vbert(given.recipe, store, "--prefect", server),
                "ephemeral": lambda: vbert(given.recipe, store, "--prefect", alone),
            },
            max(3, given.rounds),
        )
    extra = [ours - peer for ours, peer in zip(taken["ours"], taken["peer"], strict=True)]
    line = result(
        "overhead",
        ours=taken["ours"],
        peer=taken["peer"],
        peer_name="vbert run --local",
        limit=taken["peer"],
        unit="s",
        settings={
            "recipe": given.recipe,
            "rounds": given.rounds,
            "seconds": {who: [round(s, 1) for s in seconds] for who, seconds in taken.items()},
            "overhead_seconds": round(median(extra), 2),
            "overhead_percent": round(100 * median(e / p for e, p in zip(extra, taken["peer"], strict=True)), 1),
            "finished_run_seconds": {name: round(median(seconds), 2) for name, seconds in again.items()},
        },
        lower_is_better=True,
    )
    print_result(line)


if __name__ == "__main__":
    main()
