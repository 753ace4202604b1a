"""Progress on a terminal: a live bar a running stage, a line a finished one; plain lines where there is no terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vbert.artifacts.making.engine import Built, Events
from vbert.artifacts.making.plan import Planned

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from vbert.artifacts.making.estimate import Estimate
    from vbert.artifacts.steps.artifact import Artifact

EVERY = 5.0  # seconds between two plain lines of one stage
WIDE = 400  # columns of a table in a pipe or file
WORDS = {"built": "built", "cached": "there", "adopted": "same content as before"}


def escape(text: str) -> str:
    """Text with brackets escaped, as in `regions[shapes]`, which rich would read as markup."""
    from rich.markup import escape

    return escape(text)


def console() -> Console:
    """The console for messages and progress: standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=True, soft_wrap=True)


def page() -> Console:
    """The console for a command's output: standard output, untruncated where that is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=True, soft_wrap=True)


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar in images."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(bar_width=28), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console(), transient=True, disable=not sys.stderr.isatty()) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


class Terminal(Events):
    """Shows the engine's events. Use as a context manager; safe from several threads."""

    def __init__(self) -> None:
        self._console = console()
        self._lock = threading.Lock()
        self._bars: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._progress: Progress | None = None

    def __enter__(self) -> Terminal:
        if sys.stderr.isatty():
            from rich.progress import (
                BarColumn,
                Progress,
                SpinnerColumn,
                TextColumn,
                TimeElapsedColumn,
                TimeRemainingColumn,
            )

            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description:<22}"),
                BarColumn(bar_width=28),
                TextColumn("{task.fields[count]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("[dim]{task.fields[figures]}"),
                console=self._console,
                transient=True,
            )
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def started(self, artifact: Artifact) -> None:
        with self._lock:
            if self._progress is not None:
                self._bars[artifact.fingerprint] = self._progress.add_task(
                    escape(artifact.title), total=None, count="", figures=""
                )
            else:
                self._console.print(f"{escape(artifact.title)}: begins")

    def progress(self, artifact: Artifact, done: int, total: int, figures: dict[str, float]) -> None:
        text = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        with self._lock:
            if self._progress is not None and artifact.fingerprint in self._bars:
                bar = self._bars[artifact.fingerprint]
                self._progress.update(bar, completed=done, total=total, count=f"{done:,}/{total:,}", figures=text)
            elif self._progress is None and time.monotonic() - self._said.get(artifact.fingerprint, 0.0) > EVERY:
                self._said[artifact.fingerprint] = time.monotonic()
                self._console.print(f"{escape(artifact.title)}: {done:,} of {total:,}  {text}")

    def finished(self, built: Built) -> None:
        with self._lock:
            bar = self._bars.pop(built.artifact.fingerprint, None)
            if self._progress is not None and bar is not None:
                self._progress.remove_task(bar)
            symbol = "[green]✓[/]" if built.outcome == "built" else "[dim]·[/]"
            took = f"{built.seconds:7.1f} s" if built.outcome == "built" else f"{WORDS[built.outcome]:>9}"
            title = escape(f"{built.artifact.title:<26}")
            self._console.print(f"{symbol} {title} {took}  {figures_line(built.manifest.figures)}")
            for sentence in built.manifest.figures.get("notes", ()):
                self._console.print(f"[yellow]![/] {escape(f'{built.artifact.title}: {sentence}')}")

    def counted(self, what: str) -> Callable[[int, int], None]:
        """A progress function for work outside stages."""

        def show(done: int, total: int) -> None:
            with self._lock:
                if self._progress is None:
                    if time.monotonic() - self._said.get(what, 0.0) > EVERY:
                        self._said[what] = time.monotonic()
                        self._console.print(f"{what}: {done:,} of {total:,}")
                    return
                if what not in self._bars:
                    self._bars[what] = self._progress.add_task(what, total=total, count="", figures="")
                self._progress.update(
                    self._bars[what], completed=done, total=total, count=f"{size(done)}/{size(total)}"
                )

        return show

    def message(self, artifact: Artifact, sentence: str) -> None:
        with self._lock:
            self._console.print(f"[yellow]![/] {escape(sentence)}")


def figures_line(figures: dict[str, Any], most: int = 4) -> str:
    """The first few figures, short: `images 5,000  map50 0.94`."""
    shown: list[str] = []
    for name, value in figures.items():
        if isinstance(value, int | float) and not isinstance(value, bool) and len(shown) < most:
            shown.append(f"{name} {value:,}" if isinstance(value, int) else f"{name} {value:.4g}")
    return "[dim]" + "  ".join(shown) + "[/]"


def size(count: float) -> str:
    """Bytes as text: `1.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def duration(seconds: float) -> str:
    """`12.3 s`, `2 min 34 s`, `2 h 5 min`."""
    whole = round(seconds)
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 6000 else f"{whole // 3600} h {whole % 3600 // 60} min"


def print_plan(lines: list[Planned], expected: Mapping[str, Estimate]) -> None:
    """Print the plan as a table: present and missing steps, their sizes, their times or estimates."""
    from rich.table import Table

    colours = {"present": "green", "unfinished": "yellow", "missing": "red", "unneeded": "dim"}
    table = Table(box=None, pad_edge=False)
    for title, justify in (
        ("stage", "left"),
        ("fingerprint", "left"),
        ("state", "left"),
        ("size", "right"),
        ("time", "right"),
    ):
        table.add_column(title, justify=justify)  # type: ignore[arg-type]
    for line in lines:
        state = f"[{colours[line.status]}]{line.status}[/]"
        if line.begun:
            state += f" ({line.begun} kept)"
        if line.damage:
            state += f" [red]{escape(line.damage)}[/]"
        if line.objection:
            state += " [red]not accepted[/]"
        if line.status == "present":
            costs = [size(line.size), duration(line.seconds)]
        elif (guess := expected.get(line.artifact.fingerprint)) is not None:
            costs = [about(guess.size, size), about(guess.seconds, duration)]
        else:
            costs = ["", ""]
        table.add_row(escape(line.artifact.title), line.artifact.fingerprint[:8], state, *costs)
    page().print(table)
    for line in lines:
        if line.objection:
            page().print(f"[red]{escape(line.objection)}[/]")


def about(value: float | None, as_text: Callable[[float], str]) -> str:
    """An estimate: `about 1.2 MB`, or `unknown`."""
    return "unknown" if value is None else f"about {as_text(value)}"


def print_expected(expected: Mapping[str, Estimate]) -> None:
    """Print the estimated time and size of the missing steps, and the number of steps without an estimate."""
    totals = []
    for name, as_text in (("seconds", duration), ("size", size)):
        values = [getattr(guess, name) for guess in expected.values()]
        known = [value for value in values if value is not None]
        more = f" and {len(values) - len(known)} unknown" if len(known) < len(values) else ""
        totals.append(f"about {as_text(sum(known))}{more}" if known else "unknown")
    page().print(f"time: {totals[0]}; size: {totals[1]} (as such stages took here before, scaled)")
