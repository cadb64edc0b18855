"""Any folder of images, one folder a class."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ...errors import UserError
from ..dataset import Dataset
from ..files import class_folders, stream_folder
from ..source import path_argument, recorded_name

SPLITS = {"train": ("train",), "test": ("test", "val", "validation")}


class Folder:
    """PATH/CLASS/*.jpg, or PATH/train/CLASS/*.jpg beside PATH/test (or val, validation), streamed.

    Classes are the folders' names, sorted, over all splits. Images of another size than the first (or
    than `image_size` square) are scaled to cover it and centre-cropped; three channels if any image is in
    colour. Without split folders all images are `test`.
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
    ) -> Dataset:
        """The images of PATH."""
        del data_dir, download
        path = path_argument("folder", argument)
        if not path.is_dir():
            raise UserError(f"--dataset: folder:{argument} must be a folder with one folder for each class, got a file")
        part, classes = find_split(path, split)
        if not classes:
            raise UserError(f"--dataset: folder:{argument} must hold one folder for each class, found none")
        return stream_folder(
            part,
            folders=classes,
            classes=classes,
            name=recorded_name("folder", path),
            split=split,
            image_size=image_size,
            fit=None,
            workers=workers,
        )


def find_split(path: Path, split: str) -> tuple[Path, list[str]]:
    """The folder that holds a split's class folders, and the classes of all splits."""
    # A class may be called "train": a split is a folder of folders.
    found = {name: classes for names in SPLITS.values() for name in names if (classes := _inside(path / name))}
    if not found:
        if split == "train":
            raise UserError(f"--dataset: folder:{path} has no train/ of class folders, so nothing to train on; add one")
        return path, class_folders(path)
    for name in SPLITS[split]:
        if name in found:
            return path / name, sorted(set().union(*found.values()))
    wanted = " or ".join(f"{name}/" for name in SPLITS[split])
    has = ", ".join(f"{name}/" for name in sorted(found))
    raise UserError(f"--dataset: folder:{path} has {has} but no {wanted} of class folders, wanted for {split}")


def _inside(path: Path) -> list[str]:
    return class_folders(path) if path.is_dir() else []
