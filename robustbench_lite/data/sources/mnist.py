"""MNIST and Fashion-MNIST, read by torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from ..dataset import Dataset
from ..torchvision_sets import fixed_set


class Mnist:
    """Handwritten digits of NIST's forms, as torchvision's MNIST(root) lays them out."""

    name: ClassVar[str] = "mnist"
    summary: ClassVar[str] = "MNIST: handwritten digits in 10 classes, 1x28x28 (60,000 train, 10,000 test)."
    source: ClassVar[str] = "LeCun, Bottou, Bengio & Haffner 1998, Gradient-based learning, Proc. IEEE 86(11)"

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
        """MNIST from DATA_DIR/MNIST/raw."""
        del workers
        return fixed_set(
            "mnist",
            "MNIST",
            argument=argument,
            split=split,
            data_dir=data_dir,
            download=download,
            image_size=image_size,
        )


class FashionMnist:
    """Pictures of clothes in MNIST's format, as torchvision's FashionMNIST(root) lays them out."""

    name: ClassVar[str] = "fashion-mnist"
    summary: ClassVar[str] = "Fashion-MNIST: clothes in 10 classes, 1x28x28 (60,000 train, 10,000 test)."
    source: ClassVar[str] = "Xiao, Rasul & Vollgraf 2017, Fashion-MNIST, arXiv:1708.07747"

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
        """Fashion-MNIST from DATA_DIR/FashionMNIST/raw."""
        del workers
        return fixed_set(
            "fashion-mnist",
            "FashionMNIST",
            argument=argument,
            split=split,
            data_dir=data_dir,
            download=download,
            image_size=image_size,
        )
