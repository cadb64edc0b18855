"""A training set in two disjoint halves, so that two networks can be trained that share no image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .data.dataset import Dataset, fixed_random
from .data_request import DataRequest
from .errors import UserError


def halves(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Two disjoint parts of (N,) int64 labels that together are all, sorted (n,) int64 each; the same at every call.

    Of each class, and of all, they hold as many, or one more. Raises UserError for a class with only one image.
    """
    array = labels.numpy()
    order = np.lexsort((fixed_random(len(array)), array))
    counts = np.bincount(array)
    if (counts == 1).any():
        raise UserError(f"--halves: class {int((counts == 1).argmax())} has only one image to train with")
    # Class after class, in turns: where a class is odd, the next one begins with the other half.
    first, second = (torch.from_numpy(np.sort(order[start::2])) for start in (0, 1))
    return first, second


@dataclass(frozen=True, eq=False)
class Part(Dataset):
    """Some images of another data set, at `places` (n,) int64."""

    whole: Dataset = field(repr=False)
    places: Tensor = field(repr=False)

    def images(self, index: Tensor) -> Tensor:
        """The images at `index`, of those at `places`."""
        return self.whole.images(self.places[index])

    def blocks(self, index: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As Dataset.blocks, read ahead as the whole set is."""
        parts = index.split(size)  # type: ignore[no-untyped-call]
        for part, (_, x, y) in zip(parts, self.whole.blocks(self.places[index], size), strict=True):
            yield part, x, y


@dataclass(frozen=True)
class HalfRequest(DataRequest):
    """A data set whose training split is one half of it, `half` 1 or 2; what is cached is told apart by it."""

    half: int = 1

    def load(self, split: str | None = None) -> Dataset:
        """The data set; of the training split one half."""
        whole = super().load(split)
        return half_of(whole, self.half) if split == "train" else whole


def half_of(whole: Dataset, half: int) -> Part:
    """Half 1 or 2 of a data set, with a fingerprint of its own."""
    return part_of(whole, halves(whole.labels)[half - 1], split=f"{whole.split}, half {half} of 2")


def part_of(whole: Dataset, places: Tensor, *, split: str) -> Part:
    """The images of a data set at `places` (n,) int64, with a fingerprint of its own; split: what it is called."""
    digest = hashlib.sha256(whole.fingerprint.encode())
    digest.update(places.numpy().astype("<i8").tobytes())
    return Part(
        name=whole.name,
        split=split,
        classes=whole.classes,
        shape=whole.shape,
        labels=whole.labels[places],
        fingerprint=digest.hexdigest(),
        whole=whole,
        places=places,
    )
