"""What a data set is to the rest: images and labels by random access, in memory or streamed, and parts of it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import UserError
from .decode import Fit, ImageFiles, decode
from .reading import Reading

SUBSET_SEED = 20211104
BLOCK = 256


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set's images and labels by random access; the contract that every data set keeps.

    name         as recorded, e.g. "digits" or "folder:birds" (never an absolute path)
    split        "train" or "test"
    classes      the classes' names, by label
    shape        (C, H, W) of every image
    labels       (N,) int64 in 0..len(classes) - 1
    fingerprint  SHA-256 of the content: of images and labels in memory; of relative paths, sizes of
                 files and labels where images are streamed
    reading      how the source read its files, for the line that is printed before a run
    """

    name: str
    split: str
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    labels: Tensor = field(repr=False)
    fingerprint: str
    reading: Reading = field(default_factory=Reading, kw_only=True, repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, index: Tensor) -> Tensor:
        """The images at `index` (n,) int64, in that order: (n, C, H, W) float32 in [0, 1].

        Raises IndexError for an index outside 0..N - 1, UserError for an image that cannot be decoded.
        """
        raise NotImplementedError

    def blocks(self, index: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """`index` in order, at most `size` at a time, each block as (index, x, y) with x as `images` gives it."""
        for part in _parts(index, size, len(self)):
            yield part, self.images(part), self.labels[part]


@dataclass(frozen=True, eq=False)
class ArrayDataset(Dataset):
    """A data set in memory: `array` is (N, C, H, W), uint8 or float32, in whatever memory layout it came."""

    array: Tensor = field(repr=False)

    def images(self, index: Tensor) -> Tensor:
        """The images at `index`; uint8 is divided by 255 in float32."""
        return as_pixels(self.array[_checked(index, len(self))])


@dataclass(frozen=True, eq=False)
class StreamDataset(Dataset):
    """A data set of files, each decoded when it is asked for, and ahead of need by `workers` in `blocks`."""

    files: ImageFiles = field(repr=False)
    fit: Fit
    workers: int = 0

    def images(self, index: Tensor) -> Tensor:
        """The images at `index`, decoded here."""
        return as_pixels(_Decoder(self.files, self.fit).stack(_checked(index, len(self)).tolist()))

    def blocks(self, index: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As Dataset.blocks, decoded by the workers while the caller is at work on an earlier block."""
        for part, array in self.raw_blocks(index, size):
            yield part, as_pixels(array), self.labels[part]

    def raw_blocks(self, index: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of (index, uint8 images)."""
        parts = _parts(index, size, len(self))
        loader: DataLoader[Any] = DataLoader(
            _Decoder(self.files, self.fit),
            batch_sampler=[part.tolist() for part in parts],
            num_workers=min(self.workers, _cores()),
            collate_fn=_unchanged,
            # Without one of its own the loader draws from the global stream.
            generator=torch.Generator(),
        )
        arrays = iter(loader)
        try:
            for part in parts:
                array = _next(arrays)
                if isinstance(array, UserError):
                    raise UserError(str(array))
                yield part, array
        finally:
            # Workers stop when the last reference goes. An error's traceback would keep one, and where a
            # collection of cycles has to find it the queues are closed first and the workers wait for ever.
            del arrays

    def in_memory(self) -> ArrayDataset:
        """The same data set, all of it decoded now."""
        array = torch.empty((len(self), *self.shape), dtype=torch.uint8)
        for part, images in self.raw_blocks(torch.arange(len(self)), BLOCK):
            array[part] = images
        fingerprint = content_hash(array, self.labels)
        return ArrayDataset(
            self.name, self.split, self.classes, self.shape, self.labels, fingerprint, array, reading=self.reading
        )


class _Decoder(torch.utils.data.Dataset[Tensor]):
    """What the loader's workers run. A UserError travels as a value: the loader would wrap its one line in a page."""

    def __init__(self, files: ImageFiles, fit: Fit) -> None:
        self.files, self.fit = files, fit

    def stack(self, index: Sequence[int]) -> Tensor:
        images = [decode(self.files, i, self.fit) for i in index]
        return torch.stack(images) if images else torch.empty((0, *self.fit.shape), dtype=torch.uint8)

    def __getitem__(self, index: int) -> Tensor:
        return decode(self.files, index, self.fit)

    def __getitems__(self, index: Sequence[int]) -> Tensor | UserError:
        try:
            return self.stack(index)
        except UserError as error:
            return UserError(str(error))


def _next(arrays: Iterator[Any]) -> Any:
    try:
        return next(arrays)
    except (RuntimeError, ConnectionError, EOFError) as error:
        # A worker's end is told by the loader, or first seen by whoever reads from it.
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        if not isinstance(error, RuntimeError):
            # The loader's signal of that death may be on its way still, and would strike whoever tells of ours.
            with contextlib.suppress(RuntimeError):
                time.sleep(1.0)
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"--workers: one that decodes images was killed ({first}); ask for fewer") from error


def _unchanged(batch: Any) -> Any:
    return batch


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parts(index: Tensor, size: int, count: int) -> list[Tensor]:
    if size < 1:
        raise UserError(f"size of a block must be at least 1, got {size}")
    index = _checked(index, count)
    return [index[start : start + size] for start in range(0, len(index), size)]


def _checked(index: Tensor, count: int) -> Tensor:
    if index.dtype != torch.int64 or index.ndim != 1:
        raise IndexError(f"index must be (n,) int64, got {tuple(index.shape)} {index.dtype}")
    if len(index) and not 0 <= int(index.min()) <= int(index.max()) < count:
        raise IndexError(f"index must be in 0..{count - 1}, got {int(index.min())}..{int(index.max())}")
    return index


def as_pixels(array: Tensor) -> Tensor:
    """Images (n, C, H, W) as float32 in [0, 1], contiguous; uint8 is divided by 255, float32 is copied."""
    if array.dtype == torch.uint8:
        return array.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return array.to(torch.float32).contiguous()


def content_hash(images: Tensor, labels: Tensor) -> str:
    """SHA-256 over type, shape, images in (N, C, H, W) order and labels, whatever the memory layout."""
    digest = hashlib.sha256(f"{images.dtype} {tuple(images.shape)}".encode())
    for start in range(0, len(images), BLOCK):
        digest.update(images[start : start + BLOCK].contiguous().numpy().data)
    digest.update(labels.contiguous().numpy().data)
    return digest.hexdigest()


def listing_hash(names: Sequence[str], sizes: Sequence[int], labels: Tensor, fit: Fit) -> str:
    """SHA-256 over relative paths, sizes of files and labels, and the shape that images are brought to."""
    more = ("" if fit.interpolation == "bilinear" else f" {fit.interpolation}") + (" squash" if fit.squash else "")
    digest = hashlib.sha256(f"{fit.shape} {fit.crop}{more}".encode())
    for name, size in zip(names, sizes, strict=True):
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    digest.update(labels.contiguous().numpy().data)
    return digest.hexdigest()


def balanced_subset(labels: Tensor, n: int) -> Tensor:
    """`n` samples with as many of each class as there can be: a sorted index (n,) int64, the same at every call.

    Two classes differ by at most one, unless one of them has no more samples. Subsets are nested: what
    is in the subset of n is in that of n + 1. `labels`: (N,) int64. Raises UserError for n outside 1..N.
    """
    count = len(labels)
    if not 1 <= n <= count:
        raise UserError(f"--samples must be in 1..{count}, the images that there are, got {n}")
    array = labels.numpy()
    key = fixed_random(count)
    order = np.lexsort((key, array))
    start = np.searchsorted(array[order], array[order])
    # The first of every class, then the second of every class, and so on.
    rank = np.empty(count, dtype=np.int64)
    rank[order] = np.arange(count) - start
    return torch.from_numpy(np.sort(np.lexsort((key, rank))[:n]))


def fixed_random(count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """`count` numbers in [0, 1) that never change: numpy promises RandomState's stream for good."""
    return np.random.RandomState(SUBSET_SEED).random_sample(count)


def shard_of(index: Tensor, shard: tuple[int, int]) -> Tensor:
    """Part I of N: every N-th of `index`, from the I-th on; I counts from 1. Raises UserError unless 1 <= I <= N."""
    part, parts = shard
    if not 1 <= part <= parts:
        raise UserError(f"--shard must be I/N with 1 <= I <= N, got {part}/{parts}")
    return index[part - 1 :: parts]
