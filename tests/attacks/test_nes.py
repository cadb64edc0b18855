"""Natural evolution strategies: the step size, and the best corner of a linear layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Batch
from robustbench_lite.attacks.nes import NES
from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat


class Linear:
    """Answers a query with a fixed linear network of two classes, whose margin is linear."""

    def __init__(self) -> None:
        self.weight = torch.randn((3 * 6 * 5, 2), generator=torch.Generator().manual_seed(0))

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return x.flatten(1) @ self.weight

    def labels(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.logits(x, rows).argmax(1)


def batch_of(count: int, *, step: int = 0, eps: float = 0.1) -> Batch:
    x = torch.rand((count, 3, 6, 5), generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    zero = torch.zeros(count, dtype=torch.int64)
    return Batch(Threat("linf", eps).around(x), zero, None, zero + step, Stream(torch.arange(count)), zero)


def test_the_step_is_halved_where_the_loss_falls() -> None:
    network: Any = Linear()
    attack = NES(steps=20, samples=2, patience=2, momentum=0.0, step_size=0.01, loss="margin")
    state = attack.start(network, batch_of(30))
    seen = []
    for step in range(8):
        before = state
        state = attack.step(network, batch_of(30, step=step), state)
        seen.append(state.recent[:, -1])
        moved = (state.candidate - before.candidate).flatten(1).abs().amax(1)
        assert (moved <= 0.01 * state.rate + 1e-6).all()
        fresh = before.known >= 1
        fell = fresh & (step > 0) & (seen[-1] < (seen[-2] if step else seen[-1]))
        assert torch.equal(state.rate < before.rate, fell)
        assert torch.equal(state.known == 0, fell)


@pytest.mark.parametrize("target", [None, "next"])
def test_on_one_linear_layer_it_comes_near_the_best_corner(target: str | None) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(64, 3)
    layer.weight.data = torch.randn((3, 64), generator=generator)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x = torch.rand((40, 1, 8, 8), generator=generator) * 0.4 + 0.3
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    aims = [(y + 1) % 3] if target else [(y + 1) % 3, (y + 2) % 3]
    gaps = torch.stack(
        [
            (logits.gather(1, y[:, None]) - logits.gather(1, aim[:, None]))[:, 0]
            / (layer.weight.data[y] - layer.weight.data[aim]).abs().sum(1)
            for aim in aims
        ]
    ).amin(0)
    eps = float(gaps.median())
    found = rbl.evaluate(model, x, y, attack="nes", eps=eps, target=target, attack_options={"steps": 60}, checks=False)
    assert not found.success[gaps > eps * 1.001].any()
    assert found.success[gaps < 0.8 * eps].double().mean() > (0.8 if target else 0.95)
    assert found.backwards == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"samples": 3}, "samples must be even and >= 2, got 3"),
        ({"sigma": 0.0}, "sigma must be > 0, got 0"),
        ({"step_size": -1.0}, "step_size must be > 0, got -1"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1"),
        ({"patience": 1}, "patience must be >= 2, got 1"),
        ({"loss": "mergin"}, "margin"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NES(**options)
