"""Bounds of what a network can answer in a ball: intervals, and CROWN's linear bounds traced back to the pixels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from .bounds_affine import Affine
from .bounds_ball import Interval, Region
from .bounds_bent import Bent, Largest
from .bounds_calls import cannot
from .bounds_graph import Step, steps_of
from .bounds_patch import patched, takes
from .foreign import ask
from .modes import deep_copy, evaluation_mode

Method = Literal["interval", "crown"]

_MEMORY = 1 << 22  # numbers of one tensor at most, 32 MiB: what a processor's cache can take
# Of the bound of float32's error: what computing the bounds themselves in float64 may add, with much to spare.
_OWN = 2.0**-20


class Bounds:
    """A network's bounds, computed in float64.

    module: pixels (N, *shape) in [0, 1] to logits (N, K); it is copied and left as it was found.
    method: "interval" (Gowal et al. 2018, arXiv:1810.12715) or "crown" (Zhang et al. 2018, arXiv:1811.00866; every
    bound before an activation is one of CROWN too, where the activation is not straight over the interval).

    What is bounded is the network in exact arithmetic, and from it the same network in float32: `slack` bounds how far
    its logits may be from the exact ones (Higham 2002, section 3.1, layer by layer; sums may be in any order, but
    convolutions by Winograd's or Fourier's transform are not covered).
    Raises UserError, in one line that names the layer and its type, for what cannot be bounded.
    """

    def __init__(self, module: nn.Module, shape: Sequence[int], *, method: Method = "crown") -> None:
        exact = _exact(module)
        self.steps = steps_of(exact, shape)
        self.method = method
        self._check(exact, shape)

    @torch.no_grad()
    def _check(self, exact: nn.Module, shape: Sequence[int]) -> None:
        """Raise UserError where the steps do not compute what the network does, image by image.

        Hooks, calls in place seen through another name and randomness escape a trace, and no bound of it would hold.
        """
        parameter = next(exact.parameters(), torch.zeros(1))
        generator = torch.Generator().manual_seed(0)
        x = torch.rand((3, *shape), generator=generator, dtype=torch.float64).to(parameter.device)
        found = intervals(self.steps, Interval(x, x))[-1].lower
        with torch.random.fork_rng():
            said = torch.cat([ask(exact, image.unsqueeze(0)) for image in x] + [ask(exact, x)])
        if not bool(((said - torch.cat([found, found])).abs() <= 1e-6 * (1 + said.abs())).all()):
            raise cannot(
                "the network", type(exact).__name__, "it computes something else than its layers in their order say"
            )

    @property
    def classes(self) -> int:
        """How many logits there are."""
        return self.steps[-1].shape[0]

    @torch.no_grad()
    def margins(self, x: Tensor, y: Tensor, *, norm: str, eps: float) -> tuple[Tensor, Tensor]:
        """The least of logit y minus any other logit, (N, K - 1), over the ball around each image; and its slack.

        x: (N, C, H, W) in [0, 1]; y: (N,). eps: in pixels (l0: a count). The ball is cut by [0, 1].
        """
        if not len(x):
            nothing = torch.zeros((0, self.classes - 1), dtype=torch.float64, device=x.device)
            return nothing, nothing
        found = [self._margins(x[rows], y[rows], norm, eps) for rows in _parts(len(x), self.rows)]
        return torch.cat([margin for margin, _ in found]), torch.cat([slack for _, slack in found])

    @torch.no_grad()
    def certified(self, x: Tensor, y: Tensor, *, norm: str, eps: float) -> tuple[Tensor, Tensor]:
        """Which images keep class y in all of the ball, (N,) bool, and by what margin at least, (N,) float64.

        The margin is that of the float32 network: its slack is taken off.
        """
        margin, slack = self.margins(x, y, norm=norm, eps=eps)
        least = (margin - slack).amin(1)
        return least > 0, least

    @torch.no_grad()
    def logits(self, x: Tensor, *, norm: str, eps: float) -> Interval:
        """Bounds of every logit over the ball, (N, K) each."""
        region = Region(x.double(), norm, eps)
        return self.layers(region)[-1]

    def layers(self, region: Region) -> list[Interval]:
        """Bounds of every step's result."""
        if self.method == "interval":
            return intervals(self.steps, region.box)
        bends = self._before_bends() | {len(self.steps) - 1}

        def tighten(found: list[Interval], place: int) -> Interval:
            affine = isinstance(self.steps[place].operation, Affine)
            return self._tightened(found, place, region) if affine and place in bends else found[place]

        return intervals(self.steps, region.box, tighten)

    def _margins(self, x: Tensor, y: Tensor, norm: str, eps: float) -> tuple[Tensor, Tensor]:
        region = Region(x.double(), norm, eps)
        found = self.layers(region)
        least = least_margins(self.steps, found, y)
        ways = differences(y, self.classes)
        if self.method == "crown":
            least = torch.maximum(least, traced(self.steps, found, len(self.steps) - 1, ways, region=region))
        error = self._error(found)
        others = ways.argmin(2)
        slack = (error.gather(1, y.unsqueeze(1)) + error.gather(1, others)) * (1 + _OWN)
        return least, slack

    def _tightened(self, found: list[Interval], place: int, region: Region) -> Interval:
        """The bounds at one step traced back to the image, for the numbers for which it matters."""
        now = found[place]
        wanted = self._open(found, place).flatten(1)
        count = int(wanted.sum(1).amax()) if len(wanted) else 0
        if not count or (region.norm == "linf" and self._exact(place)):
            return now
        order = wanted.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :count]
        lower, upper = now.lower.flatten(1).clone(), now.upper.flatten(1).clone()
        widest = max(torch.Size(step.shape).numel() for step in self.steps[: place + 1])
        for part in _parts(count, max(1, _MEMORY // (2 * widest * len(order)))):
            index = order[:, part]
            least = self._both(found, place, index, region)
            low, high = least[:, : index.shape[1]], -least[:, index.shape[1] :]
            # Images with fewer open numbers than others are filled up; what fills must change nothing.
            asked = wanted.gather(1, index)
            before = Interval(lower.gather(1, index), upper.gather(1, index))
            lower.scatter_(1, index, torch.where(asked, low.maximum(before.lower), before.lower))
            upper.scatter_(1, index, torch.where(asked, high.minimum(before.upper), before.upper))
        return Interval(lower.reshape(now.lower.shape), upper.reshape(now.upper.shape))

    def _both(self, found: list[Interval], place: int, index: Tensor, region: Region) -> Tensor:
        """Lower bounds of the numbers at `index` (N, S) of a step's result, and of minus these, (N, 2 S)."""
        if not takes(self.steps[place]):
            ways = _units(index, self.steps[place].shape, found[place].lower)
            return traced(self.steps, found, place, torch.cat([ways, -ways], 1), region=region)
        at, ways_there, total = patched(self.steps, found, place, index, region)
        if ways_there is None:
            return total
        return total + traced(self.steps, found, at, ways_there, region=region)

    def _open(self, found: list[Interval], place: int) -> Tensor:
        """Where better bounds of a step's result make the bounds after it better."""
        interval = found[place]
        if place == len(self.steps) - 1:
            return torch.ones_like(interval.lower, dtype=torch.bool)
        after = [step.operation for step in self.steps if place in step.given]
        asked = [operation.open(interval) for operation in after if isinstance(operation, (Bent, Largest))]
        return torch.stack(asked).any(0)

    def _before_bends(self) -> set[int]:
        """The steps whose results go into an activation or a maximum."""
        return {k for step in self.steps if _bent(step) for k in step.given}

    def _exact(self, place: int) -> bool:
        """Whether at most one step up to this one mixes numbers and none is bent, so that intervals are exact."""
        mixing = 0
        while place:
            step = self.steps[place]
            if _bent(step) or len(step.given) > 1:
                return False
            mixing += type(step.operation).__name__ in ("Dense", "Convolution", "Arranged")
            place = step.given[0]
        return mixing <= 1

    def _error(self, found: list[Interval]) -> Tensor:
        """How far float32 logits may be from exact ones, (N, K)."""
        errors: list[Tensor] = []
        for step in self.steps:
            if step.operation is None:
                errors.append(torch.zeros_like(found[0].lower))
                continue
            errors.append(step.operation.error(*((errors[k], found[k].size) for k in step.given)))
        return errors[-1]

    @property
    def rows(self) -> int:
        """How many images are bounded together."""
        widest = max(torch.Size(step.shape).numel() for step in self.steps)
        return max(1, min(64, _MEMORY // (widest * 16)))


def _exact(module: nn.Module) -> nn.Module:
    """A copy of the network in float64, in evaluation mode, that wants no gradients."""
    try:
        exact = deep_copy(module).double()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise cannot("the network", type(module).__name__, f"it cannot be copied in float64: {reason}") from error
    evaluation_mode(exact)
    for parameter in exact.parameters():
        parameter.requires_grad_(False)
    return exact


def intervals(
    steps: Sequence[Step], box: Interval, tighten: Callable[[list[Interval], int], Interval] | None = None
) -> list[Interval]:
    """Bounds of every step's result from those of the image, (N, ...) each.

    tighten: given all bounds so far and the place of the last of them, better ones for it.
    """
    found: list[Interval] = []
    for place, step in enumerate(steps):
        found.append(box if step.operation is None else step.operation.interval(*(found[k] for k in step.given)))
        if tighten is not None and step.operation is not None:
            found[place] = tighten(found, place)
    return found


def least_margins(steps: Sequence[Step], found: Sequence[Interval], y: Tensor) -> Tensor:
    """The least of logit y minus any other logit by intervals, (N, K - 1).

    The layers behind the last activation are taken together with the difference (Gowal et al. 2018, section 3).
    """
    ways = differences(y, steps[-1].shape[0], found[-1].lower.dtype)
    return traced(steps, found, len(steps) - 1, ways, stop=_bent)


def differences(y: Tensor, classes: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """For each label the linear functions `logit y - logit k` of all other k in order, (N, K - 1, K)."""
    one = torch.eye(classes, dtype=dtype, device=y.device)
    others = torch.arange(classes - 1, device=y.device).expand(len(y), -1)
    others = others + (others >= y.unsqueeze(1))
    return one[y].unsqueeze(1) - one[others]


def traced(
    steps: Sequence[Step],
    found: Sequence[Interval],
    place: int,
    ways: Tensor,
    *,
    region: Region | None = None,
    stop: Callable[[Step], bool] | None = None,
) -> Tensor:
    """A lower bound, (N, S), of linear functions `ways` (N, S, ...) of the result of the step at `place`.

    They are traced back to the image, over which the region bounds them, or to steps at which `stop` says so, over
    which `found` does.
    """
    waiting: dict[int, Tensor] = {place: ways}
    total: Tensor = ways.new_zeros(ways.shape[:2])
    for at in range(place, -1, -1):
        if at not in waiting:
            continue
        here, step = waiting.pop(at), steps[at]
        if step.operation is None or (stop is not None and stop(step)):
            source = region if region is not None and step.operation is None else found[at]
            total = total + source.least(here)
            continue
        parts, constant = step.operation.back(here, *(found[k] for k in step.given))
        total = total + constant
        for k, part in zip(step.given, parts, strict=True):
            waiting[k] = waiting[k] + part if k in waiting else part
    return total


def _bent(step: Step) -> bool:
    return step.operation is not None and not isinstance(step.operation, Affine)


def _units(index: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """The numbers at `index` (N, S) of results of this shape, as linear functions (N, S, *shape)."""
    ways = like.new_zeros((*index.shape, torch.Size(shape).numel()))
    return ways.scatter_(2, index.unsqueeze(2), 1.0).reshape(*index.shape, *shape)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]
