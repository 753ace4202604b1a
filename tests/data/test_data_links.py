"""Photos of lists of links, from a real server that answers as the web does."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from data.data_steps import built
from data.own_world import png
from processes import until

from flows.graph import sources_of
from tasks.examples import examples
from tasks.images import images
from vbert.artifacts.store.store import Store
from vbert.data.spec import DatasetSpec
from vbert.data.spec import dataset as spec_of
from vbert.errors import BuildError, NotAccepted, UserError

BOMB = b"\x89PNG\r\n\x1a\n" + b"".join(
    struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    )
)
Answer = Callable[[BaseHTTPRequestHandler], None]


def given(data: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in {"Content_Length": str(len(data)), **headers}.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(data)

    return answer


def cut(request: BaseHTTPRequestHandler) -> None:
    given(png(1)[:20], Content_Length="1000")(request)


def silent(request: BaseHTTPRequestHandler) -> None:
    threading.Event().wait(3)


@contextmanager
def web(answers: dict[str, Answer]) -> Iterator[str]:
    """A server of these paths, 404 elsewhere; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(BrokenPipeError, ConnectionResetError):
                answers.get(self.path, given(b"", 404))(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def spec(folder: Path, urls: list[str], dead: float = 1.0, per_unit: int = 1000, **fetch: Any) -> DatasetSpec:
    folder.mkdir(exist_ok=True)
    (folder / "t.tsv").write_text("".join(f"caption {k}\t{url}\n" for k, url in enumerate(urls)))
    fetching = {"private": True, "seconds": 1.0, "attempts": 1, "dead": dead} | fetch
    listed = {"format": "tsv", "splits": {"train": "t.tsv"}, "links_per_unit": per_unit}
    return DatasetSpec.model_validate(
        {
            **{"name": "web", "title": "Web", "licence": "x", "sources": {"list": {"path": str(folder)}}},
            **{"links": {"list": listed, "fetch": fetching}, "images": {"reader": "links"}},
            "examples": {"reader": "links"},
        }
    )


def fetched(of: DatasetSpec, store: Store) -> tuple[Any, Any, Any]:
    raws = sources_of(of)
    index = images(raws, of.reader("images"), None, of.reading("images"))
    texts = examples(raws, index, of.reader("examples"), of.reading("examples"))
    return tuple(built(store, raws["links"], index, texts))  # type: ignore[return-value]


def test_dead_links_are_counted_with_their_reasons(tmp_path: Path) -> None:
    answers: dict[str, Answer] = {
        "/good.png": given(png(1)),
        "/away": given(b"", 302, Location="/good.png"),
        "/loop": given(b"", 302, Location="/loop"),
        "/file": given(b"", 302, Location="file:///etc/passwd"),
        "/403": given(b"", 403),
        "/500": given(b"", 500),
        "/page.jpg": given(b"<html><body>Sign in</body></html>", Content_Type="image/jpeg"),
        "/bomb.png": given(BOMB),
        "/long.png": given(png(1) + bytes(5000)),
        "/packed.png": given(png(1), Content_Encoding="gzip"),
        "/cut.png": cut,
        "/silent.png": silent,
        "/empty.png": given(b""),
    }
    with web(answers) as at:
        urls = [at + path for path in answers] + [f"{at}/none.png", "http://127.0.0.1:9/x", "ftp://a/b", "nothing", ""]
        raw, index, texts = fetched(spec(tmp_path / "list", urls, largest=2000), Store(tmp_path / "store"))
    assert [name for name in raw.members() if "photos" in name] == ["photos/000000000.png", "photos/000000001.png"]
    assert index.open("000000001").size == (4, 3)
    rows = texts.table().to_pylist()
    assert [(row["example_id"], row["text"], row["split"]) for row in rows] == [
        ("000000000", "caption 0", "train"),
        ("000000001", "caption 1", "train"),
    ]
    found = {name: count for name, count in raw.figures.items() if name.startswith("dead")}
    assert found == {
        **{"dead": 16, "dead_bad_address": 3, "dead_redirects": 2, "dead_too_large": 2, "dead_time_out": 1},
        **{"dead_http_403": 1, "dead_http_404": 1, "dead_http_500": 1, "dead_not_an_image": 1, "dead_packed": 1},
        **{"dead_broken_off": 1, "dead_no_connection": 1, "dead_empty": 1},
    }
    assert raw.figures["notes"][0].startswith("16 of 18 links are dead (bad address 3, ")
    assert index.figures["dead_links"] == 16


def test_too_many_dead_links_are_refused_and_accepted_without_fetching_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with web({"/good.png": given(png(1))}) as at:
        urls = [f"{at}/good.png", f"{at}/a", f"{at}/b"]
        with pytest.raises(NotAccepted, match=r"more than the accepted 60 %.*--set data\.NAME\.dead_links=0\.667`"):
            fetched(spec(tmp_path / "list", urls, dead=0.6), store)
    raw, *_ = fetched(spec(tmp_path / "list", urls, dead=0.667), store)  # the server is gone
    assert (raw.figures["dead"], raw.figures["photos"]) == (2, 1)


def test_addresses_of_one_s_own_network_are_not_asked(tmp_path: Path) -> None:
    with web({"/good.png": given(png(1))}) as at:
        urls = [f"{at}/good.png", "http://localhost/x", "http://169.254.169.254/x", "http://[::1]/x"]
        raw, *_ = built(Store(tmp_path / "s"), sources_of(spec(tmp_path / "l", urls, private=False))["links"])
    assert raw.figures["dead_private_address"] == 4


def test_without_a_network_nothing_is_taken_for_dead(tmp_path: Path) -> None:
    """Nor where a server asks for patience."""
    store = Store(tmp_path / "store")
    with pytest.raises(BuildError, match="none of 2 links was answered by any host; is there a network"):
        fetched(spec(tmp_path / "a", ["http://127.0.0.1:9/x", "http://127.0.0.1:9/y"]), store)
    busy: dict[str, Answer] = {"/a": given(b"", 429), "/b": given(b"", 429), "/c": given(png(1))}
    with web(busy) as at:
        urls = [at + path for path in busy]
        with pytest.raises(BuildError, match=r"most of 3 links were refused for now \(HTTP 429\); run again later"):
            fetched(spec(tmp_path / "b", urls), store)
        busy |= {path: given(png(2)) for path in busy}
        raw, *_ = fetched(spec(tmp_path / "b", urls), store)
    assert raw.figures["photos"] == 3


SCRIPT = """
import sys
from pathlib import Path
from data.test_data_links import fetched, spec
from vbert.artifacts.store.store import Store
fetched(spec(Path(sys.argv[1]), sys.argv[3:], per_unit=2, seconds=60.0), Store(Path(sys.argv[2])))
"""


@pytest.mark.slow
def test_what_was_fetched_before_a_kill_is_kept_though_the_web_changes(tmp_path: Path) -> None:
    """As a run never killed that met the old photos of the first unit and the new ones of the others."""
    tests = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (tests, str(Path(tests).parent), os.environ.get("PYTHONPATH"))))
    names = [f"/{k}.png" for k in range(8)]
    old = {name: given(png(k)) for k, name in enumerate(names)}
    new = {name: given(png(100 + k)) for k, name in enumerate(names)}
    hold = threading.Event()

    def held(request: BaseHTTPRequestHandler) -> None:
        hold.wait(60)

    store = tmp_path / "killed"
    answers = {name: old[name] if k < 2 else held for k, name in enumerate(names)}
    with web(answers) as at:
        urls = [at + name for name in names]
        made = sources_of(spec(tmp_path / "list", urls, per_unit=2, seconds=60.0))["links"]
        units = Store(store).units("fetch_links", made.fingerprint)
        line = [sys.executable, "-c", SCRIPT, str(tmp_path / "list"), str(store), *urls]
        child = subprocess.Popen(line, env=os.environ | {"PYTHONPATH": path}, start_new_session=True)
        until(lambda: units.keys() == {"000000"}, pause=0.02)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        hold.set()
        answers |= new
        raw, *_ = fetched(spec(tmp_path / "list", urls, per_unit=2, seconds=60.0), Store(store))
        answers |= {name: old[name] for name in names[:2]}
        other, *_ = fetched(spec(tmp_path / "list", urls, per_unit=2, seconds=60.0), Store(tmp_path / "whole"))
    assert [raw.read(f"photos/{k:09}.png") for k in range(8)] == [png(k if k < 2 else 100 + k) for k in range(8)]
    assert raw.names() == other.names()
    assert all((raw.path / name).read_bytes() == (other.path / name).read_bytes() for name in raw.names())


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a\thttp://a/b\nno tab\n", r"t\.tsv:2: must be a caption, a tab and a url, not b'no tab"),
        (b"\xff\xfe\n", r"t\.tsv:1: is not in UTF-8"),
        (b"", "list: the lists hold no link"),
    ],
)
def test_wrong_lists_are_named(data: bytes, said: str, tmp_path: Path) -> None:
    of = spec(tmp_path / "list", [])
    (tmp_path / "list" / "t.tsv").write_bytes(data)
    with pytest.raises(UserError, match=said):
        built(Store(tmp_path / "store"), sources_of(of)["links"])


