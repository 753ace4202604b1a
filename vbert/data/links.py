"""Lists of links: addresses of photos on the web with captions (SBU, Conceptual Captions), and the photos they led to.

A list becomes a table, and a row group of the table a unit of fetching: what was fetched once is kept, whatever the web
serves later. Dead links are counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from vbert.artifacts.steps.artifact import Artifact
from vbert.artifacts.steps.settings import Acceptance, Settings, least
from vbert.data.raw import RawFiles
from vbert.errors import Damaged, UserError

if TYPE_CHECKING:
    from vbert.artifacts.store.manifest import Manifest

LONGEST_LINE = 1 << 16  # bytes of a line of a list

Link = tuple[str, str, str]  # url, caption, split


class Columns(TypedDict):
    image_urls: list[str]
    captions: list[str]


class LinkListSettings(Settings):
    """How a list is written, and how it is cut into units."""

    format: Literal["tsv", "columns"] = Field(
        description="tsv: lines of caption, tab, url; columns: JSON of the lists image_urls and captions"
    )
    splits: dict[Literal["train", "val", "test"], str] = Field(
        min_length=1, description="the ending of the name of each split's list"
    )
    links_per_unit: int = Field(1000, ge=1, description="links that are fetched and kept together; the last has more")
    counts: Annotated[Mapping[Literal["train", "val", "test"], int], Acceptance()] = Field(
        {}, description="links, as published; another number is refused"
    )


class LinkSettings(Settings):
    """What is fetched of a link, and how patiently."""

    largest: int = Field(1 << 24, ge=1, description="bytes of a photo; larger ones are not taken")
    seconds: float = Field(30.0, gt=0, description="for one photo, from the first byte asked to the last one come")
    attempts: int = Field(2, ge=1, description="of a link that a server refuses for a while, or that says nothing")
    private: bool = Field(False, description="whether addresses of one's own network are fetched too")
    dead: Annotated[Annotated[float, Field(ge=0, le=1)], Acceptance()] = Field(
        0.5, description="share of links that may be dead"
    )


class LinkList(Artifact):
    """`links.parquet`: url, caption, split of every link, in the list's order; a row group is a unit."""

    def objection(self) -> str | None:
        """Refuses other numbers of links than published."""
        if (made := _made(self)) is None:
            return None
        settings: LinkListSettings = self.step.arguments["settings"]  # type: ignore[union-attr]
        found = {split: made.figures[split] for split in ("train", "val", "test") if split in made.figures}
        if not settings.counts or found == dict(settings.counts):
            return None
        return (
            f"{self.title}: the list has {found} links, published are {dict(settings.counts)}; is it whole? If it is "
            f"right, mend `counts` in the spec, which reads nothing again"
        )

    def groups(self) -> list[int]:
        """The number of links of each unit."""
        import pyarrow.parquet as pq

        about = pq.read_metadata(self.file("links.parquet"))
        return [about.row_group(k).num_rows for k in range(about.num_row_groups)]

    def group(self, number: int) -> list[Link]:
        """The links of a unit."""
        import pyarrow.parquet as pq

        columns = pq.ParquetFile(self.file("links.parquet")).read_row_group(number).to_pydict()
        return list(zip(columns["url"], columns["caption"], columns["split"], strict=True))


class LinkedFiles(RawFiles):
    """Photos that links led to, `photos/NUMBER.jpg`; `links-UNIT.jsonl`: of every link its caption and what came."""

    def objection(self) -> str | None:
        """Refuses more dead links than the data set accepts."""
        if (made := _made(self)) is None:
            return None
        settings: LinkSettings = self.step.arguments["settings"]  # type: ignore[union-attr]
        dead, links = made.figures["dead"], made.figures["links"]
        if dead / links <= settings.dead:
            return None
        return (
            f"{self.title}: {' '.join(made.figures.get('notes', []))}, more than the accepted "
            f"{100 * settings.dead:.3g} %: accept them with `--set data.NAME.dead_links={least(dead, links)}` (in a "
            f"spec: `dead` of `links.fetch`), which fetches nothing again"
        )


