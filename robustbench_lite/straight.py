"""Straight-through gradients: the identity's, in place of steps that have none of use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .foreign import ask
from .modes import parts_with_hooks

_STEPS: dict[Any, str] = {
    function: name
    for name in ("round", "floor", "ceil", "trunc", "fix", "sign", "sgn")
    for function in (getattr(torch, name), getattr(Tensor, name), getattr(Tensor, f"{name}_"))
}


class StraightThrough(TorchFunctionMode):
    """Within: rounding, signs and the modules of `around` pass gradients on as if they were the identity.

    Backward pass differentiable approximation (Athalye et al. 2018, arXiv:1802.00420, section 4.1.1), with the
    identity for every part that computes an image from an image. seen: names of the functions met.
    """

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The call as it is, with the identity's gradient where the function is a step."""
        del types
        name = _STEPS.get(function)
        x = args[0] if args else None
        if name is None or not isinstance(x, Tensor) or not x.requires_grad:
            return function(*args, **(kwargs or {}))
        self.seen.add(name)
        with torch.no_grad():
            stepped = function(x.detach().clone(), *args[1:], **(kwargs or {}))
        return x + (stepped - x).detach()


def blocked(model: nn.Module, x: Tensor) -> list[str]:
    """Names of the modules whose answer has the shape of what they are given and lets no gradient through."""
    found: list[str] = []
    handles = []

    def look(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            del module
            given = args[0] if args else None
            if not (isinstance(given, Tensor) and isinstance(out, Tensor) and given.shape == out.shape):
                return
            if given.requires_grad and given.is_floating_point() and not _passes(given, out):
                found.append(name)

        return hook

    for name, module in parts_with_hooks(model):
        if name:
            handles.append(module.register_forward_hook(look(name)))
    try:
        with torch.enable_grad():
            ask(model, x.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    return found


def _passes(given: Tensor, out: Tensor) -> bool:
    if not out.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(out, given, torch.ones_like(out), retain_graph=True, allow_unused=True)
    return gradient is not None and bool((gradient != 0).any())


class StraightModules:
    """Within: the named modules pass gradients on as if they were the identity."""

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.modules = [model.get_submodule(name) for name in names]
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
            del module
            given: Tensor = args[0]
            return given + (out - given).detach() if given.requires_grad else out

        self.handles = [module.register_forward_hook(hook) for module in self.modules]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
