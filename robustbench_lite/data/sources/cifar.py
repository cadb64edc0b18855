"""CIFAR-10 and CIFAR-100, read by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ..dataset import Dataset
from ..torchvision_sets import fixed_set


class Cifar10:
    """Small colour photographs, as torchvision's CIFAR10(root) lays them out; it checks each file's MD5."""

    name: ClassVar[str] = "cifar10"
    summary: ClassVar[str] = "CIFAR-10: photographs in 10 classes, 3x32x32 (50,000 train, 10,000 test)."
    source: ClassVar[str] = "Krizhevsky 2009, Learning multiple layers of features from tiny images"

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
        """CIFAR-10 from DATA_DIR/cifar-10-batches-py."""
        del workers
        return fixed_set(
            "cifar10",
            "CIFAR10",
            argument=argument,
            split=split,
            data_dir=data_dir,
            download=download,
            image_size=image_size,
        )


class Cifar100:
    """Small colour photographs in 100 fine classes, as torchvision's CIFAR100(root) lays them out."""

    name: ClassVar[str] = "cifar100"
    summary: ClassVar[str] = "CIFAR-100: photographs in 100 classes, 3x32x32 (50,000 train, 10,000 test)."
    source: ClassVar[str] = "Krizhevsky 2009, Learning multiple layers of features from tiny images"

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
        """CIFAR-100 from DATA_DIR/cifar-100-python."""
        del workers
        return fixed_set(
            "cifar100",
            "CIFAR100",
            argument=argument,
            split=split,
            data_dir=data_dir,
            download=download,
            image_size=image_size,
        )
