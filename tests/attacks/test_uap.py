"""A universal perturbation: one for all, in its ball, the known optimum on a linear network, transferring to others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.uap import UAP
from robustbench_lite.errors import UserError
from robustbench_lite.result import Result

METHODS = ("sgd", "deepfool")


class Linear(nn.Module):
    """Logits W (x - 1/2): every class has its share of the images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        weight = torch.randn((classes, 30), generator=torch.Generator().manual_seed(2))
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return (x - 0.5).flatten(1) @ self.weight.T


def linear(classes: int = 2) -> Linear:
    return Linear(classes).eval()


def _x(count: int = 60, *, seed: int = 0) -> Tensor:
    """Images whose box does not bind."""
    return 0.3 + 0.4 * torch.rand((count, 1, 5, 6), generator=torch.Generator().manual_seed(seed))


def _label(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).argmax(1)  # type: ignore[no-any-return]


def _run(net: nn.Module, x: Tensor, fit: Tensor, **options: Any) -> Result:
    own = {key: options.pop(key) for key in ("norm", "eps", "target") if key in options}
    y, labels = _label(net, x), _label(net, fit)
    return rbl.evaluate(net, x, y, attack="uap", attack_options=options, fit_data=(fit, labels), checks=False, **own)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_on_a_linear_network_it_is_the_normal_of_the_plane(norm: str, method: str) -> None:
    net, eps = linear(), {"linf": 0.1, "l2": 0.4}[norm]
    x = torch.cat([_x(400), _x(400, seed=1)])
    x, fit = (part[_label(net, part) == 0] for part in (x[:400], x[400:]))  # all on one side: one direction is best
    found = _run(net, x, fit, norm=norm, eps=eps, method=method, rate=1.0)
    weight = net.weight.detach()
    normal = (weight[1] - weight[0]).reshape(1, 5, 6)
    best = eps * (normal.sign() if norm == "linf" else normal / normal.norm())
    delta = found.learned["delta"]
    gain, most = float((delta * normal).sum()), float((best * normal).sum())
    assert 0.8 * most <= gain <= most * (1 + 1e-5)
    reachable = (net(x + best).argmax(1) != 0).double().mean()
    assert float(found.success.double().mean()) >= reachable - 0.1 > 0.05


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_one_perturbation_for_all_within_its_ball_and_at_no_cost(norm: str, method: str) -> None:
    net, eps = linear(4), {"linf": 0.1, "l2": 0.6}[norm]
    x = _x()
    found = _run(net, x, _x(seed=1), norm=norm, eps=eps, method=method, epochs=3)
    delta = found.learned["delta"]
    assert delta.shape == x.shape[1:]
    assert float(delta.abs().max() if norm == "linf" else delta.norm()) <= eps * (1 + 1e-6)
    assert found.adversarial is not None
    attacked = found.success
    assert attacked.any()
    assert torch.allclose((found.adversarial - x)[attacked], delta.expand_as(x)[attacked], atol=1e-5)
    # The clean pass and the proof, no more.
    assert (found.column("forwards") == 2).all()
    assert found.backwards == 0
    assert found.fit_forwards > 0
    if method == "sgd":
        assert found.fit_forwards == found.fit_backwards == 3 * 60


def test_it_is_better_than_a_random_direction() -> None:
    net, x = linear(4), _x(200)
    learned = _run(net, x, _x(200, seed=1), eps=0.05).robust_accuracy
    chance = rbl.evaluate(net, x, _label(net, x), attack="noise", eps=0.05, checks=False).robust_accuracy
    assert learned < chance - 0.1


@pytest.mark.parametrize("method", METHODS)
def test_it_leads_to_the_class_that_it_aims_at(method: str) -> None:
    net, x = linear(4), _x(100)
    found = _run(net, x, _x(100, seed=1), eps=0.3, target=2, method=method)
    assert found.success[found.column("attacked")].double().mean() > 0.9
    assert (found.column("adversarial_prediction")[found.success] == 2).all()


def test_deepfool_stops_at_its_rate() -> None:
    net, fit = linear(4), _x(100, seed=1)
    few, many = (_run(net, fit, fit, eps=0.3, method="deepfool", rate=rate, epochs=3) for rate in (0.05, 1.0))
    assert 100 < few.fit_forwards < many.fit_forwards
    assert 0.05 <= few.success.double().mean() <= many.success.double().mean()
    assert many.success.double().mean() > 0.6


def test_the_box_binds_at_evaluation_and_the_slope_goes_on() -> None:
    net = linear()
    x = _x(200).round()  # black and white
    found = _run(net, x, x, eps=0.2)
    assert found.learned["delta"].abs().mean() > 0.1
    assert found.adversarial is not None
    assert found.adversarial.min() >= 0
    assert found.adversarial.max() <= 1


def test_each_sample_keeps_to_an_eps_of_its_own() -> None:
    net, x = linear(4), _x(20)
    eps = torch.linspace(0, 0.2, 20)
    found = rbl.evaluate(net, x, _label(net, x), attack="uap", eps=eps, checks=False)
    assert found.adversarial is not None
    assert ((found.adversarial - x).flatten(1).abs().amax(1) <= eps + 1e-6).all()
    assert found.success.any()


def test_any_batch_size_learns_and_finds_the_same() -> None:
    net, x = linear(4), _x(60)
    runs = [
        rbl.evaluate(net, x, _label(net, x), attack="uap", eps=0.1, batch_size=size, checks=False)
        for size in (1, 37, 256)
    ]
    assert all(torch.equal(run.learned["delta"], runs[0].learned["delta"]) for run in runs)
    assert all(torch.equal(run.success, runs[0].success) for run in runs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adam"}, "method must be sgd or deepfool, got 'adam'"),
        ({"epochs": 0}, "epochs must be >= 1, got 0"),
        ({"minibatch": 0}, "minibatch must be >= 1, got 0"),
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"classes": 0}, "classes must be >= 1, got 0"),
        ({"step_size": 0.0}, "step_size must be > 0, got 0"),
        ({"clip": float("nan")}, "clip must be > 0, got nan"),
        ({"loss": "cw"}, "loss: unknown name 'cw'"),
        ({"overshoot": -1.0}, "overshoot must be >= 0, got -1"),
        ({"rate": 1.1}, r"rate must be in \(0, 1\], got 1.1"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UAP(**options)
