"""Stage `download`: the files of one source, fetched and checked, or kept by reference."""

from __future__ import annotations

from pathlib import Path

from vbert.artifacts.steps.stage import Build, Cost, Figures, stage
from vbert.data.names import count_of, is_image, kinds
from vbert.data.raw import RawFiles
from vbert.data.source import Source
from vbert.errors import BuildError, UserError


@stage(
    "download",
    makes=RawFiles,
    version=1,
    retries=2,
    tags=("network",),
    cost=Cost(seconds_by=("source.size",), bytes_are="source.size"),
)
def download(build: Build, source: Source) -> Figures:
    """One step a source, so that a corrected annotation file doesn't fetch the photos again."""
    from vbert.data.raw import write_index

    if source.path is not None:
        return _by_reference(build, source)
    from vbert.data.download import fetch
    from vbert.data.unpack import index_archive

    file, sha256 = fetch(source, build.scratch, build.progress)
    name = file.name if source.python_package else source.file
    unusable: list[str] = []
    files = write_index(build.directory, index_archive(file, name, build.directory, set_aside=unusable))
    return _figures(files, file.stat().st_size, sha256, unusable)


def _by_reference(build: Build, source: Source) -> Figures:
    """The index of a local file or folder, whose bytes stay where they are."""
    from vbert.data.folders import digest_of, file_digests, last_changed, names_below, unusable_names
    from vbert.data.raw import RawMember, write_index
    from vbert.data.unpack import index_archive

    root = Path(source.path or "")
    if source.sha256 is None:
        raise BuildError(f"{root}: a local source is identified by its content: use `source.pinned()` in the graph")
    images_only = source.only == "images"
    digests = file_digests(root, images_only=images_only)
    if digest_of(root, digests) != source.sha256:
        note = f"{last_changed(root, images_only)} was the last to change"
        raise UserError(
            f"{root} has changed since it was planned: {note}; let nothing write there meanwhile, and run again"
        )
    unusable = unusable_names(root)
    if root.is_dir():
        members = [RawMember(n, n, 0, size, size, sha256=sha256, local=True) for n, (size, sha256) in digests.items()]
    else:
        members = index_archive(root, source.file, build.directory, local=True, set_aside=unusable)
    files = write_index(build.directory, members, None if root.is_dir() else source.sha256)
    figures = _figures(files, sum(size for size, _ in digests.values()), source.sha256, unusable)
    others = [name for name in names_below(root) if not is_image(name)] if images_only and root.is_dir() else []
    if others:
        note = f"{count_of(others, 'file')} of other kinds: {kinds(others)}"
        figures |= {"other_files": len(others), "notes": [*figures.get("notes", []), note]}
    return figures


def _figures(files: int, size: int, sha256: str, unusable: list[str]) -> Figures:
    figures: Figures = {"files": files, "bytes": size, "sha256": sha256}
    if unusable:
        some = ", ".join(repr(name)[:200] for name in unusable[:3])
        figures["set_aside"] = len(unusable)
        figures["notes"] = [
            f"set aside for a backslash, control characters or no UTF-8 in the name: {count_of(unusable, 'file')}; "
            f"rename {some}{' …' if len(unusable) > 3 else ''}"
        ]
    return figures
