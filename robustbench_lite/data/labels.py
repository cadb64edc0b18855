"""Labels that came from outside, as whole numbers from 0, or one line that asks what they mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError, close_names
from .class_list import match
from .pixels import FLOATS, as_array, as_tensor, type_name
from .reading import shortened


def read_labels(
    argument: str, labels: Any, *, count: int, classes: int | None, names: Sequence[str] | None = None
) -> tuple[Tensor, tuple[str, ...]]:
    """Labels (count,) as int64 in 0..classes - 1, on the CPU, and notes on how they were understood.

    Accepted besides: (N, 1), one-hot (N, K), bool, floats that are whole numbers, text that is numbers or class
    `names`, and 1..classes where each of these is there and 0 is not.

    Args:
        argument: What errors call the labels.
        labels: A tensor, an array or a list.
        count: How many images there are.
        classes: How many classes there are; None: any number.
        names: The classes' names, where they are known.

    Raises:
        UserError: For labels that can be read in several ways or in none, with the question to answer.
    """
    notes: list[str] = []
    labels = as_array(argument, labels)
    if is_text(labels):
        labels, note = _numbers(argument, as_text(labels), names)
        notes.append(note)
    y = as_tensor(argument, labels)
    y = _one_each(argument, y, count, classes, notes)
    y = _whole(argument, y, notes)
    low, high = int(y.min()), int(y.max())
    if low < 0:
        two = "two classes -1 and 1 are (y + 1) / 2" if _values(y) == [-1, 1] else ""
        raise UserError(f"{argument} must not be negative, got {low}; {two or 'leave out images without a label'}")
    if classes is not None and high == classes and low == 1:
        if len(_values(y)) < classes:
            raise UserError(
                f"{argument} must be in 0..{classes - 1} for {classes} classes, got {low} to {high}; "
                "do they start at 1? Then subtract 1"
            )
        notes.append(f"labels 1 to {high} read as 0 to {high - 1}")
        y = y - 1
    elif classes is not None and high >= classes:
        raise UserError(f"{argument} must be in 0..{classes - 1} for {classes} classes, got {high}")
    return y, tuple(notes)


def starting_at_one(argument: str, labels: Sequence[Tensor]) -> str | None:
    """The question to ask where labels of unnamed, uncounted classes are 1..m without a 0; None where they are not."""
    found = _values(torch.cat([*labels]))
    if len(found) < 2 or found != list(range(1, len(found) + 1)):
        return None
    return (
        f"{argument} are 1 to {found[-1]}, and none is 0: do they start at 1? Then subtract 1; where class 0 has no "
        f"images, say that there are {found[-1] + 1} classes (an array n_classes, or --class-names)"
    )


def classes_in(argument: str, labels: Sequence[Any]) -> tuple[list[str] | int | None, tuple[str, ...], str | None]:
    """The classes of labels that come without a list of classes, over all splits: names or a number, notes, a question.

    Names of text are sorted, one-hot rows are as wide as there are classes, and numbers go up to the largest.
    """
    if not labels:
        return None, (), None
    if found := text_classes(labels):
        return found, (f"classes sorted by name: {shortened(found)}",), None
    wide = [np.shape(each)[1] for each in labels if np.ndim(each) == 2 and np.shape(each)[1] > 1]
    if wide:
        return max(wide), (), None
    read = [read_labels(argument, each, count=len(each), classes=None)[0] for each in labels]
    return max(int(y.max()) for y in read) + 1, (), starting_at_one(argument, read)


def is_text(labels: Any) -> bool:
    """Whether labels are text; what cannot be made into an array is none."""
    if isinstance(labels, Tensor):
        return False
    array = np.asarray(labels)
    return array.dtype.kind in "US" or (
        array.dtype.kind == "O" and bool(array.size) and all(isinstance(value, (str, bytes)) for value in array.flat)
    )


def as_text(labels: Any) -> list[str]:
    """Text labels as a list of str."""
    flat = np.asarray(labels).reshape(-1).tolist()
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in flat]


def text_classes(labels: Sequence[Any]) -> list[str] | None:
    """The class names in text labels of several splits, sorted as torchvision sorts folders; None for numbers."""
    if not labels or not all(map(is_text, labels)):
        return None
    found = sorted({name for each in labels for name in as_text(each)})
    return None if all(map(_is_number, found)) else found


def _numbers(argument: str, text: list[str], names: Sequence[str] | None) -> tuple[Any, str]:
    if names is not None and not isinstance(places := match(found := sorted(set(text)), names), str):
        by_name = dict(zip(found, places, strict=True))
        return np.array([by_name[name] for name in text]), "labels read as class names"
    if all(map(_is_number, text)):
        return np.array([int(float(name)) for name in text]), "labels as text read as numbers"
    if names is None:
        raise UserError(
            f"{argument} must be numbers, got text ({shortened(sorted(set(text)))}); which output of the network is "
            "which class? Give numbers from 0 in the order of its outputs"
        )
    assert isinstance(places, str)
    raise UserError(f"{argument}: {places!r} is not a class name; {close_names(places, names)}")


def _values(labels: Tensor) -> list[int]:
    return sorted(set(labels.tolist()))


def _is_number(text: str) -> bool:
    """Whether text is a whole number; `7.0` is one."""
    return re.fullmatch(r"\d+(\.0*)?", text.strip()) is not None


def _one_each(argument: str, y: Tensor, count: int, classes: int | None, notes: list[str]) -> Tensor:
    shape = tuple(y.shape)
    if shape == (count,):
        return y
    if y.numel() == count and max((*shape, 1)) == count:
        notes.append(f"labels {shape} read as ({count},)")
        return y.reshape(count)
    if y.ndim != 2 or len(y) != count or not y.numel():
        raise UserError(f"{argument} must be ({count},), one for each image, got {shape}")
    if classes is not None and shape[1] != classes:
        raise UserError(f"{argument} must be ({count},) or one-hot ({count}, {classes}), got {shape}")
    rows = y.double()
    if bool(((rows == 0) | (rows == 1)).all()):
        if bool((rows.sum(1) == 1).all()):
            notes.append(f"one-hot labels {shape} read as ({count},)")
            return rows.argmax(1)
        raise UserError(f"{argument} must name one class for each image, got rows with several or none; choose one")
    soft = bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all())
    told = "probabilities" if soft else "no one-hot rows"
    raise UserError(f"{argument} must be ({count},), one for each image, got {shape}, {told}; is it y.argmax(1)?")


def _whole(argument: str, y: Tensor, notes: list[str]) -> Tensor:
    if y.dtype in FLOATS:
        whole = y.round()
        wrong = y[~(y == whole) | ~torch.isfinite(y)]
        if len(wrong):
            raise UserError(f"{argument} must be whole numbers, got {wrong[0].item():g}")
    if y.dtype in FLOATS or y.dtype == torch.bool:
        notes.append(f"{type_name(y)} labels read as whole numbers")
    return y.to(torch.int64)
