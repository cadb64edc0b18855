"""The fixed data sets that torchvision reads into memory: where they lie, and what went wrong where they do not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import UserError
from .checks import from_arrays
from .dataset import Dataset
from .source import default_data_dir, no_argument, own_size

SIDES = {"MNIST": 28, "FashionMNIST": 28, "CIFAR10": 32, "CIFAR100": 32}


class TorchvisionSet:
    """Base of the sources that torchvision reads; `reads` is the class of torchvision.datasets."""

    name: ClassVar[str]
    reads: ClassVar[str]

    @classmethod
    def load(
        cls,
        argument: str | None,
        *,
        split: str,
        data_dir: Path | None,
        download: bool,
        image_size: int | None,
        workers: int,
    ) -> Dataset:
        """The data set in memory, from the folder in DATA_DIR as torchvision lays it out; see `Source.load`.

        Files are fetched only if `download`. Raises UserError where they are missing or damaged, or could not be
        fetched.
        """
        del workers
        no_argument(cls.name, argument)
        own_size(cls.name, image_size, shape=(SIDES[cls.reads],) * 2)
        return _read(cls.name, cls.reads, split=split, data_dir=data_dir, download=download)


def _read(name: str, class_name: str, *, split: str, data_dir: Path | None, download: bool) -> Dataset:
    from torchvision import datasets

    cls = getattr(datasets, class_name)
    folder = getattr(cls, "base_folder", class_name)
    root = _root(data_dir, folder)
    with warnings.catch_warnings():
        # CIFAR's pickles are of 2009, and some releases of numpy 2.4 complain of how they spell a dtype.
        warnings.simplefilter("ignore", np.exceptions.VisibleDeprecationWarning)
        read = _fetch(name, cls, root=root, train=split == "train", download=download, folder=folder)
    images = np.asarray(read.data)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    classes = [str(i) for i in range(10)] if class_name == "MNIST" else list(read.classes)
    where = (f"--dataset: {name}: images in {root / folder}", f"--dataset: {name}: labels in {root / folder}")
    return from_arrays(images, np.asarray(read.targets), name=name, split=split, classes=classes, arguments=where)


def _root(data_dir: Path | None, folder: str) -> Path:
    """What torchvision calls root: the folder that holds `folder`, also where `folder` itself was given."""
    if data_dir is None:
        return default_data_dir()
    data_dir = data_dir.expanduser()
    if data_dir.resolve().name == folder and not (data_dir / folder).exists():
        return data_dir.resolve().parent
    return data_dir


def _fetch(name: str, cls: Any, *, root: Path, train: bool, download: bool, folder: str) -> Any:
    # A download that failed leaves empty folders, in which nothing is damaged: all is missing.
    if not download and not any(path.is_file() for path in (root / folder).rglob("*")):
        raise UserError(
            f"--dataset: {name} is not in {root}; "
            f"give the folder that holds {folder}/ with --data-dir, or fetch it with --download"
        )
    try:
        return cls(root=str(root), train=train, download=download)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        if download:
            raise UserError(
                f"--download: {name} could not be fetched to {root} ({_reason(error)}); "
                f"try again, or put {folder}/ there by hand and name its parent with --data-dir"
            ) from error
        if "not found" in reason:
            reason = "files are missing or damaged"
        raise UserError(
            f"--dataset: {name} in {root / folder} cannot be read ({reason}); "
            "name another folder with --data-dir, or fetch it again with --download"
        ) from error


def _reason(error: Exception) -> str:
    """The last line that says something: torchvision lists its mirrors, each with its error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
