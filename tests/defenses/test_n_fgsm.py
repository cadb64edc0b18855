"""n-fgsm: its images by hand, outside the ball where the noise took them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

import robustbench_lite as rbl
from robustbench_lite.defenses.n_fgsm import NFGSM
from robustbench_lite.errors import UserError
from robustbench_lite.streams import uniform_noise

from .steps import batch, network, plain, trained, value


def test_noise_then_a_step_that_is_not_cut_back() -> None:
    x, y = batch()
    model = network()
    found = value(NFGSM(eps=0.1, noise=2.0), model, x, y)
    torch.manual_seed(7)
    start = (x + 0.2 * uniform_noise(x)).requires_grad_()
    gradient = torch.autograd.grad(cross_entropy(model(start), y), start)[0]
    seen = (start + 0.1 * gradient.sign()).clamp(0, 1).detach()
    assert torch.allclose(found, plain(model, seen, y))
    assert float((seen - x).abs().max()) > 0.1


def test_it_hardens() -> None:
    x, y = batch(90)
    options = {"attack": "pgd", "eps": 0.1, "checks": False}
    nets = (trained(), trained(NFGSM(eps=0.1), epochs=15))
    robust = [rbl.evaluate(m, x, y, **options).robust_accuracy for m in nets]  # type: ignore[arg-type]
    assert robust[1] > robust[0]


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^noise must be >= 0, got -1"):
        NFGSM(noise=-1.0)
