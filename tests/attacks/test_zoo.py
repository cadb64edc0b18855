"""Zeroth order optimisation: the paper's step written out, the search for c, the boundary of a linear layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Batch
from robustbench_lite.attacks.zoo import ZOO
from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat

SHAPE = (3, 4, 4)


class Curved:
    """Answers a query with a small network of three classes in float64, and counts the images."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first = torch.randn((48, 9), generator=generator).double()
        self.last = torch.randn((9, 3), generator=generator).double()
        self.asked = 0

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        self.asked += len(x)
        return torch.tanh(x.flatten(1).double() @ self.first * 0.2) @ self.last


def batch_of(count: int, *, step: int = 0) -> Batch:
    x = torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    y = Curved().logits(x).argmax(1)
    ball = Threat("l2", 0.0).around(x, torch.full((count,), 1e30))
    return Batch(ball, y, None, torch.full((count,), step), Stream(torch.arange(count)), torch.zeros_like(y))


def objective(network: Any, x: Tensor, flat: Tensor, y: Tensor, c: float) -> Tensor:
    chance = network.logits(flat).log_softmax(1)[0]
    others = chance[torch.arange(3) != y].max()
    value: Tensor = (flat - x).double().square().sum() + c * (chance[y] - others).clamp_min(0)
    return value


def test_a_step_is_the_papers() -> None:
    network: Any = Curved()
    attack = ZOO(steps=30, coordinates=10, c=2.0, searches=1, memory=False)
    state = attack.start(network, batch_of(3))
    x = batch_of(3).ball.x.flatten(1)
    now, first, second, times = x.clone(), torch.zeros(3, 48), torch.zeros(3, 48), torch.zeros(3, 48)
    for step in range(30):
        batch, network.asked = batch_of(3, step=step), 0
        state = attack.step(network, batch, state)
        assert network.asked == 3 * 21
        drawn = batch.stream.child("numbers").uniform((48,), draw=step)
        for row in range(3):
            moved = now[row].clone()
            for i in drawn[row].argsort(descending=True)[:10].tolist():
                way = torch.zeros(1, 48)
                way[0, i] = 1e-3
                above, below = (
                    objective(network, x[row], now[row] + sign * way, batch.y[row], 2.0) for sign in (1, -1)
                )
                slope = (above - below) / 2e-3
                times[row, i] += 1
                first[row, i] = 0.9 * first[row, i] + 0.1 * slope
                second[row, i] = 0.999 * second[row, i] + 0.001 * slope**2
                unbiased = first[row, i] / (1 - 0.9 ** times[row, i])
                scale = (second[row, i] / (1 - 0.999 ** times[row, i])).sqrt()
                moved[i] = (now[row, i] - 0.01 * unbiased / (scale + 1e-8)).clamp(0, 1)
            now[row] = moved
        assert (state.image.flatten(1) - now).abs().max() < 3e-3
        assert torch.equal(state.count, times.int())


def test_c_is_found_by_bisection_and_each_search_begins_anew() -> None:
    network: Any = Curved()
    attack = ZOO(steps=5, searches=4, coordinates=3, c=0.01, memory=False)
    state = attack.start(network, batch_of(2))
    asked = []
    for step, hit in enumerate([True] * 5 + [False] * 5 + [False] * 5 + [False]):
        state = attack.step(network, batch_of(2, step=step), state)
        state.hit[:] = torch.tensor([hit, False])
        asked.append(state.const.tolist())
        if step % 5 == 0:
            assert bool((state.count.sum(1) == 3).all())
            gap = (state.image - batch_of(2).ball.x).abs()
            assert bool(((gap > 0).flatten(1).sum(1) <= 3).all())
    first, second = zip(*asked[::5], strict=True)
    assert first == pytest.approx((0.01, 0.005, 0.0075, 0.00875))
    assert second == pytest.approx((0.01, 0.1, 1.0, 10.0))


