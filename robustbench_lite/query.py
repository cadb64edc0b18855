"""The network as the threat sees it: answers at the access level that an attack declares, counted per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import AccessError
from .losses import reached
from .network import Network, Noise
from .rows import take
from .streams import Stream

if TYPE_CHECKING:
    from .attack import Access, Batch

_LEVELS = {"label": 0, "score": 1, "gradient": 2}
_NEAR = 1e-6  # how far rounding may have carried a candidate out of its ball


@dataclass(frozen=True)
class Gradient:
    """An answer at gradient access: `gradient` like the images, and `logits` (N, K) of the same pass."""

    gradient: Tensor
    logits: Tensor


class Query:
    """What an attack may ask about the samples of its batch, and nothing more.

    Every answer is watched: an image that reaches the goal inside the ball and the box is a claim, which
    the engine proves or drops. With `nearest`, (N,) float64, only an image nearer than that is one, and of
    several the nearest. `rows` picks samples of the batch, (M,) int64, repeats allowed; without it the images are one
    for each sample in order. Answers carry no autograd graph.
    low: (N,) bool, the samples that search in lower precision; None: none does.
    max_queries: forward passes that a sample has, those of before among them. What is asked beyond is not put to the
    network: it is answered without a gradient, and as one that is sure of the label.
    Raises AccessError where the attack asks for more than it declared.
    """

    def __init__(
        self,
        network: Network,
        batch: Batch,
        *,
        access: Access,
        asker: str,
        noise: Stream,
        forwards: Tensor,
        low: Tensor | None,
        any_class: bool = False,
        proved: Tensor | None = None,
        nearest: Tensor | None = None,
        max_queries: int | None = None,
        watch: bool = True,
    ) -> None:
        self._network = network
        self._batch = batch
        self._level = _LEVELS[access]
        self._asker = asker
        self._noise = noise
        self._low = low
        self._any_class = any_class
        self._watching = watch
        self._nearest = None if nearest is None else nearest.clone()
        self._max_queries = max_queries
        self._any_low = low is not None and bool(low.any())
        self._all_low = low is not None and self._any_low and bool(low.all())
        self.forwards = forwards.clone()
        self.backwards = torch.zeros_like(forwards)
        # A sample that has its proof needs no other.
        self._claimed = torch.zeros_like(forwards, dtype=torch.bool) if proved is None else proved.clone()
        self._claims: list[tuple[Tensor, Tensor]] = []

    @property
    def n_classes(self) -> int:
        """The number of logits."""
        count = self._network.n_classes
        assert count is not None, "known after the first answer"
        return count

    def logits(self, x: Tensor, *, rows: Tensor | None = None) -> Tensor:
        """Logits (M, K) of images (M, C, H, W); needs score access."""
        self._need("score")
        return self._forward(x, rows)

    def labels(self, x: Tensor, *, rows: Tensor | None = None) -> Tensor:
        """Predicted classes (M,) int64 of images (M, C, H, W); every attack may ask."""
        return self._forward(x, rows).argmax(1)

    def gradient(self, x: Tensor, loss: Callable[..., Tensor], *extra: Tensor, rows: Tensor | None = None) -> Gradient:
        """Gradient in x of `loss(logits, y, targets, *extra)` -> (M,), and the logits; needs gradient access.

        Of a loss (M, L) it is the gradient of each value, (M, L, C, H, W), for one forward and L backward passes.
        The gradient is the caller's own to overwrite.
        """
        self._need("gradient")
        y, targets = self._goal(rows)

        def ask(
            part: Tensor, noise: Noise, low: bool, y: Tensor, targets: Tensor | None, *more: Tensor
        ) -> list[Tensor]:
            return list(self._network.gradient(part, noise, loss, y, targets, *more, low=low))

        before = self.forwards.clone()
        gradient, logits = self._ask(ask, x, rows, y, targets, *extra)
        times = gradient.shape[1] if gradient.ndim > x.ndim else 1
        self.backwards += (self.forwards - before) * times
        self._watch(x, logits, rows, y, targets)
        return Gradient(gradient, logits)

    def claims(self) -> tuple[Tensor, Tensor]:
        """Samples seen to reach the goal since the query was made: positions (M,) and images.

        The first of each sample, or with `nearest` the last, which is the nearest.
        """
        if not self._claims:
            return torch.empty(0, dtype=torch.int64, device=self._claimed.device), self._batch.ball.x[:0]
        if len(self._claims) == 1:
            return self._claims[0]
        rows, images = torch.cat([rows for rows, _ in self._claims]), torch.cat([x for _, x in self._claims])
        last = torch.full_like(self.forwards, -1)
        last.scatter_reduce_(0, rows, torch.arange(len(rows), device=rows.device), "amax")
        last = last[last >= 0]
        return rows[last], images[last]

    @property
    def nearest(self) -> Tensor:
        """The distance of the nearest claim of each sample so far, (N,) float64."""
        assert self._nearest is not None, "asked of a minimal attack's query only"
        return self._nearest

    def _need(self, level: Access) -> None:
        if self._level < _LEVELS[level]:
            have = next(name for name, rank in _LEVELS.items() if rank == self._level)
            raise AccessError(f"{self._asker}: it declares {have} access and asked for {level} access")

    def _goal(self, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
        y, targets = self._batch.y, self._batch.targets
        return (y, targets) if rows is None else (y[rows], None if targets is None else targets[rows])

    def _forward(self, x: Tensor, rows: Tensor | None) -> Tensor:
        def ask(part: Tensor, noise: Noise, low: bool, y: Tensor) -> list[Tensor]:
            return [self._network.logits(part, noise, low=low, y=y)]

        y, targets = self._goal(rows)
        (logits,) = self._ask(ask, x, rows, y)
        self._watch(x, logits, rows, y, targets)
        return logits

    def _ask(
        self, ask: Callable[..., list[Tensor]], x: Tensor, rows: Tensor | None, *per_row: Tensor | None
    ) -> list[Tensor]:
        """Ask in one piece, or in two where some samples search in lower precision and some do not."""
        draws = self._draws(rows)
        noise = Noise(Stream(self._noise.keys if rows is None else self._noise.keys[rows]), draws)
        self._count(self.forwards, rows)
        refused = self._refused(draws, rows)
        if refused is None and (not self._any_low or self._all_low):
            return ask(x, noise, self._any_low, *per_row)
        low = torch.zeros_like(self._claimed) if self._low is None else self._low
        low = low if rows is None else low[rows]
        asked = torch.ones_like(low) if refused is None else ~refused
        outputs: list[Tensor] = []
        for which in (True, False):
            index = ((low == which) & asked).nonzero()[:, 0]
            if not len(index) and (outputs or which):
                continue
            answer = ask(x[index], noise.take(index), which, *(None if p is None else p[index] for p in per_row))
            if not outputs:
                outputs = [a.new_zeros((len(x), *a.shape[1:])) for a in answer]
            for output, a in zip(outputs, answer, strict=True):
                output[index] = a
        if refused is not None:
            y = self._batch.y if rows is None else self._batch.y[rows]
            outputs[-1][refused, y[refused]] = 1.0
        return outputs

    def _refused(self, draws: Tensor, rows: Tensor | None) -> Tensor | None:
        """Which images come when their sample has no pass left, (M,) bool, taken out of the count; None for none."""
        if self._max_queries is None:
            return None
        refused = draws + self._network.eot > self._max_queries
        if not refused.any():
            return None
        if rows is None:
            self.forwards -= self._network.eot * refused
        else:
            self.forwards.index_add_(0, rows[refused], torch.full_like(rows[refused], -self._network.eot))
        return refused

    def _draws(self, rows: Tensor | None) -> Tensor:
        """A number for each image that no earlier query of its sample had."""
        if rows is None:
            return self.forwards.clone()
        order = torch.argsort(rows, stable=True)
        ordered = rows[order]
        first = torch.searchsorted(ordered, ordered)
        draws = torch.empty_like(rows)
        draws[order] = (
            self.forwards[ordered] + (torch.arange(len(rows), device=rows.device) - first) * self._network.eot
        )
        return draws

    def _count(self, counter: Tensor, rows: Tensor | None) -> None:
        if rows is None:
            counter += self._network.eot
        else:
            counter.index_add_(0, rows, torch.full_like(rows, self._network.eot))

    def _watch(self, x: Tensor, logits: Tensor, rows: Tensor | None, y: Tensor, targets: Tensor | None) -> None:
        if not self._watching:
            return
        hits = reached(logits, y, None if self._any_class else targets)
        if self._nearest is None:
            hits &= ~(self._claimed if rows is None else self._claimed[rows])
        if not hits.any():
            return
        at = hits.nonzero()[:, 0]
        samples = at if rows is None else rows[at]
        images = x[at].detach()
        ball = take(self._batch.ball, samples)
        legal = ball.project(images)
        fresh = (legal - images).flatten(1).abs().amax(1) <= _NEAR
        if self._nearest is None:
            fresh &= ~self._claimed[samples]
            fresh = _first_of_each(samples, fresh, None if rows is None else at)
        else:
            distance = ball.distance(legal)
            fresh &= distance < self._nearest[samples]
            fresh = _first_of_each(samples, fresh, None if rows is None else distance)
            self._nearest[samples[fresh]] = distance[fresh]
        self._claimed[samples[fresh]] = True
        if fresh.any():
            self._claims.append((samples[fresh], legal[fresh]))


def _first_of_each(samples: Tensor, fresh: Tensor, order: Tensor | None) -> Tensor:
    """Of the fresh ones, one of each sample: the smallest in `order`; None where no sample comes twice."""
    if order is None or not fresh.any():
        return fresh
    at = fresh.nonzero()[:, 0]
    at = at[torch.argsort(order[at], stable=True)]
    by_sample = at[torch.argsort(samples[at], stable=True)]
    ordered = samples[by_sample]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    kept = torch.zeros_like(fresh)
    kept[by_sample[first]] = True
    return kept
