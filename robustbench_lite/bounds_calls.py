"""A call that a network makes as the operation that bounds it: one entry for every kind of layer."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bounds_affine import Arranged, Convolution, Dense, Joined, Operation, Scale, Sum, pair
from .bounds_bent import Clipped, Largest, Rectifier, Smooth
from .errors import UserError


def cannot(layer: str, kind: str, why: str = "") -> UserError:
    """The error that names a layer and its type, and why where that is known."""
    return UserError(
        f"--model: cannot bound {layer} ({kind}){f': {why}' if why else ''}; "
        "bounds are for linear, convolutional, pooling, normalising and monotone layers and their sums"
    )


def normalized(x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """What `Normalize` does before its network."""
    if x.shape[1] == 1:
        x = x.expand(-1, max(mean.shape[1], std.shape[1]), -1, -1)
    return (x - mean) / std


@dataclass(frozen=True)
class Call:
    """One call of the network: what is called, with what, on which results of before, with which answer."""

    thing: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    given: list[Any]
    value: Tensor

    @property
    def kind(self) -> str:
        """What is called, in a word."""
        if isinstance(self.thing, nn.Module):
            return type(self.thing).__name__
        return getattr(self.thing, "__name__", str(self.thing))

    def operation(self) -> Operation | Any | None:
        """The operation; None where it changes nothing, NotImplemented where none is known."""
        thing = self.thing
        key = type(thing) if isinstance(thing, nn.Module) else thing
        if key in _DROPS and self.argument(2, "training", True):
            raise cannot(self.kind, "it drops numbers in evaluation mode too", "give it training=self.training")
        if key in _SAME or key in _DROPS:
            return None
        if key in _PLAIN:
            return _PLAIN[key]
        make = _MODULES.get(key) if isinstance(thing, nn.Module) else _FUNCTIONS.get(key)
        return NotImplemented if make is None else make(self)

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """An argument by its place or its name."""
        if len(self.args) > place:
            return self.args[place]
        return self.kwargs.get(name, default)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the first result that it takes, without the batch."""
        return tuple(self.given[0].shape[1:])


# -- operations, one by one ---------------------------------------------------------------------------------


def _dense(c: Call) -> Operation:
    return Dense(c.thing.weight, c.thing.bias)


def _convolution(c: Call) -> Any:
    m: nn.Conv2d = c.thing
    if m.padding_mode != "zeros" or (isinstance(m.padding, str) and m.padding not in ("same", "valid")):
        return NotImplemented
    if isinstance(m.padding, str):
        same = [d * (k - 1) for d, k in zip(m.dilation, m.kernel_size, strict=True)]
        if m.padding == "same" and any(total % 2 for total in same):
            return NotImplemented
        padding = (same[0] // 2, same[1] // 2) if m.padding == "same" else (0, 0)
    else:
        padding = pair(m.padding)
    return Convolution(m.weight, m.bias, pair(m.stride), padding, pair(m.dilation), m.groups, c.shape)


def _batch_norm(c: Call) -> Any:
    m: nn.BatchNorm2d = c.thing
    if m.running_mean is None or m.running_var is None:
        return NotImplemented
    scale = (m.running_var + m.eps).rsqrt()
    if m.weight is not None:
        scale = scale * m.weight
    bias = torch.zeros_like(scale) if m.bias is None else m.bias
    view = (-1, *([1] * (c.value.ndim - 2)))
    moved = scale * m.running_mean
    return Scale(scale.view(view), (bias - moved).view(view), (moved.abs() + bias.abs()).view(view))


def _normalized(c: Call) -> Any:
    mean, std = c.args[1], c.args[2]
    if {mean.shape[1], std.shape[1]} - {1, c.shape[0]}:
        return NotImplemented
    mean, std = (values.expand(1, c.shape[0], 1, 1) for values in (mean, std))  # one value is for all channels
    return Scale(1 / std[0], (-mean / std)[0], (mean / std)[0].abs())


def _rectifier(slope: float) -> Any:
    return Rectifier(slope) if 0 <= slope <= 1 else NotImplemented


def _smooth(function: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]) -> Smooth:
    return Smooth(function, derivative)


