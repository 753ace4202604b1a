"""What `vbert doctor` looks at: the installation, the machine, the store and the Prefect server. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from vbert.artifacts.store.store import Store, default_root
from vbert.errors import UserError

ROOT = Path(__file__).parents[1]
STORE_PATIENCE = "VBERT_STORE_PATIENCE"
PATIENCE = 3.0  # seconds for a server or a program to answer
SMALL = 1 << 30  # bytes below which hardly a run fits; the demo needs 100 MB
MADE = ("dev", "docs")  # extras that `make` installs where they are needed
ROOMY = 10 << 30  # bytes below which published data sets don't fit

State = Literal["fine", "absent", "odd", "broken"]


@dataclass(frozen=True)
class Check:
    """state: absent is something optional; odd works, and may surprise; broken keeps vbert from running."""

    name: str
    state: State
    found: str
    advice: str = ""


def examine(store: str | None = None) -> Iterator[Check]:
    """All checks, in a few seconds at most. store: a path or URL; None: the default."""
    yield Check("python", "fine", f"{sys.version.split()[0]} in {sys.prefix}")
    yield from packages(ROOT)
    yield from (machine(), gpu(), detectron2(), java(), browser())
    yield from storage(store or default_root())
    yield prefect_server()


# ------------------------------------------------------------------ packages


def packages(root: Path) -> Iterator[Check]:
    """The packages that pyproject.toml asks for, also those of its extras, against it and against constraints.txt."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    try:
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (root / "constraints.txt").read_text(), re.MULTILINE))
    except (OSError, ValueError, KeyError) as error:
        yield Check("packages", "odd", f"{root}: {error}", "install vbert editable from its checkout: `make install`")
        return

    def faults(requirements: list[str]) -> list[str]:
        found = []
        for asked in map(Requirement, requirements):
            here = installed(asked.name)
            if here is None:
                found.append(f"{asked.name} is missing")
            elif not asked.specifier.contains(here, prereleases=True):
                found.append(f"{asked.name} is {here}, and must be {asked.specifier}")
        return found

    if wrong := faults(project["dependencies"]):
        yield Check("packages", "broken", "; ".join(wrong), f"`make install` in {root}")
    else:
        yield Check("packages", "fine", f"all {len(project['dependencies'])} that vbert needs")
    other = {name: installed(name) for name in pins}
    moved = [
        f"{name} {here} (tested: {pins[name]})"
        for name, here in other.items()
        if here is not None and here.partition("+")[0] != pins[name].partition("+")[0]
    ]
    if moved:
        told = ", ".join(moved[:5]) + (f" and {len(moved) - 5} more" if len(moved) > 5 else "")
        yield Check("versions", "odd", told, f"`make install` in {root} installs the tested ones")
    else:
        yield Check("versions", "fine", "those of constraints.txt")
    for extra, requirements in project["optional-dependencies"].items():
        mine = [asked for asked in requirements if canonicalize_name(Requirement(asked).name) != project["name"]]
        if extra not in MADE and (lacks := faults(mine)):
            yield Check(f"extra {extra}", "absent", "; ".join(lacks), f"to use it: {install(extra)}")
        elif extra not in MADE:
            yield Check(f"extra {extra}", "fine", "installed")


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def install(extra: str) -> str:
    return f"`{sys.executable} -m pip install -c constraints.txt -e '.[{extra}]'` in {ROOT}"


# ------------------------------------------------------------------ the machine


