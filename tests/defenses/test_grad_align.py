"""grad-align: the angle by finite numbers, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from robustbench_lite.defenses.grad_align import GradAlign
from robustbench_lite.errors import UserError
from robustbench_lite.history import History
from robustbench_lite.streams import uniform_noise

from .steps import batch, network, plain, trained, trainer_of, value


def test_fgsm_and_the_angle_by_hand() -> None:
    x, y = batch()
    model = network()
    found = value(GradAlign(eps=0.2, weight=0.7), model, x, y)
    torch.manual_seed(7)
    both = []
    for at in (x, x + 0.2 * uniform_noise(x)):
        at = at.clone().requires_grad_()
        both.append(torch.autograd.grad(cross_entropy(model(at), y), at)[0].flatten(1))
    cosine = (both[0] * both[1]).sum(1) / (both[0].norm(dim=1) * both[1].norm(dim=1))
    seen = (x + 0.2 * both[0].sign().reshape(x.shape)).clamp(0, 1)
    assert torch.allclose(found, plain(model, seen, y) + 0.7 * (1 - cosine).mean(), atol=1e-6)


def test_a_linear_network_of_two_classes_is_aligned_already() -> None:
    x, y = batch()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    trainer = trainer_of()
    GradAlign(eps=0.3).loss(model, x, y % 2, plain, trainer)
    assert trainer.history.noted["gradient_angle"][0] == pytest.approx(0, abs=1e-5)


def test_training_aligns_gradients() -> None:
    with_it, without = History(), History()
    trained(GradAlign(eps=0.2, weight=2.0), history=with_it, epochs=12)
    trained(GradAlign(eps=0.2, weight=0.0), history=without, epochs=12)
    assert with_it.rows[-1]["gradient_angle"] < 0.8 * without.rows[-1]["gradient_angle"]


def test_eps_grows_where_it_is_told_to() -> None:
    x, y = batch()
    model, trainer = network(), trainer_of()
    half = value(GradAlign(eps=0.2, weight=0.7), model, x, y)
    trainer.done = 0.25
    assert torch.equal(value(GradAlign(eps=0.4, weight=0.7, warmup=0.5), model, x, y, trainer), half)
    trainer.done = 0.9
    assert torch.equal(value(GradAlign(eps=0.2, weight=0.7, warmup=0.5), model, x, y, trainer), half)


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"warmup": 1.5}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(options))} must be"):
        GradAlign(**options)
