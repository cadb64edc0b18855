"""Simultaneous perturbation against the loop of the paper written out, and on a linear layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Batch
from robustbench_lite.attacks.spsa import SPSA
from robustbench_lite.errors import UserError
from robustbench_lite.losses import margin
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat


class Curved:
    """Answers a query with a small network of three classes, and counts the images."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = torch.randn((75, 9), generator=generator), torch.randn((9, 3), generator=generator)
        self.asked = 0

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        self.asked += len(x)
        return torch.tanh(x.flatten(1) @ self.first * 0.2) @ self.last

    def labels(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.logits(x, rows).argmax(1)


def batch_of(count: int, *, norm: str, step: int = 0) -> Batch:
    x = torch.rand((count, 3, 5, 5), generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    zero = torch.zeros(count, dtype=torch.int64)
    eps = 0.03 if norm == "linf" else 0.2
    return Batch(Threat(norm, eps).around(x), zero, None, zero + step, Stream(torch.arange(count)), zero)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_is_adam_along_the_papers_estimate(norm: str) -> None:
    network: Any = Curved()
    attack, batch = SPSA(steps=5, samples=6, step_size=0.01), batch_of(3, norm=norm)
    state = attack.start(network, batch)
    x = batch.ball.x.clone()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(5):
        batch = batch_of(3, norm=norm, step=step)
        slope = torch.zeros_like(x)
        for i in range(3):
            signs = (batch.stream.child("signs").uniform((3, 5, 5), draw=step * 3 + i) < 0.5).float() * 2 - 1
            above, below = (margin(network.logits(x + way * 0.01 * signs), batch.y, None) for way in (1, -1))
            slope += ((above - below) / 0.02).reshape(-1, 1, 1, 1) / signs / 3
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        unbiased = first / (1 - 0.9 ** (step + 1)), second / (1 - 0.999 ** (step + 1))
        x = batch.ball.project(x + 0.01 * unbiased[0] / (unbiased[1].sqrt() + 1e-8))
        network.asked = 0
        state = attack.step(network, batch, state)
        assert network.asked == 3 * 7
        assert torch.allclose(state.candidate, x, atol=2e-4)
    assert (batch.ball.distance(state.candidate) > 0.9 * batch.ball.eps).all()


@pytest.mark.parametrize("target", [None, "next"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_one_linear_layer_it_comes_near_the_best_point(norm: str, target: str | None) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(64, 3)
    layer.weight.data = torch.randn((3, 64), generator=generator)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x = torch.rand((40, 1, 8, 8), generator=generator) * 0.4 + 0.3
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    aims = [(y + 1) % 3] if target else [(y + 1) % 3, (y + 2) % 3]
    dual = 1 if norm == "linf" else 2
    gaps = torch.stack(
        [
            (logits.gather(1, y[:, None]) - logits.gather(1, aim[:, None]))[:, 0]
            / torch.linalg.vector_norm(layer.weight.data[y] - layer.weight.data[aim], ord=dual, dim=1)
            for aim in aims
        ]
    ).amin(0)
    eps = float(gaps.median())
    options = {"steps": 40, "samples": 64}
    found = rbl.evaluate(
        model, x, y, attack="spsa", norm=norm, eps=eps, target=target, attack_options=options, checks=False
    )
    assert not found.success[gaps > eps * 1.001].any()
    assert found.success[gaps < 0.8 * eps].double().mean() > (0.8 if target else 0.95)
    assert found.backwards == 0


def test_a_success_on_the_way_ends_it() -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(16, 2)
    layer.weight.data = torch.randn((2, 16), generator=generator)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x = torch.rand((20, 1, 4, 4), generator=generator) * 0.4 + 0.3
    y = model(x).argmax(1)
    options = {"steps": 100, "samples": 10}
    found = rbl.evaluate(model, x, y, attack="spsa", eps=0.3, attack_options=options, checks=False)
    assert found.robust_accuracy <= 0.1
    assert int(found.samples.forwards.median()) < 550


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"restarts": 0}, "restarts must be >= 1, got 0"),
        ({"samples": 3}, "samples must be even and >= 2, got 3"),
        ({"delta": 0.0}, "delta must be > 0, got 0"),
        ({"step_size": -1.0}, "step_size must be > 0, got -1"),
        ({"loss": "mergin"}, "margin"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SPSA(**options)
