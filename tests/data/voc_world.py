"""Files in Pascal VOC's form, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.coco_world import photo
from data.data_steps import built

from tasks.download import download
from tasks.images import images
from vbert.artifacts.store.store import Store
from vbert.data.source import Source
from vbert.data.spec import DatasetSpec

OBJECT = """<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"""


def xml(*objects: str, size: tuple[int, int] = (48, 32), filename: str = "x.jpg") -> str:
    width, height = size
    return (
        f"<annotation><folder>VOC2007</folder><filename>{filename}</filename><size><width>{width}</width>"
        f"<height>{height}</height><depth>3</depth></size>{''.join(objects)}</annotation>"
    )


def item(*box: float, name: str = "dog", difficult: int = 0) -> str:
    return OBJECT.format(name=name, difficult=difficult, box=box)


def devkit(folder: Path, content: dict[str, str], splits: dict[str, list[str]] | None = None) -> Path:
    """A VOC2007 below `folder`, with a photo for each XML, and masks of the same names."""
    root = folder / "VOCdevkit" / "VOC2007"
    for part in ("Annotations", "JPEGImages", "SegmentationClass", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for name, text in content.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(photo(48, 32))
        (root / "SegmentationClass" / f"{name}.png").write_bytes(photo(48, 32))
    for split, names in (splits or {}).items():
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        (root / "ImageSets" / "Main" / f"dog_{split}.txt").write_text("".join(f"{name} -1\n" for name in names))
    return root


def read(
    store: Path, options: dict[str, Any] | None = None, accepted: float = 0.05, **folders: Path
) -> tuple[list[Any], list[Any]]:
    sources = {name: Source(path=str(folder)) for name, folder in folders.items()}
    spec = DatasetSpec(
        name="own",
        title="Own",
        licence="x",
        sources=sources,
        images={"reader": "voc", "options": options or {}, "unusable_boxes": accepted},
    )
    raws = {name: download(source.pinned()) for name, source in sources.items()}
    (index,) = built(Store(store), images(raws, spec.reader("images"), None, spec.reading("images")))
    boxes = index.boxes()
    return index.table().to_pylist(), boxes.to_pylist() if boxes else []
