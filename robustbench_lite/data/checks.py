"""Images and labels that came from outside, checked once and made into a data set in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from .dataset import ArrayDataset, content_hash
from .labels import classes_in, read_labels
from .pixels import as_array, read_images
from .reading import Reading


def from_arrays(
    images: Any,
    labels: Any,
    *,
    name: str = "array",
    split: str = "test",
    classes: Sequence[str] | int | None = None,
    arguments: tuple[str, str] = ("images", "labels"),
    channels: Literal["first", "last"] = "first",
) -> ArrayDataset:
    """A data set from tensors or arrays: images (N, C, H, W), uint8 or float in [0, 1]; labels (N,) integers.

    Other forms are understood where they have one reading (`read_images`, `read_labels`), with notes in its `reading`.

    Args:
        images: As `read_images` takes them.
        labels: As `read_labels` takes them; text without `classes` numbers the sorted names.
        name: What the record calls the data set.
        split: "train" or "test".
        classes: The classes' names, or how many, or None for max(labels) + 1.
        arguments: What errors call images and labels.
        channels: Where the channels of images are if both readings are possible.

    Raises:
        UserError: For a wrong type, shape, length, range or NaN.
    """
    labels = as_array(arguments[1], labels)
    count = len(labels) if labels.ndim else None
    notes: tuple[str, ...] = ()
    question = None
    if classes is None and count:
        classes, notes, question = classes_in(arguments[1], [labels])
    x, of_images = read_images(arguments[0], images, count=count, channels=channels)
    names = None if isinstance(classes, int) else classes
    number = classes if isinstance(classes, int) else None if names is None else len(names)
    y, of_labels = read_labels(arguments[1], labels, count=len(x), classes=number, names=names)
    if names is None:
        names = [str(i) for i in range(int(y.max()) + 1 if number is None else number)]
    shape = (x.shape[1], x.shape[2], x.shape[3])
    reading = Reading(notes=(*of_images, *notes, *of_labels), question=question)
    return ArrayDataset(name, split, tuple(names), shape, y, content_hash(x, y), x, reading=reading)


def checked_images(argument: str, images: Any) -> Tensor:
    """The images of `read_images`, without its notes."""
    return read_images(argument, images)[0]


def checked_labels(argument: str, labels: Any, *, count: int, classes: int | None) -> Tensor:
    """The labels of `read_labels`, without its notes."""
    return read_labels(argument, labels, count=count, classes=classes)[0]
