"""Margin decomposition, of logits and of probabilities: the terms, the stages, known optima."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.md import LABEL, MD, OTHER, WHOLE, margin_parts
from robustbench_lite.attacks.pma import PMA, probability_parts
from robustbench_lite.conformance.driver import Driver
from robustbench_lite.errors import UserError
from robustbench_lite.threat import Threat

LOGITS = torch.randn((30, 6), generator=torch.Generator().manual_seed(3))
Y = torch.arange(30) % 6


@pytest.fixture
def model() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 20), nn.Tanh(), nn.Linear(20, 4)).eval()
    for parameter in net.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.7
    return net


@pytest.fixture
def x() -> Tensor:
    return torch.rand((24, 1, 5, 5), generator=torch.Generator().manual_seed(1))


def linear(classes: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A linear model, its weights (K, d), and images in the middle of the box."""
    generator = torch.Generator().manual_seed(2)
    layer = nn.Linear(25, classes, bias=False)
    layer.weight.data = torch.randn((classes, 25), generator=generator)
    x = 0.5 + 0.02 * torch.randn((10, 1, 5, 5), generator=generator)
    return nn.Sequential(nn.Flatten(), layer).eval(), layer.weight.detach(), x


def term(logits: Tensor, part: int, targets: Tensor | None) -> Tensor:
    """The term of a margin by its definition, one sample at a time."""
    found = []
    for row, label, aim in zip(logits, Y, Y if targets is None else targets, strict=True):
        others = [z for k, z in enumerate(row) if k != int(aim)]
        up, down = (max(others), row[label]) if targets is None else (row[aim], max(others))
        found.append({LABEL: -down, OTHER: up, WHOLE: up - down}[part])
    return torch.stack(found)


@pytest.mark.parametrize("part", [LABEL, OTHER, WHOLE])
@pytest.mark.parametrize("targets", [None, (Y + 1) % 6])
def test_the_terms_of_the_margin(part: int, targets: Tensor | None) -> None:
    ours = margin_parts(LOGITS, Y, targets, torch.full_like(Y, part))
    assert torch.allclose(ours, term(LOGITS, part, targets))


@pytest.mark.parametrize("part", [LABEL, OTHER, WHOLE])
@pytest.mark.parametrize("targets", [None, (Y + 1) % 6])
def test_probabilities_are_ordered_and_their_gradients_point_as_in_the_paper(part: int, targets: Tensor | None) -> None:
    ours_at = LOGITS.double().requires_grad_()
    theirs_at = LOGITS.double().requires_grad_()
    ours = probability_parts(ours_at, Y, targets, torch.full_like(Y, part))
    theirs = term(theirs_at.softmax(1), part, targets)
    offset = 0.0 if part == OTHER else 1.0
    assert torch.allclose(ours.exp(), theirs + offset)
    (mine,) = torch.autograd.grad(ours.sum(), ours_at)
    (other,) = torch.autograd.grad(theirs.sum(), theirs_at)
    assert (nn.functional.cosine_similarity(mine, other) > 1 - 1e-9).all()


@pytest.mark.parametrize("part", [LABEL, OTHER, WHOLE])
def test_the_gradient_does_not_vanish_where_the_network_is_certain(part: int) -> None:
    logits = (LOGITS + 10 * nn.functional.one_hot(Y, 6)).mul(1000).requires_grad_()
    loss = probability_parts(logits, Y, None, torch.full_like(Y, part))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax(1) > 0.5).all()


@pytest.mark.parametrize("attack", [MD(steps=10), PMA(steps=10)])
@pytest.mark.parametrize("attempt", [0, 1])
def test_two_stages_with_a_cosine_each(attack: MD, attempt: int, model: nn.Module, x: Tensor) -> None:
    eps = 0.05
    runner = Driver(attack, Threat("linf", eps), model, 4)
    y = runner.labels(x)
    batch = runner.batch(x, y)
    batch = rbl.Batch(batch.ball, y, None, batch.step, batch.stream, torch.full_like(y, attempt))
    trace = runner.run(batch, steps=10)
    seen = trace[0].state.candidate
    for k in range(10):
        seen = seen.clone().requires_grad_()
        logits = model(seen) if type(attack) is MD else model(seen).softmax(1)
        label = logits.gather(1, y.unsqueeze(1))[:, 0]
        other = logits.scatter(1, y.unsqueeze(1), -math.inf).amax(1)
        loss = other - label if k >= 5 else (-label, other)[attempt]
        (gradient,) = torch.autograd.grad(loss.sum(), seen)
        size = eps * (1 + math.cos(math.pi * (k % 5) / 5))
        seen = seen.detach() + size * gradient.sign()
        seen = torch.min(torch.max(seen, x - eps), x + eps).clamp(0, 1)
    assert (trace[-1].state.candidate - seen).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["md", "pma"])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_reaches_the_optimum_of_a_linear_model(name: str, norm: str) -> None:
    net, weight, x = linear(2)
    logits = net(x).detach()
    y = logits.argmax(1)
    size = torch.linalg.vector_norm(weight[0] - weight[1], ord=1 if norm == "linf" else 2)
    distance = (logits[:, 0] - logits[:, 1]).abs() / size
    options: dict[str, Any] = {"norm": norm, "attack": name, "attack_options": {"steps": 20}}
    assert rbl.evaluate(net, x, y, eps=1.02 * distance, **options).robust_accuracy == 0.0
    assert rbl.evaluate(net, x, y, eps=0.99 * distance, **options).robust_accuracy == 1.0


@pytest.mark.parametrize("name", ["md", "pma"])
def test_it_reaches_a_given_class(name: str) -> None:
    net, _, x = linear(3)
    y = net(x).argmax(1)
    targets = (y + 1) % 3
    adversarial = rbl.perturb(net, x, y, targets=targets, attack=name, eps=0.3)
    assert torch.equal(net(adversarial).argmax(1), targets)


@pytest.mark.parametrize("kind", [MD, PMA])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "^steps must be >= 1, got 0"),
        ({"restarts": 0}, "^restarts must be >= 1, got 0"),
        ({"first_stage": 1.5}, r"^first_stage must be in \[0, 1\], got 1\.5"),
        ({"first_stage": float("nan")}, r"^first_stage must be in \[0, 1\], got nan"),
    ],
)
def test_options_out_of_range(kind: type[MD], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**options)
