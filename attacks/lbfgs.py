"""Szegedy's attack: scipy's L-BFGS-B on distance plus weighted loss within the box, with a search over the weight."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, ClassVar

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.losses import get_loss, reached
from robustbench_lite.query import Query

_GROWTH = 10.0  # of c, until an image is found


@dataclass(frozen=True)
class LBFGSState(State):
    """`candidate`: the nearest image at the goal so far, at first x.

    nearest: (N,) its distance, inf for none. c: (N,) of the next search; little, enough: (N,) the largest that failed
    and the smallest that did not.
    """

    nearest: Tensor
    c: Tensor
    little: Tensor
    enough: Tensor


@dataclass(frozen=True)
class LBFGS(Attack):
    """The nearest adversarial image by box-constrained L-BFGS (Szegedy et al. 2013, arXiv:1312.6199, section 4.1).

    A step is a whole minimisation of |d|_2^2 + c loss(x + d) over the box, from the image, for each sample; c is
    multiplied by 10 until one ends at the goal, then bisected between what failed and what did not: the least c
    that succeeds gives the nearest image.

    searches: minimisations, >= 1. steps: iterations of each at most, >= 1 (each asks about one image or a few more).
    c: the first, > 0. memory: corrections kept of the Hessian, >= 1. loss: ce, margin or dlr.
    How scipy is driven: it minimises one function at a time, so each sample has a thread, which waits with the image
    that scipy wants to know about until all others do; then the network is asked about all of them at once.
    Departures: the distance is squared, as its length has no gradient at the image; without targets the
    label is fled from (the paper aims at a class). The loss is log(1 + exp(-v)), v what robustbench_lite.losses makes
    grow: with `ce` and a target it is the paper's cross entropy, without its underflow.
    """

    name: ClassVar[str] = "lbfgs"
    summary: ClassVar[str] = "nearest image in l2 by box-constrained L-BFGS"
    source: ClassVar[str] = "Szegedy et al. 2013, arXiv:1312.6199"
    norms: ClassVar[tuple[str, ...]] = ("l2",)
    minimal: ClassVar[bool] = True

    searches: int = 10
    steps: int = 100
    c: float = 0.01
    memory: int = 10
    loss: str = "ce"

    def __post_init__(self) -> None:
        get_loss(self.loss)
        for name in ("searches", "steps", "memory"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.c > 0:
            raise UserError(f"c must be > 0, got {self.c:g}")

    @property
    def length(self) -> int:
        """One minimisation a step."""
        return self.searches

    def start(self, query: Query, batch: Batch) -> LBFGSState:
        """The image itself."""
        zero = torch.zeros_like(batch.ball.eps).double()
        far = torch.full_like(zero, float("inf"))
        return LBFGSState(batch.ball.x.clone(), far, zero + self.c, zero, far.clone())

    def step(self, query: Query, batch: Batch, state: LBFGSState) -> LBFGSState:  # type: ignore[override]
        """One minimisation of each sample, and its next c."""
        x, loss = batch.ball.x, get_loss(self.loss)
        origin = x.double().flatten(1).cpu().numpy()
        c = state.c.cpu().numpy()
        candidate, nearest = state.candidate.clone(), state.nearest.clone()
        found = torch.zeros_like(batch.y, dtype=torch.bool)

        def answer(samples: list[int], points: list[Any]) -> list[tuple[float, Any]]:
            rows = torch.tensor(samples, device=x.device)
            flat = np.stack(points)
            images = torch.from_numpy(flat.astype(np.float32)).to(x.device).reshape(-1, *x.shape[1:])
            given = query.gradient(images, loss, rows=rows)
            y, targets = batch.y[rows], None if batch.targets is None else batch.targets[rows]
            value = loss(given.logits, y, targets).double().cpu().numpy()
            slope = given.gradient.double().flatten(1).cpu().numpy()
            delta = flat - origin[samples]
            square = np.square(delta).sum(1)
            distance = torch.from_numpy(np.sqrt(square)).to(x.device)
            at_goal = reached(given.logits, y, targets)
            nearer = at_goal & (distance < nearest[rows])
            found[rows] |= at_goal
            nearest[rows[nearer]], candidate[rows[nearer]] = distance[nearer], images[nearer]
            cost = np.logaddexp(0.0, -value)
            falls = c[samples] * np.exp(-value - cost)
            gradient = 2 * delta - falls[:, None] * slope
            return list(zip((square + c[samples] * cost).tolist(), gradient, strict=True))

        def minimise(sample: int, ask: Callable[[Any], tuple[float, Any]]) -> None:
            limits = {"maxiter": self.steps, "maxcor": self.memory, "maxfun": 2 * self.steps}
            box = scipy.optimize.Bounds(batch.ball.low, batch.ball.high)
            scipy.optimize.minimize(ask, origin[sample], jac=True, method="L-BFGS-B", bounds=box, options=limits)

        _together(len(x), minimise, answer)
        little = torch.where(found, state.little, state.c)
        enough = torch.where(found, state.c, state.enough)
        following = torch.where(torch.isfinite(enough), (little + enough) / 2, state.c * _GROWTH)
        return LBFGSState(candidate, nearest, following, little, enough)


def _together(
    count: int,
    work: Callable[[int, Callable[[Any], Any]], None],
    answer: Callable[[list[int], list[Any]], list[Any]],
) -> None:
    """Do `work(i, ask)` for each i, where `answer` is called when all that are not done wait for what they asked."""
    said: SimpleQueue[tuple[int, str, Any]] = SimpleQueue()
    replies: list[SimpleQueue[Any]] = [SimpleQueue() for _ in range(count)]

    def run(i: int) -> None:
        def ask(point: Any) -> Any:
            said.put((i, "asks", point.copy()))
            reply = replies[i].get()
            if reply is None:
                raise InterruptedError("nobody answers any more")
            return reply

        try:
            work(i, ask)
            said.put((i, "is done", None))
        except BaseException as error:  # handed to the caller's thread, which raises it
            said.put((i, "failed", error))

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    waiting: dict[int, Any] = {}
    left = count
    try:
        while left:
            while len(waiting) < left:
                i, what, point = said.get()
                if what == "failed":
                    raise point
                if what == "asks":
                    waiting[i] = point
                else:
                    left -= 1
            order = sorted(waiting)
            if order:
                for i, reply in zip(order, answer(order, [waiting[i] for i in order]), strict=True):
                    replies[i].put(reply)
            waiting = {}
    finally:
        for queue in replies:
            queue.put(None)
        for thread in threads:
            thread.join()
