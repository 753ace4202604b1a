"""Seconds of `vbert run` when everything is there, against the same through an ephemeral Prefect.

    python tests/benchmarks/rerun.py [--recipe demo] [--rounds 5]

The peer is what a flow with Prefect's own caching costs at least: a server for the run, every step a task that is
found finished. The limit is an interpreter that only imports pydantic and a YAML reader.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import alternate, print_result, result

CHECKOUT = Path(__file__).parents[2]
BARE = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}


def seconds(command: list[str], environment: dict[str, str]) -> float:
    began = time.monotonic()
    done = subprocess.run(command, cwd=CHECKOUT, env=BARE | environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="tests/tiny.yaml")
    parser.add_argument("--store", help="one where the recipe is finished; else it is built first")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vbert-rerun-") as folder:
        store = given.store or str(Path(folder) / "store")
        run = [sys.executable, "-m", "flows.cli", "run", given.recipe, "--store", store]
        alone = {"PREFECT_HOME": str(Path(folder) / "prefect")}
        seconds([*run, "--local"], {})
        taken = alternate(
            {
                "ours": lambda: seconds(run, {}),
                "peer": lambda: seconds([*run, "--prefect"], alone),
                "limit": lambda: seconds([sys.executable, "-c", "import pydantic, ruamel.yaml"], {}),
            },
            given.rounds,
        )
    print_result(
        result(
            "rerun",
            ours=taken["ours"],
            peer=taken["peer"],
            peer_name="the same through an ephemeral Prefect server",
            limit=taken["limit"],
            unit="s",
            settings={"recipe": given.recipe, "rounds": given.rounds},
            lower_is_better=True,
        )
    )


if __name__ == "__main__":
    main()