def _made(artifact: Artifact) -> Manifest | None:
    if artifact.step is None or artifact.store is None:
        return None
    with suppress(Damaged):
        return artifact.store.find(artifact.stage_name, artifact.fingerprint)
    return None


def write_links(directory: Path, raws: Mapping[str, RawFiles], settings: LinkListSettings) -> dict[str, int]:
    """Write `links.parquet`. Returns the number of links, and of those of each split.

    Raises UserError, with file and line, for a list that is not of its format.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([pa.field(name, pa.string(), nullable=False) for name in ("url", "caption", "split")])
    counts: Counter[str] = Counter()
    size = settings.links_per_unit
    held: list[Link] = []

    def group(count: int) -> pa.Table:
        rows, held[:count] = held[:count], []
        counts.update(split for *_, split in rows)
        return pa.table([pa.array(column, pa.string()) for column in zip(*rows, strict=True)], schema=schema)

    with pq.ParquetWriter(directory / "links.parquet", schema, compression="zstd", write_page_checksum=True) as writer:
        for link in _links(raws, settings):
            held.append(link)
            if len(held) == 2 * size:  # so that the last unit is none of a few links
                writer.write_table(group(size))
        if held:
            writer.write_table(group(len(held)))
    if not counts:
        raise UserError(f"{', '.join(raws)}: the lists hold no link")
    return {"links": counts.total(), **{split: counts[split] for split in ("train", "val", "test") if split in counts}}


def _links(raws: Mapping[str, RawFiles], settings: LinkListSettings) -> Iterator[Link]:
    every = [(raw, name) for raw in raws.values() for name in raw.members()]
    for split, end in settings.splits.items():
        found = [(raw, name) for raw, name in every if f"/{name}".endswith(f"/{end}")]
        if len(found) != 1:
            names = ", ".join(name for _, name in every)
            raise UserError(
                f"links.list.splits.{split}: {len(found)} files end in {end!r:.80}, not one, of {names:.200}"
            )
        read = _lines if settings.format == "tsv" else _columns
        for url, caption in read(*found[0]):
            yield url.strip(), caption.strip(), split


def _lines(raw: RawFiles, name: str) -> Iterable[tuple[str, str]]:
    """(url, caption) of lines of caption, tab, url."""
    with raw.open(name) as file:
        number = 0
        while line := file.readline(LONGEST_LINE + 1):
            number += 1
            try:
                parts = line.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n").split("\t")
            except UnicodeDecodeError as error:
                raise UserError(f"{name}:{number}: is not in UTF-8 ({error.reason}); save it as UTF-8") from None
            if len(line) > LONGEST_LINE or len(parts) != 2:
                raise UserError(f"{name}:{number}: must be a caption, a tab and a url, not {line[:80]!r}")
            yield parts[1], parts[0]


def _columns(raw: RawFiles, name: str) -> Iterable[tuple[str, str]]:
    """(url, caption) of two lists side by side."""
    from vbert.data.readers._rows import checked

    columns = checked(raw.read(name), Columns, name)
    urls, captions = columns["image_urls"], columns["captions"]
    if len(urls) != len(captions):
        raise UserError(f"{name}: captions: there are {len(captions):,}, and {len(urls):,} image_urls")
    return zip(urls, captions, strict=True)


def dead_links(reasons: Mapping[str, Sequence[Any]], links: int) -> dict[str, Any]:
    """The figures of dead links: their number, that of each reason, and a sentence. reasons: of each reason the number
    and the first link, as (number of the link, url)."""
    dead = sum(count for count, *_ in reasons.values())
    if not dead:
        return {"dead": 0}
    order = sorted(reasons, key=lambda reason: (-reasons[reason][0], reason))
    told = ", ".join(f"{reason} {reasons[reason][0]:,}" for reason in order)
    _, number, url = reasons[order[0]]
    figures = {f"dead_{reason.lower().replace(' ', '_').replace('-', '_')}": reasons[reason][0] for reason in order}
    said = f"{dead:,} of {links:,} links are dead ({told}; the first: link {number:,}, {url[:200]})"
    return {"dead": dead, **figures, "notes": [said]}
