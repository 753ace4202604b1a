"""What a server of a model takes on: bounds of a request, of all requests together, and of time."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_TEXT = 2_000  # characters of a question, a caption, a choice
MOST_CHOICES = 16
READING = 32  # request bodies held at once
CONNECTIONS = 128
HEADER_SECONDS = 10.0  # for the head of a request
BODY_SECONDS = 30.0  # for its body
ADDRESSES = 10_000  # whose rate is remembered


@dataclass(frozen=True)
class Limits:
    """Those that the command sets.

    bytes: of a request's body. pixels: of a photo, before it is decoded. rate: predictions a minute from one address.
    waiting: requests that wait while one is worked on. seconds: for one prediction.
    """

    bytes: int = 10_000_000
    pixels: int = 30_000_000
    rate: int = 120
    waiting: int = 8
    seconds: float = 60.0

    @property
    def longest_connection(self) -> float:
        """Seconds from the head of a request to the end of its answer, whatever the client does."""
        return BODY_SECONDS + (self.waiting + 1) * self.seconds + 30.0
