"""Networks, defenses and attacks that write into tensors they were given, each a habit seen in other people's code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import robustbench_lite as rbl

from .nets import images, labels_of, mlp

Write = Callable[[Tensor], Tensor]


def _data(x: Tensor) -> Tensor:
    x.data = (x.data * 31).round() / 31
    return x


def _data_in_place(x: Tensor) -> Tensor:
    x.data.mul_(31).round_().div_(31)
    return x


def _array(x: Tensor) -> Tensor:
    pixels = x.detach().numpy()
    pixels[...] = np.round(pixels * 31) / 31
    return x


def _out(x: Tensor) -> Tensor:
    with torch.no_grad():
        torch.sub(x, 0.5, out=x)
    return x + 0.5


def _without_graph(x: Tensor) -> Tensor:
    with torch.no_grad():
        x.sub_(0.5).mul_(2)
    return x * 0.5 + 0.5


def _slice(x: Tensor) -> Tensor:
    x[:, :, 0] = 0.5
    return x


def _cut(x: Tensor) -> Tensor:
    return x.clamp_(0.25, 0.75)


def _shape(x: Tensor) -> Tensor:
    return x.squeeze_().unsqueeze_(1) if len(x) > 1 else x


def _storage(x: Tensor) -> Tensor:
    kept = x + 0
    x.untyped_storage().fill_(0)  # type: ignore[attr-defined]
    return kept


WRITES: dict[str, Write] = {
    "x.data =": _data,
    "x.data.op_": _data_in_place,
    "x.numpy()": _array,
    "out=": _out,
    "x.sub_": lambda x: x.sub_(0.5).div_(0.25) * 0.25 + 0.5,
    "no_grad": _without_graph,
    "x -=": lambda x: x.__isub__(0.5) + 0.5,
    "x[...] =": _slice,
    "clamp_": _cut,
    "relu(inplace)": lambda x: nn.functional.relu(x.sub_(0.3), inplace=True),
    "shape": _shape,
    "storage": _storage,
}


class Writer(nn.Module):
    """Writes into its input, then classifies."""

    def __init__(self, write: Write, *, seed: int = 1) -> None:
        super().__init__()
        self.net = mlp(seed=seed)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.write(x))  # type: ignore[no-any-return]


class PreHook(Writer):
    """The same in a forward pre-hook."""

    def __init__(self, write: Write) -> None:
        super().__init__(lambda x: x)
        self.register_forward_pre_hook(lambda _, args: (write(args[0]),))


class Hook(Writer):
    """Writes into its input and its output when the forward pass is over."""

    def __init__(self) -> None:
        super().__init__(lambda x: x)

        def after(_module: nn.Module, args: Any, out: Tensor) -> Tensor:
            args[0].data.zero_()
            out.data.mul_(2)
            return out

        self.register_forward_hook(after)


class TensorHook(Writer):
    """Writes into its input in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        def write(gradient: Tensor) -> None:
            del gradient
            x.data.fill_(0.5)

        if x.requires_grad:
            x.register_hook(write)  # type: ignore[no-untyped-call]
        return super().forward(x)


class _Rude(torch.autograd.Function):
    kept: list[Tensor]

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        x.data.zero_()
        gradients[0].data.mul_(2)
        return gradients[0]


class Backward(Writer):
    """Writes into what it saved and into the gradient it is given, at its beginning and its end."""

    def forward(self, x: Tensor) -> Tensor:
        return _Rude.apply(super().forward(_Rude.apply(x)))  # type: ignore[no-any-return]


class _Kept(torch.autograd.Function):
    kept: Tensor | None = None

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        if _Kept.kept is not None:
            _Kept.kept.fill_(7.0)
        _Kept.kept = gradients[0].clone()
        return _Kept.kept


class KeptGradient(Writer):
    """Overwrites the gradient it returned from the backward pass before."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(_Kept.apply(x))


class KeptInput(Writer):
    """Overwrites the input of its call before."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.last is not None:
            self.last.data.zero_()
        self.last = x
        return super().forward(x)


class KeptOutput(Writer):
    """Returns one buffer at every call."""

    buffer: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x)
        if self.buffer is not None and self.buffer.shape == logits.shape:
            self.buffer.data.copy_(logits.data)
            self.buffer.data.mul_(1)
            return logits + (self.buffer - logits).detach() if logits.requires_grad else self.buffer
        self.buffer = logits.detach()
        return logits if logits.requires_grad else self.buffer


class SpoiltOutput(Writer):
    """Overwrites the logits that it returned at its call before."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.last is not None:
            self.last.data.zero_()
        self.last = super().forward(x)
        return self.last


def same(x: Tensor) -> Tensor:
    return x


MAKERS: dict[str, Callable[[], nn.Module]] = {
    **{name: (lambda write=write: Writer(write)) for name, write in WRITES.items()},  # type: ignore[misc]
    **{f"pre-hook {name}": (lambda write=WRITES[name]: PreHook(write)) for name in ("x.data =", "x.sub_")},  # type: ignore[misc]
    "hook": Hook,
    "tensor hook": lambda: TensorHook(same),
    "backward": lambda: Backward(same),
    "kept gradient": lambda: KeptGradient(same),
    "kept input": lambda: KeptInput(same),
    "kept output": lambda: KeptOutput(same),
    "spoilt output": lambda: SpoiltOutput(same),
}


class _Apart(torch.autograd.Function):
    """A copy on the way forward and on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clone()


class Apart(nn.Module):
    """A network of which nothing outside can be reached: what the other one is to be measured as."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return _Apart.apply(self.net(_Apart.apply(x)))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    """Images that a network classifies right."""

    x: Tensor
    y: Tensor

    @staticmethod
    def of(net: nn.Module, count: int = 24) -> Case:
        x = images(count, seed=3, low=0.2, high=0.8)
        return Case(x, labels_of(net, x.clone()))

    def run(self, net: nn.Module, **settings: Any) -> rbl.Result:
        return rbl.evaluate(net, self.x, self.y, **{"attack": "pgd", "eps": 0.05, "checks": False, **settings})
