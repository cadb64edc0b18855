"""MNIST and Fashion-MNIST, read by torchvision."""

from __future__ import annotations

from typing import ClassVar

from ..torchvision_sets import TorchvisionSet


class Mnist(TorchvisionSet):
    """Handwritten digits of NIST's forms, as torchvision keeps them in DATA_DIR/MNIST/raw."""

    name: ClassVar[str] = "mnist"
    summary: ClassVar[str] = "MNIST: handwritten digits in 10 classes, 1x28x28 (60,000 train, 10,000 test)."
    source: ClassVar[str] = "LeCun, Bottou, Bengio & Haffner 1998, Gradient-based learning, Proc. IEEE 86(11)"
    reads: ClassVar[str] = "MNIST"


class FashionMnist(TorchvisionSet):
    """Pictures of clothes in MNIST's format, as torchvision keeps them in DATA_DIR/FashionMNIST/raw."""

    name: ClassVar[str] = "fashion-mnist"
    summary: ClassVar[str] = "Fashion-MNIST: clothes in 10 classes, 1x28x28 (60,000 train, 10,000 test)."
    source: ClassVar[str] = "Xiao, Rasul & Vollgraf 2017, Fashion-MNIST, arXiv:1708.07747"
    reads: ClassVar[str] = "FashionMNIST"