_TANH = _smooth(torch.tanh, lambda z: 1 - z.tanh().square())
_SIGMOID = _smooth(torch.sigmoid, lambda z: z.sigmoid() * (-z).sigmoid())
# Without options.
_PLAIN: dict[Any, Operation] = {
    **dict.fromkeys((nn.ReLU, F.relu, torch.relu, "relu", "relu_", torch.relu_), Rectifier()),
    **dict.fromkeys((nn.ReLU6, F.relu6), Clipped(0.0, 6.0)),
    nn.Tanh: _TANH,
    torch.tanh: _TANH,
    F.tanh: _TANH,
    "tanh": _TANH,
    nn.Sigmoid: _SIGMOID,
    torch.sigmoid: _SIGMOID,
    F.sigmoid: _SIGMOID,
    "sigmoid": _SIGMOID,
}


def _softplus(c: Call) -> Any:
    if c.thing.beta != 1:
        return NotImplemented
    # Linear above the threshold, which a network takes for equal.
    return Smooth(lambda z: F.softplus(z, threshold=40.0), torch.sigmoid) if c.thing.threshold >= 20 else NotImplemented


def _elu(alpha: float) -> Any:
    if not 0 < alpha <= 1:
        return NotImplemented
    return Smooth(lambda z: F.elu(z, alpha), lambda z: torch.where(z < 0, alpha * z.clamp_max(0).exp(), 1.0))


def _pool(kernel: Any, stride: Any, padding: Any, c: Call, *, counts: bool = True, divisor: Any = None) -> Any:
    k, s, p = pair(kernel), pair(kernel if stride is None or stride == [] else stride), pair(padding)

    def average(z: Tensor) -> Tensor:
        return F.avg_pool2d(z, k, s, p, False, counts, divisor)

    if average(c.given[0]).shape != c.value.shape:  # ceil_mode
        return NotImplemented
    return Arranged(average, c.shape, math.prod(k) + 1)


def _largest(kernel: Any, stride: Any, padding: Any, dilation: Any, c: Call) -> Any:
    k, s, p = pair(kernel), pair(kernel if stride is None or stride == [] else stride), pair(padding)
    operation = Largest(k, s, p)
    if pair(dilation) != (1, 1) or operation._pool(c.given[0]).shape != c.value.shape:
        return NotImplemented
    return operation


def _adaptive(size: Any, c: Call) -> Operation:
    terms = math.prod(-(-a // b) + 1 for a, b in zip(c.shape[1:], c.value.shape[2:], strict=True)) + 1
    return Arranged(lambda z: F.adaptive_avg_pool2d(z, size), c.shape, terms)


def _reshaped(c: Call) -> Any:
    shape = tuple(c.value.shape[1:])
    return None if shape == c.shape else Arranged(lambda z: z.reshape(len(z), *shape), c.shape)


def _again(c: Call, terms: int = 0) -> Any:
    """The call itself on another batch: of what keeps every image where it is."""
    args, kwargs = c.args[1:], dict(c.kwargs)

    def call(z: Tensor) -> Tensor:
        found: Tensor = (
            getattr(z, c.thing)(*args, **kwargs) if isinstance(c.thing, str) else c.thing(z, *args, **kwargs)
        )
        return found

    return Arranged(call, c.shape, terms)


def _mean(c: Call) -> Any:
    axes = c.argument(1, "dim")
    axes = axes if isinstance(axes, (tuple, list)) else [axes]
    if any(axis is None or axis % c.given[0].ndim == 0 for axis in axes):
        return NotImplemented
    return _again(c, math.prod(c.given[0].shape[axis] for axis in axes) + 1)


def _permuted(c: Call) -> Any:
    first = c.argument(1, "dims", c.argument(1, "dim0", 0))
    first = first[0] if isinstance(first, (tuple, list)) else first
    kept = first == 0 if c.thing in ("permute", torch.permute) else 0 not in c.args[1:]
    return _again(c) if kept else NotImplemented


def _part(c: Call) -> Any:
    index = c.args[1]
    whole = isinstance(index, tuple) and isinstance(index[0], slice) and index[0] == slice(None)
    return _again(c) if whole and all(isinstance(i, (slice, int)) for i in index) else NotImplemented


def _padded(c: Call) -> Any:
    widths, mode, value = c.args[1], c.argument(2, "mode", "constant"), c.argument(3, "value", 0)
    if mode != "constant" or value not in (0, None) or len(widths) > 2 * (c.given[0].ndim - 1):
        return NotImplemented
    return Arranged(lambda z: F.pad(z, tuple(widths)), c.shape)


def _joined(c: Call) -> Any:
    parts, axis = list(c.args[0]), c.argument(1, "dim", 0) % c.value.ndim
    if axis == 0 or len(c.given) != len(parts):
        return NotImplemented
    return Joined(axis - 1, tuple(part.shape[axis] for part in parts))


def _sum(sign: int) -> Callable[[Call], Any]:
    def make(c: Call) -> Any:
        one, other = c.args[0], c.args[1]
        if c.kwargs.get("alpha", 1) != 1:
            return NotImplemented
        results = [a for a in (one, other) if any(a is g for g in c.given)]
        if len(results) == 2:
            return Sum(sign) if one.shape == other.shape else NotImplemented
        first = results[0] is one
        shift = _constant(other if first else one, c) * (sign if first else 1)
        scale = torch.ones_like(shift) * (1 if first else sign)
        return Scale(scale, shift, shift.abs()) if results[0].shape == c.value.shape else NotImplemented

    return make


def _times(c: Call) -> Any:
    one, other = c.args[0], c.args[1]
    results = [a for a in (one, other) if any(a is g for g in c.given)]
    if len(results) == 2 or results[0].shape != c.value.shape:
        return NotImplemented
    scale = _constant(other if results[0] is one else one, c)
    return Scale(scale, torch.zeros_like(scale), torch.zeros_like(scale))


def _divided(c: Call) -> Any:
    if not any(c.args[0] is g for g in c.given) or len(c.given) != 1 or c.given[0].shape != c.value.shape:
        return NotImplemented
    scale = 1 / _constant(c.args[1], c)
    return Scale(scale, torch.zeros_like(scale), torch.zeros_like(scale))


def _constant(value: Any, c: Call) -> Tensor:
    """A number, or weights, of the shape of a result without its batch."""
    tensor = torch.as_tensor(value, dtype=c.value.dtype, device=c.value.device)
    if tensor.ndim == c.value.ndim and tensor.shape[0] == 1:
        tensor = tensor[0]
    if tensor.ndim >= c.value.ndim:
        raise cannot(c.kind, "a constant for each image of the batch")
    return tensor.clone()


# Nothing is changed, in evaluation mode.
_SAME = {
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout),
    *("contiguous", "clone", "float", "double"),
}
# Only where it is told not to.
_DROPS = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d}

