"""`vbert serve`: a trained model in a browser, and over HTTP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from flows.options import JsonOption
from vbert.errors import UserError

if TYPE_CHECKING:
    from vbert.inference.visualbert import VisualBert


def serve(
    model: str,
    /,
    *,
    port: int | None = None,
    host: str = "127.0.0.1",
    share_nothing: Annotated[bool, Parameter(negative=())] = False,
    features: Path | None = None,
    images: Path | None = None,
    max_bytes: int = 10_000_000,
    max_pixels: int = 30_000_000,
    rate: int = 120,
    queue: int = 8,
    seconds: float = 60.0,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    json_: JsonOption = False,
) -> None:
    """Ask a trained model about photos in a browser, and over HTTP: answers, boxes, and what they hang on.

    Photos stay in memory until they have their answer; none is written anywhere. SIGTERM or Ctrl-C finishes the
    requests that are there, and ends. The interface is described at /docs.

    Example: `vbert serve exported/vqa`, then
    `curl http://127.0.0.1:8643/api/answer -F image=@cat.jpg -F 'question=What colour is the cat?'`

    Parameters
    ----------
    model
        an exported folder, an artifact's path, or a name in data_specs/models.
    port
        8643 by default; 0: a free one.
    host
        the address to listen on. By default only this machine can connect; on any other address everybody who reaches
        it can ask, without a password and unencrypted.
    share_nothing
        for a machine that others use too: a secret part in the address, a free port, no line of any request, and
        nothing of a photo in memory when it has its answer.
    features
        a folder of region features (`vbert preprocess`): its photos can be searched by a text, by a retrieval model.
    images
        the folder of those photos, to show them.
    max_bytes
        of a request.
    max_pixels
        of a photo.
    rate
        requests a minute from one address.
    queue
        requests that wait while one is worked on; more are refused.
    seconds
        for one request, at most; one that takes longer is given up.
    device
        where the model runs; auto: a GPU if there is one.
    """
    from functools import partial

    from vbert.serve.limits import Limits
    from vbert.serve.server import ServeSettings, reachable_by_others
    from vbert.serve.server import serve as run
    from vbert.serve.worker import Opened

    given = {"--max-bytes": max_bytes, "--max-pixels": max_pixels, "--rate": rate, "--seconds": seconds}
    for name, value in given.items():
        if value <= 0:
            raise UserError(f"{name} {value}: give more than 0")
    if port is not None and not 0 <= port <= 65535:
        raise UserError(f"--port {port}: give one from 1 to 65535, or 0 for a free one")
    if queue < 0:
        raise UserError(f"--queue {queue}: give 0 or more")
    if images is not None and features is None:
        raise UserError("--images are of the photos that are searched: give their --features too")
    limits = Limits(bytes=max_bytes, pixels=max_pixels, rate=rate, waiting=queue, seconds=seconds)
    opened = Opened(partial(load, device=device), model, features, images, max_pixels, forget=share_nothing)
    settings = ServeSettings(opened, limits, host, port, share_nothing)
    if reachable_by_others(settings):
        if share_nothing:
            raise UserError(f"--share-nothing listens on this machine alone, and --host {host} is reached from others")
        print(
            f"vbert: WARNING: whoever reaches {host} can ask this model, without a password and unencrypted",
            file=sys.stderr,
        )

    def ready(address: str, about: dict[str, Any]) -> None:
        print(f"vbert: {about['title']} can {', '.join(about['can'])}", file=sys.stderr)
        if json_:
            print(json.dumps({"url": address, "can": about["can"]}), flush=True)
        else:
            print(f"{address}  (Ctrl-C ends it)", flush=True)

    run(settings, ready)


def load(model: str, device: str) -> VisualBert:
    """In the child process."""
    from flows.models import VisualBert

    return VisualBert.load(model, device=device)
