"""A3: what is learned from the first rounds, where restarts begin, and who is given up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Batch
from robustbench_lite.attacks.a3 import A3, A3State
from robustbench_lite.errors import UserError
from robustbench_lite.query import Gradient
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat

NEVER = torch.finfo(torch.float32).min  # a bar below every margin


@pytest.fixture
def model() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 20), nn.Tanh(), nn.Linear(20, 5)).eval()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.rand((60, 1, 5, 5), generator=torch.Generator().manual_seed(1))


def _batch(
    attack: A3, *, step: int, learned: dict[str, Tensor] | None = None, classes: int = 5
) -> tuple[Batch, A3State]:
    y = torch.arange(400) % classes
    x = torch.zeros((400, 1, 1, 1))
    stream = Stream(torch.arange(400)).child("test")
    batch = Batch(Threat("linf", 0.1).around(x), y, None, torch.full_like(y, step), stream, y, learned=learned or {})
    others = torch.stack([(y + k) % classes for k in range(1, classes)], 1)
    return batch, A3State(x, others, torch.zeros(400), torch.zeros(400, dtype=torch.bool))


@pytest.mark.parametrize(("wrong", "right"), [(3.0, 2.0), (3.0, -2.0), (-3.0, 2.0), (-3.0, -2.0)])
def test_later_restarts_begin_along_the_learned_signs(wrong: float, right: float) -> None:
    attack = A3(rounds=4)
    learned = {"signs": torch.tensor([wrong, right], dtype=torch.float64)}
    for step, turn in ((23, 1), (38, 2)):
        batch, state = _batch(attack, step=step, learned=learned)
        w = attack._directions(batch, state, 5)
        own = w.gather(1, batch.y[:, None])[:, 0]
        low, high = (-0.1, 0.5) if right > 0 else (-0.5, 0.1)
        assert low <= float(own.min()) < low + 0.02
        assert high - 0.02 < float(own.max()) <= high
        assert (w.gather(1, state.others[:, turn : turn + 1]) == (0.8 if wrong > 0 else -0.8)).all()
    batch, state = _batch(attack, step=8, learned=learned)
    first = attack._directions(batch, state, 5)
    assert float(first.min()) < -0.98
    assert not (first.abs() == 0.8).any()


class Steered:
    """Answers like a network whose logits follow the pixels, one for each class."""

    n_classes = 4

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return x.flatten(1) * 4

    def gradient(self, x: Tensor, loss: Any, *extra: Tensor) -> Gradient:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            logits = self.logits(x)
            (slope,) = torch.autograd.grad(loss(logits, torch.zeros(len(x), dtype=torch.int64), None, *extra).sum(), x)
        return Gradient(slope, logits.detach())


def test_the_signs_learned_are_those_of_the_directions_that_won() -> None:
    x = torch.full((300, 4, 1, 1), 0.5)
    x[:, 0] = 0.58 + 0.14 * torch.arange(300).reshape(-1, 1, 1) / 300  # some fall in the first round, some never
    y = torch.zeros(300, dtype=torch.int64)
    batch = Batch(Threat("linf", 0.06).around(x), y, None, y, Stream(torch.arange(300)).child("t"), y)
    query: Any = Steered()
    learned = A3(least=0).fit(query, batch)
    assert set(learned) == {"signs", "bars"}
    bars = learned["bars"].tolist()
    assert bars[:3] == [NEVER] * 3
    # The nearer to falling, the longer kept: the bars rise as the shares fall.
    assert bars[3:] == sorted(bars[3:])
    assert NEVER < bars[3] < bars[-1] < 0
    assert A3(least=300).fit(query, batch)["bars"].tolist() == [NEVER] * 13


def test_only_the_likeliest_to_fall_are_kept() -> None:
    attack = A3(rounds=5)
    bars = torch.full((13,), -torch.inf)
    bars[3] = 0.0
    batch, state = _batch(attack, step=37, learned={"bars": bars}, classes=4)
    hope = torch.linspace(-1, 1, 400)
    query: Any = Steered()
    wide = Batch(
        Threat("linf", 0.1).around(torch.full((400, 4, 1, 1), 0.5)),
        batch.y,
        None,
        batch.step,
        batch.stream,
        batch.y,
        learned={"bars": bars, "signs": torch.zeros(2)},
    )
    after = attack.step(query, wide, A3State(wide.ball.x, state.others, hope, state.done))
    assert torch.equal(attack.finished(wide, after), hope < 0)


def test_more_rounds_leave_no_more_and_the_hopeless_cost_less(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        y = model(x).argmax(1)
    few, many, all_of_them = (
        rbl.evaluate(model, x, y, attack="a3", eps=0.03, attack_options=options, checks=False)
        for options in ({"rounds": 2}, {"rounds": 5, "least": 5}, {"rounds": 5, "least": 60})
    )
    assert 0.2 < few.robust_accuracy < 1
    assert all_of_them.robust_accuracy <= many.robust_accuracy <= few.robust_accuracy
    assert many.samples.backwards.sum() < all_of_them.samples.backwards.sum()
    pgd = rbl.evaluate(model, x, y, attack="pgd", eps=0.03, checks=False)
    assert all_of_them.robust_accuracy <= pgd.robust_accuracy + 0.02


def test_the_schedule() -> None:
    assert A3(rounds=2).length == 8 + 15
    assert A3().length == 8 + 15 * 2 + 32 + 37 * 2 + 42 + 47 + 52 + 57 * 5 + 62 * 4 + 67 * 50
    assert A3(start_steps=0, last_restarts=1, rounds=3).length == 24


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: A3(rounds=1), r"rounds must be in 2\.\.13, got 1"),
        (lambda: A3(rounds=14), r"rounds must be in 2\.\.13, got 14"),
        (lambda: A3(start_steps=-1), "start_steps must be >= 0, got -1"),
        (lambda: A3(least=-1), "least must be >= 0, got -1"),
        (lambda: A3(last_restarts=0), "last_restarts must be >= 1, got 0"),
    ],
)
def test_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
