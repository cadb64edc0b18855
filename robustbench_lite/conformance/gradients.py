"""Whether the gradient of a function of images is the slope that finite differences see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .check import Failed, plural

Function = Callable[[Tensor], Tensor]

_DIRECTIONS = 6
# Steps of the finite difference by precision, in pixels of [0, 1], and how far the two may be apart.
_FINE = {torch.float64: (1e-5, 0.05), torch.float32: (2e-4, 0.1)}
# A quarter of one level of 8 bits: an attack's steps are no smaller, so a gradient must hold this far.
_COARSE = (1e-3, 0.5)
WAY_OUT = "state differentiable = False and give a surrogate"


@dataclass(frozen=True)
class Slopes:
    """Change along random directions: as the gradient tells it and as it is seen, (directions, N) float64."""

    told: Tensor
    seen: Tensor

    def errors(self) -> Tensor:
        """Relative disagreement of each image, (N,): 0 where the two agree, about 1 where they are unrelated."""
        larger = torch.maximum(_size(self.told), _size(self.seen))
        return torch.where(larger > 0, _size(self.told - self.seen) / larger.clamp_min(1e-300), 0.0)


def _size(values: Tensor) -> Tensor:
    return values.square().mean(0).sqrt()


def check_gradient(function: Function, x: Tensor) -> str:
    """One line on how well the gradient agrees; raises Failed where it does not.

    function: (N, ...) to (N, ...), no operation mixing rows, the same answer at every call.
    It is computed in float64 where the function takes that.
    """
    dtype = _precision(function, x)
    x = x.to(dtype)
    gradient, weights = _gradient(function, x)
    zero = gradient.flatten(1).abs().amax(1) == 0
    if int(zero.sum()) * 4 >= len(x):
        raise Failed(f"the gradient is zero for {int(zero.sum())} of {plural(len(x), 'image')}; {WAY_OUT}")
    step, tolerance = _FINE[dtype]
    fine = _slopes(function, x, gradient, weights, step)
    bad = int((~(fine.errors() <= tolerance)).sum())
    if bad >= max(2, len(x) // 4):
        raise Failed(f"{_describe(fine)}, for {bad} of {plural(len(x), 'image')}; {WAY_OUT}")
    coarse = _slopes(function, x, gradient, weights, _COARSE[0])
    bad = int((~(coarse.errors() <= _COARSE[1])).sum())
    if 2 * bad > len(x):
        raise Failed(
            f"the gradient is shattered: it does not hold over {_COARSE[0]:g}, a quarter of a grey level, "
            f"for {bad} of {plural(len(x), 'image')}; {WAY_OUT}"
        )
    return f"agrees with finite differences to {float(fine.errors().median()):.1e} ({str(dtype)[6:]})"


def check_finite(function: Function, x: Tensor) -> None:
    """Raise Failed where a gradient at x is NaN or infinite: attacks would take it for zero."""
    gradient, _ = _gradient(function, x)
    bad = int((~torch.isfinite(gradient)).flatten(1).any(1).sum())
    if bad:
        raise Failed(
            f"the gradient is NaN or infinite for {bad} of {plural(len(x), 'constant image')}; "
            "look for a root, a norm or a logarithm at zero"
        )


def _precision(function: Function, x: Tensor) -> torch.dtype:
    try:
        with torch.no_grad():
            answer = function(x.double())
    except Exception:
        return torch.float32
    return torch.float64 if answer.dtype == torch.float64 else torch.float32


def _gradient(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient in x of a random weighting of the answers, and the weights."""
    at = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        answer = function(at)
    weights = torch.randn(answer.shape, generator=torch.Generator().manual_seed(1)).double()
    if not answer.requires_grad:
        raise Failed(f"no gradient comes back through it (a detach, or a step outside torch?); {WAY_OUT}")
    (gradient,) = torch.autograd.grad((answer.double() * weights).sum(), at, allow_unused=True)
    if gradient is None:
        raise Failed(f"no gradient comes back through it to the image; {WAY_OUT}")
    return gradient.double(), weights


def _slopes(function: Function, x: Tensor, gradient: Tensor, weights: Tensor, step: float) -> Slopes:
    generator = torch.Generator().manual_seed(2)
    told, seen = [], []
    for _ in range(_DIRECTIONS):
        direction = torch.randn(x.shape, generator=generator).clamp(-3, 3).to(x.dtype)
        up, down = x + step * direction, x - step * direction
        with torch.no_grad():
            change = (function(up).double() - function(down).double()) * weights
        seen.append(change.flatten(1).sum(1))
        # What was really stepped: in float32 rounding makes it another than asked.
        told.append((gradient * (up.double() - down.double())).flatten(1).sum(1))
    return Slopes(torch.stack(told), torch.stack(seen))


def _describe(slopes: Slopes) -> str:
    told, seen = slopes.told.flatten(), slopes.seen.flatten()
    if not bool(torch.isfinite(told).all() and torch.isfinite(seen).all()):
        return "the gradient or the answer is NaN or infinite"
    if seen.abs().median() < 0.01 * told.abs().median():
        return "a small step changes nothing, but the gradient says it would (a straight-through gradient)"
    if told.abs().median() < 0.01 * seen.abs().median():
        return "the gradient is next to zero where finite differences are not"
    agreement = float((told @ seen) / (told.norm() * seen.norm()).clamp_min(1e-300))
    factor = float((told @ seen) / (told @ told).clamp_min(1e-300))
    if agreement > 0.98:
        return f"the slope that finite differences see is {factor:.3g} times the gradient's"
    if agreement < -0.98:
        return f"the gradient points the wrong way (finite differences see {factor:.3g} times its slope)"
    return f"the gradient is wrong or in part missing (its correlation with finite differences is {agreement:.2f})"
