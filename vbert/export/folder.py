"""An exported folder: a model with its detector, a card for people, and a record of every file's digest.

model.safetensors config.json vocab.txt tokenizer_config.json contract.json head.json curves.jsonl    the `Model`
detector/weights.safetensors detector/detector.json    the detector that made its features; absent for imported ones
README.md      the card: nothing reads it, so it may be edited
export.json    format, what the folder was made from, and size and sha256 of each file but the card
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from vbert.artifacts.steps.artifact import files_of
from vbert.artifacts.store import durable
from vbert.artifacts.store.digests import seal, sha256_file, unseal
from vbert.artifacts.store.manifest import Manifest
from vbert.artifacts.store.store import Store
from vbert.artifacts.upkeep.export import replaced
from vbert.data.raw import RawFiles
from vbert.errors import BuildError, UserError
from vbert.model.published import HEAD, is_own
from vbert.model.vocabulary import CONFIG, VOCABULARY
from vbert.objectives.trained import WEIGHTS, Model
from vbert.regions.contract import NAME as CONTRACT
from vbert.regions.contract import differences
from vbert.regions.detector import DetectorWeights, RegionSettings

FORMAT = 1
RECORD, CARD, DETECTOR = "export.json", "README.md", "detector"
MODEL_FILES = (WEIGHTS, "config.json", VOCABULARY, CONFIG, CONTRACT, "head.json", "curves.jsonl")
STAGES = ("detector", "weights")  # that make a detector
DETECTOR_FILES = ("weights.safetensors", "detector.json")
PLAIN = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)  # names that a record may hold: none leads out of its folder
AGAIN = "copy the folder again, or write it anew by `vbert export`"
Layout = Literal["vbert", "transformers"]


class ExportedFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    size: int
    sha256: str


class ExportRecord(BaseModel):
    """export.json. made_from: stage, label, fingerprint and content of the artifact, where it was one of a store. int8:
    what `vbert.export.int8` measured, of a model exported so."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    format: int = FORMAT
    layout: Layout = "vbert"
    title: str
    objective: str
    made_from: dict[str, Any] = {}
    int8: dict[str, Any] | None = None
    files: dict[str, ExportedFile]


def write_export(
    out: Path,
    model: Model,
    detector: DetectorWeights | None,
    *,
    title: str,
    card: str,
    made_from: Mapping[str, Any],
    int8: Mapping[str, Any] | None = None,
) -> None:
    """Make `out` an exported folder, whole or not at all; an earlier one there is replaced.

    Raises UserError where `out` holds other things, or the detector isn't the one that the model's contract names.
    """
    if detector is not None:
        check_detector(model, detector)
    with exported_to(out) as making:
        for name in MODEL_FILES:
            shutil.copyfile(model.file(name), making / name)
        copy_detector(detector, making)
        objective = model.head()["objective"]
        close_export(making, title=title, objective=objective, card=card, made_from=made_from, int8=int8)


def copy_detector(detector: DetectorWeights | None, making: Path) -> None:
    if detector is not None:
        (making / DETECTOR).mkdir()
        for name in DETECTOR_FILES:
            shutil.copyfile(detector.file(name), making / DETECTOR / name)


def exported_to(out: Path) -> AbstractContextManager[Path]:
    """`replaced(out)`, where nothing but an earlier export is lost by that. Raises UserError, inside a model too."""
    for above in out.resolve().parents:
        if is_export(above) or is_own(above) or files_of(above) != above:
            raise UserError(f"{out} is inside {above}, which holds a model already; give a folder elsewhere")
    if out.exists() and not (out / RECORD).is_file():
        if not out.is_dir():
            raise UserError(f"{out} is a file; give a folder for the export")
        if any(out.iterdir()):
            raise UserError(f"{out} holds other things than an export; give a folder that is new or empty")
    return replaced(out)


