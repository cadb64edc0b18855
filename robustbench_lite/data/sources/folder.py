"""Any folder of images, one folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ...errors import UserError
from ..dataset import Dataset
from ..decode import Framing
from ..files import Listing, stream_folder
from ..layout import WANTED, Layout, find_layout
from ..reading import Reading
from ..source import path_argument, recorded_name

SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}


class Folder:
    """PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg and PATH/test (or val, validation), streamed.

    Split folders are known by their usual names (Training, test_set, valid, ...) in any case; PATH/CLASS/train/*.jpg
    is read too. Classes are the folders' names, sorted as text (as torchvision's ImageFolder does), over all splits.
    Files are images where Pillow can read them; others are counted. Images of another size than the first (or than
    `image_size` square) are scaled to cover it and centre-cropped; three channels if any image is in colour. Without
    split folders all images are `test`.
    """

    name: ClassVar[str] = "folder"
    summary: ClassVar[str] = "Your own images: folder:PATH, one folder a class, with or without train/ and test/."
    source: ClassVar[str] = "the layout of torchvision.datasets.ImageFolder"

    @staticmethod
    def load(
        argument: str | None,
        *,
        split: str,
        data_dir: Path | None,
        download: bool,
        image_size: int | None,
        workers: int,
        framing: Framing | None = None,
    ) -> Dataset:
        """The images of PATH."""
        del data_dir, download
        path = path_argument("folder", argument)
        where = f"--dataset: folder:{argument}"
        if not path.is_dir():
            raise UserError(f"{where} must be a folder with one folder for each class, got a file")
        layout = find_layout(path, where)
        folders = layout.folders(split)
        if folders is None:
            raise _no_split(layout, path, split)
        listing = Listing(path)
        for part in {path / Path(folder).parent for folder in folders.values()}:
            listing.outside(part)
        return stream_folder(
            path,
            folders={name: folders.get(name, "") for name in layout.classes},
            classes=[_text(name) for name in layout.classes],
            name=recorded_name("folder", path),
            split=split,
            image_size=image_size,
            fit=None,
            workers=workers,
            framing=framing,
            reading=_of_other_splits(layout, path, split),
            listing=listing,
        )


def _text(name: str) -> str:
    """A folder's name as text that can be written anywhere; bytes that are no UTF-8 are replaced."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _of_other_splits(layout: Layout, path: Path, split: str) -> Reading:
    listing, counts = Listing(path), {}
    for name in (name for name in WANTED if name != split):
        folders = layout.folders(name) or {}
        counts[name] = sum(len(listing.images(folder)) for folder in folders.values())
    return Reading(counts, {}, layout.notes)


def _no_split(layout: Layout, path: Path, split: str) -> UserError:
    told = f" ({'; '.join(layout.notes)})" if layout.notes else ""
    unsplit = "test" in layout.parts and all(name == folder for name, folder in layout.parts["test"].items())
    if split == "train" and unsplit:
        return UserError(
            f"--dataset: folder:{path} has no train/ of class folders, so nothing to train on{told}; add one"
        )
    wanted = " or ".join(f"{name}/" for name in SPLITS[split])
    has = ", ".join(f"{name}/" for name in sorted(layout.parts))
    return UserError(
        f"--dataset: folder:{path} has {has} but no {wanted} of class folders, wanted for {split}{told}; add it"
    )
