"""The store on S3: what is there is whole, whoever is killed, drops, races or lies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("obstore", reason="the extra `s3` is not installed")
pytest.importorskip("moto", reason="moto is the S3 server of these tests")

from artifacts import toy
from artifacts.s3 import Proxy, S3Server, Site, serving

from vbert.artifacts.making.build import Machine
from vbert.artifacts.making.graph import Engine, Events, build_here, plan, walk
from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.fingerprint import digest
from vbert.artifacts.steps.stage import steps_as_json
from vbert.artifacts.store.manifest import content_digest
from vbert.artifacts.store.remote import RemoteStore
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.upkeep import gc, keep, lineage, verify, why
from vbert.errors import BuildError, Damaged, UserError

TESTS = Path(__file__).parents[1]
COUNT = 4
TARGET = toy.graph(COUNT)
TOTAL = sum(n * n for n in range(COUNT)) + sum(n * n for n in range(COUNT + 1))


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with serving() as server:
        yield server


@pytest.fixture
def site(server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    server.requests.clear()
    yield Site(server, tmp_path / "machines", monkeypatch)
    server.around = lambda environ, answer: answer()


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of a local build."""
    store = tmp_path_factory.mktemp("golden")
    build_here([TARGET], store)
    base = store / "artifacts"
    files = [path for path in base.rglob("*") if path.is_file() and path.name != "manifest.json"]
    return {path.relative_to(base).as_posix(): path.read_bytes() for path in files}


class Heard(Events):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def said(self, artifact: Artifact, sentence: str) -> None:
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
    assert isinstance(store, RemoteStore)
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


def test_names_with_folders_and_unknown_files(site: Site) -> None:
    nested = build_here([toy.nested(toy.numbers(3))], site.url)[0]
    site.machine("another")
    assert nested.bound(Store(site.url)).read() == {"0": 0, "1": 1, "2": 4}  # type: ignore[attr-defined]
    with pytest.raises(BuildError, match=r"has no file 'x'; it has own\.json, part0/0"):
        nested.bound(Store(site.url)).file("x")


def test_early_cut_off_and_forced_builds(site: Site) -> None:
    """`order` changes the fingerprint and not the content: what rests on it is adopted."""
    store = Store(site.url)
    build_here([TARGET], store)
    events: list[str] = []

    class Told(Events):
        def finished(self, built: Any) -> None:
            events.append(f"{built.artifact.title} {built.outcome}")

    turned = toy.graph(COUNT, order="down")
    build_here([turned], store, events=Told())
    assert events.count("toy_squares[one] adopted") == 1
    assert "toy_total adopted" in events
    site.machine("another")
    assert turned.bound(Store(site.url)).read() == TOTAL
    assert Engine(Store(site.url)).compare(squares()) == []
    assert why(Store(site.url), turned)[0].startswith("toy_total")
    assert any("toy_numbers[one]" in line for line in lineage(Store(site.url), TARGET.fingerprint))


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
    assert done(publisher).strip().endswith(f"artifacts/toy_squares/{squares().fingerprint}")
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


def test_the_first_unit_of_a_key_stands(site: Site) -> None:
    """Two machines made other bits of a unit (another processor): one of them is taken, by all."""
    build_here([a for a in walk(squares()) if a.stage_name == "toy_numbers"], site.url)
    from vbert.artifacts.store.units import make_and_share

    mark = squares().fingerprint
    for machine, value in (("one", "first"), ("two", "second")):
        site.machine(machine)
        store = Store(site.url)
        store.prepare()
        make_and_share(store, "toy_squares", mark, "0000", write_value, value)
    heard = Heard()
    made = build_here([squares()], site.url, events=heard)[0]
    assert made.file("0000.json").read_text() == "first"
    assert any("another machine was first" in sentence for sentence in heard.sentences)


def write_value(directory: Path, value: str) -> dict[str, Any]:
    (directory / "0000.json").write_text(value)
    return {}


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


