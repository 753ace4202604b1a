"""The interface: a form in, JSON out, one address a task; and the page that uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser

from vbert.serve import replies
from vbert.serve.desk import Desk
from vbert.serve.limits import LONGEST_TEXT, MOST_CHOICES, Limits
from vbert.serve.refused import Refused
from vbert.serve.worker import Job

FOLDER = Path(__file__).parent / "page"
FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}

Photo = Annotated[UploadFile, File(description="a photo: JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF, JPEG 2000 or PPM")]
Text = Annotated[str, Form(max_length=LONGEST_TEXT)]
Top = Annotated[int, Form(ge=1, le=50)]
REFUSALS: Mapping[int | str, dict[str, Any]] = {
    413: {"model": replies.Problem, "description": "too many bytes or pixels"},
    415: {"model": replies.Problem, "description": "not an image, or an animated one"},
    422: {"model": replies.Problem, "description": "a field is missing or wrong, or the photo is damaged"},
    429: {"model": replies.Problem, "description": "too many requests from one address; see Retry-After"},
    503: {"model": replies.Problem, "description": "too many requests wait already; see Retry-After"},
    504: {"model": replies.Problem, "description": "took too long"},
}


@dataclass(frozen=True)
class Served:
    """about: the fields of `About` that the model decides."""

    desk: Desk
    limits: Limits
    about: Mapping[str, Any]


def interface(served: Served) -> FastAPI:
    """The application, without the gate."""
    # No upload reaches a disk: files of a form stay in memory, whose size the gate has bounded.
    MultiPartParser.spool_max_size = 8 * served.limits.bytes
    app = FastAPI(
        title="vbert serve",
        summary=f"Ask {served.about['title']} about photos.",
        description="A form (multipart/form-data) in, JSON out.",
        version="1",
        docs_url=None,
        redoc_url=None,
    )
    _refusals(app)
    _pages(app, served)
    _tasks(app, served)
    return app


def _refusals(app: FastAPI) -> None:
    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        after = {} if error.retry_after is None else {"retry-after": str(error.retry_after)}
        return JSONResponse({"error": error.sentence}, error.status, after)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        said = [f"{_field(one['loc'])}: {_lower(one['msg'])}" for one in error.errors()[:3]]
        return JSONResponse({"error": "; ".join(said)}, 422)

    async def other(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        known = {404: "there is no such page; / is the page, /docs the interface", 405: "ask with POST, and a form"}
        sentence = known.get(error.status_code, f"the form can't be read: {error.detail}")
        return JSONResponse({"error": sentence}, error.status_code)

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, other)


def _field(where: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in where[1:]) or "the form"


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _pages(app: FastAPI, served: Served) -> None:
    about = replies.About(**served.about, largest=served.limits.bytes, pixels=served.limits.pixels)
    files = {name: (FOLDER / name).read_bytes() for name in FILES}
    page = (FOLDER / "page.html").read_bytes()

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html; charset=utf-8")

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in files:
            raise HTTPException(404)
        return Response(files[name], media_type=FILES[name])

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        from vbert.serve.reference import reference

        base = str(request.base_url)
        return Response(reference(app.openapi(), base), media_type="text/html; charset=utf-8")

    @app.get("/api/model", summary="What the model is, and what may be asked of it")
    async def model() -> replies.About:
        return about


def _tasks(app: FastAPI, served: Served) -> None:
    """One address for each task that the model can do."""

    def post(task: str, reply: type[BaseModel], summary: str) -> Callable[[Any], Any]:
        if task not in served.about["can"]:
            return lambda function: function
        return app.post(f"/api/{task}", response_model=reply, summary=summary, responses={**REFUSALS}, name=task)

    async def ask(request: Request, task: str, photos: Mapping[str, UploadFile], **fields: Any) -> Any:
        held = {name: await photo.read() for name, photo in photos.items()}
        return await served.desk.ask(Job(task, held, fields), request.receive)

    @post("answer", replies.Answers, "Answers to a question about a photo")
    async def answer(request: Request, image: Photo, question: Text, top: Top = 5) -> Any:
        return await ask(request, "answer", {"image": image}, question=question, top=top)

    @post("classify", replies.Answers, "Classes of a text beside a photo")
    async def classify(request: Request, image: Photo, text: Text, text_b: Text | None = None) -> Any:
        return await ask(request, "classify", {"image": image}, text=text, text_b=text_b)

    @post("sentiment", replies.Answers, "The sentiment of a text beside a photo")
    async def sentiment(request: Request, image: Photo, text: Text) -> Any:
        return await ask(request, "sentiment", {"image": image}, text=text)

    @post("true", replies.Statement, "Whether a statement about two photos is true")
    async def true(request: Request, left: Photo, right: Photo, statement: Text) -> Any:
        photos = {"left": left, "right": right}
        return await ask(request, "true", photos, statement=statement)

    @post("choose", replies.Answers, "Which of several texts fits a photo and a question best")
    async def choose(
        request: Request,
        image: Photo,
        choices: Annotated[list[Text], Form(min_length=2, max_length=MOST_CHOICES, description="one field a choice")],
        question: Text = "",
    ) -> Any:
        return await ask(request, "choose", {"image": image}, question=question, choices=choices)

    @post("ground", replies.Grounded, "The regions that a phrase of a text may mean")
    async def ground(request: Request, image: Photo, text: Text, phrase: Text | None = None) -> Any:
        return await ask(request, "ground", {"image": image}, text=text, phrase=phrase)

    @post("match", replies.Matched, "How likely a text is true of a photo")
    async def match(request: Request, image: Photo, text: Text) -> Any:
        return await ask(request, "match", {"image": image}, text=text)

    @post("caption", replies.Captioned, "A sentence about a photo")
    async def caption(request: Request, image: Photo) -> Any:
        return await ask(request, "caption", {"image": image})

    @post("fill", replies.Filled, "Words for each [MASK] of a text beside a photo")
    async def fill(request: Request, image: Photo, text: Text, top: Top = 5) -> Any:
        return await ask(request, "fill", {"image": image}, text=text, top=top)

    @post("regions", replies.Reply, "The regions that the model sees in a photo")
    async def regions(request: Request, image: Photo) -> Any:
        return await ask(request, "regions", {"image": image})

    @post("explain", replies.Explained, "Why the model answers as it does: the relevance of each word and region")
    async def explain(
        request: Request,
        image: Photo,
        right: Annotated[UploadFile | None, File(description="the second photo of a statement over two")] = None,
        text: Annotated[Text | None, Form(description="the question, statement or text; none for a caption")] = None,
        text_b: Text | None = None,
        choices: Annotated[list[Text], Form(max_length=MOST_CHOICES, description="one field a choice")] = [],  # noqa: B006
        phrase: Text | None = None,
    ) -> Any:
        photos = {"image": image} | ({} if right is None else {"right": right})
        asked = {"text": text, "text_b": text_b, "choices": choices, "phrase": phrase}
        return await ask(request, "explain", photos, **asked)

    @post("search", replies.Found, "Photos of the searched folder, found by a text")
    async def search(request: Request, text: Text, top: Top = 12) -> Any:
        return await ask(request, "search", {}, text=text, top=top)