def test_with_memory_all_numbers_move_by_the_slope_last_found_there() -> None:
    network: Any = Curved()
    attack = ZOO(steps=30, coordinates=10, c=2.0, searches=1)
    state = attack.start(network, batch_of(3))
    x, met = batch_of(3).ball.x, torch.zeros(3, 48, dtype=torch.bool)
    for step in range(12):
        batch, old = batch_of(3, step=step), state
        state = attack.step(network, batch, old)
        which = batch.stream.child("numbers").uniform((48,), draw=step).topk(10, dim=1).indices
        met.scatter_(1, which, True)
        assert torch.equal((state.image != x).flatten(1), met)
        rest = torch.ones_like(met).scatter_(1, which, False)
        assert torch.equal(state.slopes[rest], old.slopes[rest])
        image = old.image.double().requires_grad_()
        chance = network.logits(image)
        (gradient,) = torch.autograd.grad(
            (chance.scatter(1, batch.y[:, None], -1e9).amax(1) - chance.gather(1, batch.y[:, None])[:, 0]).sum(), image
        )
        assert torch.allclose(state.slopes.gather(1, which), gradient.flatten(1).gather(1, which).float(), atol=0.02)


@pytest.mark.parametrize("memory", [True, False])
def test_adam_begins_anew_where_a_search_first_reaches_the_goal_and_only_there(memory: bool) -> None:
    network: Any = Curved()
    attack = ZOO(steps=30, coordinates=10, searches=1, memory=memory)
    state = attack.start(network, batch_of(3))
    for step in range(3):
        state = attack.step(network, batch_of(3, step=step), state)
    here = batch_of(3, step=3)
    goal = torch.arange(3) == 1
    there = dataclasses.replace(here, y=torch.where(goal, (here.y + 1) % 3, here.y))  # the second image is at it now
    if memory:
        assert int(state.count.min()) == 3
    state = attack.step(network, there, state)
    assert state.hit.tolist() == goal.tolist()
    assert int(state.count[1].max()) == 1
    assert int(state.count[0].sum()) == (4 * 48 if memory else 40)
    again = attack.step(network, dataclasses.replace(there, step=here.step + 1), state)
    assert int(again.count[1].sum()) == (2 * 48 if memory else 20)


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("target", [None, "next"])
def test_it_comes_near_the_nearest_boundary_of_a_linear_layer_and_never_below(target: str | None, memory: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    layer = nn.Linear(36, 3)
    layer.weight.data = torch.randn((3, 36), generator=generator) * 0.5
    layer.bias.data = torch.zeros(3)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x = torch.rand((24, 1, 6, 6), generator=generator) * 0.4 + 0.3
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    slope = (layer.weight.data[y][:, None] - layer.weight.data).square().sum(2).sqrt()
    optimum = ((logits.gather(1, y[:, None]) - logits) / slope).scatter(1, y[:, None], float("inf"))
    bound = optimum.amin(1) if target is None else optimum.gather(1, ((y + 1) % 3)[:, None])[:, 0]
    options = {"steps": 50, "searches": 5, "coordinates": 36, "c": 0.1, "memory": memory}
    found = rbl.evaluate(
        model, x, y, attack="zoo", norm="l2", eps=1, target=target, attack_options=options, checks=False
    )
    rows = found.samples
    distance = torch.tensor(rows.distance_l2.to_numpy())
    assert (rows.adversarial_prediction != rows.label).all()
    assert (distance >= bound * (1 - 1e-4)).all()
    if target is None:
        ratio = (distance / bound)[bound > 0.03]
        assert len(ratio) > 16
        assert float(ratio.max()) < 1.25
        assert float(ratio.median()) < 1.1
    else:
        assert (rows.adversarial_prediction == (rows.label + 1) % 3).all()
    assert found.backwards == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"searches": 0}, "searches must be >= 1, got 0"),
        ({"coordinates": 0}, "coordinates must be >= 1, got 0"),
        ({"c": 0.0}, "c must be > 0, got 0"),
        ({"delta": -1.0}, "delta must be > 0, got -1"),
        ({"step_size": float("nan")}, "step_size must be > 0, got nan"),
        ({"confidence": -1.0}, "confidence must be >= 0, got -1"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ZOO(**options)
