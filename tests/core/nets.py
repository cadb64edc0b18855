"""Small networks, images, and the engine driven to its end, for the tests of the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from robustbench_lite.attack import Attack, Batch
from robustbench_lite.engine import Engine
from robustbench_lite.network import Network, Noise, frozen
from robustbench_lite.query import Query
from robustbench_lite.result import finished_columns
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat

SHAPE = (1, 6, 6)


def images(count: int, shape: tuple[int, ...] = SHAPE, *, seed: int = 0, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Random images, different ones at each place."""
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(seed)) * (high - low) + low


def filled(model: nn.Module, seed: int = 0, scale: float = 1.0) -> nn.Module:
    """The model with weights that only the seed decides, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 10
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale / fan_in**0.5
    return model.eval()


def centred(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> nn.Module:
    """The same network with equal logits for a grey image, so that it gives random images more than one class."""
    *_, bias = model.parameters()
    with torch.no_grad():
        bias.sub_(model(torch.full((1, *shape), 0.5))[0])
    return model


def mlp(classes: int = 4, *, shape: tuple[int, ...] = SHAPE, seed: int = 0, scale: float = 2.0) -> nn.Module:
    size = torch.Size(shape).numel()
    layers = nn.Sequential(nn.Flatten(), nn.Linear(size, 24), nn.Tanh(), nn.Linear(24, classes))
    return centred(filled(layers, seed, scale), shape)


def conv(classes: int = 4, *, channels: int = 1, seed: int = 0, scale: float = 2.0) -> nn.Module:
    layers = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.LazyLinear(classes)
    )
    layers(torch.zeros(1, channels, *SHAPE[1:]))
    return centred(filled(layers, seed, scale), (channels, *SHAPE[1:]))


class Binary(nn.Module):
    """Logits (0, w x + b): the nearest adversarial point is known in closed form."""

    def __init__(self, weight: Tensor, bias: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(torch.tensor(bias))

    def forward(self, x: Tensor) -> Tensor:
        value = (x * self.weight).flatten(1).sum(1) + self.bias
        return torch.stack([torch.zeros_like(value), value], 1)

    def distance(self, x: Tensor, norm: str) -> Tensor:
        """How far each image is from the plane, in float64."""
        value = (x.double() * self.weight.double()).flatten(1).sum(1) + self.bias.double()
        dual = self.weight.double().abs().sum() if norm == "linf" else self.weight.double().square().sum().sqrt()
        return (value.abs() / dual).detach()


def binary(shape: tuple[int, ...] = SHAPE, *, seed: int = 0) -> Binary:
    """A plane through the middle of the box."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return Binary(weight, -float(weight.sum()) * 0.5)


def labels_of(model: nn.Module, x: Tensor) -> Tensor:
    """What the model says, so that every image is right to begin with."""
    with torch.no_grad():
        return model(x).argmax(1)  # type: ignore[no-any-return]


@dataclass
class Rows:
    """Counts the images that go through a model."""

    count: int = 0

    def watch(self, model: nn.Module) -> Rows:
        model.register_forward_pre_hook(self._see)
        return self

    def _see(self, module: nn.Module, inputs: Any) -> None:
        self.count += len(inputs[0])


@dataclass
class TensorSource:
    """Images in memory, in a given order."""

    x: Tensor
    y: Tensor
    eps: Tensor
    order: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __post_init__(self) -> None:
        if not len(self.order):
            self.order = torch.arange(len(self.x))

    def __len__(self) -> int:
        return len(self.order)

    def fetch(self, first: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        index = self.order[first : first + count]
        return index, self.x[index], self.y[index], self.eps[index]

    def images(self, index: Tensor) -> Tensor:
        return self.x[index]


Columns = dict[str, Tensor]


def make_engine(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    threat: Threat,
    *,
    order: Tensor | None = None,
    network: Network | None = None,
    **options: Any,
) -> Engine:
    source = TensorSource(x, y, threat.each(len(x)), torch.arange(len(x)) if order is None else order)
    return Engine(attack.resolve(threat), network or Network(model), source, threat=threat, **options)


def finish(engine: Engine) -> Columns:
    """Drive an engine to its end: its columns in order of index."""
    with frozen(engine.network.model), torch.no_grad():
        parts = [finished_columns(entry, x, keep_images=True) for entry, x in engine.run() if len(entry.y)]
    return join(parts)


def join(parts: list[Columns]) -> Columns:
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    order = columns["index"].argsort()
    return {name: column[order] for name, column in columns.items()}


def differing(a: Columns, b: Columns) -> list[str]:
    """The columns that are not equal to the last bit."""
    return sorted(a.keys() ^ b.keys()) + [name for name in a if name in b and not torch.equal(a[name], b[name])]


def ask(
    network: Network,
    x: Tensor,
    y: Tensor,
    *,
    access: Any = "gradient",
    threat: Threat | None = None,
    targets: Tensor | None = None,
    low: Tensor | None = None,
) -> Query:
    """A query of its own over these images."""
    zero = torch.zeros_like(y)
    stream = Stream(torch.arange(len(x))).child("test")
    batch = Batch((threat or Threat("linf", 0.1)).around(x), y, targets, zero, stream, zero)
    none_low = torch.zeros_like(y, dtype=torch.bool)
    return Query(
        network,
        batch,
        access=access,
        asker="attack test",
        noise=stream.child("network"),
        forwards=zero,
        low=none_low if low is None else low,
    )


def noise_of(count: int, draw: int = 0) -> Noise:
    rows = torch.arange(count)
    return Noise(Stream(rows).child("noise"), torch.full_like(rows, draw))


class Asks:
    """Makes a small attack of two functions, for what an attack may and may not do."""

    @staticmethod
    def make(step: Callable[..., Any], start: Callable[..., Any] | None = None, **attributes: Any) -> Attack:
        from robustbench_lite.attack import State

        def begin(self: Attack, query: Query, batch: Batch) -> Any:
            return State(batch.ball.x.clone()) if start is None else start(query, batch)

        def go(self: Attack, query: Query, batch: Batch, state: Any) -> Any:
            return step(query, batch, state)

        length = attributes.pop("length", 1)
        body = {
            "name": "planted",
            "summary": "",
            "source": "",
            "start": begin,
            "step": go,
            "length": property(lambda self: length),
            **attributes,
        }
        planted: Any = dataclass(frozen=True)(cast("type[Attack]", type("Planted", (Attack,), body)))
        return cast(Attack, planted())