def machine() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        lines = dict(re.findall(r"^(\w+): +(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
        memory = f", {int(lines['MemAvailable']) / 1e6:.1f} of {int(lines['MemTotal']) / 1e6:.1f} GB memory free"
    except (OSError, KeyError):
        memory = ""
    return Check("machine", "fine", f"{cores} cores{memory}")


def gpu() -> Check:
    """What the CUDA driver says, against the CUDA that torch was built with."""
    try:
        cuda: Any = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Check("gpu", "absent", "no CUDA driver: everything runs on the processor", "recipes without a GPU: demo")
    count, known = ctypes.c_int(), ctypes.c_int()
    if (code := cuda.cuInit(0)) or cuda.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        advice = "see `nvidia-smi`; in a container start it with `--gpus all`"
        return Check("gpu", "absent", f"a CUDA driver, and no GPU that it can use (cuInit: {code})", advice)
    cuda.cuDriverGetVersion(ctypes.byref(known))
    names = []
    for k in range(count.value):
        name = ctypes.create_string_buffer(100)
        cuda.cuDeviceGetName(name, len(name), k)
        names.append(name.value.decode(errors="replace"))
    return judged(names, known.value, torch_cuda())


def judged(names: list[str], driver: int, built: str | None) -> Check:
    """driver: the newest CUDA that it runs, as 1000 · major + 10 · minor. built: torch's CUDA."""
    newest = f"{driver // 1000}.{driver % 1000 // 10}"
    found = f"{', '.join(names)}; the driver runs CUDA {newest}, torch is built with {built or 'none'}"
    if built is None:
        return Check("gpu", "odd", found, "install a torch with CUDA: https://pytorch.org/get-started/locally/")
    if int(built.split(".")[0]) > driver // 1000:  # within a major version older drivers run newer builds
        advice = f"upgrade the driver, or install a torch for CUDA {newest}: https://pytorch.org/get-started/locally/"
        return Check("gpu", "odd", found, advice)
    return Check("gpu", "fine", found)


def torch_cuda() -> str | None:
    """The CUDA that torch was built with, read from its file: importing torch takes seconds."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    found = re.search(r"^cuda\b.*= *'([\d.]+)'", text, re.MULTILINE)
    return found[1] if found else None


def detectron2() -> Check:
    from vbert.regions.architectures import DETECTRON2_INSTALL

    if find_spec("detectron2") is None:
        return Check("detectron2", "absent", "not installed", f"for detectron2's detectors: {DETECTRON2_INSTALL}")
    return Check("detectron2", "fine", installed("detectron2") or "installed")


def java() -> Check:
    """macOS has a `java` that only says that there is none, so it is asked."""
    advice = "for METEOR and SPICE: apt-get install default-jre-headless"
    try:
        done = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=PATIENCE)
    except FileNotFoundError:
        return Check("java", "absent", "no `java` on the PATH", advice)
    except subprocess.TimeoutExpired:
        return Check("java", "odd", f"`java -version` gave no answer in {PATIENCE:g} s", "METEOR and SPICE may hang")
    if done.returncode:
        return Check("java", "absent", "`java -version` fails", advice)
    return Check("java", "fine", (done.stderr or done.stdout).splitlines()[0])


def browser() -> Check:
    names = ("chromium", "chromium-browser", "google-chrome", "firefox")
    if found := next(filter(None, map(shutil.which, names)), None):
        return Check("browser", "fine", found)
    return Check(
        "browser", "absent", "none on this machine", "copy report.html to one that has a browser: it is one file"
    )


# ------------------------------------------------------------------ the store


def storage(location: str | Path) -> Iterator[Check]:
    """Whether the store can be read and written, and the room on its disk."""
    advice = "give another one with --store or VBERT_STORE"
    try:
        with hurried():
            store = Store(location, alone=True)
            exists = store.exists()
            closed = store.read_only()
    except UserError as error:
        yield Check("store", "broken", str(error).splitlines()[0], advice)
        return
    except Exception as error:  # of a bucket: no answer, no credentials
        yield Check("store", "broken", f"{location}: {type(error).__name__}: {error}"[:300], advice)
        return
    if not closed and not store.remote:
        closed = not writable(store.root)
    if closed and exists:
        yield Check("store", "odd", f"{store.location} can be read, not written", f"to build, {advice}")
    elif closed:
        yield Check("store", "broken", f"{store.location} can't be made: {above(store.root)} can't be written", advice)
    else:
        found = store.location if exists else f"{store.location} (`vbert run` makes it)"
        yield Check("store", "fine", found)
    yield disk(store.root)


@contextmanager
def hurried() -> Iterator[None]:
    """A bucket that doesn't answer is waited for by PATIENCE, where a run waits for minutes."""
    given = os.environ.get(STORE_PATIENCE)
    os.environ[STORE_PATIENCE] = str(PATIENCE)
    try:
        yield
    finally:
        if given is None:
            del os.environ[STORE_PATIENCE]
        else:
            os.environ[STORE_PATIENCE] = given


def above(root: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(path for path in (root, *root.parents) if path.exists())


def writable(root: Path) -> bool:
    """Tried: rights alone don't tell of a full disk or a mount that is read-only."""
    try:
        with tempfile.TemporaryFile(dir=above(root)) as file:
            file.write(bytes(4096))
    except OSError:
        return False
    return True


def disk(root: Path) -> Check:
    at = above(root)
    free = shutil.disk_usage(at).free
    found = f"{free / 1e9:.1f} GB free at {at}"
    advice = "`vbert gc` names what isn't needed any more; or give a store on another disk"
    state: State = "broken" if free < SMALL else "odd" if free < ROOMY else "fine"
    return Check("disk", state, found, "" if state == "fine" else advice)


# ------------------------------------------------------------------ Prefect


def prefect_server() -> Check:
    """The server of PREFECT_API_URL, or of Prefect's active profile, and whether it is of the version that is here."""
    url = prefect_url()
    if url is None:
        return Check("prefect server", "fine", "none is set: each run starts its own, and stops it")
    import httpx

    advice = "start it with `prefect server start`, unset PREFECT_API_URL (`prefect config unset`), or give --local"
    try:
        answer = httpx.get(f"{url.rstrip('/')}/admin/version", timeout=PATIENCE, headers=_key())
        answer.raise_for_status()
        there = str(answer.json())
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return Check("prefect server", "broken", f"{url}: {type(error).__name__}: {error}"[:300], advice)
    here = installed("prefect")
    if there != here:
        advice = f"run the server and vbert with one version: `pip install prefect=={here}` there"
        return Check("prefect server", "odd", f"{url} is Prefect {there}, here is {here}", advice)
    return Check("prefect server", "fine", f"{url}, Prefect {there}")


def _key() -> dict[str, str]:
    key = os.environ.get("PREFECT_API_KEY")
    return {"Authorization": f"Bearer {key}"} if key else {}


def prefect_url() -> str | None:
    """Of the variable, or of the active profile."""
    from flows.on_prefect import profiles

    if given := os.environ.get("PREFECT_API_URL"):
        return given
    try:
        stored = tomllib.loads(profiles().read_text())
    except (OSError, ValueError):
        return None
    active = os.environ.get("PREFECT_PROFILE") or stored.get("active")
    url = stored.get("profiles", {}).get(active, {}).get("PREFECT_API_URL")
    return url if isinstance(url, str) else None


# ------------------------------------------------------------------ telling


SIGNS: dict[State, str] = {"fine": "[green]✓[/]", "absent": "[dim]·[/]", "odd": "[yellow]![/]", "broken": "[red]✗[/]"}


def tell(check: Check, say: Callable[[str], None]) -> None:
    from flows.terminal import escape

    say(f"{SIGNS[check.state]} {check.name:<15} {escape(check.found)}")
    if check.advice:
        say(f"{'':<18}[dim]{escape(check.advice)}[/]")
