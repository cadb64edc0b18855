"""Arrays in an .npz file."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np

from ...errors import UserError
from ..checks import from_arrays
from ..dataset import Dataset
from ..labels import as_text, classes_in
from ..reading import Reading
from ..source import own_size, path_argument, recorded_name

PREFIXES = {"train": ("train_",), "test": ("", "test_")}


class Npz:
    """`images` uint8 (N, H, W) or (N, H, W, C), or float (N, C, H, W) in [0, 1]; `labels` (N,) integers or names.

    Other forms are understood where they have one reading (`read_images`, `read_labels`).

    `train_images` and `train_labels` beside them are the training split. Classes: `classes` (their
    names), or `n_classes`, or the largest label plus one. Pickled arrays are refused.
    """

    name: ClassVar[str] = "npz"
    summary: ClassVar[str] = "Your own arrays: npz:PATH with images and labels, and train_images and train_labels."
    source: ClassVar[str] = "numpy.savez"

    @staticmethod
    def load(
        argument: str | None,
        *,
        split: str,
        data_dir: Path | None,
        download: bool,
        image_size: int | None,
        workers: int,
    ) -> Dataset:
        """The arrays of PATH."""
        del data_dir, download, workers
        path = path_argument("npz", argument)
        try:
            # Opened here: numpy leaves a file open that turns out to be no archive.
            with path.open("rb") as raw, _open(raw, path) as file:
                return _read(file, path, split=split, image_size=image_size)
        except UserError:
            raise
        except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if "pickle" in reason:  # numpy's guess at whatever it does not know, with advice that helps nobody here
                reason = "it is no zip archive of arrays"
            raise UserError(
                f"--dataset: {path} is not a readable .npz file ({reason}); write it with numpy.savez"
            ) from error


def _open(raw: BinaryIO, path: Path) -> Any:
    file = np.load(raw, allow_pickle=False)
    if isinstance(file, np.ndarray):
        raise UserError(f"--dataset: {path} holds a single array; save images and labels with numpy.savez")
    return file


def _read(file: Any, path: Path, *, split: str, image_size: int | None) -> Dataset:
    prefix = next((p for p in PREFIXES[split] if f"{p}images" in file.files), PREFIXES[split][0])
    where = f"--dataset: {path}:"
    arguments = (f"{where} {prefix}images", f"{where} {prefix}labels")
    images = _array(file, path, f"{prefix}images", split=split)
    labels = _array(file, path, f"{prefix}labels", split=split)
    name = recorded_name("npz", path)
    classes, notes, question = _classes(file, path)
    last: Literal["first", "last"] = "first" if images.dtype.kind == "f" else "last"
    given: dict[str, Any] = {"classes": classes, "arguments": arguments, "channels": last}
    dataset = from_arrays(images, labels, name=name, split=split, **given)
    own_size(name, image_size, shape=dataset.shape[1:])
    others = {name: f"{p}labels" for name, ps in PREFIXES.items() for p in ps if f"{p}labels" in file.files}
    counts = {name: len(file[key]) for name, key in others.items() if name != split and file[key].ndim}
    reading = Reading(counts, {}, (*notes, *dataset.reading.notes), question)
    return dataclasses.replace(dataset, reading=reading)


def _array(file: Any, path: Path, name: str, *, split: str) -> Any:
    if name not in file.files:
        has = ", ".join(file.files) or "nothing"
        why = f" for split {split}; add it with numpy.savez" if split == "train" else ""
        raise UserError(f"--dataset: {path} must hold the array {name!r}{why}; it holds {has}")
    try:
        return file[name]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if "pickle" in reason:
            reason = "a pickled object array, which is not loaded; save plain numbers or text"
        raise UserError(f"--dataset: {path}: the array {name!r} cannot be read ({reason})") from error


def _classes(file: Any, path: Path) -> tuple[list[str] | int | None, tuple[str, ...], str | None]:
    """The classes' names, or how many there are, with notes and an open question.

    Both splits' labels count where the file does not say.
    """
    if "classes" in file.files:
        names = _array(file, path, "classes", split="test")
        if names.ndim != 1 or names.dtype.kind not in "US" or not len(names):
            got = f"{names.shape} {names.dtype}"
            raise UserError(f"--dataset: {path}: classes must be (K,) names as text, got {got}")
        return as_text(names), (), None
    if "n_classes" in file.files:
        number = _array(file, path, "n_classes", split="test")
        if number.size != 1 or number.dtype.kind not in "iu" or int(number.item()) < 1:
            raise UserError(f"--dataset: {path}: n_classes must be one whole number of at least 1, got {number}")
        return int(number.item()), (), None
    labels = {
        name: array
        for name in ("labels", "test_labels", "train_labels")
        if name in file.files and (array := _array(file, path, name, split="test")).size
    }
    return classes_in(f"--dataset: {path}: labels", list(labels.values()))
