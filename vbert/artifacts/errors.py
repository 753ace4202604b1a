"""Errors a user can mend, told in one line with the remedy."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """A mistake in what the user gave: a recipe, a spec, an argument, a file.

    `message` is one line (what, where, what to do next); `details` follow it.
    The command prints both without a traceback and exits with 2.
    """

    def __init__(self, message: str, details: str = "") -> None:
        super().__init__(message, details)
        self.message = message
        self.details = details

    def __str__(self) -> str:
        return f"{self.message}\n{self.details}" if self.details else self.message


class BuildError(Exception):
    """A stage could not make its artifact; the message says why and what to look at. Exit code 1."""


class Damaged(BuildError):
    """Bytes of a finished artifact are not those its manifest names.

    `stage` and `fingerprint` name the artifact, `file` the file in it.
    """

    def __init__(self, stage: str, fingerprint: str, file: str, reason: str) -> None:
        super().__init__(stage, fingerprint, file, reason)
        self.stage, self.fingerprint, self.file, self.reason = stage, fingerprint, file, reason

    def __str__(self) -> str:
        return f"{self.stage}/{self.fingerprint[:8]}/{self.file} is damaged: {self.reason}"


class NotAccepted(BuildError):
    """What was made is whole and stays, but the settings that say what is accepted refuse it."""


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of a sentence that refuses `name`: the nearest valid name, or all of them."""
    choices = sorted(valid)
    close = get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(choices) or 'none'}"
