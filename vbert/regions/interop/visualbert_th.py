"""VisualBERT's NLVR2 features: `features_<split>_150.th`, one dict saved by torch, or a folder of such files.

Image file name (`dev-850-0-img0.png`, with or without `.npz`) → (features float32 [n, 1024], boxes [n, 4] x1 y1 x2 y2
in pixels of the original image, confidences [n]); up to 150 regions in no order, of which the original takes the first
144 (here: `--cap 144` takes the most confident). No image sizes. Files of both of torch's forms are read, the zip
archive and the older row of pickles; torch itself isn't used: the pickles are read as plain data, and the numbers where
they lie. A file with numpy arrays instead of tensors is read whole, once a process.
Source: `utils/get_image_features/extract_image_features_nlvr.py` and `visualbert/dataloaders/nlvr_dataset.py` of
github.com/uclanlp/visualbert.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from vbert.data.pickles import StoredTensor
from vbert.data.torch_files import read_torch_file
from vbert.errors import UserError
from vbert.regions.interop import Place, Read, folder_files
from vbert.regions.interop.raw_regions import BadEntry, RawRegions

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 2
TITLE = "VisualBERT NLVR2 .th (a file, or a folder of them)"
ENDINGS = (".th", ".pth", ".pt")
ENDING = ".npz"


def holds(path: Path) -> bool:
    return any(folder_files.any_of(path, ending) for ending in ENDINGS)


def files(path: Path) -> dict[str, Path]:
    return {"features": path}


def index(files: Mapping[str, Path]) -> Iterator[tuple[str, Place]]:
    root = files["features"]
    for _, (name,) in sorted(one for ending in ENDINGS for one in folder_files.all_of(root, ending)):
        path = folder_files.file_of(root, (name,))
        file = read_torch_file(path)
        if not isinstance(file.value, dict):
            raise UserError(
                f"{path}: holds a {type(file.value).__name__} where a dict of images is wanted: is it VisualBERT's?"
            )
        for key, entry in file.value.items():
            if not isinstance(key, str) or not isinstance(entry, list | tuple) or len(entry) != 3:
                raise UserError(
                    f"{path}: {key!r:.60} is not (features, boxes, confidences) of an image: is it VisualBERT's?"
                )
            parts = [_place(part, file.starts) for part in entry]
            yield key.removesuffix(ENDING), (name, key, None if None in parts else parts)


@contextmanager
def opened(files: Mapping[str, Path]) -> Iterator[Read]:
    root = files["features"]
    opened: dict[str, BinaryIO] = {}
    whole: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:

        def read(_: str, place: Place) -> RawRegions:
            name, key, parts = place
            path = folder_files.file_of(root, place)
            where = f"{path}: {key}"
            if parts is not None:
                if name not in opened:
                    opened[name] = stack.enter_context(path.open("rb"))
                features, boxes, scores = (_tensor(opened[name], part, where) for part in parts)
            else:
                if name not in whole:
                    whole[name] = read_torch_file(path).value
                features, boxes, scores = whole[name][key]
            return _regions(features, boxes, scores, where)

        yield read


def _regions(features: Any, boxes: Any, scores: Any, where: str) -> RawRegions:
    import numpy as np

    if not all(isinstance(part, np.ndarray) and part.dtype.kind == "f" for part in (features, scores)) or not (
        isinstance(boxes, np.ndarray) and boxes.dtype.kind in "fiu"
    ):
        raise BadEntry(where, "damaged", "features, boxes or confidences are no numbers")
    n = len(features)
    if features.ndim != 2 or boxes.shape != (n, 4) or scores.shape != (n,):
        raise BadEntry(
            where, "damaged", f"shapes {features.shape}, {boxes.shape}, {scores.shape}, not [n, d], [n, 4], [n]"
        )
    return RawRegions(features, boxes.astype(np.float32), scores=scores)


def _place(tensor: Any, starts: Mapping[str, int]) -> list[Any] | None:
    """(dtype, byte, shape) of a tensor's numbers; None where it is no tensor in a storage of this file."""
    import numpy as np

    if not isinstance(tensor, StoredTensor) or tensor.key not in starts:
        return None
    size = np.dtype(tensor.dtype).itemsize
    return [tensor.dtype, starts[tensor.key] + tensor.offset * size, list(tensor.shape)]


def _tensor(file: BinaryIO, place: list[Any], where: str) -> NDArray[Any]:
    import numpy as np

    dtype, start, shape = place
    file.seek(start)
    size = prod(shape) * np.dtype(dtype).itemsize
    data = file.read(size)
    if len(data) != size:
        raise BadEntry(where, "truncated", f"the file ends {size - len(data):,} bytes before its numbers do")
    return np.frombuffer(data, dtype).reshape(shape)
