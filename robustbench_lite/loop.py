"""Where one training is: its batches, what its optimizer knows, and what is seen of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError
from .outputs import find_logits


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is: counts from 1, and mean loss and accuracy over the epoch so far."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    accuracy: float


@dataclass
class Loop:
    """Where one training is; all that is needed to go on with it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    average: torch.optim.swa_utils.AveragedModel | None
    scaler: torch.amp.GradScaler
    order: torch.Generator
    epochs: int
    epoch: int = 0
    batch: int = 0
    accumulated: int = 0
    permutation: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    best: dict[str, Tensor] | None = None
    best_value: float = -math.inf
    watched: tuple[float, int, int] = (0.0, 0, 0)
    seconds: float = 0.0  # of the present epoch

    @property
    def kept(self) -> nn.Module:
        """The network, or its running average."""
        return self.model if self.average is None else self.average.module


def running_average(model: nn.Module, decay: float) -> torch.optim.swa_utils.AveragedModel | None:
    """A running average of the network's weights and buffers; None for a decay of 0."""
    if not decay:
        return None
    average = torch.optim.swa_utils.get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
    return torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=average, use_buffers=True)


def copied(module: nn.Module) -> dict[str, Tensor]:
    """The network's state, in memory of its own."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Batches:
    """Batches of nearly equal size, none of one image alone, of which batch normalisation has no variance."""

    def __init__(self, index: Tensor, batch_size: int, *, at_least: int = 2) -> None:
        n = len(index)
        if n < at_least:
            raise UserError(f"--dataset: training needs at least {at_least} images, got {n}")
        if at_least > 2 and batch_size < at_least:
            raise UserError(f"batch_size must be at least {at_least}, two for each process, got {batch_size}")
        batch_size = max(at_least, min(batch_size, n))
        self.index = index
        self.size = math.ceil(n / math.ceil(n / batch_size))
        self.used = n - n % self.size if n % self.size < at_least - 1 or n % self.size == 1 else n
        self.count = math.ceil(self.used / self.size)

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """An epoch's index in a new order."""
        return self.index[torch.randperm(len(self.index), generator=generator)[: self.used]]


@contextlib.contextmanager
def plain_answers(model: nn.Module, classes: int) -> Iterator[None]:
    """Context manager: what the network returns is its logits (n, K), also where it is a tuple or a dict of them.

    Some networks return further heads only while they are trained (Inception, GoogLeNet): the loss is of the logits.
    Raises UserError for a TorchScript network, whose parts take no hooks and which is made for inference.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("--model: a TorchScript network cannot be trained; give the module that it was made from")

    def read(_model: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1:
            return None
        n = len(args[0]) if args and isinstance(args[0], Tensor) else None
        # A defense may let the network reject images, or have it give what are no logits of the classes.
        return output if isinstance(output, Tensor) else find_logits(output, n=n, columns=classes).logits

    handle = model.register_forward_hook(read)
    try:
        yield
    finally:
        handle.remove()


class Watch:
    """Loss and accuracy of the epoch so far, seen from outside, so that a defense's loss need not tell."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._output: Tensor | None = None

    def __enter__(self) -> Watch:
        self._hook = self._model.register_forward_hook(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _see(self, _model: nn.Module, _inputs: object, output: object) -> None:
        self._output = output.detach() if isinstance(output, Tensor) else None

    def start(self, counts: tuple[float, int, int]) -> None:
        """Go on from these sums of loss, right answers and images."""
        self.counts = counts

    def add(self, loss: float, y: Tensor) -> None:
        """One step's loss, and the labels of its batch."""
        total, right, seen = self.counts
        # The last thing the network saw in a step is the batch it learnt from, as far as it has its size.
        if self._output is not None and self._output.ndim == 2 and len(self._output) == len(y):
            right += int((self._output.argmax(1) == y).sum())
        self.counts = total + loss * len(y), right, seen + len(y)

    def row(self) -> dict[str, float]:
        """Mean loss and accuracy."""
        total, right, seen = self.counts
        return {"loss": total / seen, "accuracy": right / seen}

    def progress(self, epoch: int, epochs: int, batch: int, batches: int) -> TrainingProgress:
        """The same for whoever watches."""
        return TrainingProgress(epoch + 1, epochs, batch, batches, **self.row())
