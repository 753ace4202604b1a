"""What the interface answers, as its documentation has it. Boxes are x1, y1, x2, y2 in pixels of the photo as shown."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

Box = tuple[float, float, float, float]


class Problem(BaseModel):
    """Why a request is refused, or failed: a sentence."""

    error: str


class Region(BaseModel):
    box: Box
    name: str = Field(description="class by the detector, its likeliest attribute before it; empty where none is known")
    score: float | None = Field(None, description="of the class, by the detector")


class Photo(BaseModel):
    width: int
    height: int
    regions: list[Region]


class Reply(BaseModel):
    photos: list[Photo] = Field(description="each photo of the request, with the regions that the model saw")
    seconds: float = Field(description="of the work, without waiting for its turn")


class Scored(BaseModel):
    text: str
    score: float = Field(description="probability")


class Answers(Reply):
    answers: list[Scored] = Field(description="most probable first")


class Statement(Reply):
    true: bool
    score: float = Field(description="probability that the statement is true")


class Matched(Reply):
    score: float = Field(description="probability that the text is true of the photo")
    logit: float = Field(description="match minus mismatch, by which photos and texts are ranked")


class Captioned(Reply):
    caption: str
    score: float = Field(description="geometric mean of the probabilities of its word pieces")


class Filled(Reply):
    words: list[list[Scored]] = Field(description="for each [MASK], most probable first")


class GroundedBox(BaseModel):
    region: int = Field(description="its number in the photo's regions, from 0")
    box: Box
    name: str
    score: float = Field(description="probability that the phrase means it")


class Grounded(Reply):
    found: list[GroundedBox] = Field(description="most probable first")


class Word(BaseModel):
    text: str
    relevance: float
    regions: list[float] = Field(description="how much each of the regions is of this word, from 0 to 1")


class RegionRelevance(BaseModel):
    photo: int = Field(description="from 0")
    region: int = Field(description="its number in the photo's regions, from 0")
    relevance: float


class Explained(Reply):
    answer: str = Field(description="what is explained")
    score: float
    method: str
    words: list[Word] = Field(description="of the text; a relevance above 0 speaks for the answer")
    regions: list[RegionRelevance]


class FoundPhoto(BaseModel):
    image_id: str
    score: float | None = Field(description="match minus mismatch; null behind those that were ranked by it")
    similarity: float = Field(description="cosine of the vectors of text and photo")
    picture: str | None = Field(description="a small picture as a data: address, where the server has the photos")
    width: int | None = None
    height: int | None = None
    boxes: list[Box] = Field(description="of the regions that mattered most, the first most")


class Found(BaseModel):
    found: list[FoundPhoto] = Field(description="best first")
    searched: int = Field(description="photos")
    notes: list[str] = Field(description="what of the text the model can't read")
    seconds: float


class Example(BaseModel):
    """A photo that the server drew, and what may be asked about it."""

    pictures: list[str] = Field(description="as data: addresses")
    task: str
    fields: dict[str, Any]
    title: str


class About(BaseModel):
    title: str
    can: list[str] = Field(description="what may be asked: the last part of the addresses below /api/")
    labels: list[str] = Field(description="the answers that the model knows, the first 200")
    detector: str
    examples: list[Example]
    largest: int = Field(description="bytes of a request, at most")
    pixels: int = Field(description="of a photo, at most")
    searched: int | None = Field(None, description="photos that are searched")