_MODULES: dict[Any, Callable[[Call], Any]] = {
    nn.Linear: _dense,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.LeakyReLU: lambda c: _rectifier(c.thing.negative_slope),
    nn.Hardtanh: lambda c: Clipped(c.thing.min_val, c.thing.max_val),
    nn.Softplus: _softplus,
    nn.ELU: lambda c: _elu(c.thing.alpha),
    nn.Flatten: _reshaped,
    nn.Unflatten: _reshaped,
    nn.AvgPool2d: lambda c: _pool(
        c.thing.kernel_size,
        c.thing.stride,
        c.thing.padding,
        c,
        counts=c.thing.count_include_pad,
        divisor=c.thing.divisor_override,
    ),
    nn.AdaptiveAvgPool2d: lambda c: _adaptive(c.thing.output_size, c),
    nn.MaxPool2d: lambda c: _largest(c.thing.kernel_size, c.thing.stride, c.thing.padding, c.thing.dilation, c),
    nn.ZeroPad2d: lambda c: Arranged(c.thing, c.shape),
}

_FUNCTIONS: dict[Any, Callable[[Call], Any]] = {
    normalized: _normalized,
    F.leaky_relu: lambda c: _rectifier(c.argument(1, "negative_slope", 0.01)),
    F.elu: lambda c: _elu(c.argument(1, "alpha", 1.0)),
    **dict.fromkeys((torch.flatten, "flatten", "view", "reshape", torch.reshape, "squeeze"), _reshaped),
    **dict.fromkeys((torch.squeeze, "unsqueeze", torch.unsqueeze), _reshaped),
    **dict.fromkeys(("permute", torch.permute, "transpose", torch.transpose), _permuted),
    **dict.fromkeys(("mean", torch.mean, "sum", torch.sum), _mean),
    F.avg_pool2d: lambda c: _pool(
        c.argument(1, "kernel_size"),
        c.argument(2, "stride"),
        c.argument(3, "padding", 0),
        c,
        counts=c.argument(5, "count_include_pad", True),
        divisor=c.argument(6, "divisor_override"),
    ),
    F.adaptive_avg_pool2d: lambda c: _adaptive(c.argument(1, "output_size"), c),
    F.max_pool2d: lambda c: _largest(
        c.argument(1, "kernel_size"),
        c.argument(2, "stride"),
        c.argument(3, "padding", 0),
        c.argument(4, "dilation", 1),
        c,
    ),
    F.pad: _padded,
    torch.cat: _joined,
    operator.getitem: _part,
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _sum(1)),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), _sum(-1)),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), _times),
    **dict.fromkeys((operator.truediv, torch.div, "div"), _divided),
}
