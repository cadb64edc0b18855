"""logit-squeezing: the length of the logits by hand, and shorter logits."""

from __future__ import annotations

import pytest
import torch

from robustbench_lite.defenses.logit_squeezing import LogitSqueezing
from robustbench_lite.errors import UserError

from .steps import batch, network, plain, trained, value


def test_the_logits_of_the_noisy_images_count() -> None:
    x, y = batch()
    model = network()
    found = value(LogitSqueezing(sigma=0.2, weight=0.5), model, x, y)
    torch.manual_seed(7)
    noisy = (x + 0.2 * torch.randn_like(x)).clamp(0, 1)
    assert torch.allclose(found, plain(model, noisy, y) + 0.5 * model(noisy).norm(dim=1).mean())
    assert not model._forward_hooks


def test_training_shortens_logits() -> None:
    x, _ = batch(90)
    with torch.no_grad():
        squeezed, usual = (m(x).norm(dim=1).mean() for m in (trained(LogitSqueezing(0.1, 0.3)), trained()))
    assert float(squeezed) < 0.7 * float(usual)


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^sigma must be >= 0"):
        LogitSqueezing(sigma=-1.0)
    with pytest.raises(UserError, match=r"^weight must be >= 0"):
        LogitSqueezing(weight=-1.0)
