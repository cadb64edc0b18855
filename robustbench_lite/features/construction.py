"""The contract of a construction: a rule that makes a data set of a training set and a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from ..data.dataset import Dataset
from ..errors import UserError
from ..network import Network
from ..options import configure
from ..penultimate import Penultimate
from ..registry import find
from ..streams import Stream

KIND = "constructions"
LARGEST = 128  # rows computed together: fewer are slower, more are no faster


@dataclass(frozen=True)
class Block:
    """Some images of the training set.

    index: (n,) int64, their places in it. x: (n, C, H, W) in [0, 1]. y: (n,) int64. stream: of each image its own.
    """

    index: Tensor
    x: Tensor
    y: Tensor
    stream: Stream


@dataclass(frozen=True)
class Made:
    """What became of a block.

    images: (n, C, H, W) in [0, 1]. labels: (n,) int64. kept: (n,) bool, which are in the data set; None: all.
    forwards, backwards: (n,) int64, passes that each cost. notes: numbers (n,) that are kept beside each image.
    """

    images: Tensor
    labels: Tensor
    forwards: Tensor
    backwards: Tensor
    kept: Tensor | None = None
    notes: Mapping[str, Tensor] = field(default_factory=dict)


class Workshop:
    """What a construction works with: the training set, a network, and its features.

    data: the whole training set. module: the network, pixels in [0, 1] to logits, frozen by who runs it. seed: of the
    run. n_classes: of the data set. block: rows that are computed together, so that no image's numbers depend on its
    company (`Network.uniform_block`).
    """

    def __init__(self, data: Dataset, module: nn.Module, *, seed: int = 0, device: torch.device | str = "cpu") -> None:
        self.data = data
        self.module = module
        self.seed = seed
        self.device = torch.device(device)
        self.n_classes = len(data.classes)
        self.network = Network(module, n_classes=self.n_classes, device=self.device)
        self.block = self.network.block = self.network.uniform_block(data.shape, largest=LARGEST)
        self._features: Network | None = None

    @property
    def n_features(self) -> int:
        """How many penultimate features the network has. UserError where it has none."""
        count = self.features.n_classes
        assert count is not None, "given when it was made"
        return count

    @property
    def features(self) -> Network:
        """The network's penultimate features in place of its logits. UserError where it has none."""
        if self._features is None:
            penultimate = Penultimate(self.module, torch.zeros((1, *self.data.shape), device=self.device))
            self._features = Network(penultimate, n_classes=penultimate.n_features, device=self.device)
            self._features.probabilities = False  # features that happen to sum to 1 are no shares
            self._features.block = self._features.uniform_block(self.data.shape, largest=LARGEST)
        return self._features


@dataclass(frozen=True)
class Construction:
    """Base of every construction: a frozen dataclass whose fields are its options.

    Class attributes: name, summary, source (paper). symbol: what the paper calls the data set. network: which network
    it is made with, "standard", "robust" or "early" (trained a little).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    symbol: ClassVar[str]
    network: ClassVar[str] = "standard"

    @property
    def works_with(self) -> tuple[type, ...]:
        """Classes beside its own, such as an attack's, whose source decides what is made."""
        return ()

    def resolve(self, data: Dataset) -> Self:
        """With the defaults that depend on the data set filled in. Raises UserError for what does not fit it."""
        return self

    def check(self, workshop: Workshop) -> None:
        """Raise UserError, before any work, for a network that the construction cannot use."""

    def make(self, workshop: Workshop, block: Block) -> Made:
        """What becomes of a block; no row depends on another."""
        raise NotImplementedError


def make_construction(spec: str, options: Mapping[str, Any] | None = None) -> Construction:
    """The construction that `spec` names (a built-in, or FILE.py:NAME) with these options.

    Raises UserError for an unknown name or option.
    """
    cls = find(KIND, spec, argument="--kind").load()
    if not (isinstance(cls, type) and issubclass(cls, Construction)):
        raise UserError(f"--kind: {spec} is no subclass of robustbench_lite.features.Construction")
    return configure(cls, options, argument="--option")
