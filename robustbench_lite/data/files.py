"""Folders of image files, one folder a class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import torch

from ..errors import UserError
from .dataset import StreamDataset, listing_hash
from .decode import Fit, Framing, choose_fit, count_animated, framing_used, is_image
from .layout import entries, is_junk
from .reading import Reading, shortened

# A file with one of these is taken for an image, and it is an error where it is none; any other file is looked into.
EXTENSIONS = (
    *(".apng", ".avif", ".avifs", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx"),
    *(".pbm", ".pcx", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
ANIMATED = (".apng", ".avif", ".avifs", ".gif", ".tif", ".tiff", ".webp")
_LOOKED = 1000  # files that may hold several frames, of which so many are looked into


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


@dataclass
class Listing:
    """Image files found in class folders, relative to the root, and how many other files there are, by extension."""

    root: Path
    ignored: Counter[str] = field(default_factory=Counter)

    def images(self, folder: str) -> list[str]:
        """The image files in a folder and those in it, sorted by path; other files are counted in `ignored`."""
        found: list[str] = []
        self._walk(folder, found, (os.path.realpath(self.root / folder),))
        return sorted(found)

    def outside(self, folder: Path) -> None:
        """Count the files that lie directly in a folder of class folders."""
        self.ignored.update(_extension(e.name) for e in entries(folder) if e.is_file() and not is_junk(e.name))

    def _walk(self, folder: str, found: list[str], above: tuple[str, ...]) -> None:
        """Collect the images of a folder; above: the real paths of the folders on the way to it, itself included."""
        for entry in entries(self.root / folder):
            if is_junk(entry.name):
                continue
            path = f"{folder}/{entry.name}"
            if entry.is_dir():
                real = os.path.realpath(entry.path) if entry.is_symlink() else f"{above[-1]}/{entry.name}"
                if any(f"{folder}/".startswith(f"{real}/") for folder in above):
                    self.ignored["links to folders above"] += 1
                else:
                    self._walk(path, found, (*above, real))
            elif entry.name.lower().endswith(EXTENSIONS):
                if not entry.is_file():
                    raise UserError(f"--dataset: {entry.path} is a link to a missing file; mend or remove it")
                found.append(path)
            elif entry.is_file() and is_image(Path(entry.path)):
                found.append(path)
            else:
                self.ignored[_extension(entry.name)] += 1


def _extension(name: str) -> str:
    return Path(name).suffix.lower() or "without extension"


def stream_folder(
    root: Path,
    *,
    folders: Mapping[str, str],
    classes: Sequence[str],
    name: str,
    split: str,
    image_size: int | None,
    fit: Fit | None,
    workers: int,
    framing: Framing | None = None,
    reading: Reading | None = None,
    listing: Listing | None = None,
) -> StreamDataset:
    """The images in ROOT/FOLDER of each class, streamed, sorted by class and path.

    Args:
        root: The folder that paths are relative to.
        folders: The folder of each class by its folder name, in the order of the labels; one may be missing.
        classes: The classes' names for people, in the same order.
        name: What the record calls the data set.
        split: "train" or "test".
        image_size: Side that images are brought to; None: the size of the first.
        fit: How images are brought to one size; None: by `image_size` and the images.
        workers: Processes that decode.
        framing: What the network asks for, where nothing else is given.
        reading: What is known of the reading so far.
        listing: What was listed so far.

    Raises:
        UserError: Where there is no image.
    """
    listing, reading = listing or Listing(root), reading or Reading()
    paths: list[str] = []
    names: list[str] = []  # below the split, so that a fingerprint says nothing of what the split's folder is called
    labels: list[int] = []
    empty: list[str] = []
    for label, (own, folder) in enumerate(folders.items()):
        if folder and (root / folder).is_dir():
            found = listing.images(folder)
            paths += found
            names += [own + path.removeprefix(folder) for path in found]
            labels += [label] * len(found)
            empty += [] if found else [f"{folder}/"]
    if not paths:
        ignored = shortened(sorted(listing.ignored))
        others = f", but {sum(listing.ignored.values()):,} files that Pillow cannot read ({ignored})" if ignored else ""
        raise UserError(f"--dataset: no images in the class folders of {root}{others}; give a folder of image files")
    files = FolderFiles(root, tuple(paths))
    fit = fit or choose_fit(files, len(paths), image_size=image_size, framing=framing)
    y = torch.tensor(labels)
    sizes = [os.stat(root / path).st_size for path in paths]
    fingerprint = listing_hash(names, sizes, y, fit)
    reading = Reading(
        {**reading.counts, split: len(paths)},
        dict(sorted(listing.ignored.items())),
        (*reading.notes, *_notes(files, classes, empty)),
        framing=framing_used(fit, framing),
    )
    return StreamDataset(name, split, tuple(classes), fit.shape, y, fingerprint, files, fit, workers, reading=reading)


def _notes(files: FolderFiles, classes: Sequence[str], empty: Sequence[str]) -> list[str]:
    """Notes on the order of numeric names, on classes without images, and on files with several frames."""
    notes = []
    numeric = [name for name in classes if name.isdecimal()]
    if len(numeric) == len(classes) and [*classes] != sorted(classes, key=int):
        notes.append(
            f"class order as torchvision, by text: {shortened(classes)} (for 0, 1, 2, ... give --class-names numeric)"
        )
    if empty:
        notes.append(f"no images in {shortened(empty)}")
    animated = [i for i, path in enumerate(files.paths) if path.lower().endswith(ANIMATED)][:_LOOKED]
    if several := count_animated(files, animated):
        notes.append(f"{several:,} with several frames, of which the first is read")
    return notes