def shipped(name: str, files: dict[str, Path]) -> DatasetSpec:
    of = spec_of(name)
    assert of.links is not None
    fetch = of.links.fetch.model_copy(update={"private": True, "attempts": 1, "seconds": 1.0, "dead": 1.0})
    sources = {
        key: source.model_copy(update={"url": None, "path": str(files[key])}) for key, source in of.sources.items()
    }
    sources = {key: source.model_copy(update={"sha256": None, "size": None}) for key, source in sources.items()}
    return of.model_copy(update={"sources": sources, "links": of.links.model_copy(update={"fetch": fetch})})


def test_the_list_of_sbu(tmp_path: Path) -> None:
    with web({"/a.jpg": given(png(1)), "/b.jpg": given(png(2))}) as at:
        columns = {"image_urls": [f"{at}/a.jpg", f"{at}/b.jpg"], "user_ids": ["x", "y"], "captions": [" A dog ", ""]}
        with tarfile.open(tmp_path / "sbu.tar.gz", "w:gz") as archive:
            info = tarfile.TarInfo("sbu-captions-all.json")
            info.size = len(data := json.dumps(columns).encode())
            archive.addfile(info, io.BytesIO(data))
        of, store = shipped("sbu", {"list": tmp_path / "sbu.tar.gz"}), Store(tmp_path / "store")
        with pytest.raises(NotAccepted, match=r"the list has \{'train': 2\} links, published are \{'train': 1000000\}"):
            fetched(of, store)
        _, index, texts = fetched(_uncounted(of), store)
    assert texts.table().column("text").to_pylist() == ["A dog"]
    assert (texts.figures["empty_captions"], index.figures["images"]) == (1, 2)


def test_the_lists_of_conceptual_captions(tmp_path: Path) -> None:
    with web({"/a.jpg": given(png(1)), "/b.jpg": given(png(2))}) as at:
        for name, url in (("GCC-training.tsv", "a"), ("GCC-1.1.0-Validation.tsv", "b")):
            (tmp_path / name).write_text(f"a very typical bus station\t{at}/{url}.jpg\n")
        files = {"train": tmp_path / "GCC-training.tsv", "val": tmp_path / "GCC-1.1.0-Validation.tsv"}
        _, index, texts = fetched(_uncounted(shipped("conceptual_captions", files)), Store(tmp_path / "store"))
    assert texts.table().column("split").to_pylist() == ["train", "val"]
    assert index.figures["images"] == 2


def _uncounted(of: DatasetSpec) -> DatasetSpec:
    assert of.links is not None
    lists = of.links.list.model_copy(update={"counts": {}})
    return of.model_copy(update={"links": of.links.model_copy(update={"list": lists})})
