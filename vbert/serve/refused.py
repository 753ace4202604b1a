"""A request that is refused: a sentence and an HTTP status."""

from __future__ import annotations


class Refused(Exception):
    """status: of HTTP. sentence: what is wrong, and what to do. retry_after: seconds, where trying again may help."""

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(status, sentence, retry_after)
        self.status, self.sentence, self.retry_after = status, sentence, retry_after

    def __str__(self) -> str:
        return self.sentence