class NoLease:
    def __init__(self, *_: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


def test_two_publishers_at_once(site: Site, golden: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases switched off, both stand before the manifest: one is taken, and both have the same."""
    monkeypatch.setattr("vbert.artifacts.store.remote.Lease", NoLease)
    numbers = next(a for a in walk(squares()) if a.stage_name == "toy_numbers")
    build_here([numbers], site.url)
    both = threading.Barrier(2, timeout=30)

    def meet(environ: dict[str, Any], answer: Callable[[], Any]) -> Any:
        if (
            environ["PATH_INFO"].endswith(f"{squares().fingerprint}/manifest.json")
            and environ["REQUEST_METHOD"] == "PUT"
        ):
            both.wait()
        return answer()

    site.server.around = meet
    stores = []
    for machine in ("one", "two"):
        site.machine(machine)
        stores.append(Store(site.url))
    results: list[Any] = [None, None]

    def build(n: int) -> None:
        results[n] = Engine(stores[n]).ensure(squares())

    threads = [threading.Thread(target=build, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results[0].manifest == results[1].manifest
    assert {k for k in site.artifacts() if squares().fingerprint in k} == {
        k for k in golden if squares().fingerprint in k
    }


@pytest.mark.parametrize(("same_bits", "told"), [(True, True), (False, False)])
def test_the_loser_compares_its_bits(site: Site, same_bits: bool, told: bool) -> None:
    """What differs within one numerics class is told; not of a stage whose bits are no promise."""
    from dataclasses import replace

    one = toy.numbers(2)
    build_here([one], site.url)
    site.machine("another")
    heard, store = Heard(), Store(site.url)
    store.prepare()
    engine = Engine(store, Machine(), heard)
    assert one.step is not None
    stage = replace(one.step.stage, same_bits=same_bits, function=other_numbers)
    changed = one._copy(step=replace(one.step, stage=stage))
    engine._build(changed.bound(store), "")
    assert bool([s for s in heard.sentences if "1 files differ from ours (numbers.json)" in s]) is told
    assert one.bound(Store(site.url)).read() == [0, 1]


def other_numbers(build: Any, count: int, order: str) -> dict[str, Any]:
    (build.directory / "numbers.json").write_text("[7]")
    return {}


def test_a_waiter_says_who_builds_and_takes_over_from_the_dead(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from vbert.artifacts.store import lease
    from vbert.artifacts.store.objects import Objects

    for name, seconds in (("BEAT", 0.2), ("LIFE", 1.0), ("LOOK", 0.05)):
        monkeypatch.setattr(lease, name, seconds)
    store, key = RemoteStore(site.url), "locks/x.json"
    who: list[str] = []
    held = lease.Lease(store.objects, key)
    monkeypatch.setattr(lease.Owner, "dead", lambda _: False)  # as if all were on other hosts
    with held:
        waiter = threading.Thread(
            target=lambda: lease.Lease(store.objects, key, who.append).__enter__().__exit__(None, None, None)
        )
        waiter.start()
        time.sleep(2.5)  # longer than a life: signs of life keep it
        assert waiter.is_alive()
        assert who == [f"process {os.getpid()} on {os.uname().nodename}, since {who[0][-8:]}"]
    waiter.join(10)
    assert not waiter.is_alive()
    # One that stopped giving signs of life
    Objects(site.url).put(key, lease.Lease(store.objects, key)._body())
    began = time.monotonic()
    with lease.Lease(store.objects, key):
        assert 0.9 < time.monotonic() - began < 10
        stolen = store.objects.get(key)
        assert stolen is not None
        store.objects.put(key, b"{}")  # and a holder who has lost it goes on
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


# ---------------------------------------------------------------------- damage


def spoil(site: Site, key: str, how: str) -> None:
    at = site.key(key)
    _, data = site.server.ask("GET", f"/{site.bucket}/{at}")
    if how == "gone":
        site.server.delete(site.bucket, at)
    elif how == "short":
        site.server.put(site.bucket, at, data[:-1])
    else:
        site.server.put(site.bucket, at, bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize("how", ["gone", "short", "flipped"])
@pytest.mark.parametrize("machine", ["here", "another"])
def test_damage_is_found_named_set_aside_and_mended(
    site: Site, golden: dict[str, bytes], how: str, machine: str
) -> None:
    build_here([TARGET], site.url)
    key = next(key for key in site.keys("artifacts/toy_squares/") if key.endswith("/0002.json"))
    stage, mark = key.split("/")[1:3]
    spoil(site, key, how)
    site.machine(machine)
    if how == "flipped" and machine == "another":  # a reader finds it
        found = Store(site.url).find(stage, mark)
        assert found is not None
        with pytest.raises(Damaged, match=rf"toy_squares/{mark[:8]}/0002.json is damaged: its sha256"):
            Store(site.url).verified(found, "0002.json")
    damaged = verify(Store(site.url))
    assert [(d.stage, d.fingerprint, d.file) for d in damaged] == [("toy_squares", mark, "0002.json")]
    kept = [key for key in site.keys("damaged/") if key.endswith("manifest.json")]
    assert len(kept) == 1
    assert site.keys(f"artifacts/toy_squares/{mark}") == []
    build_here([TARGET], site.url)  # which is whole itself
    assert verify(Store(site.url)) == []
    assert site.artifacts() == golden


def test_damage_too_large_for_a_copy_by_the_server(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server copies 5 GiB in one request and refuses more: those go by way of this machine."""
    from vbert.artifacts.store import objects, transfer

    store = RemoteStore(site.url)
    big = build_here([toy.bulk(1, 9)], store)[0]
    (key,) = (key for key in site.keys("artifacts/toy_bulk") if key.endswith("0.bin"))
    damaged = b"x" * (9 << 20)
    site.server.put(site.bucket, f"the%20store/{key}", damaged)
    monkeypatch.setattr(transfer, "COPY_LIMIT", 9 << 20)
    monkeypatch.setattr(objects, "PIECE", 4 << 20)

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
    from vbert.artifacts.store.objects import PART, part_size

    for size in (0, PART, 80 << 30, 1 << 40):
        assert part_size(size) >= PART
        assert part_size(size) * 10_000 >= size


def test_a_damaged_manifest(site: Site, golden: dict[str, bytes]) -> None:
    build_here([TARGET], site.url)
    spoil(site, f"artifacts/toy_total/{TARGET.fingerprint}/manifest.json", "flipped")
    heard = Heard()
    assert "manifest.json is damaged" in str(plan([TARGET], Store(site.url))[-1].damage)
    build_here([TARGET], site.url, events=heard)
    assert any("moved to s3://" in sentence for sentence in heard.sentences)
    assert site.artifacts() == golden


def test_a_manifest_that_leads_elsewhere(site: Site) -> None:
    """Names and contents of a manifest become paths on this machine: none may lead out of the cache."""
    store = Store(site.url)
    build_here([toy.numbers(2)], store)
    mark = toy.numbers(2).fingerprint
    found = store.find("toy_numbers", mark)
    assert found is not None
    for name, content in (("../../x", None), ("/x", None), ("a//b", None), ("numbers.json", "../../../..")):
        entry = found.files[0].model_copy(update={"name": name})  # unchecked
        body = found.model_dump() | {"files": [entry.model_dump()], "content": content or content_digest([entry])}
        text = json.dumps(body | {"digest": digest(body)})
        site.server.put(site.bucket, site.key(f"artifacts/toy_numbers/{mark}/manifest.json"), text.encode())
        with pytest.raises(Damaged, match="is no name of a file" if content is None else "its content is not"):
            Store(site.url).find("toy_numbers", mark)


@pytest.mark.parametrize("what", ["unit.json", "0001.json"])
def test_a_damaged_unit_is_made_again(site: Site, golden: dict[str, bytes], what: str, tmp_path: Path) -> None:
    build_here([a for a in walk(squares()) if a.stage_name == "toy_numbers"], site.url)
    step, log = step_file(tmp_path / "step.json", squares()), tmp_path / "log"
    done(command(site, "worker", "build", step, "--units", "0-2", "--store", site.url))
    unit = f"unfinished/toy_squares/{squares().fingerprint}/units/0001/"
    spoil(site, next(key for key in site.keys(unit) if key.endswith(what)), "flipped")
    os.environ["TOY_LOG"] = str(log)
    try:
        heard = Heard()
        build_here([squares()], site.url, events=heard)
    finally:
        del os.environ["TOY_LOG"]
    assert sorted(log.read_text().splitlines()) == ["square 1", "square 3"]
    assert any("unit 0001/" in sentence and "is damaged" in sentence for sentence in heard.sentences)
    assert {k: v for k, v in site.artifacts().items() if "toy_squares" in k} == {
        k: v for k, v in golden.items() if squares().fingerprint in k
    }


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
    base = local / "artifacts"
    assert site.artifacts() == {p.relative_to(base).as_posix(): p.read_bytes() for p in base.rglob("*.bin")}


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
        "import sys, json; from artifacts import toy; from vbert.artifacts.making.graph import build_here\n"
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
        assert verify(Store(site.url), set_aside=False) == []
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
    store = RemoteStore(site.url)
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
    store = RemoteStore(site.url)
    copy = TARGET.bound(store).file("total.json")
    copy.chmod(0o644)
    copy.write_text("9" * copy.stat().st_size)
    assert TARGET.bound(Store(site.url)).read() == TOTAL
    assert not list(store.root.rglob("*damaged*/*"))


def test_a_forked_reader(site: Site) -> None:
    """A loader's worker is forked, and its client's threads are gone: it reads all the same."""
    build_here([TARGET], site.url)
    site.machine("reader")
    store = RemoteStore(site.url)
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


# ---------------------------------------------------------------------- upkeep


def test_gc_keeps_what_runs_need(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(site.url)
    build_here([TARGET, toy.graph(2)], store)
    store.note_run("one", {"recipe": "r", "status": "done", "started": 1.0, "targets": [TARGET.fingerprint]})
    keep(store, "one")
    assert store.runs()["one"]["kept"]
    with pytest.raises(UserError, match=rf"no run 'on' in {site.url}; did you mean 'one'\?"):
        keep(store, "on")
    site.server.put(site.bucket, site.key("artifacts/toy_bulk/abandoned/abc/file"), b"x" * 100)
    site.server.put(site.bucket, site.key(f"unfinished/toy_total/{TARGET.fingerprint}/step.json"), b"{}")
    site.machine("another")  # which has no copies
    with_grace = gc(Store(site.url))
    assert not [item for item in with_grace.items if item.kind == "artifact"], "what was made lately stays"
    gone = {a.fingerprint for a in walk(toy.graph(2))} - {a.fingerprint for a in walk(TARGET)}
    later = gc(store, grace=0).items
    assert {item.name.rpartition("/")[2] for item in later if item.kind == "artifact"} == gone
    assert [item.name for item in with_grace.items if item.kind == "unfinished"]
    assert not [item for item in with_grace.items if item.kind == "publishing"]
    swept = gc(store, dry_run=False, grace=0)
    assert [item.name for item in swept.items if item.kind == "publishing"] == ["artifacts/toy_bulk/abandoned"]
    assert {key.split("/")[2] for key in site.keys("artifacts/")} == {a.fingerprint for a in walk(TARGET)}
    assert site.keys("unfinished/") == []
    assert swept.kept == len(walk(TARGET))
    assert TARGET.bound(Store(site.url)).read() == TOTAL
    assert verify(store) == []


def test_gc_leaves_what_is_being_built(site: Site) -> None:
    from vbert.artifacts.store.lease import Lease

    store = RemoteStore(site.url)
    build_here([TARGET], store)
    owner = Lease(store.objects, "x")._body().replace(os.uname().nodename.encode(), b"another-host")
    store.objects.put(f"locks/{TARGET.fingerprint}.json", owner)
    assert gc(store, grace=0).items == []


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
