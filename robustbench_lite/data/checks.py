"""Images and labels that came from outside, checked once and made into a data set in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from .dataset import ArrayDataset, content_hash

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def from_arrays(
    images: Any,
    labels: Any,
    *,
    name: str = "array",
    split: str = "test",
    classes: Sequence[str] | int | None = None,
    arguments: tuple[str, str] = ("images", "labels"),
) -> ArrayDataset:
    """A data set from tensors or arrays: images (N, C, H, W), uint8 or float in [0, 1]; labels (N,) integers.

    `classes`: their names, or how many, or None for max(labels) + 1. `arguments`: what errors call the
    two. Raises UserError for a wrong type, shape, length, range or NaN.
    """
    x = checked_images(arguments[0], images)
    if isinstance(classes, int):
        classes = [str(i) for i in range(classes)]
    y = checked_labels(arguments[1], labels, count=len(x), classes=None if classes is None else len(classes))
    if classes is None:
        classes = [str(i) for i in range(int(y.max()) + 1)]
    shape = (x.shape[1], x.shape[2], x.shape[3])
    return ArrayDataset(name, split, tuple(classes), shape, y, content_hash(x, y), x)


def checked_images(argument: str, images: Any) -> Tensor:
    """Images (N, C, H, W) as uint8 or float32 in [0, 1], on the CPU; not copied where they are that already."""
    x = _tensor(argument, images)
    if x.ndim != 4:
        raise UserError(f"{argument} must be (N, C, H, W), got {tuple(x.shape)}")
    if not x.numel():
        raise UserError(f"{argument} must hold at least one image, got {tuple(x.shape)}")
    if x.dtype == torch.uint8:
        return x
    if x.dtype not in FLOATS:
        raise UserError(f"{argument} must be uint8 in 0..255 or float in [0, 1], got {_dtype(x)}")
    x = x.to(torch.float32)
    low, high = x.aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise UserError(f"{argument} must be in [0, 1], got NaN or infinity")
    if low < 0 or high > 1:
        raise UserError(
            f"{argument} must be in [0, 1], got values from {low.item():g} to {high.item():g}; divide by the range"
        )
    return x


def checked_labels(argument: str, labels: Any, *, count: int, classes: int | None) -> Tensor:
    """Labels (count,) as int64 in 0..classes - 1 (no upper end where `classes` is None)."""
    y = _tensor(argument, labels)
    if y.dtype not in INTEGERS:
        raise UserError(f"{argument} must be integers, got {_dtype(y)}")
    if tuple(y.shape) != (count,):
        raise UserError(f"{argument} must be ({count},), one for each image, got {tuple(y.shape)}")
    y = y.to(torch.int64)
    low, high = int(y.min()), int(y.max())
    if low < 0:
        raise UserError(f"{argument} must not be negative, got {low}; leave out images without a label")
    if classes is not None and high >= classes:
        raise UserError(f"{argument} must be in 0..{classes - 1} for {classes} classes, got {high}")
    return y


def _tensor(argument: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise UserError(f"{argument} must be numbers, got {array.dtype}")
    # torch knows neither foreign byte orders nor negative strides, and warns of arrays that are read-only.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if min(array.strides, default=0) < 0 or not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array)


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
