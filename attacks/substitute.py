"""A network of one's own, trained on what the target says of images, and attacked in its place."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from robustbench_lite.attack import Access, Attack, Batch, State
from robustbench_lite.attacks.fgsm import FGSM
from robustbench_lite.attacks.pgd import PGD
from robustbench_lite.errors import UserError
from robustbench_lite.network import Network
from robustbench_lite.query import Query
from robustbench_lite.threat import Threat


@dataclass(frozen=True)
class SubstituteState(State):
    """`inner`: the state of the attack on the substitute; passes: (N,) forward passes through it."""

    inner: State
    passes: Tensor


@dataclass(frozen=True)
class Substitute(Attack):
    """A black-box attack by a substitute (Papernot et al. 2017, arXiv:1602.02697, algorithm 1), judged on the target.

    A small network is trained on the labels that the target gives to a few images. Then each of them is moved along
    the sign of the substitute's slope in the class that the target said, the moved ones are labelled by the target
    too, and training goes on with all (Jacobian-based augmentation); so `rounds` times. Of the target nothing but
    labels is asked, and the true ones are not looked at.

    budget: labels asked of the target, at most, >= 1; a round that would ask for more asks about some of its new
    images, at random. images: that it begins with, drawn from those it learns from, >= 1. rounds: of training, >= 1.
    augmentation: how far an image is moved, in pixels of [0, 1], > 0; every three rounds its sign changes (the
    paper's periodic step size). epochs: of a round, >= 1; learning_rate, of SGD with momentum 0.9, > 0; minibatch:
    >= 1. width: channels of the first of two convolutions, >= 1; the second has twice as many, then come 8 times as
    many hidden units.
    method: "fgsm" or "pgd" on the substitute, with `loss`; steps, step_size: of pgd, as there.

    Learned: the weights. It costs up to `budget` labels, images * 2^(rounds - 1) with enough of it, and no gradient.
    At evaluation the target is asked for the verdict alone; passes through the substitute are counted nowhere. Of a
    random target one label takes several passes, which are counted.
    Departures: a smaller network than the paper's; the slope is that of the log of the class's share, which has the
    sign of the paper's.
    """

    name: ClassVar[str] = "substitute"
    summary: ClassVar[str] = "a substitute trained on the target's labels, attacked in its place"
    source: ClassVar[str] = "Papernot et al. 2017, arXiv:1602.02697"
    access: ClassVar[Access] = "label"
    norms: ClassVar[tuple[str, ...]] = PGD.norms

    budget: int = 6400
    images: int = 150
    rounds: int = 6
    augmentation: float = 0.1
    epochs: int = 10
    learning_rate: float = 0.01
    minibatch: int = 32
    width: int = 16
    method: Literal["fgsm", "pgd"] = "fgsm"
    loss: str = "ce"
    steps: int = 40
    step_size: float | None = None
    inner: Attack = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("budget", "images", "rounds", "epochs", "minibatch", "width"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("augmentation", "learning_rate"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be > 0, got {getattr(self, name):g}")
        if self.method not in ("fgsm", "pgd"):
            raise UserError(f"method must be fgsm or pgd, got {self.method!r}")
        pgd = PGD(steps=self.steps, step_size=self.step_size, loss=self.loss)
        object.__setattr__(self, "inner", pgd if self.method == "pgd" else FGSM(loss=self.loss))

    @property
    def length(self) -> int:
        """The steps of the attack on the substitute."""
        return self.inner.length

    def resolve(self, threat: Threat) -> Self:
        """With the step size of pgd where none is given."""
        inner = self.inner.resolve(threat)
        return replace(self, step_size=inner.step_size) if isinstance(inner, PGD) else self

    def fit(self, query: Query, batch: Batch) -> dict[str, Tensor]:
        """The substitute's weights."""
        everybody = batch.ball.x
        random = torch.Generator().manual_seed(int(batch.stream.child("training").keys[0]))
        rows = torch.randperm(len(everybody), generator=random)[: min(self.images, self.budget)].to(everybody.device)
        x, labels = everybody[rows], query.labels(everybody[rows], rows=rows)
        weights = initial(tuple(x.shape[1:]), query.n_classes, self.width, random)
        weights = {name: weight.to(x.device) for name, weight in weights.items()}
        momentum = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        for turn in range(self.rounds):
            self._train(weights, momentum, x, labels, random)
            left = min(self.budget - len(x), len(x))
            if turn + 1 == self.rounds or not left:
                break
            of = torch.randperm(len(x), generator=random)[:left].to(x.device)
            sign = -1 if turn // 3 % 2 else 1
            new = (x[of] + sign * self.augmentation * _slope(Small(weights), x[of], labels[of]).sign()).clamp(0, 1)
            labels = torch.cat([labels, query.labels(new, rows=rows[of])])
            x, rows = torch.cat([x, new]), torch.cat([rows, rows[of]])
        return weights

    def _train(
        self,
        weights: dict[str, Tensor],
        momentum: dict[str, Tensor],
        x: Tensor,
        labels: Tensor,
        random: torch.Generator,
    ) -> None:
        """A round of stochastic gradient descent; by hand, for the library's begins by loading its compiler."""
        for _ in range(self.epochs):
            for rows in torch.split(torch.randperm(len(x), generator=random).to(x.device), self.minibatch):
                with torch.enable_grad():
                    own = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
                    loss = functional.cross_entropy(Small(own)(x[rows]), labels[rows])
                for name, slope in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
                    weights[name].sub_(momentum[name].mul_(0.9).add_(slope), alpha=self.learning_rate)

    def start(self, query: Query, batch: Batch) -> SubstituteState:
        """The start of the attack on the substitute."""
        none = torch.zeros_like(batch.y)
        if not batch.learned:  # whoever has learned nothing moves nothing
            return SubstituteState(batch.ball.x.clone(), State(batch.ball.x.clone()), none)
        own = self._query(batch, none)
        inner = self.inner.start(own, batch)
        return SubstituteState(inner.candidate, inner, own.forwards)

    def step(self, query: Query, batch: Batch, state: SubstituteState) -> SubstituteState:  # type: ignore[override]
        """One step of the attack on the substitute."""
        if not batch.learned:
            return state
        own = self._query(batch, state.passes)
        inner = self.inner.step(own, batch, state.inner)
        return SubstituteState(inner.candidate, inner, own.forwards)

    def _query(self, batch: Batch, passes: Tensor) -> Query:
        """What answers for the substitute."""
        x, classes = batch.ball.x, len(batch.learned["out.bias"])
        block = _block(tuple(x.shape[1:]), classes, self.width, str(x.device), torch.get_num_threads())
        return Query(
            Network(Small(batch.learned), n_classes=classes, device=x.device, block=block),
            batch,
            access="gradient",
            asker=f"attack {self.name}",
            noise=batch.stream.child("substitute"),
            forwards=passes,
            low=torch.zeros_like(batch.y, dtype=torch.bool),
            watch=False,
        )


class Small(nn.Module):
    """The substitute with these weights: two convolutions, each with a maximum of 2 x 2 after it, and two layers."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        of = self.weights
        for name in ("first", "second"):
            x = functional.relu(functional.conv2d(x, of[f"{name}.weight"], of[f"{name}.bias"], padding=1))
            x = functional.max_pool2d(x, 2, ceil_mode=True)
        hidden = functional.relu(functional.linear(x.flatten(1), of["hidden.weight"], of["hidden.bias"]))
        return functional.linear(hidden, of["out.weight"], of["out.bias"])


def initial(shape: tuple[int, ...], classes: int, width: int, random: torch.Generator) -> dict[str, Tensor]:
    """Weights drawn as He et al. 2015 (arXiv:1502.01852) say, and no bias; shape: (C, H, W) of the images."""
    channels, height, across = shape
    small = -(-height // 4) * -(-across // 4)
    sizes = {
        "first": (width, channels, 3, 3),
        "second": (2 * width, width, 3, 3),
        "hidden": (8 * width, 2 * width * small),
        "out": (classes, 8 * width),
    }
    weights = {}
    for name, size in sizes.items():
        weights[f"{name}.weight"] = torch.randn(size, generator=random) * (2 / math.prod(size[1:])) ** 0.5
        weights[f"{name}.bias"] = torch.zeros(size[0])
    return weights


def _slope(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """The slope, in the image, of the log of the share that the substitute gives to the label."""
    parts = []
    for some, said in zip(torch.split(x, 64), torch.split(labels, 64), strict=True):
        with torch.enable_grad():
            image = some.clone().requires_grad_()
            share = model(image).log_softmax(1).gather(1, said.unsqueeze(1)).sum()
        parts.append(torch.autograd.grad(share, image)[0])
    return torch.cat(parts)


@functools.lru_cache(maxsize=64)
def _block(shape: tuple[int, ...], classes: int, width: int, device: str, threads: int) -> int:
    """The block in which every row of such a substitute comes out alike; it does not hang on the weights."""
    del threads  # what is found holds for this many
    weights = initial(shape, classes, width, torch.Generator().manual_seed(0))
    model = Small({name: weight.to(device) for name, weight in weights.items()})
    return Network(model, n_classes=classes, device=device).uniform_block(shape)
