"""An attack that breaks its contract is found out, by the check that is meant for it; an honest one is not."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
import torch
from torch import Tensor

from robustbench_lite import Attack, Batch, Query, State, UserError, get_loss, per_row
from robustbench_lite.conformance import check_attack, failed

SHAPES = ((3, 8, 8), (1, 9, 12))


@dataclass(frozen=True)
class Honest(Attack):
    name: ClassVar[str] = "honest"
    summary: ClassVar[str] = "steepest ascent"
    source: ClassVar[str] = "this test"

    steps: int = 4

    @property
    def length(self) -> int:
        return self.steps

    def start(self, query: Query, batch: Batch) -> State:
        return State(batch.ball.random(batch.stream))

    def gradient(self, query: Query, x: Tensor) -> Tensor:
        return query.gradient(x, get_loss("ce")).gradient

    def step(self, query: Query, batch: Batch, state: State) -> State:
        gradient = self.gradient(query, state.candidate)
        return State(batch.ball.ascend(state.candidate, gradient, 0.5 * batch.ball.eps))


@dataclass(frozen=True)
class LeavesBall(Honest):
    def step(self, query: Query, batch: Batch, state: State) -> State:
        gradient = self.gradient(query, state.candidate)
        return State((state.candidate + 0.1 * gradient.sign()).clamp(0, 1))


@dataclass(frozen=True)
class LeavesBox(Honest):
    def start(self, query: Query, batch: Batch) -> State:
        return State(batch.ball.x - 0.9 * batch.ball.eps.reshape(-1, 1, 1, 1))


@dataclass(frozen=True)
class OneEps(Honest):
    """Takes the largest eps of the batch for all."""

    def step(self, query: Query, batch: Batch, state: State) -> State:
        eps = float(batch.ball.eps.max())
        moved = state.candidate + eps * self.gradient(query, state.candidate).sign()
        return State(torch.clamp(moved, batch.ball.x - eps, batch.ball.x + eps).clamp(0, 1))


@dataclass(frozen=True)
class MixesRows(Honest):
    """Scales the step by the whole batch's gradient."""

    norms: ClassVar[tuple[str, ...]] = ("l2",)

    def step(self, query: Query, batch: Batch, state: State) -> State:
        gradient = self.gradient(query, state.candidate)
        return State(batch.ball.project(state.candidate + 0.1 * gradient / gradient.norm()))


@dataclass(frozen=True)
class MixesInOneNorm(Honest):
    """Right in linf, mixes in l2."""

    def step(self, query: Query, batch: Batch, state: State) -> State:
        gradient = self.gradient(query, state.candidate)
        if batch.ball.norm == "l2":
            gradient = gradient + gradient.mean(0, keepdim=True)
        return State(batch.ball.ascend(state.candidate, gradient, 0.5 * batch.ball.eps))


@dataclass(frozen=True)
class OneStepForAll(Honest):
    """Takes the first sample's step for that of all."""

    def step(self, query: Query, batch: Batch, state: State) -> State:
        size = 0.5 * batch.ball.eps / (1 + int(batch.step[0]))
        return State(batch.ball.ascend(state.candidate, self.gradient(query, state.candidate), size))


@dataclass(frozen=True)
class Peeks(Honest):
    access: ClassVar[Literal["gradient", "score", "label"]] = "label"


@dataclass(frozen=True)
class PeeksPast(Honest):
    """Reaches behind the query."""

    access: ClassVar[Literal["gradient", "score", "label"]] = "label"

    def gradient(self, query: Query, x: Tensor) -> Tensor:
        network = query._network.model
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            return torch.autograd.grad(network(at).logsumexp(1).sum(), at)[0]


@dataclass(frozen=True)
class GlobalRandom(Honest):
    def start(self, query: Query, batch: Batch) -> State:
        return State(batch.ball.project(batch.ball.x + 0.01 * torch.rand_like(batch.ball.x)))


@dataclass(frozen=True)
class OwnGenerator(Honest):
    """A generator of its own: the noise belongs to the place in the batch, not to the sample."""

    def start(self, query: Query, batch: Batch) -> State:
        noise = torch.rand(batch.ball.x.shape, generator=torch.Generator().manual_seed(0))
        return State(batch.ball.project(batch.ball.x + 0.01 * noise))


