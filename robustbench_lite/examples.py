"""The images of a run kept in one .npz file, matched to its rows, and read back with suspicion."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from .errors import RecordError, UserError
from .files import check_output, sha256_file, write_whole
from .streams import content_hashes

if TYPE_CHECKING:
    from .records.specification import ExamplesRecord
    from .result import Result

ARGUMENT = "--save-examples"
# Name, type and number of axes of every array in a file; `run_id` is text.
_ARRAYS = {
    "images": ("float32", 4),
    "adversarial": ("float32", 4),
    "labels": ("int64", 1),
    "prediction": ("int64", 1),
    "adversarial_prediction": ("int64", 1),
    "success": ("bool", 1),
    "index": ("int64", 1),
}


@dataclass(frozen=True)
class Examples:
    """What a file of examples holds: images (N, C, H, W) float32, and one number or truth a row, (N,)."""

    images: npt.NDArray[np.float32]
    adversarial: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    prediction: npt.NDArray[np.int64]
    adversarial_prediction: npt.NDArray[np.int64]
    success: npt.NDArray[np.bool_]
    index: npt.NDArray[np.int64]
    run_id: str


def check_examples_path(path: Path | str) -> None:
    """Raise UserError, before a long run, where `save_examples` could not write `path` after it."""
    check_output(path, argument=ARGUMENT, suffix=".npz")


def save_examples(path: Path | str, result: Result, images: Tensor) -> ExamplesRecord:
    """Write the images of a run whole or not at all; the bytes depend on the run alone. Returns name and SHA-256.

    images: (N, C, H, W) in [0, 1], the clean images of the run's rows in their order. Arrays are stored
    without compression, so that numpy can map them and every zlib gives the same file.

    Raises UserError where the file cannot be written, where the result kept no images, and for images
    that are not those of the rows.
    """
    from .records.specification import ExamplesRecord

    check_output(path, argument=ARGUMENT, suffix=".npz")
    table = result.run.table
    if result.adversarial is None:
        raise UserError(f"{ARGUMENT}: the run kept no images; ask for them before it (Plan.keep_images)")
    if content_hashes(images) != table["content_hash"].to_pylist():
        raise UserError(f"{ARGUMENT}: images must be the clean images of the run's rows in their order, got others")
    arrays: dict[str, npt.NDArray[Any]] = {
        "images": _float32(images),
        "adversarial": _float32(result.adversarial),
        "labels": table["label"].to_numpy(),
        "prediction": table["prediction"].to_numpy(),
        "adversarial_prediction": table["adversarial_prediction"].to_numpy(),
        "success": table["success"].to_numpy(),
        "index": table["index"].to_numpy(),
        "run_id": np.array(result.run.specification.run_id()),
        **{f"learned.{name}": tensor.contiguous().numpy() for name, tensor in sorted(result.learned.items())},
    }
    try:
        write_whole(path, lambda temporary: _write(temporary, arrays))
    except UserError as error:
        raise UserError(f"{ARGUMENT}: {error}") from error
    return ExamplesRecord(file=Path(path).name, sha256=sha256_file(path))


def _float32(x: Tensor) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = x.detach().cpu().float().contiguous().numpy()
    return array


def _write(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """What numpy.savez writes, with every field of the archive that could follow the clock or the system fixed."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            member.external_attr = 0o644 << 16
            with archive.open(member, "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array, order="C"), version=(1, 0), allow_pickle=False)


def load_examples(path: Path | str) -> Examples:
    """The examples in a file that `save_examples` wrote; what its numbers say is for `reverify`.

    Raises RecordError, in one line that names the file, where it is missing, corrupt, foreign, or its
    arrays do not have the types and shapes of examples.
    """
    path = Path(path)
    try:
        # Opened here: numpy leaves a file open that turns out to be no archive.
        with path.open("rb") as raw:
            if raw.read(2) != b"PK":
                raise RecordError(f"{path}: no .npz file")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                missing = [name for name in (*_ARRAYS, "run_id") if name not in file.files]
                if missing:
                    raise RecordError(f"{path}: an archive, but no saved examples: it lacks {', '.join(missing)}")
                arrays = {name: file[name] for name in (*_ARRAYS, "run_id")}
    except FileNotFoundError:
        raise RecordError(f"{path}: no such file of examples") from None
    except (OSError, EOFError, ValueError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordError(f"{path}: corrupt, or no .npz file ({_first_line(error)})") from None
    except (MemoryError, SyntaxError) as error:  # what a damaged header makes numpy do
        raise RecordError(f"{path}: corrupt: an array's header cannot be right ({type(error).__name__})") from None
    fault = _fault(arrays)
    if fault:
        raise RecordError(f"{path}: no saved examples: {fault}")
    return Examples(**{name: arrays[name] for name in _ARRAYS}, run_id=str(arrays["run_id"]))


def _fault(arrays: Mapping[str, npt.NDArray[Any]]) -> str | None:
    count = len(arrays["images"]) if arrays["images"].ndim else 0
    for name, (kind, axes) in _ARRAYS.items():
        array = arrays[name]
        if array.dtype != np.dtype(kind) or array.ndim != axes:
            return f"{name} must be {kind} with {axes} axes, got {array.dtype} {array.shape}"
        if len(array) != count:
            return f"{name} has {len(array)} rows, images has {count}"
    if arrays["adversarial"].shape != arrays["images"].shape:
        return f"adversarial is {arrays['adversarial'].shape}, images is {arrays['images'].shape}"
    run_id = arrays["run_id"]
    if run_id.ndim or run_id.dtype.kind != "U":
        return f"run_id must be one text, got {run_id.dtype} {run_id.shape}"
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
