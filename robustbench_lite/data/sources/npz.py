"""Arrays in an .npz file."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from ...errors import UserError
from ..checks import from_arrays
from ..dataset import Dataset
from ..source import own_size, path_argument, recorded_name

PREFIXES = {"train": ("train_",), "test": ("", "test_")}
CHANNELS = (1, 2, 3, 4)


class Npz:
    """`images` uint8 (N, H, W) or (N, H, W, C), or float (N, C, H, W) in [0, 1]; `labels` (N,) integers.

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
    images = _channels_first(arguments[0], _array(file, path, f"{prefix}images", split=split))
    labels = _array(file, path, f"{prefix}labels", split=split)
    name = recorded_name("npz", path)
    classes = _classes(file, path)
    dataset = from_arrays(images, labels, name=name, split=split, classes=classes, arguments=arguments)
    own_size(name, image_size, shape=dataset.shape[1:])
    return dataset


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


def _channels_first(argument: str, images: Any) -> Any:
    if images.dtype == np.uint8:
        if images.ndim == 3:
            return images[:, None]
        if images.ndim == 4 and images.shape[3] in CHANNELS:
            return images.transpose(0, 3, 1, 2)
        raise UserError(f"{argument} of uint8 must be (N, H, W) or (N, H, W, C), got {images.shape}; channels go last")
    if images.dtype.kind == "f" and not (images.ndim == 4 and images.shape[1] in CHANNELS):
        raise UserError(f"{argument} of float must be (N, C, H, W), got {images.shape}; channels go second")
    return images


def _classes(file: Any, path: Path) -> list[str] | int | None:
    """The classes' names, or how many there are; both splits' labels count where the file does not say."""
    if "classes" in file.files:
        names = _array(file, path, "classes", split="test")
        if names.ndim != 1 or names.dtype.kind not in "US" or not len(names):
            got = f"{names.shape} {names.dtype}"
            raise UserError(f"--dataset: {path}: classes must be (K,) names as text, got {got}")
        return [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]
    if "n_classes" in file.files:
        number = _array(file, path, "n_classes", split="test")
        if number.size != 1 or number.dtype.kind not in "iu" or int(number.item()) < 1:
            raise UserError(f"--dataset: {path}: n_classes must be one whole number of at least 1, got {number}")
        return int(number.item())
    labels = [file[name] for name in ("labels", "test_labels", "train_labels") if name in file.files]
    plain = [y for y in labels if y.dtype.kind in "iu" and y.size]
    return max(max(int(y.max()) for y in plain) + 1, 1) if plain else None
