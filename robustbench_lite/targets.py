"""Which class an attack aims at: none, one for each sample, or all in turn."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import UserError, close_names
from .streams import Stream

NAMED = ("random", "next", "least-likely", "all")


def check_target(target: str | int | None, classes: tuple[str, ...]) -> str | int | None:
    """A target as given, made into None, one of the names, or a class number.

    Raises UserError for anything else; a class may be given by number or by name.
    """
    if target is None or target in NAMED:
        return target
    text = str(target)
    if text in classes and not _is_number(text):
        return classes.index(text)
    if _is_number(text):
        if 0 <= int(text) < len(classes):
            return int(text)
        raise UserError(f"target must be a class in 0..{len(classes) - 1}, got {text}")
    raise UserError(
        f"target must be random, next, least-likely, all or a class, got {text!r}; "
        f"{close_names(text, (*NAMED, *classes))}"
    )


def _is_number(text: str) -> bool:
    return text.removeprefix("-").isdecimal()


def order_targets(target: str | int | None, logits: Tensor, y: Tensor, stream: Stream) -> Tensor:
    """The classes to aim at in turn, (N, T) int64, from clean logits (N, K); -1 where there is none.

    T is 0 without a target. "all" goes from the most to the least likely class.
    """
    classes = logits.shape[1]
    if target is None:
        return y.new_empty((len(y), 0))
    if target == "all":
        others = logits.scatter(1, y.unsqueeze(1), float("-inf"))
        return others.argsort(dim=1, descending=True, stable=True)[:, : classes - 1]
    if target == "random":
        drawn = stream.child("target").integers(classes - 1)
        chosen = drawn + (drawn >= y).long()
    elif target == "next":
        chosen = (y + 1) % classes
    elif target == "least-likely":
        chosen = logits.scatter(1, y.unsqueeze(1), float("inf")).argmin(1)
    else:
        chosen = torch.full_like(y, int(target))
    return torch.where(chosen == y, -1, chosen).unsqueeze(1)
