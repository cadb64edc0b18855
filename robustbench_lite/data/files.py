"""Folders of image files, one folder a class."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import UserError
from .dataset import StreamDataset, listing_hash
from .decode import Fit, choose_fit

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class FolderFiles:
    """Image files of a folder, by number."""

    root: Path
    paths: tuple[str, ...] = field(repr=False)

    def open(self, i: int) -> BinaryIO:
        """The i-th file."""
        return open(self.root / self.paths[i], "rb")

    def where(self, i: int) -> str:
        """Its path."""
        return str(self.root / self.paths[i])


def class_folders(root: Path) -> list[str]:
    """The names of the folders in `root`, sorted; hidden ones are none of the user's classes."""
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def stream_folder(
    root: Path,
    *,
    folders: Sequence[str],
    classes: Sequence[str],
    name: str,
    split: str,
    image_size: int | None,
    fit: Fit | None,
    workers: int,
) -> StreamDataset:
    """The images in `root`/FOLDER for each of `folders`, labelled by its place in the list, sorted by path.

    `classes`: the folders' names for people. `fit` as given, or from `image_size` and the images.
    Raises UserError where there is no image.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        if (root / folder).is_dir():
            found = sorted(_image_files(root, folder))
            paths += found
            labels += [label] * len(found)
    if not paths:
        raise UserError(f"--dataset: no images ({' '.join(EXTENSIONS)}) in the class folders of {root}")
    files = FolderFiles(root, tuple(paths))
    fit = fit or choose_fit(files, len(paths), image_size=image_size)
    y = torch.tensor(labels)
    sizes = [os.stat(root / path).st_size for path in paths]
    fingerprint = listing_hash(paths, sizes, y, fit)
    return StreamDataset(name, split, tuple(classes), fit.shape, y, fingerprint, files, fit, workers)


def _image_files(root: Path, folder: str) -> Iterator[str]:
    for entry in os.scandir(root / folder):
        if entry.name.startswith("."):
            continue
        path = f"{folder}/{entry.name}"
        if entry.is_dir():
            yield from _image_files(root, path)
        elif entry.name.lower().endswith(EXTENSIONS):
            yield path
