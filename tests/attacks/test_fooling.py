"""From noise to a class: one step is the paper's, many reach what one does not, and the share of the sure is told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.fooling import Fooling
from robustbench_lite.errors import UserError


def _net(scale: float = 3.0) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    net[1].weight.data = torch.randn((5, 48), generator=torch.Generator().manual_seed(3)) * 0.2 * scale
    net[1].bias.data = -0.5 * net[1].weight.data.sum(1)  # grey is of no class
    return net.eval()


def _data(net: nn.Module) -> tuple[Tensor, Tensor]:
    x = torch.rand((30, 3, 4, 4), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return x, net(x).argmax(1)


def _run(net: nn.Module, target: str | None = "next", **options: Any) -> rbl.Result:
    x, y = _data(net)
    return rbl.evaluate(net, x, y, attack="fooling", target=target, attack_options=options)


def test_one_step_is_along_the_sign_of_the_gradient() -> None:
    net = _net()
    x, y = _data(net)
    noise = rbl.perturb(net, x, y, attack="fooling", eps=1, targets=(y + 1) % 5, attack_options={"step_size": 1e-9})
    found = rbl.perturb(net, x, y, attack="fooling", eps=1, targets=(y + 1) % 5)
    asked = noise.clone().requires_grad_()
    logits = net(asked)
    share = logits.softmax(1).gather(1, ((y + 1) % 5)[:, None])[:, 0]
    share.log().sum().backward()
    assert asked.grad is not None
    wanted = (noise + 0.25 * asked.grad.sign()).clamp(0, 1)
    sure = share > 0.5
    assert sure.any() and not sure.all()
    assert torch.allclose(found[~sure], wanted[~sure], atol=1e-5)
    assert torch.allclose(found[sure], noise[sure], atol=1e-5)


def test_the_noise_owes_nothing_to_the_image() -> None:
    x = torch.ones((50, 3, 16, 16))
    y = torch.zeros(50, dtype=torch.int64)
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 2)).eval()
    noise = rbl.perturb(net, x, y, attack="fooling", eps=1, attack_options={"step_size": 1e-9, "sigma": 0.1})
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(noise.std()) == pytest.approx(0.1, rel=0.02)


@pytest.mark.parametrize("target", ["next", None])
def test_many_steps_go_on_until_the_network_is_sure(target: str | None) -> None:
    net = _net()
    found = _run(net, target, steps=60, step_size=0.01, confidence=0.9)
    assert found.confidence is not None and found.adversarial is not None
    with torch.no_grad():
        logits = net(found.adversarial)
    assert torch.allclose(logits.softmax(1).amax(1), found.confidence, atol=1e-5)
    assert (found.confidence > 0.9).all() and found.confident == 1.0 == found.summary()["confident"]
    assert found.success.all()


def test_taken_for_the_class_and_sure_of_it_are_told_apart() -> None:
    found = _run(_net(0.05), steps=1)
    assert found.confidence is not None
    assert found.success.double().mean() > 0.5
    assert found.confident == 0.0 and found.confidence.max() < 0.5
    assert rbl.evaluate(_net(), *_data(_net()), attack="fgsm").confident is None


def test_of_many_steps_no_more_are_taken_than_needed() -> None:
    found = _run(_net(), steps=200, step_size=0.02)
    assert found.column("backwards").max() < 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"step_size": 0}, "step_size must be > 0, got 0"),
        ({"sigma": -1}, "sigma must be > 0, got -1"),
        ({"noise": "pink"}, "noise must be gaussian or uniform, got 'pink'"),
        ({"confidence": 1.0}, r"confidence must be in \[0, 1\), got 1"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Fooling(**options)
