"""The contract of an attack: hyperparameters, and two functions over the state of single samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from .errors import UserError
from .query import Query
from .rows import copied
from .streams import Stream
from .threat import Ball, Threat

Access = Literal["gradient", "score", "label"]


@dataclass(frozen=True)
class Batch:
    """What an attack is given: the samples under way, each at its own step.

    ball: the threat around each image, `ball.x` (N, C, H, W) in [0, 1] the clean image, `ball.eps` (N,).
    y: (N,) int64, the true label; targets: (N,) int64, the class aimed at, or None.
    step: (N,) int64, steps taken in this restart; stream: each sample's random numbers in this restart.
    attempt: (N,) int64, which restart this is, from 0 to `attempts` - 1 (past it where classes are aimed at in turn).
    ends: in a portfolio, (N, C, H, W), the image nearest to the goal of those that earlier parts ended at; else None.
    learned: what the attack's `fit` returned, the same for all samples; empty without one. Not to be written to.
    """

    ball: Ball
    y: Tensor
    targets: Tensor | None
    step: Tensor
    stream: Stream
    attempt: Tensor
    ends: Tensor | None = None
    learned: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def origin(self) -> Tensor:
        """Where an attack begins that draws no start of its own: where others ended, else the image; in the ball."""
        return self.ball.x if self.ends is None else self.ends

    def handed(self) -> Batch:
        """A copy to be handed to an attack, which may write into what it is given without reaching the original."""
        return replace(copied(self), learned=copied(dict(self.learned)))


@dataclass(frozen=True)
class State:
    """What an attack remembers of each sample: tensors whose first axis is the sample, and nothing else.

    candidate: (N, C, H, W), the image that is judged when the steps are over. What was seen to fool
    the network on the way is noticed by the query, so an attack keeps no best image.
    """

    candidate: Tensor


@dataclass(frozen=True)
class Attack:
    """Base of every attack: a frozen dataclass whose fields are its hyperparameters.

    `start` and `step` must not mix samples: row i of what they return depends on row i of what they
    were given. They ask the network through the query only, and get random numbers from `batch.stream`.
    Class attributes: name, summary, source (paper), access ("gradient" > "score" > "label": what the
    query will answer), norms, targeted (whether it can aim at a class), minimal.

    minimal: the attack looks for the nearest adversarial image, wherever in the box it is. Its ball then has no
    bound (`project` only clamps; `distance` and `norm` are those of the threat, whose eps it is not
    told), each sample takes all its steps, and the nearest image seen at the goal is the one that is proved.

    own_limits: its limits are hyperparameters of its own (degrees, a share of the contrast), not a norm's. Its threat
    is the whole box, written linf eps 1, and no other is taken.

    persists: a success does not end its samples, `finished` or the last step does; of what was proved the last is
    kept, and the result says how sure the network is of it (`Result.confidence`).

    one_target: what `fit` learns hangs on the class aimed at, so that a target can only be one class for all samples.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    access: ClassVar[Access] = "gradient"
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    targeted: ClassVar[bool] = True
    minimal: ClassVar[bool] = False
    own_limits: ClassVar[bool] = False
    persists: ClassVar[bool] = False
    one_target: ClassVar[bool] = False

    def fit(self, query: Query, batch: Batch) -> dict[str, Tensor]:
        """What it must learn from many images before it attacks one, as named tensors; called once, before all else.

        batch: the images to learn from, with their labels, balls and random streams, all at once; `targets` is the
        class aimed at, for all the same. Here, and only here, samples may be mixed. `query` answers for any image at
        `rows` of the batch, at the declared access; its passes are counted, and reported once for the whole run.
        Passes run in groups of one size, so what is learned does not hang on the batch size. The tensors are kept
        with the run, and come back as `batch.learned` in `start` and `step`. The same images must give the same.
        """
        return {}

    @property
    def learns(self) -> bool:
        """Whether it has a `fit`."""
        return type(self).fit is not Attack.fit

    @property
    def length(self) -> int:
        """Steps of one restart, at most."""
        raise NotImplementedError

    @property
    def attempts(self) -> int:
        """Restarts, each with random numbers of its own, until one succeeds."""
        return 1

    @property
    def eot(self) -> int | None:
        """Draws of a randomised network averaged for each query, where the paper says so; None: as the run has it."""
        return None

    def calls(self, threat: Threat) -> tuple[int, int] | None:
        """Forward and backward passes that an image costs at most, the clean one and proofs aside; None: not known."""
        return None

    @property
    def ends_early(self) -> bool:
        """Whether a sample may end before its last step, so that it may cost less than `calls` though it stands."""
        return type(self).finished is not Attack.finished

    @property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """Two words for each attempt, of an attack whose attempts are each of interest by themselves; else none."""
        return ()

    def ball(self, threat: Threat, x: Tensor, eps: Tensor | None = None) -> Ball:
        """The ball in which it may look around each image: the threat's, or for a minimal attack the whole box."""
        return threat.around(x, x.new_full((len(x),), 1e30) if self.minimal else eps)

    def resolve(self, threat: Threat) -> Self:
        """This attack with every default that depends on the threat filled in."""
        return self

    def start(self, query: Query, batch: Batch) -> State:
        """The state before the first step."""
        raise NotImplementedError

    def step(self, query: Query, batch: Batch, state: State) -> State:
        """The state after one more step."""
        raise NotImplementedError

    def finished(self, batch: Batch, state: State) -> Tensor | None:
        """Which samples need no more steps, (N,) bool; None: all take `length` steps."""
        return None


def ball_of(attack: Attack, threat: Threat, x: Tensor, eps: Tensor | None = None) -> Ball:
    """The ball that an attack asks for around images x (N, C, H, W), in memory that the attack does not hold.

    Raises UserError where it is a ball around other images.
    """
    ball = copied(attack.ball(threat, x.clone(), None if eps is None else eps.clone()))
    if not torch.equal(ball.x, x):
        raise UserError(f"attack {attack.name}: ball: expected the ball around the images as given, got other images")
    return ball
