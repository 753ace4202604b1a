"""Caption metrics of COCO: BLEU-1 to 4, METEOR, ROUGE-L, CIDEr and SPICE, by pycocoevalcap.

The figures are the library's (tylin/coco-caption). Its quirks are part of them: BLEU takes the closest reference length
and sums over all images before it divides; ROUGE-L takes the largest precision and the largest recall over references,
whichever those are, and gives 1 to an empty caption that has an empty reference; CIDEr is CIDEr-D, its document
frequencies are over the references of the very images that are evaluated, and its length penalty counts bigrams. CIDEr
of a single image, where each word has the weight log(1 / 1) = 0 whatever the caption, is left out. METEOR and SPICE run
in Java.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vbert.errors import UserError
from vbert.metrics.metric import ExampleScores, Metric, SetMetric
from vbert.metrics.ptb import BREAKS, DROPPED, tokenized

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ORDERS = 4  # of BLEU
MOST_CIDER = 10.0
TINY, SMALL = 1e-15, 1e-9  # of BLEU's divisions
SECONDS = {"METEOR": 900, "SPICE": 1800, "tokenizer": 600}  # at most
# These start Java, in a process group of their own, which can be ended. SPICE's class writes beside the library, and
# prints. METEOR's waits for its own lock where Java fails: what it does is done here (`meteor.py`), and ends with Java.
SPICE = """
import contextlib, json, socket, sys
socket.setdefaulttimeout(20)
references, captions = json.load(sys.stdin)
with contextlib.redirect_stdout(sys.stderr):
    from pycocoevalcap.spice.spice import Spice
    value, _ = Spice().compute_score(references, captions)
print(json.dumps(float(value)))
"""
METEOR = """
import json, subprocess, sys
references, captions = json.load(sys.stdin)
pipe = subprocess.PIPE
java = subprocess.Popen(sys.argv[1:], stdin=pipe, stdout=pipe)
def asked(*parts, at, answers=1):
    try:
        java.stdin.write((" ||| ".join(parts) + "\\n").encode("utf-8", "replace"))
        java.stdin.flush()
        said = [java.stdout.readline().decode() for _ in range(answers)]
    except OSError:
        said = [""]
    if not all(said):
        java.wait()
        sys.exit("at " + at)
    return said[-1].strip()
stats = []
for n, name in enumerate(references, 1):
    text = captions[name][0].replace("|||", "").replace("  ", " ")
    at = f"caption {n:,} of {len(references):,}, of {len(text.split()):,} words"
    stats.append(asked("SCORE", *references[name], text, at=at))
