"""CIFAR-10 and CIFAR-100, read by torchvision."""

from __future__ import annotations

from typing import ClassVar

from ..torchvision_sets import TorchvisionSet


class Cifar10(TorchvisionSet):
    """Small colour photographs, as torchvision keeps them in DATA_DIR/cifar-10-batches-py; it checks each MD5."""

    name: ClassVar[str] = "cifar10"
    summary: ClassVar[str] = "CIFAR-10: photographs in 10 classes, 3x32x32 (50,000 train, 10,000 test)."
    source: ClassVar[str] = "Krizhevsky 2009, Learning multiple layers of features from tiny images"
    reads: ClassVar[str] = "CIFAR10"


class Cifar100(TorchvisionSet):
    """Small colour photographs in 100 fine classes, as torchvision keeps them in DATA_DIR/cifar-100-python."""

    name: ClassVar[str] = "cifar100"
    summary: ClassVar[str] = "CIFAR-100: photographs in 100 classes, 3x32x32 (50,000 train, 10,000 test)."
    source: ClassVar[str] = "Krizhevsky 2009, Learning multiple layers of features from tiny images"
    reads: ClassVar[str] = "CIFAR100"
