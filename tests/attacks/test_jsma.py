"""JSMA against the search of the paper over all pairs, and its budget."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.jsma import JSMA, best_pair
from robustbench_lite.errors import UserError


@pytest.fixture
def model() -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 20), nn.Tanh(), nn.Linear(20, 3)).eval()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.rand((20, 3, 4, 4), generator=torch.Generator().manual_seed(1))


def by_hand(model: nn.Module, image: Tensor, aim: int, *, theta: float, gamma: float) -> tuple[Tensor, bool]:
    """Algorithms 2 and 3 for one image, over all pairs; as the attack does where no pair fulfils both conditions."""
    now = image.clone()
    for _ in range(int(gamma * image.numel() / 2)):
        if int(model(now[None]).argmax()) == aim:
            return now, True
        jacobian: Any = torch.autograd.functional.jacobian(lambda z: model(z[None])[0], now)  # type: ignore[no-untyped-call]
        jacobian = jacobian.flatten(1) * (1 if theta > 0 else -1)
        a = jacobian[aim]
        b = jacobian.sum(0) - a
        free = (now.flatten() < 1 - theta / 100) if theta > 0 else (now.flatten() > -theta / 100)
        best, fallback, chosen = 0.0, 0.0, None
        rest = None
        for p in range(len(a)):
            for q in range(p + 1, len(a)):
                if not (free[p] and free[q]):
                    continue
                alpha, beta = float(a[p] + a[q]), float(b[p] + b[q])
                if alpha > 0 > beta and -alpha * beta > best:
                    best, chosen = -alpha * beta, (p, q)
                if alpha - beta / (len(jacobian) - 1) > fallback:
                    fallback, rest = alpha - beta / (len(jacobian) - 1), (p, q)
        pair = chosen or rest
        if pair is None:
            break
        flat = now.flatten()
        flat[list(pair)] += theta
        now = flat.reshape(now.shape).clamp(0, 1)
    return now, int(model(now[None]).argmax()) == aim


@pytest.mark.parametrize("theta", [1.0, -1.0, 0.4])
def test_it_is_the_search_of_the_paper(theta: float, model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        y = model(x).argmax(1)
        options = {"theta": theta, "gamma": 0.3}
        found = rbl.evaluate(
            model, x, y, attack="jsma", norm="l0", eps=9, target="next", attack_options=options, checks=False
        )
        rows, reached = found.samples, 0
        for row, image in enumerate(x):
            landed, arrived = by_hand(model, image, int((y[row] + 1) % 3), theta=theta, gamma=0.3)
            reached += arrived
            if arrived:
                assert int(rows.distance_l0[row]) == int((landed != image).sum())
            else:
                assert not rows.success[row]
    assert reached > 5


def test_the_best_pair_is_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    favour, relief = torch.randn((40, 30), generator=generator), torch.randn((40, 30), generator=generator)
    free = torch.rand((40, 30), generator=generator) < 0.7
    favour[30:], relief[30:] = favour[30:].abs(), -relief[30:].abs() - 2  # no pair fulfils both conditions
    favour[39] = -10
    place, found = best_pair(favour, relief, free, 5)
    upper = torch.ones(30, 30, dtype=torch.bool).triu(1)
    for row in range(40):
        own, other = favour[row][:, None] + favour[row], relief[row][:, None] + relief[row]
        both = upper & free[row][:, None] & free[row]
        product = torch.where(both & (own > 0) & (other > 0), own * other, -torch.inf)
        total = torch.where(both, own + other / 4, -torch.inf)
        score = product if row < 30 else total
        p, q = sorted(place[row].tolist())
        assert bool(found[row]) == (float(score.max()) > 0)
        assert float(score[p, q]) == float(score.max())


def test_it_spends_no_more_than_its_share(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        y = model(x).argmax(1)
    for gamma, pairs in ((0.1, 1), (0.3, 1), (0.3, 3)):
        found = rbl.evaluate(
            model, x, y, attack="jsma", norm="l0", eps=40, attack_options={"gamma": gamma, "pairs": pairs}, checks=False
        )
        reached = found.samples[found.samples.success]
        assert len(reached)
        assert reached.distance_l0.max() <= gamma * 48
        # Two gradients a step, and a last look at the one that is at the goal.
        assert found.samples.backwards.max() <= 2 * (gamma * 24 / pairs + 2)


def test_white_that_is_not_quite_white_is_left_alone() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(8, 2, bias=False)).eval()
    slopes = torch.tensor([9.0, 9, 2, 2, 1, 1, 1, 1])
    model[1].weight.data = torch.stack([-slopes, slopes])
    x = torch.full((1, 1, 2, 4), 0.1)
    x[0, 0, 0, :2] = 254 / 255
    model[1].bias = nn.Parameter(torch.tensor([20.0, -20.0]))
    landed = rbl.evaluate(
        model,
        x,
        torch.zeros(1, dtype=torch.int64),
        attack="jsma",
        norm="l0",
        eps=8,
        attack_options={"gamma": 0.3, "steps": 1},
        checks=False,
    )
    assert landed.samples.success.all()
    assert landed.samples.distance_l0[0] == 2


def test_without_a_target_any_wrong_class_will_do(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        y = model(x).argmax(1)
    free, aimed = (
        rbl.evaluate(model, x, y, attack="jsma", norm="l0", eps=20, target=target, checks=False).robust_accuracy
        for target in (None, "least-likely")
    )
    assert free < 0.5
    assert free <= aimed


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: JSMA(theta=0), r"theta must be in \[-1, 1\] and not 0, got 0"),
        (lambda: JSMA(theta=2), r"theta must be in \[-1, 1\] and not 0, got 2"),
        (lambda: JSMA(gamma=0), r"gamma must be in \(0, 1\], got 0"),
        (lambda: JSMA(gamma=float("nan")), r"gamma must be in \(0, 1\], got nan"),
        (lambda: JSMA(pairs=0), "pairs must be >= 1, got 0"),
        (lambda: JSMA(steps=0), "steps must be >= 1, got 0"),
    ],
)
def test_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
