"""The network inside a defended one: what the defense was put in front of, found by what goes in and comes out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .foreign import ask
from .modes import parts_with_hooks


def network_inside(model: nn.Module, x: Tensor) -> tuple[str, nn.Module] | None:
    """The name and the module of the innermost part that takes images and gives logits, each of the whole's shape.

    x: (N, C, H, W), passed through the model once. None where there is no such part but the model itself.
    """
    found: list[tuple[str, nn.Module, torch.Size]] = []
    handles = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            given = args[0] if args else None
            if isinstance(given, Tensor) and isinstance(out, Tensor) and given.shape[1:] == x.shape[1:]:
                found.append((name, module, out.shape[1:]))

        return hook

    for name, module in parts_with_hooks(model):
        if name:
            handles.append(module.register_forward_hook(look(name)))
    try:
        logits = ask(model, x)
    finally:
        for handle in handles:
            handle.remove()
    # What lies inside answers first.
    return next(((name, module) for name, module, shape in found if shape == logits.shape[1:]), None)
