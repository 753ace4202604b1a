"""The store in a bucket, and of it alone: a server that lies, drops or is away, leases, the cache, forked readers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="the extra `s3` is not installed")
pytest.importorskip("moto", reason="moto is the S3 server of these tests")

from artifacts import toy
from artifacts.s3 import Proxy, Site, whole_files

from vbert.artifacts.making.engine import Events, build_here
from vbert.artifacts.making.plan import plan, walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.step_json import steps_as_json
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.verify import verify
from vbert.errors import BuildError, UserError

TESTS = Path(__file__).parents[1]
COUNT = 4
TARGET = toy.graph(COUNT)
TOTAL = sum(n * n for n in range(COUNT)) + sum(n * n for n in range(COUNT + 1))


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a local build."""
    store = tmp_path_factory.mktemp("golden")
    build_here([TARGET], store)
    base = store / "artifacts"
    names = [path.relative_to(store).as_posix() for path in base.rglob("*") if path.is_file()]
    return whole_files(names, lambda name: (store / name).read_bytes())


class Heard(Events):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def message(self, artifact: Artifact, sentence: str) -> None:
        self.sentences.append(sentence)


def command(site: Site, machine: str, *arguments: str, port: int | None = None, **more: str) -> subprocess.Popen[str]:
    """`vbert …` on a machine of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows.cli", *arguments],
        env=os.environ | site.environment(machine, port) | {"PYTHONPATH": str(TESTS)} | more,
        cwd=TESTS.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(process: subprocess.Popen[str], code: int = 0) -> str:
    said, wrong = process.communicate(timeout=120)
    assert process.returncode == code, said + wrong
    return said if code == 0 else wrong


def step_file(path: Path, artifact: Artifact) -> str:
    path.write_text(json.dumps(steps_as_json(artifact)))
    return str(path)


def squares(count: int = COUNT) -> toy.Squares:
    return next(a for a in walk(toy.graph(count)) if a.title == "toy_squares[one]")  # type: ignore[return-value]


# ---------------------------------------------------------------------- the same as on a path


def test_what_is_built_is_what_a_path_gets(site: Site, golden: dict[str, bytes]) -> None:
    store = Store(site.url)
    assert isinstance(store, Store)
    assert [line.status for line in plan([TARGET], store)].count("missing") == 5
    assert build_here([TARGET], store)[0].read() == TOTAL  # type: ignore[attr-defined]
    assert site.artifacts() == golden
    assert site.keys("unfinished/") == []

    site.machine("another")
    other = Store(site.url)
    assert {line.status for line in plan([TARGET], other)} == {"present"}
    assert TARGET.bound(other).read() == TOTAL
    assert sorted(squares().bound(other).read()) == [f"{n:04d}.json" for n in range(COUNT)]
    whole = squares().bound(other).path  # the directory that holds all of it
    assert sorted(path.name for path in whole.iterdir()) == [f"{n:04d}.json" for n in range(COUNT)]
    assert verify(other) == []


def test_a_second_run_asks_for_manifests_and_no_more(site: Site) -> None:
    build_here([TARGET], site.url)
    site.server.requests.clear()
    assert build_here([TARGET], site.url)[0].read() == TOTAL  # type: ignore[attr-defined]
    assert {method for method, _ in site.server.requests} == {"GET"}
    assert not [path for _, path in site.server.requests if path.endswith("total.json")]  # it lies in the cache


# ---------------------------------------------------------------------- units without a shared path


def test_two_workers_and_a_publisher_share_nothing_but_the_bucket(
    site: Site, golden: dict[str, bytes], tmp_path: Path
) -> None:
    build_here([a for a in walk(squares()) if a.stage_name == "toy_numbers"], site.url)
    step, logs = step_file(tmp_path / "step.json", squares()), [tmp_path / f"log{n}" for n in range(3)]
    workers = [
        command(site, f"worker{n}", "build", step, "--units", units, "--store", site.url, TOY_LOG=str(logs[n]))
        for n, units in enumerate(("0-1", "2"))
    ]
    for worker in workers:
        assert " of 4 units are there" in done(worker)
    assert len([key for key in site.keys("unfinished/") if key.endswith("/unit.json")]) == 3
    assert len({path.name for path in (tmp_path / "machines").iterdir()} & {"worker0", "worker1"}) == 2

    publisher = command(site, "publisher", "build", step, "--store", site.url, TOY_LOG=str(logs[2]))
    assert f"{site.url}/artifacts/toy_squares/{squares().fingerprint}/" in done(publisher)
    assert logs[2].read_text() == "square 3\n"  # only what was missing
    made = Counter("".join(log.read_text() for log in logs).splitlines())
    assert made == {f"square {n}": 1 for n in range(COUNT)}
    assert {k: v for k, v in site.artifacts().items() if squares().fingerprint in k} == {
        k: v for k, v in golden.items() if squares().fingerprint in k
    }
    assert site.keys("unfinished/") == []
    uploaded = [path for method, path in site.server.requests if method == "PUT" and "/artifacts/toy_squares/" in path]
    assert len(uploaded) == COUNT + 1  # copies made by the server, and the manifest


def test_a_worker_goes_on_from_what_it_had_not_shared(site: Site, tmp_path: Path) -> None:
    """Killed between the commit of a unit and its upload: it is uploaded by the next run, not made again."""
    numbers = next(a for a in walk(squares()) if a.stage_name == "toy_numbers")
    build_here([numbers], site.url)
    step, log = step_file(tmp_path / "step.json", squares()), tmp_path / "log"
    record = f"unfinished/toy_squares/{squares().fingerprint}/units/0001/unit.json"
    came, go = pause_at(site, "/0001/unit.json")
    build = ("build", step, "--units", "0-1", "--store", site.url, "--machine", "units_at_once=1")
    worker = command(site, "worker", *build, TOY_LOG=str(log))
    assert came.wait(100)
    worker.kill()
    worker.communicate()
    site.server.around = lambda environ, answer: answer()
    assert record not in site.keys("unfinished/")
    assert "2 of 4" in done(command(site, "worker", *build, TOY_LOG=str(log)))
    assert record in site.keys("unfinished/")
    assert Counter(log.read_text().splitlines()) == {"square 0": 1, "square 1": 1}
    go.set()


# ---------------------------------------------------------------------- kills, races


def pause_at(site: Site, ending: str) -> tuple[threading.Event, threading.Event]:
    """Requests that put a key with this ending are held: (one came, let them go)."""
    came, go = threading.Event(), threading.Event()

    def hold(environ: dict[str, Any], answer: Callable[[], Any]) -> Any:
        if environ["REQUEST_METHOD"] == "PUT" and environ["PATH_INFO"].endswith(ending):
            came.set()
            go.wait(60)
        return answer()

    site.server.around = hold
    return came, go


def test_killed_between_files_and_manifest(site: Site, golden: dict[str, bytes], tmp_path: Path) -> None:
    numbers = next(a for a in walk(squares()) if a.stage_name == "toy_numbers")
    build_here([numbers], site.url)
    step = step_file(tmp_path / "step.json", squares())
    came, go = pause_at(site, f"{squares().fingerprint}/manifest.json")
    builder = command(site, "builder", "build", step, "--store", site.url)
    assert came.wait(100)
    builder.kill()
    builder.communicate()
    site.server.around = lambda environ, answer: answer()
    files = [key for key in site.keys("artifacts/toy_squares/") if key.endswith(".json")]
    assert len(files) == COUNT  # all files, no manifest:
    go_on = Store(site.url)
    assert go_on.find("toy_squares", squares().fingerprint) is None
    assert next(line for line in plan([squares()], go_on) if line.artifact == squares()).status == "unfinished"
    site.server.requests.clear()
    done(command(site, "builder", "build", step, "--store", site.url))
    again = [path for method, path in site.server.requests if method == "PUT" and "/artifacts/" in path]
    assert [path.rpartition("/")[2] for path in again] == ["manifest.json"]  # the files were there
    assert {k: v for k, v in site.artifacts().items() if "toy_squares" in k} == {
        k: v for k, v in golden.items() if squares().fingerprint in k
    }
    go.set()


def test_a_waiter_says_who_builds_and_takes_over_from_the_dead(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vbert.artifacts.store import lease

    for name, seconds in (("BEAT", 0.2), ("LIFE", 1.0), ("LOOK", 0.05)):
        monkeypatch.setattr(lease, name, seconds)
    store, key = Store(site.url), "locks/x.json"
    who: list[str] = []
    held = lease.Lease(store.files.client, key)
    monkeypatch.setattr(lease.Owner, "dead", lambda _: False)  # as if all were on other hosts
    with held:
        waiter = threading.Thread(
            target=lambda: lease.Lease(store.files.client, key, who.append).__enter__().__exit__(None, None, None)
        )
        waiter.start()
        time.sleep(2.5)  # longer than a life: signs of life keep it
        assert waiter.is_alive()
        assert who == [f"process {os.getpid()} on {os.uname().nodename}, since {who[0][-8:]}"]
    waiter.join(10)
    assert not waiter.is_alive()
    # One that stopped giving signs of life
    store.files.client.put(key, lease.Lease(store.files.client, key)._body())
    began = time.monotonic()
    with lease.Lease(store.files.client, key):
        assert 0.9 < time.monotonic() - began < 10
        stolen = store.files.client.get(key)
        assert stolen is not None
        store.files.client.put(key, b"{}")  # and a holder who has lost it goes on
        time.sleep(0.5)


# ---------------------------------------------------------------------- a server that lies


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_server_that_ignores_conditions_is_refused(site: Site, header: str) -> None:
    def ignore(environ: dict[str, Any], answer: Callable[[], Any]) -> Any:
        environ.pop(f"HTTP_{header.upper().replace('-', '_')}", None)
        return answer()

    site.server.around = ignore
    with pytest.raises(UserError, match=f"the server ignores `{header}.*use one that honours it"):
        build_here([TARGET], site.url)
    assert site.keys() == []


def test_an_answer_that_was_lost(site: Site, golden: dict[str, bytes]) -> None:
    """500 after the server did what was asked, for every first put of a key: the manifest's was ours all the same."""
    seen: set[str] = set()

    from werkzeug.wrappers import Response

    def lose(environ: dict[str, Any], answer: Callable[[], Any]) -> Any:
        key, start = environ["PATH_INFO"], environ["start"]
        if environ["REQUEST_METHOD"] != "PUT" or key in seen:
            return answer()
        seen.add(key)
        swallow: list[Any] = []
        app = site.server._app
        b"".join(app(environ, lambda *given: swallow.append(given)))
        return Response("<Error><Code>InternalError</Code></Error>", 500)(environ, start)

    site.server.around = lose
    heard = Heard()
    build_here([TARGET], site.url, events=heard)
    assert site.artifacts() == golden
    assert not [sentence for sentence in heard.sentences if "another" in sentence]
    assert len(seen) > 20


