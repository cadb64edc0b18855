"""dropout-at-test: mean and spread of a linear layer, and no hook left."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from robustbench_lite.defenses.dropout_at_test import DropoutAtTest
from robustbench_lite.errors import UserError


def test_mean_and_spread_of_a_sum() -> None:
    layer = nn.Linear(400, 2, bias=False)
    layer.weight.data.fill_(1.0)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x = torch.ones(3000, 1, 20, 20)
    torch.manual_seed(0)
    with torch.no_grad():
        sums = DropoutAtTest(share=0.25).wrap(model).eval()(x)[:, 0]
        assert torch.equal(model(x)[:, 0], torch.full((3000,), 400.0))
    assert float(sums.mean()) == pytest.approx(400, rel=0.01)
    assert float(sums.var()) == pytest.approx(400 * 0.25 / 0.75, rel=0.15)
    assert not layer._forward_pre_hooks


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^share must be in \[0, 1\), got 1"):
        DropoutAtTest(share=1.0)