def close_export(
    making: Path,
    *,
    title: str,
    objective: str,
    card: str,
    made_from: Mapping[str, Any],
    int8: Mapping[str, Any] | None = None,
    layout: Layout = "vbert",
) -> None:
    """Writes the card, and last the record of all files in the folder, which its owner may edit: they are no links into
    a store."""
    names = sorted(path.relative_to(making).as_posix() for path in making.rglob("*") if path.is_file())
    for name in names:
        durable.sync_file(making / name, durable.WRITE)
    files = {n: ExportedFile(size=(making / n).stat().st_size, sha256=sha256_file(making / n)) for n in names}
    (making / CARD).write_text(card, encoding="utf-8")
    about: dict[str, Any] = {"made_from": dict(made_from), "int8": None if int8 is None else dict(int8)}
    record = ExportRecord(layout=layout, title=title, objective=objective, files=files, **about)
    durable.write_file(making / RECORD, seal(record.model_dump()), durable.WRITE)


def is_export(folder: Path) -> bool:
    return (folder / RECORD).is_file()


def refuse_without_record(folder: Path) -> None:
    """Raises UserError for an exported folder without its record, which a detector beside a model shows."""
    if not is_export(folder) and (folder / HEAD).is_file() and (folder / DETECTOR / DETECTOR_FILES[1]).is_file():
        raise UserError(f"{folder / RECORD} is missing: {AGAIN}")


def read_record(folder: Path) -> ExportRecord:
    """export.json. Raises UserError where there is none that can be read."""
    path = folder / RECORD
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; `vbert export RECIPE 'finetune[ENTRY]' --out DIR` writes one")
    try:
        refuse_without_record(folder)
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{folder}: no {RECORD} in it: this is no exported folder, or one not wholly copied; "
            "`vbert export RECIPE 'finetune[ENTRY]' --out DIR` writes one"
        ) from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); mend its permissions") from None
    return _parsed(data, str(path))


def _parsed(data: bytes, where: str) -> ExportRecord:
    try:
        body = unseal(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is damaged ({error}); {AGAIN}") from None
    known = body.get("format")
    if isinstance(known, int) and known > FORMAT:
        raise UserError(f"{where}: format {known}, this version of vbert reads {FORMAT}; upgrade vbert")
    try:
        record = ExportRecord.model_validate(body)
    except ValidationError as error:
        raise UserError(f"{where}: not a record of an export: {' '.join(str(error).split()):.200}; {AGAIN}") from None
    if odd := [name for name in record.files if not PLAIN.fullmatch(name)]:
        raise UserError(f"{where}: {odd[0]!r:.100} is no name of a file that an export holds; {AGAIN}")
    return record


def read_export(folder: Path) -> tuple[Model, DetectorWeights | None]:
    """The model and its detector (None: its features were imported), every file compared with its digest.

    Raises UserError, naming the file, where one is missing, damaged or not of the folder, or the format is newer.
    """
    record = read_record(folder)
    if record.layout != "vbert":
        raise UserError(
            f"{folder} was exported for transformers (`--format hf`), whose `from_pretrained` loads it; for vbert, "
            "export without --format"
        )
    check_files(folder, record)
    held = record.files
    if absent := [name for name in MODEL_FILES if name not in held]:
        raise UserError(
            f"{folder}/{RECORD} names no {absent[0]}: not a model's folder; write it anew by `vbert export`"
        )
    with_detector = any(name.startswith(f"{DETECTOR}/") for name in held)
    if with_detector and (absent := [n for n in DETECTOR_FILES if f"{DETECTOR}/{n}" not in held]):
        raise UserError(f"{folder}/{RECORD} names no {DETECTOR}/{absent[0]}; write the folder anew by `vbert export`")
    return Model.at(folder), DetectorWeights.at(folder / DETECTOR) if with_detector else None


def check_files(folder: Path, record: ExportRecord) -> None:
    """Compares what is in the folder with its record; hidden files (a `.git`) and the card don't count."""
    for name, entry in record.files.items():
        path = folder / name
        try:
            size = path.stat().st_size
            if size != entry.size:
                raise UserError(f"{path} is damaged: {size:,} bytes instead of {entry.size:,}; {AGAIN}")
            if sha256_file(path) != entry.sha256:
                raise UserError(f"{path} is damaged: other bytes than {RECORD} says; {AGAIN}")
        except FileNotFoundError:
            raise UserError(f"{path} is missing: {AGAIN}") from None
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror}); mend its permissions") from None
    known = {*record.files, CARD, RECORD}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in inside.parts)
        if path.is_file() and not hidden and inside.as_posix() not in known:
            raise UserError(f"{path} is not of this export: move it elsewhere, or list it by exporting anew")


