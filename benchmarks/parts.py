"""What is attacked: networks that somebody else trained, on real images, where the folders that hold them are."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.data import balanced_subset

ROOT = Path(__file__).resolve().parent.parent


class Absent(Exception):
    """Something that a part needs is not on this machine; the message is one line."""


class Whole(nn.Module):
    """A network as one module: some peers take an nn.Sequential apart, and its calls would not be seen.

    What comes is made float32: some ask in float64.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The network's own answer."""
        logits: Tensor = self.network(x.float())
        return logits


@dataclass(frozen=True)
class Part:
    """One comparison: a network, images x (N, C, H, W) in [0, 1] with labels y (N,), and what every attack is given."""

    name: str
    title: str
    network: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    step_size: float
    steps: int
    batch_size: int
    norm: str = "linf"

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The images and labels, `batch_size` at a time."""
        return list(zip(torch.split(self.x, self.batch_size), torch.split(self.y, self.batch_size), strict=True))


def folder(variable: str, name: str, *inside: str) -> Path:
    """The path `inside` of the folder that the variable names, else of ../shared/`name`; Absent where it is not."""
    path = Path(os.environ.get(variable) or ROOT.parent / "shared" / name).joinpath(*inside)
    if not path.exists():
        raise Absent(f"no {'/'.join(inside)} in the folder of {name}: set {variable} to the folder that holds it")
    return path


def robust(images: int, steps: int, batch_size: int) -> Part:
    """A robust network: most samples are attacked to the last step."""
    weights = folder("RBL_WEIGHTS", "weights", "mnist-fast-at", "fgsm.pth")
    data = rbl.load_dataset("mnist", data_dir=folder("RBL_DATA", "data", "MNIST").parent)
    model = rbl.load_model("small-cnn", n_classes=10, shape=data.shape, weights=str(weights))
    title = "a robust network: mnist-fast-at (small-cnn), MNIST test images, linf 0.3, steps of 0.01"
    return _part("robust", title, model.module, data, images, 0.3, 0.01, steps, batch_size)


def standard(images: int, steps: int, batch_size: int) -> Part:
    """A standard network: every sample falls within a few steps."""
    weights = folder("RBL_WEIGHTS", "weights", "cifar10-resnet20", "resnet20-12fca82f.th")
    data = rbl.load_dataset(f"parquet:{folder('RBL_DATA', 'data', 'cifar10-jpeg')}")
    factory = f"{Path(__file__).with_name('resnet20.py')}:make"
    model = rbl.load_model(factory, n_classes=10, shape=data.shape, weights=str(weights))
    title = "a standard network: cifar10-resnet20, CIFAR-10 test images (JPEG), linf 8/255, steps of 2/255"
    return _part("standard", title, model.module, data, images, 8 / 255, 2 / 255, steps, batch_size)


PARTS = {"robust": robust, "standard": standard}


def own(name: str, images: int, batch_size: int, note: Callable[[str], None], steps: int = 0) -> Part:
    """A network that the benchmark trains itself (`nets.RECIPES`), or "mnist-fast-at"; steps: of PGD, if it is that."""
    if name == "mnist-fast-at":
        return robust(images, steps, batch_size)
    from .nets import RECIPES, load, trained

    recipe, data = RECIPES[name], load(RECIPES[name].data, "test")
    size = f"{recipe.kind} training" + (f" ({recipe.norm} {_fraction(recipe.eps)})" if recipe.eps else "")
    title = f"{name}: {size}, {recipe.data} test images, {recipe.norm} {_fraction(recipe.attacked)}"
    network = trained(name, note)
    step_size = 2.5 * recipe.attacked / max(1, steps)
    return _part(name, title, network, data, images, recipe.attacked, step_size, steps, batch_size, recipe.norm)


def _fraction(eps: float) -> str:
    return f"{round(255 * eps)}/255" if eps < 0.1 else f"{eps:g}"


def _part(
    name: str,
    title: str,
    network: nn.Module,
    data: rbl.Dataset,
    images: int,
    eps: float,
    step_size: float,
    steps: int,
    batch_size: int,
    norm: str = "linf",
) -> Part:
    index = balanced_subset(data.labels, images)
    # The samples of a class would otherwise stand together in some data sets.
    index = index[torch.randperm(len(index), generator=torch.Generator().manual_seed(0))]
    # Frozen for all: an input gradient must not pay for those of the weights.
    whole = Whole(network).eval().requires_grad_(False)
    return Part(name, title, whole, data.images(index), data.labels[index], eps, step_size, steps, batch_size, norm)
