"""What every kind of network can be asked for: its mode, a copy, the parts that take hooks."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn


def evaluation_mode(model: nn.Module) -> None:
    """Put the network into evaluation mode.

    Some refuse the call: an exported program has no modes, and others override it. Their flags are set all the same,
    which is what the call does.
    """
    try:
        model.eval()
    except Exception:
        for part in model.modules():
            with contextlib.suppress(Exception):
                part.training = False


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Context manager: evaluation mode; afterwards every part is in the mode that it was found in."""
    # A frozen TorchScript network has no flag at all.
    modes = [(part, getattr(part, "training", None)) for part in model.modules()]
    evaluation_mode(model)
    try:
        yield model
    finally:
        for part, training in modes:
            if training is not None:
                part.training = training
            elif hasattr(part, "training"):
                del part.training


def deep_copy(model: nn.Module) -> nn.Module:
    """A copy of the network with its parameters and buffers.

    Unlike `copy.deepcopy` it copies results that a part keeps between calls, such as the weight of the older
    `torch.nn.utils.weight_norm`; they are computed again at the next call.
    """
    kept = [value for part in model.modules() for value in vars(part).values() if isinstance(value, Tensor)]
    memo = {id(value): value.detach().clone() for value in kept if not value.is_leaf}
    return copy.deepcopy(model, memo)


def parts_with_hooks(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The named parts of the network, itself included, that take hooks: all but those of TorchScript."""
    return ((name, part) for name, part in model.named_modules() if not isinstance(part, torch.jit.ScriptModule))