print(float(asked("EVAL", *stats, at="the end", answers=len(stats) + 1)))
"""
METEOR_COMMAND = ("-jar", "-Xmx2G", "meteor-1.5.jar", "-", "-", "-stdio", "-l", "en", "-norm")

Tokenizer = Literal["corenlp", "vbert"]
Tokens = Mapping[str, list[str]]  # image → tokenized texts, each joined by blanks


@dataclass(frozen=True)
class CaptionFigures:
    """`values`: Bleu_1, …, SPICE, as published before they are multiplied by 100; `absent`: figure → why it isn't
    there; `tokenizer`: which one ran, CoreNLP's in Java or vbert's, which gives the same tokens."""

    values: Mapping[str, float]
    absent: Mapping[str, str]
    tokenizer: Tokenizer


def figures(
    captions: Sequence[str], references: Sequence[Sequence[str]], java: str | None = None, seconds: float | None = None
) -> CaptionFigures:
    """The figures of one caption an image and its references, at least one each. java: the command; without it METEOR
    and SPICE are absent. seconds: a time limit of each of them. Raises UserError without pycocoevalcap."""
    truth, given, tokenizer = _tokens(captions, references, java)
    values = {f"Bleu_{n}": value for n, value in enumerate(_Bleu(truth, given).values(), 1)}
    absent: dict[str, str] = {}
    for name in ("METEOR", "ROUGE_L", "CIDEr", "SPICE"):
        try:
            if name in ("ROUGE_L", "CIDEr"):
                each = _rouge(truth, given) if name == "ROUGE_L" else _cider(truth, given)
                values[name] = float(sum(each) / len(each))
            elif java is None:
                absent[name] = "needs Java, and there is no command `java`"
            else:
                values[name] = _in_java(name, truth, given, java, seconds or SECONDS[name])
        except _Failed as error:
            absent[name] = str(error)
    return CaptionFigures(values, absent, tokenizer)


def metrics(captions: Sequence[str], references: Sequence[Sequence[str] | None]) -> dict[str, Metric]:
    """cider, bleu_1, …, bleu_4 and rouge_l of an objective's captions, with our tokenizer; intervals resample images.

    references: None or none at all where an example doesn't count. CIDEr is from 0 to 10, its document frequencies are
    those of all examples that count, in resamples too; of one such example there is no cider.
    """
    counted = [i for i, texts in enumerate(references) if texts]
    if not counted:
        return {}
    truth, given, _ = _tokens([captions[i] for i in counted], [references[i] or [] for i in counted], None)
    found: dict[str, Metric] = {}
    with suppress(_Failed):
        found["cider"] = _spread(_cider(truth, given), counted, len(references), MOST_CIDER)
    bleu = _Bleu(truth, given)
    for n in range(1, ORDERS + 1):
        found[f"bleu_{n}"] = SetMetric(lambda times, n=n: bleu.values(times)[n - 1], counted)  # type: ignore[misc]
    return found | {"rouge_l": _spread(_rouge(truth, given), counted, len(references), 1.0)}


def _spread(values: Sequence[float], places: Sequence[int], count: int, most: float) -> ExampleScores:
    scores: list[float | None] = [None] * count
    for place, value in zip(places, values, strict=True):
        scores[place] = value
    return ExampleScores(scores, most=most)


def _tokens(
    captions: Sequence[str], references: Sequence[Sequence[str]], java: str | None
) -> tuple[Tokens, Tokens, Tokenizer]:
    """References and captions by number of image, in the official order: all references, then all captions."""
    _library()
    flat = [text for texts in references for text in texts]
    tokenizer: Tokenizer = "vbert"
    tokens: tuple[list[str], list[str]] | None = None
    if java is not None:
        with suppress(_Failed):
            tokens, tokenizer = (_corenlp(flat, java), _corenlp(captions, java)), "corenlp"
    if tokens is None:
        tokens = tokenized(flat), tokenized(captions)
    places = iter(tokens[0])
    truth = {str(i): [next(places) for _ in texts] for i, texts in enumerate(references)}
    return truth, {str(i): [text] for i, text in enumerate(tokens[1])}, tokenizer


def _library() -> Path:
    """Where pycocoevalcap is."""
    try:
        import pycocoevalcap.tokenizer
    except ModuleNotFoundError:
        raise UserError(
            "caption metrics need pycocoevalcap: install it with `pip install -e '.[captions]'` (or `make dev`)"
        ) from None
    return Path(next(iter(pycocoevalcap.__path__)))


def _corenlp(captions: Sequence[str], java: str) -> list[str]:
    """As `ptb.tokenized`, by CoreNLP. Raises _Failed."""
    jar = _library() / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "captions.txt"
        texts.write_bytes("\n".join(BREAKS.sub(" ", caption) for caption in captions).encode("utf-8", "replace"))
        command = [java, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        lines = _run([*command, str(texts)], b"", SECONDS["tokenizer"]).decode("utf-8", "replace").split("\n")
    if len(lines) < len(captions):
        raise _Failed("CoreNLP's tokenizer lost lines")
    kept = ([token for token in line.rstrip().split(" ") if token not in DROPPED] for line in lines)
    return [" ".join(tokens) for tokens in kept][: len(captions)]


def _rouge(truth: Tokens, given: Tokens) -> list[float]:
    from pycocoevalcap.rouge.rouge import Rouge

    return [float(value) for value in Rouge().compute_score(truth, given)[1]]


def _cider(truth: Tokens, given: Tokens) -> list[float]:
    """Of each image, times 10 as in the library. Raises _Failed."""
    from pycocoevalcap.cider.cider import Cider

    if len(truth) < 2:
        raise _Failed(
            "its words weigh by how few of the images that are scored have them, and there is one image alone"
        )
    if not any(text.split() for texts in truth.values() for text in texts):
        raise _Failed("no reference has a word")
    return [float(value) for value in Cider().compute_score(truth, given)[1]]


class _Bleu:
    """BLEU of images that count several times, of what the library counts in each."""

    def __init__(self, truth: Tokens, given: Tokens) -> None:
        import numpy as np
        from pycocoevalcap.bleu.bleu_scorer import BleuScorer

        scorer = BleuScorer(n=ORDERS)
        for image, texts in truth.items():
            scorer += (given[image][0], texts)
        counts: list[dict[str, Any]] = scorer.ctest
        closest = [min((abs(n - one["testlen"]), n) for n in one["reflen"])[1] for one in counts]
        self._right = np.array([one["correct"] for one in counts], np.float64)
        self._guessed = np.array([one["guess"] for one in counts], np.float64)
        self._lengths = np.array([[one["testlen"], n] for one, n in zip(counts, closest, strict=True)], np.float64)

    def values(self, times: NDArray[np.int64] | None = None) -> list[float]:
        """BLEU-1 to 4 (Papineni et al. 2002, constants of the library). times: how often each image counts."""
        import numpy as np

        weights = np.ones(len(self._right)) if times is None else times
        shares = (weights @ self._right + TINY) / (weights @ self._guessed + SMALL)
        length, wanted = weights @ self._lengths
        ratio = (length + TINY) / (wanted + SMALL)
        brevity = float(np.exp(1 - 1 / ratio)) if ratio < 1 else 1.0
        return [float(brevity * shares[:n].prod() ** (1 / n)) for n in range(1, ORDERS + 1)]


class _Failed(Exception):
    """Why a figure can't be computed."""


