"""Images, small networks and random states for the checks; nothing here touches the global random state."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..models.seeding import seeded
from ..streams import Stream, drawing

Shape = tuple[int, int, int]

# Colour and grey, and sides that are odd and unequal.
SHAPES: tuple[Shape, ...] = ((3, 16, 16), (1, 28, 28), (3, 17, 24))


def images(count: int, shape: Shape, *, seed: int = 0) -> Tensor:
    """Random images (count, C, H, W) in [0.05, 0.95]."""
    generator = torch.Generator().manual_seed(seed)
    return 0.05 + 0.9 * torch.rand((count, *shape), generator=generator)


def constant_images(shape: Shape) -> Tensor:
    """Black, grey and white: (3, C, H, W)."""
    return torch.tensor([0.0, 0.5, 1.0]).reshape(-1, 1, 1, 1).expand(3, *shape).clone()


def small_network(shape: Shape, *, classes: int = 3, seed: int = 0) -> nn.Module:
    """A smooth network, frozen and in evaluation mode."""
    channels, height, width = shape
    features = 4 * math.ceil(height / 2) * math.ceil(width / 2)
    with seeded(seed):
        network = nn.Sequential(
            nn.Conv2d(channels, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(features, classes)
        )
    return network.eval().requires_grad_(False)


def linear_network(shape: Shape, *, classes: int = 3, seed: int = 0) -> nn.Module:
    """One linear layer, frozen and in evaluation mode."""
    with seeded(seed):
        network = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))
    return network.eval().requires_grad_(False)


class Saturated(nn.Module):
    """A network whose logits are larger by a factor; 0 makes them all equal."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model = model
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.factor * self.model(x)  # type: ignore[no-any-return]


class Counted(nn.Module):
    """A network that counts the images that go through it, forwards and backwards."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forwards = 0
        self.backwards = 0

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K)."""
        logits: Tensor = self.model(x)
        self.forwards += len(x)
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)


@contextlib.contextmanager
def drawing_as(keys: Tensor, *, draw: int = 0, seed: int = 0) -> Iterator[None]:
    """Within: the streams of these keys, and torch's own generator, for one call; then as it was found."""
    with seeded(seed), drawing(Stream(keys), torch.full_like(keys, draw)):
        yield


def keys_for(count: int, *, seed: int = 0) -> Tensor:
    """One stream's key a row, (count,) int64."""
    return Stream(torch.arange(count)).child(f"conformance {seed}").keys


def random_state() -> tuple[Any, ...]:
    """The state of the three global generators of random numbers, as what can be compared."""
    numpys: Any = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), (numpys[1].tobytes(), *numpys[2:])


@contextlib.contextmanager
def random_state_kept() -> Iterator[None]:
    """Afterwards the three global generators are as they were found."""
    ours, numpys, pythons = torch.get_rng_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        torch.set_rng_state(ours)
        np.random.set_state(numpys)
        random.setstate(pythons)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Within: torch computes in one thread; for networks this small more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def touched(before: tuple[Any, ...], after: tuple[Any, ...]) -> list[str]:
    """Which of the three global generators moved."""
    names = ("torch's global generator", "python's random", "numpy's global generator")
    return [name for name, a, b in zip(names, before, after, strict=True) if a != b]