@dataclass(frozen=True)
class Remembers(Honest):
    """Keeps the last gradient outside of the state."""

    memory: dict[str, Tensor] = field(default_factory=dict)

    def start(self, query: Query, batch: Batch) -> State:
        self.memory.clear()
        return super().start(query, batch)

    def step(self, query: Query, batch: Batch, state: State) -> State:
        gradient = self.gradient(query, state.candidate)
        last = self.memory.get("last")
        if last is not None and last.shape == gradient.shape:
            gradient = gradient + last
        self.memory["last"] = gradient.clone()
        return State(batch.ball.ascend(state.candidate, gradient, 0.5 * batch.ball.eps))


_calls = itertools.count()


@dataclass(frozen=True)
class CountsCalls(Honest):
    """Every call is another one."""

    def step(self, query: Query, batch: Batch, state: State) -> State:
        size = batch.ball.eps * (0.1 + 0.1 * (next(_calls) % 7))
        return State(batch.ball.ascend(state.candidate, self.gradient(query, state.candidate), size))


@dataclass(frozen=True)
class InPlace(Honest):
    def start(self, query: Query, batch: Batch) -> State:
        return State(batch.ball.x)

    def step(self, query: Query, batch: Batch, state: State) -> State:
        candidate = state.candidate.add_(0.01 * self.gradient(query, state.candidate).sign())
        return State(batch.ball.project(candidate))


@dataclass(frozen=True)
class CountingState(State):
    done: int


@dataclass(frozen=True)
class PlainNumber(Honest):
    def start(self, query: Query, batch: Batch) -> CountingState:
        return CountingState(batch.ball.x.clone(), 0)

    def step(self, query: Query, batch: Batch, state: State) -> State:
        assert isinstance(state, CountingState)
        moved = super().step(query, batch, state)
        return CountingState(moved.candidate, state.done + 1)


@dataclass(frozen=True)
class OneRow(State):
    mean: Tensor


@dataclass(frozen=True)
class OneRowForAll(Honest):
    def start(self, query: Query, batch: Batch) -> OneRow:
        return OneRow(batch.ball.x.clone(), batch.ball.x.mean().reshape(1))


@dataclass(frozen=True)
class NotAState(Honest):
    def start(self, query: Query, batch: Batch) -> Any:
        return batch.ball.x


@dataclass(frozen=True)
class DividesByZero(Honest):
    def step(self, query: Query, batch: Batch, state: State) -> State:
        gradient = self.gradient(query, state.candidate)
        gradient = gradient / gradient.abs().amax((1, 2, 3), keepdim=True)
        return State(batch.ball.project(state.candidate + 0.01 * gradient))


@dataclass(frozen=True)
class IgnoresTargets(Honest):
    def gradient(self, query: Query, x: Tensor) -> Tensor:
        return query.gradient(x, lambda logits, y, targets: get_loss("ce")(logits, y, None)).gradient


@dataclass(frozen=True)
class WrongDirection(Honest):
    def gradient(self, query: Query, x: Tensor) -> Tensor:
        return -super().gradient(query, x)


@dataclass(frozen=True)
class SameRestarts(Honest):
    def start(self, query: Query, batch: Batch) -> State:
        return State(batch.ball.x.clone())

    @property
    def attempts(self) -> int:
        return 3


@dataclass(frozen=True)
class UnknownNorm(Honest):
    norms: ClassVar[tuple[str, ...]] = ("linf", "l7")


@dataclass(frozen=True)
class NegativeLength(Honest):
    steps: int = -1


@dataclass(frozen=True)
class Unwritten(Attack):
    name: ClassVar[str] = "unwritten"
    summary: ClassVar[str] = "has no steps"
    source: ClassVar[str] = "this test"


@dataclass(frozen=True)
class StopsAllAtOnce(Honest):
    def finished(self, batch: Batch, state: State) -> Tensor:
        return torch.tensor([True])


@dataclass(frozen=True)
class Raises(Honest):
    def step(self, query: Query, batch: Batch, state: State) -> State:
        raise ZeroDivisionError("nothing to divide by")


