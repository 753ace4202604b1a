"""Sources: where one file or folder of a data set comes from, and its identity."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator, Field, model_validator

from vbert.artifacts.steps.settings import LocalPath, Location, Settings, Since
from vbert.data.manual import Manual, check, place_of, unplaced
from vbert.data.names import safe_name
from vbert.errors import UserError

# Query keys under which clouds and services put signatures and tokens.
SECRET_KEYS = re.compile(r"(?i)^(x-(amz|goog)-.*|signature|sig|.*token|.*secret|api[-_]?key|key|password|pwd)$")


def _url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{without_secrets(url)!r} is not an http or https URL")
    if parts.username is not None or parts.password is not None:
        raise ValueError(f"the URL of {parts.hostname} holds a user or password; take it out and use `auth: env:NAME`")
    for key, _ in parse_qsl(parts.query, keep_blank_values=True):
        if SECRET_KEYS.match(key):
            raise ValueError(
                f"the URL of {parts.hostname} holds a secret ({key}=…); take it out and use `auth: env:NAME`"
            )
    return url


def without_secrets(url: str) -> str:
    """The URL without its possible secrets."""
    return url.partition("?")[0].rpartition("@")[2][:200]


def _package(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*", text):
        raise ValueError(f"{text!r:.80} is not name==version, one exact version")
    return text


def _sha256(text: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise ValueError(f"{text!r:.80} is not a sha256: 64 lower-case hex digits (`sha256sum FILE`)")
    return text


def _file(name: str) -> str:
    if not name or "/" in name or safe_name(name) != name:
        raise ValueError(f"{name!r:.80} is not the plain name of a file")
    return name


def _file_name(source: Mapping[str, Any]) -> str:
    """The last part of the location; `file` where there is none."""
    where = source.get("path") or unquote(urlsplit(source.get("url") or "").path)
    return Path(where).name or source.get("python_package") or "file"


Url = Annotated[str, AfterValidator(_url)]

Package = Annotated[str, AfterValidator(_package)]

Sha256 = Annotated[str, AfterValidator(_sha256)]


class Source(Settings):
    """Where one file (or folder) of a data set comes from. Exactly one of `url`, `python_package`, `path` and `manual`
    is given.

    - `url`: fetched over http(s), resumed, checked by `sha256`. Without a `sha256` the URL is the identity, and the
      digest of the file is recorded. `auth: env:NAME` sends the variable NAME as a bearer token.
    - `python_package`: `name==version`, a wheel fetched by pip and checked by `sha256`.
    - `path`: a local file or folder, kept by reference; `~` and paths relative to the spec are allowed. Its identity is
      its content: `pinned` fills in `sha256`.
    - `manual`: files that a person must fetch; `placed` makes a `path` of it.

    Archives (.zip .whl .tar .tar.gz .tgz .tar.bz2 .tar.xz) appear by their members, `.gz .bz2 .xz` by what is in them.
    """

    url: Annotated[Url | None, Location] = Field(None, description="of a file")
    python_package: Package | None = Field(None, description="name==version, whose wheel is fetched by pip")
    path: Annotated[str | None, Location, LocalPath()] = Field(
        None, description="a local file or folder, relative to the spec"
    )
    sha256: Sha256 | None = Field(None, description="of the file, by which it is known")
    size: Annotated[int, Field(ge=0)] | None = Field(None, description="bytes")
    only: Annotated[Literal["images"] | None, Since(None)] = Field(
        None, description="images: of a local folder, files of other kinds (a log, notes) are no part"
    )
    manual: Annotated[Manual | None, Since(None)] = Field(None, description="what a person must do to get the files")
    mirrors: Annotated[tuple[Url, ...], Location] = Field((), description="other URLs of the same file")
    auth: Annotated[Annotated[str, Field(pattern="^env:[A-Za-z_][A-Za-z0-9_]*$")] | None, Location] = Field(
        None, description="env:NAME: a variable whose value is sent as a bearer token"
    )
    # The file's name is part of the artifact, so it is hashed, unlike the location it is fetched from.
    file: Annotated[str, AfterValidator(_file)] = Field(
        default_factory=lambda given: _file_name(given), description="what the file is called"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        given = [kind for kind in ("url", "python_package", "path", "manual") if getattr(self, kind) is not None]
        if len(given) != 1:
            said = ", ".join(given) or "none"
            raise ValueError(f"give exactly one of url, python_package, path, manual (given: {said})")
        if self.python_package and not self.sha256:
            raise ValueError("a python_package needs the sha256 of its wheel (`pip hash FILE`)")
        if (self.mirrors or self.auth) and not self.url:
            raise ValueError("mirrors and auth belong to a url")
        if self.only and not self.path:
            raise ValueError("only belongs to a path, of a folder")
        if self.mirrors and not self.sha256:
            raise ValueError("mirrors need a sha256: only the digest says that they serve the same file")
        return self

    def placed(self, where: str | None, title: str, of: str = "data set") -> Source:
        """The source with its files at hand: those in the folder or file `where`, given by the user in place of what
        the spec says; a manual source at its own place, checked. `title`: data set (or what else it is `of`) and
        source, for errors.

        Raises UserError, with what to do, where a manual source isn't there as expected.
        """
        if where is None and self.manual is None:
            return self
        from vbert.data.folders import digest_of, file_digests

        data_set, _, name = title.partition(" ")
        place = place_of(data_set, name) if where is None else Path(where)
        if self.manual is not None and not place.is_dir():
            absent = "it isn't there" if not place.exists() else "it is no folder"
            raise unplaced(self.manual, place, title, absent, of=of)
        found = file_digests(place)
        if self.manual is not None:
            check(self.manual, place, found, title, whole=where is None, of=of)
        file = name if place.is_dir() else place.name
        return Source(path=str(place), file=file, sha256=digest_of(place, found))

    def pinned(self) -> Source:
        """The same source; a local path with its content's digest as `sha256`. Raises UserError where it is missing."""
        assert self.manual is None, "placed before"
        if self.path is None:
            return self
        from vbert.data.folders import folder_digest

        digest = folder_digest(Path(self.path), images_only=self.only == "images")
        if self.sha256 not in (None, digest):
            raise UserError(f"{self.path}: its sha256 is {digest}, the spec says {self.sha256}; mend one of them")
        return self.model_copy(update={"sha256": digest})
