"""Data sets: images and labels by name, in memory or streamed, and fixed parts of them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .. import registry
from ..errors import UserError, unknown_name
from .checks import checked_images, checked_labels, from_arrays
from .class_list import parse_classes, with_classes
from .dataset import ArrayDataset, Dataset, StreamDataset, balanced_subset, shard_of
from .decode import Framing
from .labels import read_labels
from .pixels import read_images
from .reading import Reading, reading_line
from .source import SPLITS, Source, default_data_dir

__all__ = [
    "ArrayDataset",
    "Dataset",
    "Framing",
    "Reading",
    "Source",
    "StreamDataset",
    "balanced_subset",
    "checked_images",
    "checked_labels",
    "default_data_dir",
    "from_arrays",
    "load_dataset",
    "parse_classes",
    "read_images",
    "read_labels",
    "reading_line",
    "shard_of",
    "with_classes",
]


def load_dataset(
    spec: str,
    *,
    split: str = "test",
    data_dir: Path | str | None = None,
    download: bool = False,
    image_size: int | None = None,
    workers: int = 0,
    classes: Sequence[str] | None = None,
    framing: Framing | None = None,
) -> Dataset:
    """The data set that `spec` names: NAME or NAME:ARGUMENT, FILE.py:NAME or package.module:NAME.

    split       "train" or "test"
    data_dir    where files are looked for (None: `data` in the cache), and fetched to if `download`
    image_size  side that images of a streamed or Parquet set are brought to
    workers     processes that decode a streamed set
    classes     class names in the order of the network's outputs, by which labels are numbered; a data set without
                names takes them in order; ("numeric",) sorts folders that are named by numbers; None: as they come
    framing     resizing and cropping that a network was made for, of images in files, where image_size is None

    Raises UserError for an unknown name (with the close ones), and one line on whatever is wrong with
    the data; PluginError where somebody else's source raised.

    >>> len(load_dataset("digits"))
    360
    """
    if split not in SPLITS:
        raise unknown_name("--split", split, SPLITS)
    if image_size is not None and image_size < 1:
        raise UserError(f"--image-size must be at least 1, got {image_size}")
    if workers < 0:
        raise UserError(f"--workers must be at least 0, got {workers}")
    entry, argument = _find(spec)
    source = entry.load()
    if not callable(getattr(source, "load", None)):
        raise UserError(f"--dataset: {spec} must be a class with a static method `load`, got {type(source).__name__}")
    folder = None if data_dir is None else Path(data_dir)
    options: dict[str, Any] = {"split": split, "data_dir": folder, "download": download, "image_size": image_size}
    if framing is not None and "framing" in inspect.signature(source.load).parameters:
        options["framing"] = framing
    if entry.origin == "built-in":
        loaded: Dataset = source.load(argument, **options, workers=workers)
    else:
        try:
            loaded = source.load(argument, **options, workers=workers)
            _check(spec, loaded)
        except UserError:
            raise
        except Exception as error:
            raise registry.guard(f"--dataset: {spec}", error) from error
    if framing is not None:
        loaded = _framed(loaded, framing)
    if classes is not None:
        return with_classes(loaded, classes)
    if loaded.reading.question is not None:
        raise UserError(loaded.reading.question)
    return loaded


def _framed(loaded: Dataset, framing: Framing) -> Dataset:
    """The data set with a note on how the framing was followed."""
    height, width = loaded.shape[1:]
    note = f"images {framing}, as the weights ask for"
    if loaded.reading.framing is None:
        if (height, width) == (framing.size, framing.size):
            return loaded
        note = f"images are {height}x{width}; the weights are for images {framing}"
    reading = dataclasses.replace(loaded.reading, notes=(*loaded.reading.notes, note))
    return dataclasses.replace(loaded, reading=reading)


def _find(spec: str) -> tuple[registry.Entry, str | None]:
    known = registry.names("datasets")
    name, colon, argument = spec.partition(":")
    if name in known:
        return known[name], argument if colon else None
    head = spec.split(":", 2)
    if len(head) < 2 and Path(spec).expanduser().exists() and not spec.endswith(".py"):
        path = Path(spec)
        kind = "folder" if path.is_dir() else {".npz": "npz", ".parquet": "parquet"}.get(path.suffix, "folder")
        raise UserError(f"--dataset: {spec!r} is a path; say what it is, e.g. {kind}:{spec}")
    return registry.find("datasets", ":".join(head[:2]), argument="--dataset"), head[2] if len(head) == 3 else None


def _check(spec: str, dataset: Any) -> None:
    """A source from outside must keep the contract: types, shapes, ranges."""
    where = f"--dataset: {spec}"
    if not isinstance(dataset, Dataset):
        raise UserError(f"{where}: load must return a robustbench_lite.data.Dataset, got {type(dataset).__name__}")
    if not len(dataset):
        raise UserError(f"{where} holds no images")
    if dataset.labels.dtype != torch.int64:
        raise UserError(f"{where}: labels must be int64, got {dataset.labels.dtype}")
    checked_labels(f"{where}: labels", dataset.labels, count=len(dataset), classes=len(dataset.classes))
    x = dataset.images(torch.zeros(1, dtype=torch.int64))
    if x.dtype != torch.float32 or tuple(x.shape) != (1, *dataset.shape):
        got = f"{tuple(x.shape)} {x.dtype}"
        raise UserError(f"{where}: images must be (n, {', '.join(map(str, dataset.shape))}) float32, got {got}")
    checked_images(f"{where}: images", x)