LIES: list[tuple[type[Attack], str, str]] = [
    (LeavesBall, "ball and box", "leaves the ball"),
    (LeavesBox, "ball and box", "leaves the box"),
    (OneEps, "ball and box", "leaves the ball"),
    (MixesRows, "rows", "mixes samples"),
    (MixesInOneNorm, "rows", "(l2"),
    (OneStepForAll, "rows at different steps", "batch.step"),
    (Peeks, "access", "declares label access and asked for gradient access"),
    (PeeksPast, "counts", "past the query"),
    (GlobalRandom, "random numbers", "draws from torch's global generator"),
    (OwnGenerator, "rows", "mixes samples"),
    (Remembers, "rows at different steps", "mixes samples"),
    (Remembers, "hyperparameters kept", "self.memory"),
    (CountsCalls, "random numbers", "no seed controls"),
    (InPlace, "input untouched", "batch.ball.x in place"),
    (PlainNumber, "state", "state.done is a int"),
    (OneRowForAll, "state", "state.mean must have one row"),
    (NotAState, "access", "must return a robustbench_lite.State, got Tensor"),
    (DividesByZero, "finite", "division by zero"),
    (IgnoresTargets, "targets", "makes no difference"),
    (WrongDirection, "success", "is a sign wrong?"),
    (SameRestarts, "random numbers", "all of them would be the same"),
    (UnknownNorm, "declaration", "unknown 'l7'"),
    (NegativeLength, "declaration", "length must be"),
    (Unwritten, "declaration", "start is not written"),
    (StopsAllAtOnce, "access", "finished must be (8,) bool"),
    (Raises, "access", "it raised ZeroDivisionError: nothing to divide by (line "),
]


@pytest.mark.parametrize(("lie", "name", "words"), LIES, ids=[f"{lie.__name__}-{name}" for lie, name, _ in LIES])
def test_a_breach_is_found_out(lie: type[Attack], name: str, words: str) -> None:
    found = {check.name: check.detail for check in failed(check_attack(lie, shapes=SHAPES))}
    assert name in found
    assert words in found[name]
    assert "\n" not in found[name]


@dataclass(frozen=True)
class Overwrites(Honest):
    """Works in place on what is its own, which is allowed."""

    def step(self, query: Query, batch: Batch, state: State) -> State:
        gradient = self.gradient(query, state.candidate)
        state.candidate.copy_(batch.ball.ascend(state.candidate, gradient, 0.5 * batch.ball.eps))
        return state


@dataclass(frozen=True)
class Climbs(Honest):
    """Score access: keeps a random change that helps."""

    access: ClassVar[Literal["gradient", "score", "label"]] = "score"
    targeted: ClassVar[bool] = False
    steps: int = 10

    def step(self, query: Query, batch: Batch, state: State) -> State:
        noise = batch.stream.normal(batch.ball.x.shape[1:], batch.step)
        trial = batch.ball.project(state.candidate + 0.05 * noise)
        loss = get_loss("margin")
        before = loss(query.logits(state.candidate), batch.y, None)
        better = loss(query.logits(trial), batch.y, None) > before
        return State(torch.where(better.reshape(-1, 1, 1, 1), trial, state.candidate))


@dataclass(frozen=True)
class Corners(Honest):
    """Draws nothing: each attempt begins at another corner of the ball."""

    @property
    def attempts(self) -> int:
        return 2

    def start(self, query: Query, batch: Batch) -> State:
        side = per_row((1 - 2 * batch.attempt) * batch.ball.eps, batch.ball.x)
        return State(batch.ball.project(batch.ball.x + 0.1 * side))


@pytest.mark.parametrize("attack", [Honest, Overwrites, Climbs, Corners])
def test_an_honest_one_passes(attack: type[Attack]) -> None:
    assert not failed(check_attack(attack, shapes=SHAPES))


def test_a_hint_where_less_access_would_do() -> None:
    @dataclass(frozen=True)
    class Modest(Climbs):
        access: ClassVar[Literal["gradient", "score", "label"]] = "gradient"

    detail = {check.name: check.detail for check in check_attack(Modest(), shapes=SHAPES)}
    assert 'access = "score" is enough' in detail["access"]


def test_what_is_no_attack_is_named() -> None:
    class Bare:
        name = "bare"

    (wrong,) = failed(check_attack(Bare))  # type: ignore[arg-type]
    assert "no subclass of robustbench_lite.Attack" in wrong.detail


def test_options_of_the_caller_are_the_callers_to_mend() -> None:
    with pytest.raises(UserError, match="did you mean steps"):
        check_attack(Honest, options={"stepz": 3})