@pytest.mark.parametrize(
    ("status", "code", "error", "said"),
    [
        (403, "AccessDenied", BuildError, "toy_numbers.* is missing and the store s3://.* is read-only for this user"),
        (400, "InvalidArgument", BuildError, "the server refused `.*InvalidArgument"),
    ],
)
def test_what_the_server_refuses_is_told_at_once(
    site: Site, status: int, code: str, error: type[Exception], said: str
) -> None:
    from werkzeug.wrappers import Response

    def refuse(environ: dict[str, Any], answer: Callable[[], Any]) -> Any:
        if environ["REQUEST_METHOD"] == "PUT":
            return Response(f"<Error><Code>{code}</Code></Error>", status)(environ, environ["start"])
        return answer()

    site.server.around = refuse
    with pytest.raises(error, match=said):
        build_here([TARGET], site.url)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket/p", "holds more than bucket and prefix; secrets belong in the environment"),
        ("s3://bucket/p?X-Amz-Signature=abc", "holds more than bucket and prefix"),
        ("gs://bucket/p", "unknown scheme 'gs'; valid: s3"),
        ("s3:///p", "give s3://bucket/prefix"),
        ("s3://bucket/a/../b", "give s3://bucket/prefix"),
    ],
)
def test_urls_that_are_refused(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as raised:
        Store(url)
    assert "secret@" not in str(raised.value)
    assert "abc" not in str(raised.value)


def test_an_endpoint_that_is_none(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for given in ("", "localhost:9000"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", given)
        with pytest.raises(UserError, match=f"AWS_ENDPOINT_URL='{given}' is no http.s. address; mend it, or unset it"):
            Store(site.url).exists()


def test_a_bucket_that_is_not_there(site: Site) -> None:
    with pytest.raises(UserError, match="there is no bucket 'nowhere' for s3://nowhere/p; make it first"):
        build_here([TARGET], "s3://nowhere/p")


# ---------------------------------------------------------------------- what a server takes in one request


def test_damage_too_large_for_a_copy_by_the_server(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server copies 5 GiB in one request and refuses more: those go by way of this machine."""
    from vbert.artifacts.store import s3_client, s3_files

    store = Store(site.url)
    big = build_here([toy.bulk(1, 9)], store)[0]
    (key,) = (key for key in site.keys("artifacts/toy_bulk") if key.endswith("0.bin"))
    damaged = b"x" * (9 << 20)
    site.server.put(site.bucket, f"the%20store/{key}", damaged)
    monkeypatch.setattr(s3_files, "COPY_LIMIT", 9 << 20)
    monkeypatch.setattr(s3_client, "PIECE", 4 << 20)

    def refused(environ: dict[str, Any], answer: Callable[[], Any]) -> Any:
        if "0.bin" not in environ.get("HTTP_X_AMZ_COPY_SOURCE", ""):
            return answer()
        environ["start"]("400 Bad Request", [("Content-Type", "application/xml")])
        return [b"<Error><Code>InvalidRequest</Code><Message>larger than the maximum</Message></Error>"]

    site.server.around = refused
    assert [damage.file for damage in verify(Store(site.url))] == ["0.bin"]
    (kept,) = (key for key in site.keys("damaged/") if key.endswith("0.bin"))
    assert site.server.ask("GET", f"/{site.bucket}/the%20store/{kept}")[1] == damaged
    assert big.fingerprint not in "".join(site.keys("artifacts/"))


def test_an_upload_has_no_more_parts_than_a_server_takes() -> None:
    from vbert.artifacts.store.s3_client import PART, part_size

    for size in (0, PART, 80 << 30, 1 << 40):
        assert part_size(size) >= PART
        assert part_size(size) * 10_000 >= size


# ---------------------------------------------------------------------- the server away


def test_dropped_and_refused_while_uploading(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Connections cut in the middle of bodies, then none for a while, again and again: the run goes on by itself."""
    big, local = toy.bulk(3, 12), tmp_path / "local"
    proxy = Proxy(site.server.port)
    step = step_file(tmp_path / "step.json", big)
    proxy.cut_at = [3 << 20, 100_000, 1 << 20, 5 << 20, 2_000, 7 << 20, 2 << 20]
    builder = command(site, "builder", "build", step, "--store", site.url, port=proxy.port)
    downs, before = 0, 0
    while builder.poll() is None and downs < 2:
        parts = len([1 for method, path in site.server.requests if method == "PUT" and path.endswith(".bin")])
        if proxy.cuts >= 3 and parts > before:  # in the middle of one
            proxy.down()
            time.sleep(1.0)
            proxy.up()
            downs, before = downs + 1, parts + 1
        time.sleep(0.005)
    assert f"/artifacts/toy_bulk/{big.fingerprint}" in done(builder)
    with capsys.disabled():
        print(f" {proxy.cuts} cut, {downs} times away ", end="")
    assert proxy.cuts >= 3
    assert downs >= 1
    build_here([big], local)
    names = [path.relative_to(local).as_posix() for path in (local / "artifacts").rglob("*.bin")]
    assert site.artifacts() == whole_files(names, lambda name: (local / name).read_bytes())


def test_away_for_good_is_a_sentence_and_the_next_run_goes_on(
    site: Site, golden: dict[str, bytes], tmp_path: Path
) -> None:
    build_here([a for a in walk(squares()) if a.stage_name == "toy_numbers"], site.url)
    step, log = step_file(tmp_path / "step.json", squares()), tmp_path / "log"
    proxy = Proxy(site.server.port)
    came, go = pause_at(site, "/0002.json")
    more = {"TOY_LOG": str(log), "VBERT_STORE_PATIENCE": "2"}
    builder = command(site, "builder", "build", step, "--store", site.url, port=proxy.port, **more)
    assert came.wait(100)
    proxy.down()
    go.set()
    said = done(builder, code=1)
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"vbert: {site.url}: `"), said
    assert "finished work is kept, run the same command when the server answers again" in last
    assert "does not answer (Connection refused" in said
    proxy.up()
    before = Counter(log.read_text().splitlines())
    done(command(site, "builder", "build", step, "--store", site.url, port=proxy.port, **more))
    after = Counter(log.read_text().splitlines())
    assert set(after) == {f"square {n}" for n in range(COUNT)}
    assert all(after[line] == 1 for line in before), after  # what was made is kept, uploaded or not
    assert {k: v for k, v in site.artifacts().items() if "toy_squares" in k} == {
        k: v for k, v in golden.items() if squares().fingerprint in k
    }


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 20))])
def test_killed_at_random_moments(
    site: Site, golden: dict[str, bytes], seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """kill -9 of the whole run after a random number of requests: at all times what is there is whole."""
    import random

    draw, kills = random.Random(seed), 0
    script = (
        "import sys, json; from artifacts import toy; from vbert.artifacts.making.engine import build_here\n"
        f"print(build_here([toy.graph({COUNT})], sys.argv[1])[0].read())"
    )
    while True:
        builder = subprocess.Popen(
            [sys.executable, "-c", script, site.url],
            env=os.environ | site.environment("builder") | {"PYTHONPATH": str(TESTS)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        until = len(site.server.requests) + draw.randrange(1, 60)
        while builder.poll() is None and len(site.server.requests) < until:
            time.sleep(0.001)
        if builder.poll() is not None or kills == 4:
            break
        os.killpg(builder.pid, signal.SIGKILL)
        builder.communicate()
        kills += 1
        assert verify(Store(site.url), quarantine=False) == []
    said, _ = builder.communicate(timeout=60)
    assert said.strip() == str(TOTAL)
    assert site.artifacts() == golden
    with capsys.disabled():
        print(f" {kills} kills ", end="")


# ---------------------------------------------------------------------- the cache


def test_the_cache_keeps_within_its_limit(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    from vbert.artifacts.store import cache

    big = build_here([toy.bulk(4, 1)], site.url)[0]
    site.machine("reader")
    monkeypatch.setenv("VBERT_CACHE_SIZE", "2.5MB")
    monkeypatch.setattr(cache, "IN_USE", 0.0)
    store = Store(site.url)
    for n in (0, 1, 2, 3, 0):
        assert big.bound(store).file(f"{n}.bin").read_bytes() == bytes([n]) * (1 << 20)
        held = list(store.root.rglob("*.bin"))
        assert sum(path.stat().st_size for path in held) <= 2.5e6
    assert {path.name for path in held} == {"0.bin", "3.bin"}  # the two that were used last
    monkeypatch.setattr(cache, "IN_USE", 600.0)
    with pytest.raises(BuildError, match=r"no room for 1\.0 MB more .*the limit is 2\.5 MB \(VBERT_CACHE_SIZE\)"):
        big.bound(store).file("1.bin")
    monkeypatch.setenv("VBERT_CACHE_SIZE", "much")
    with pytest.raises(UserError, match="VBERT_CACHE_SIZE='much' is no size; give one such as 50GB"):
        big.bound(store).file("1.bin")


def test_a_damaged_copy_is_fetched_again(site: Site) -> None:
    build_here([TARGET], site.url)
    site.machine("reader")
    store = Store(site.url)
    copy = TARGET.bound(store).file("total.json")
    copy.chmod(0o644)
    copy.write_text("9" * copy.stat().st_size)
    assert TARGET.bound(Store(site.url)).read() == TOTAL
    assert not list(store.root.rglob("*damaged*/*"))


def test_a_damaged_copy_goes_with_what_it_is_of(site: Site) -> None:
    """Bucket and copy are spoilt: what is made again is not taken to lie here already."""
    store, target = Store(site.url), toy.numbers(3)
    copy = build_here([target], store)[0].file("numbers.json")
    copy.chmod(0o644)
    copy.write_text("[9, 9, 9]")
    (key,) = (key for key in site.keys("artifacts/toy_numbers/") if key.endswith("numbers.json"))
    site.server.put(site.bucket, site.key(key), b"[8, 8, 8]")
    assert [damage.file for damage in verify(store)] == ["numbers.json"]
    assert build_here([target], store)[0].read() == [0, 1, 2]  # type: ignore[attr-defined]
    copy.chmod(0o644)
    copy.write_text("[9, 9, 9]")
    assert target.bound(store).read() == [0, 1, 2]


def test_a_forked_reader(site: Site) -> None:
    """A loader's worker is forked, and its client's threads are gone: it reads all the same."""
    build_here([TARGET], site.url)
    site.machine("reader")
    store = Store(site.url)
    assert store.find("toy_total", TARGET.fingerprint) is not None  # its client is in use
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if TARGET.bound(store).read() == TOTAL and len(squares().bound(store).read()) == COUNT else 1)
        finally:
            os._exit(2)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the forked reader waits for ever")
    assert os.waitstatus_to_exitcode(status) == 0


def test_describing_a_remote_store_loads_no_client() -> None:
    script = (
        "import sys; from vbert.artifacts.store.store import Store\n"
        "Store('s3://bucket/x'); print('obstore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "False"


# ---------------------------------------------------------------------- the commands


def test_the_commands(site: Site, tmp_path: Path) -> None:
    """What asks a store: in sentences where there is none, and of one that is there."""
    said = done(command(site, "here", "verify", "--store", site.url), code=2)
    assert f"no store in {site.url}" in said
    build_here([TARGET], site.url)
    assert "every file is what its manifest says" in done(command(site, "here", "verify", "--store", site.url))
    swept = json.loads(done(command(site, "here", "gc", "--grace", "0", "--json", "--store", site.url)))
    assert len([item for item in swept["items"] if item["kind"] == "artifact"]) == len(walk(TARGET))
    tiny = str(TESTS / "tiny.yaml")
    shown = json.loads(done(command(site, "here", "status", tiny, "--store", site.url, "--json")).splitlines()[-1])
    assert shown["store"] == site.url
    assert {row["status"] for row in shown["stages"]} == {"missing"}