def _in_java(name: str, truth: Tokens, given: Tokens, java: str, seconds: float) -> float:
    program, arguments = (METEOR, (java, *METEOR_COMMAND)) if name == "METEOR" else (SPICE, ())
    command = [sys.executable, "-c", program, *arguments]
    said = _run(command, json.dumps([truth, given]).encode(), seconds, _library() / name.lower())
    try:
        return float(json.loads(said))
    except ValueError:
        raise _Failed(f"its program said {said[:80]!r}") from None


def _run(command: Sequence[str], given: bytes, seconds: float, folder: Path | None = None) -> bytes:
    """What a command writes. Raises _Failed; nothing of it lives on."""
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            raise _Failed(f"{command[0]} does not start: {error.strerror}") from None
        try:
            said, _ = process.communicate(given, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise _Failed(f"took longer than {seconds:,.0f} s") from None
        finally:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            errors.seek(0)
            raise _Failed(_reason(errors.read().decode("utf-8", "replace")))
    return said


def _reason(errors: str) -> str:
    """The last line that says something, in short; of Java also the exception that ended it."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    thrown = [line.partition('" ')[2] for line in lines if line.startswith("Exception in thread")]
    last = lines[-1] if lines else "it ended without a word"
    if "urlopen" in last or "urllib" in last or "HTTPError" in last:
        return f"its models can't be downloaded from nlp.stanford.edu: {last:.160}"
    return f"its program failed: {last:.200}" + (f": {thrown[-1]:.160}" if thrown else "")


def java() -> str | None:
    """The command `java`, where there is one."""
    return shutil.which("java")
