"""The command with a trained model under 500 requests, a tenth of them hostile: none fails but those that are refused,
and memory stays as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from processes import children_of
from serve.hostile import animation, bomb
from serve.serving import FORM, ROOT, Running, heard, photo

REQUESTS, AT_ONCE = 500, 4


def noise(seed: int) -> bytes:
    from io import BytesIO

    from PIL import Image

    rng, target = Random(seed), BytesIO()
    side = rng.randrange(32, 400), rng.randrange(32, 400)
    Image.frombytes("RGB", side, rng.randbytes(3 * side[0] * side[1])).save(target, rng.choice(("PNG", "JPEG", "WEBP")))
    return target.getvalue()


def hung_up(server: Running) -> int:
    """A client that announces a photo, sends a part of it and leaves."""
    server.send(server.head(FORM, b"Content-Length: 90000\r\n"), b"--b\r\nContent-Dis").close()
    return 400


def status(said: bytes) -> int:
    return int(said[9:12])


HOSTILE: list[Callable[[Running], int]] = [
    lambda one: one.ask(image=b"MZ\x90\x00 no photo").status_code,
    lambda one: one.ask(image=photo(900, 900, kind="JPEG")[:-4000]).status_code,
    lambda one: one.ask(image=bomb()).status_code,
    lambda one: one.ask(image=animation("GIF")).status_code,
    lambda one: one.ask(image=bytes(11_000_000)).status_code,
    lambda one: one.ask(image=photo(6000, 6000, kind="JPEG")).status_code,
    lambda one: one.ask("w" * 100_000).status_code,
    lambda one: one.ask("\x00\ud7ff\U0010ffff" * 9, image=b"").status_code,
    lambda one: one.get(host="evil.example").status_code,
    lambda one: status(heard(one.send(b"\x16\x03\x01\x02\x00 TLS\r\n\r\n"))),
    lambda one: status(
        heard(one.send(one.head(FORM, b"Content-Length: 9\r\nConnection: close\r\n"), b"--b\r\n\xff\xfe\x00x"))
    ),
    hung_up,
]


def soak(server: Running, question: str) -> dict[str, Any]:
    """Statuses of right and of hostile requests; megabytes of the server's processes after each hundred."""
    statuses: dict[str, Counter[int]] = {"right": Counter(), "hostile": Counter()}
    memory = []

    def one(number: int) -> tuple[str, int]:
        if number % 10 == 3:
            return "hostile", HOSTILE[number // 10 % len(HOSTILE)](server)
        return "right", server.ask(question, image=noise(number)).status_code

    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for hundred in range(0, REQUESTS, 100):
            for kind, code in pool.map(one, range(hundred, hundred + 100)):
                statuses[kind][code] += 1
            processes = [psutil.Process(server.process.pid), *children_of(server.process.pid)]
            memory.append(sum(each.memory_info().rss for each in processes) / 1e6)
    seconds = time.monotonic() - began
    return {
        "right": dict(statuses["right"]),
        "hostile": dict(statuses["hostile"]),
        "memory": memory,
        "seconds": seconds,
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_500_requests_a_tenth_hostile(finished_store: Path) -> None:
    from vbert.artifacts.store.store import Store

    (model,) = Store(finished_store).manifests("finetune")[:1]
    where = next((finished_store / "artifacts/finetune" / model.fingerprint).glob("*/head.json")).parent
    command = [
        str(Path(sys.executable).parent / "vbert"),
        "serve",
        str(where),
        "--port",
        "0",
        "--rate",
        "100000",
        "--json",
    ]
    environment = os.environ | {"TMPDIR": str(finished_store.parent)}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, env=environment
    )
    try:
        assert process.stdout is not None
        server = Running(process, json.loads(process.stdout.readline())["url"])
        figures = soak(server, "what shape is it?")
        assert figures["right"] == {200: 450}, figures
        assert set(figures["hostile"]) <= {400, 413, 415, 421, 422}, figures
        assert sum(figures["hostile"].values()) == 50
        assert max(figures["memory"][1:]) < 1.03 * figures["memory"][0], figures
        assert server.end() == 0
    finally:
        process.kill()
        process.wait()
    print(figures)
