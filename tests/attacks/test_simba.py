"""SimBA against the paper's loop for one image, its basis of cosines, and a linear layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Batch
from robustbench_lite.attacks.simba import SimBA, _shells
from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat

SHAPE = (3, 6, 5)


class Curved:
    """Answers a query with a small network of three classes, and counts the images."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = torch.randn((90, 9), generator=generator), torch.randn((9, 3), generator=generator)
        self.asked = 0

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        self.asked += len(x)
        return torch.tanh(x.flatten(1) @ self.first * 0.2) @ self.last


def batch_of(count: int, *, step: int = 0, eps: float = 3.0, targets: Tensor | None = None) -> Batch:
    x = torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    zero = torch.zeros(count, dtype=torch.int64)
    return Batch(Threat("l2", eps).around(x), zero, targets, zero + step, Stream(torch.arange(count)), zero)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
@pytest.mark.parametrize("target", [None, 2])
def test_it_is_the_papers_loop(basis: Any, target: int | None) -> None:
    network: Any = Curved()
    targets = None if target is None else torch.full((4,), target)
    attack, batch = SimBA(steps=40, basis=basis, step_size=0.2), batch_of(4, targets=targets)
    state = attack.start(network, batch)
    x, order = batch.ball.x.clone(), state.order
    network.asked = 0
    for step in range(40):
        state = attack.step(network, batch_of(4, step=step, targets=targets), state)
    asked, network.asked = network.asked, 0

    def wrong(image: Tensor) -> float:
        chance = network.logits(image[None]).softmax(1)[0]
        return float(1 - chance[0] if target is None else chance[target])

    for row in range(4):
        best = wrong(x[row])
        network.asked -= 1
        for step in range(40):
            way = attack._direction(order[row, step : step + 1].long(), x[row : row + 1])[0]
            for sign in (1, -1):
                moved = (x[row] + sign * 0.2 * way).clamp(0, 1)
                value = wrong(moved)
                if value > best:
                    x[row], best = moved, value
                    break
        assert torch.allclose(state.candidate[row], x[row], atol=1e-5)
    assert asked == network.asked
    assert not torch.equal(x, batch.ball.x)


@pytest.mark.parametrize("basis", ["pixel", "dct"])
def test_the_directions_are_a_basis_each_used_once_before_a_new_order(basis: Any) -> None:
    count = 90
    ways = SimBA(basis=basis)._direction(torch.arange(count), torch.zeros((1, *SHAPE))).flatten(1)
    assert torch.allclose(ways @ ways.T, torch.eye(count), atol=1e-5)
    network: Any = Curved()
    attack = SimBA(basis=basis, steps=200)
    state = attack.start(network, batch_of(3))
    assert torch.equal(state.order.sort(1).values, torch.arange(count).expand(3, -1).int())
    assert not torch.equal(state.order[0], state.order[1])
    kept = attack.step(network, batch_of(3, step=count - 1), state)
    assert torch.equal(kept.order, state.order)
    renewed = attack.step(network, batch_of(3, step=count), kept).order
    assert torch.equal(renewed.sort(1).values, torch.arange(count).expand(3, -1).int())
    assert not torch.equal(renewed, state.order)


def test_low_frequencies_come_first() -> None:
    shells = _shells((2, 32, 32), 1 / 8).reshape(2, 32, 32)
    assert torch.equal(shells[0], shells[1])
    assert int((shells[0] == 0).sum()) == 16
    assert bool((shells[0, :4, :4] == 0).all())
    assert int(shells[0, 4, 0]) == int(shells[0, 0, 4]) == 1
    assert int(shells[0, 31, 31]) == 28
    network: Any = Curved()
    order = SimBA(basis="dct", share=1 / 3).start(network, batch_of(2)).order
    first = order[:, : 3 * 2 * 2].long()
    assert bool(((first // 5 % 6 < 2) & (first % 5 < 2)).all())


def test_it_stays_in_the_ball_and_goes_on_at_its_surface() -> None:
    network: Any = Curved()
    attack = SimBA(steps=300)
    state = attack.start(network, batch_of(5, eps=0.5))
    for step in range(300):
        if step == 100:
            middle = state.loss.clone()
        batch = batch_of(5, step=step, eps=0.5)
        state = attack.step(network, batch, state)
        assert bool(batch.ball.contains(state.candidate).all())
    assert bool((batch.ball.distance(state.candidate) > 0.45).all())
    assert bool((state.loss >= middle).all())
    assert bool((state.loss > middle).any())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_one_linear_layer_it_comes_near_the_best_point(norm: str) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(64, 3)
    layer.weight.data = torch.randn((3, 64), generator=generator)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x = torch.rand((40, 1, 8, 8), generator=generator) * 0.4 + 0.3
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    slopes = (layer.weight.data[y][:, None] - layer.weight.data).flatten(2)
    dual = torch.linalg.vector_norm(slopes, ord=1 if norm == "linf" else 2, dim=2)
    gaps = ((logits.gather(1, y[:, None]) - logits) / dual).scatter(1, y[:, None], float("inf")).amin(1)
    eps = float(gaps.median())
    for target in (None, "next"):
        options = {"steps": 400, "step_size": eps if norm == "linf" else eps / 10}
        found = rbl.evaluate(
            model, x, y, attack="simba", norm=norm, eps=eps, target=target, attack_options=options, checks=False
        )
        assert not found.success[gaps > eps * 1.001].any()
        if target is None:
            assert found.success[gaps < 0.85 * eps].double().mean() > 0.9
        else:
            assert (found.samples.adversarial_prediction == (found.samples.label + 1) % 3)[found.success.numpy()].all()
            assert found.success.any()
        assert found.backwards == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"restarts": 0}, "restarts must be >= 1, got 0"),
        ({"basis": "pixels"}, "basis: unknown name 'pixels'.*pixel"),
        ({"step_size": 0.0}, "step_size must be > 0, got 0"),
        ({"share": 1.5}, r"share must be in \(0, 1\], got 1.5"),
        ({"loss": "mergin"}, "margin"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SimBA(**options)