def check_members(raw: RawFiles) -> None:
    """The same of an exported folder among raw files, in a folder or an archive: a start, say. Raises UserError."""
    for place in raw.members():
        folder, _, name = place.rpartition("/")
        if name != RECORD:
            continue
        record = _parsed(raw.read(place), f"{raw.title}: {place}")
        for inside, entry in record.files.items():
            full = f"{folder}/{inside}" if folder else inside
            if full not in raw.members():
                raise UserError(f"{raw.title}: {full} is missing: {AGAIN}")
            if raw.sha256(full) != entry.sha256:
                raise UserError(f"{raw.title}: {full} is damaged: other bytes than {RECORD} says; {AGAIN}")


def check_detector(model: Model, detector: DetectorWeights) -> None:
    """Raises UserError for a detector that makes other features than the model reads."""
    if different := other_features(model, detector):
        field, (wanted, made) = next(iter(different.items()))
        raise UserError(
            f"the detector isn't the one that made the model's features: {field} is {wanted!r} for the model, {made!r} "
            "for the detector"
        )


def other_features(model: Model, detector: DetectorWeights) -> dict[str, tuple[Any, Any]]:
    """The fields of the model's contract that differ in features which the detector makes now."""
    contract = model.contract()
    if contract.boxes is None or contract.nms is None:  # not stated
        made = detector.digest()
        return {} if made == contract.weights else {"weights": (contract.weights, made)}
    return differences(contract, detector.contract(RegionSettings(boxes=contract.boxes, nms=contract.nms)))


def detector_behind(model: Model, store: Store | None = None) -> DetectorWeights | None:
    """The detector that made the features `model` was trained on: that of the model's lineage in its store, else one of
    the store with the weights that the contract names. store: of a bare copy of a model, with no manifest beside it.

    None where the features were imported. Raises BuildError where the detector is no longer in the store.
    """
    wanted = model.contract().weights
    if wanted is None:
        return None
    steps: Mapping[str, Any] = {}
    try:
        at, made = model.origin()
        steps = made.step["steps"]
    except BuildError:
        if store is None:
            return None
        at = store
    behind = [at.manifest(step["stage"], fingerprint) for fingerprint, step in steps.items()]
    detector = _with_weights(at, filter(None, behind), model) or _with_weights(
        at, (manifest for stage in STAGES for manifest in at.manifests(stage)), model
    )
    if detector is None:
        for step in steps.values():
            used = step["arguments"].get("detector") if step["stage"] == "regions" else None
            if used and at.manifest(steps[used["artifact"]]["stage"], used["artifact"]) is None:
                raise BuildError(
                    f"the detector of {model.title} ({steps[used['artifact']]['stage']} {used['artifact'][:8]}) is no "
                    f"longer in {at.location}: `vbert run RECIPE --until detector` builds it again"
                )
    return detector


def _with_weights(store: Store, manifests: Iterable[Manifest], model: Model) -> DetectorWeights | None:
    """Of those with the weights that the model's contract names, the one that makes its features."""
    contract, found = model.contract(), []
    for manifest in manifests:
        if any((entry.name, entry.sha256) == (DETECTOR_FILES[0], contract.weights) for entry in manifest.files):
            for name in DETECTOR_FILES:
                store.file(manifest, name)  # its digest is compared
            found.append(DetectorWeights.at(store.whole(manifest)))
    if len(found) < 2:
        return found[0] if found else None
    return next((one for one in found if not other_features(model, one)), found[0])
