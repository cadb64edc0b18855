"""The embedded default: scikit-learn's handwritten digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..checks import from_arrays
from ..dataset import Dataset, fixed_random
from ..source import no_argument, own_size

Integers = np.ndarray[Any, np.dtype[np.int64]]

SIZE = 32
TEST = 360


class Digits:
    """1,797 handwritten digits that come with scikit-learn, so nothing is fetched.

    The 8x8 images hold the counts 0..16 of the inked pixels of 4x4 blocks of a 32x32 scan; divided by 16 and
    up-sampled (bilinear) to the scan's size. Every value is a multiple of 1/1024, so float32 holds the
    images exactly, on any machine. Test are 360, with each class's share of the whole.
    """

    name: ClassVar[str] = "digits"
    summary: ClassVar[str] = "1,797 real handwritten digits in 10 classes, 1x32x32, embedded (360 test, 1,437 train)."
    source: ClassVar[str] = "Alpaydin & Kaynak 1998, UCI Optical Recognition of Handwritten Digits (scikit-learn)"

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
        """The digits; there is no file to look for."""
        del data_dir, download, workers
        no_argument("digits", argument)
        own_size("digits", image_size, shape=(SIZE, SIZE))
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        index = split_index(labels, split)
        x = torch.from_numpy(images[index].reshape(-1, 1, 8, 8).astype(np.float32) / 16)
        x = torch.nn.functional.interpolate(x, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
        return from_arrays(x, labels[index], name="digits", split=split, classes=10)


def split_index(labels: Integers, split: str) -> Integers:
    """The sorted index of a split: 360 for test, each class in proportion, by the largest remainders."""
    share = np.bincount(labels) * TEST / len(labels)
    counts = np.floor(share).astype(np.int64)
    most = np.argsort(-(share - counts), kind="stable")
    counts[most[: TEST - counts.sum()]] += 1
    key = fixed_random(len(labels))
    test = np.zeros(len(labels), dtype=bool)
    for label, count in enumerate(counts):
        members = np.flatnonzero(labels == label)
        test[members[np.argsort(key[members], kind="stable")[:count]]] = True
    return np.flatnonzero(test if split == "test" else ~test)
