"""Calls of networks that others wrote: tensors that the engine and its caller keep are handed on as copies."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .rows import copied

_lent: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def ask(model: nn.Module, x: Tensor, *, dtype: torch.dtype | None = None) -> Any:
    """Call a network on a copy of x, and return a copy of its output.

    A network may write into its input (in its forward pass, in a hook, in its backward pass), keep it, return it, or
    return a buffer that its next call overwrites. With the copies none of this reaches a tensor of the caller.
    Gradients pass through both copies. The input is no leaf of the graph, so that `x.sub_(mean)` works where x
    requires a gradient.

    Args:
        model: The network. Every call that this package makes of a network goes through this function.
        x: Images (N, C, H, W), left as they are.
        dtype: The type of the copy; by default that of x.

    Returns:
        What the network returns: logits (N, K), or whatever else it does.
    """
    return copied(model(x.to(dtype or x.dtype, copy=True)))


@contextlib.contextmanager
def isolated(*models: nn.Module) -> Iterator[None]:
    """Context manager: these networks copy their input and their output, whoever calls them.

    For a network that is handed to code outside this package, such as the loss of a training defense, or a defense
    that calls it several times on the same images. The copy is made before the network's own hooks run.
    """
    handles = []
    for model in models:
        # Called on the base class: a scripted module takes hooks, but hides the methods that register them.
        before, after = nn.Module.register_forward_pre_hook, nn.Module.register_forward_hook
        handles.append(before(model, _copy_input, prepend=True, with_kwargs=True))
        handles.append(after(model, _copy_output))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def lend(model: nn.Module) -> nn.Module:
    """The same network, marked as one that is handed to a defense; `frozen` isolates it wherever it is a part."""
    _lent.add(model)
    return model


def lent_parts(model: nn.Module) -> list[nn.Module]:
    """The parts of a network that `lend` marked."""
    return [part for part in model.modules() if part in _lent]


def _copy_input(_model: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return copied(args), copied(kwargs)


def _copy_output(_model: nn.Module, _args: Any, output: Any) -> Any:
    return copied(output)
