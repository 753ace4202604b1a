"""A disk that fills up while shards are written: the error states the missing room, and the run resumes afterwards."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from e2e.finished import TINY, contents, without

# In a mount namespace of its own, where any user may mount a tmpfs: a store on a disk with 400 kB left, of which the
# shards of easy_vqa need more; then moved to a larger disk.
SCRIPT = r"""
set -e
mount -t tmpfs -o size=256m tmpfs "$DISK"
cp -a "$FINISHED" "$DISK/store"
used=$(df --output=used -k "$DISK" | tail -1)
mount -o "remount,size=$((used + 400))k" "$DISK"
set +e
"$PYTHON" -m flows.cli run "$TINY" --store "$DISK/store" --local --until "regions[easy_vqa]" 2> "$OUT/first"
echo $? > "$OUT/code"
set -e
(cd "$DISK/store" && find unfinished -name unit.json -printf '%P %i\n') > "$OUT/kept"
ls "$DISK"/store/unfinished/regions/*/making > "$OUT/making"
cp -a "$DISK/store" "$OUT/store"
"""


def can_mount() -> bool:
    try:
        return subprocess.run(["unshare", "-Urm", "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not can_mount(), reason="this user may not make a mount namespace (unshare -Urm)")
def test_a_full_disk_keeps_the_finished_shards(finished_store: Path, tmp_path: Path, vbert: Any) -> None:
    disk, out, before = tmp_path / "disk", tmp_path / "out", tmp_path / "before"
    for directory in (disk, out):
        directory.mkdir()
    without(finished_store, "regions", before)
    variables = {"DISK": disk, "OUT": out, "FINISHED": before, "TINY": TINY, "PYTHON": sys.executable}
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", SCRIPT],
        env=os.environ | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr + (out / "first").read_text()
    first = (out / "first").read_text()
    assert (out / "code").read_text().strip() == "1", first
    told = re.search(
        r"vbert: regions\[easy_vqa\]: no room left for .* \(the store \S+ has 0\.\d MB free\); (\d) of 6 units are "
        r"done, the others need about 0\.\d MB, so at least 0\.\d MB more; finished units .* are kept",
        first,
    )
    assert told is not None, first
    kept = int(told[1])
    assert kept >= 1
    assert len((out / "kept").read_text().splitlines()) == kept
    assert (out / "making").read_text() == ""  # half a shard takes no room
    code, _, second = vbert("run", TINY, "--store", out / "store", "--local", "--until", "regions[easy_vqa]")
    assert code == 0, second
    assert re.search(rf"regions\[easy_vqa\]: {kept * 30} of 1\d\d", second)  # 30 images a shard
    titles = {"regions[easy_vqa]": contents(finished_store)["regions[easy_vqa]"]}
    assert {title: content for title, content in contents(out / "store").items() if title in titles} == titles
