"""ImageNet (ILSVRC 2012), from its class folders or the archives that its publisher gives out."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ...errors import UserError
from ..dataset import Dataset
from ..decode import Fit, Framing
from ..files import stream_folder
from ..layout import class_folders
from ..source import default_data_dir, no_argument

CLASSES = 1000
FOLDERS = {"train": "train", "test": "val"}


class ImageNet:
    """ImageNet's validation images (`test`) or its training images, streamed.

    The shorter side is scaled to 256 and the middle 224x224 kept (in that proportion for another
    `image_size`), as ImageNet is evaluated since Krizhevsky et al. 2012; published weights bring their own.
    """

    name: ClassVar[str] = "imagenet"
    summary: ClassVar[str] = "ImageNet (ILSVRC 2012): photographs in 1,000 classes, 3x224x224, streamed (50,000 test)."
    source: ClassVar[str] = (
        "Russakovsky et al. 2015, ImageNet Large Scale Visual Recognition Challenge, arXiv:1409.0575"
    )

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
        """ImageNet from DATA_DIR/val (or train), a folder for each WordNet number; from the archives once."""
        no_argument("imagenet", argument)
        root = (data_dir or default_data_dir()).expanduser()
        part = _part(root, FOLDERS[split], download=download)
        folders = class_folders(part)
        if len(folders) != CLASSES:
            raise UserError(
                f"--data-dir: imagenet needs {CLASSES} class folders in {part}, got {len(folders)}; "
                f"for another set of classes use folder:{part}"
            )
        fit = Fit((3, image_size or 224, image_size or 224), crop=0.875)
        if framing is not None and image_size is None:
            fit = Fit.of(framing, 3)
        return stream_folder(
            part,
            folders={name: name for name in folders},
            classes=_names(part.parent, folders),
            name="imagenet",
            split=split,
            image_size=None,
            fit=fit,
            workers=workers,
            framing=framing,
        )


def _part(root: Path, folder: str, *, download: bool) -> Path:
    if (root / folder).is_dir():
        return root / folder
    if root.resolve().name == folder and root.is_dir():
        return root
    if any(root.glob("ILSVRC2012_*.tar*")):
        from torchvision.datasets import ImageNet as Archives

        try:
            Archives(str(root), split=folder)
        except Exception as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"--data-dir: the archives of imagenet in {root} cannot be unpacked: {reason}") from error
        return root / folder
    if download:
        raise UserError(
            "--download: imagenet is given out only to who asks at image-net.org; "
            f"put its archives, or {folder}/ with its class folders, into a folder named by --data-dir"
        )
    raise UserError(
        f"--dataset: imagenet is not in {root}; give the folder that holds {folder}/, or the archives of "
        "image-net.org, with --data-dir (--download cannot fetch it)"
    )


def _names(root: Path, folders: list[str]) -> list[str]:
    """The classes' first words where torchvision left its list beside them, else the WordNet numbers."""
    if not (root / "meta.bin").is_file():
        return folders
    from torchvision.datasets.imagenet import load_meta_file

    try:
        words = load_meta_file(str(root))[0]
        return [words[folder][0] for folder in folders]
    except Exception as error:
        raise UserError(
            f"--data-dir: {root / 'meta.bin'} is not the list of classes that torchvision writes"
        ) from error
