"""dropout: inputs of linear layers are left out while learning, and the network is whole afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.defenses.dropout import Dropout
from robustbench_lite.errors import UserError

from .steps import accuracy, batch, network, trained, trainer_of


def test_the_share_is_left_out_and_the_rest_made_up_for() -> None:
    layer = nn.Linear(400, 1, bias=False)
    layer.weight.data.fill_(1.0)
    model = nn.Sequential(nn.Flatten(), layer).train()
    x = torch.ones(3000, 1, 20, 20)

    def inner(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        sums: Tensor = network(x)
        return sums

    torch.manual_seed(0)
    sums = Dropout(share=0.25).loss(model, x, torch.zeros(3000, dtype=torch.int64), inner, trainer_of()).detach()
    assert float(sums.mean()) == pytest.approx(400, rel=0.01)
    assert float(sums.var()) == pytest.approx(400 * 0.25 / 0.75, rel=0.2)
    assert torch.equal(model(x), torch.full((3000, 1), 400.0))
    model.eval()
    whole = Dropout(share=0.25).loss(model, x, torch.zeros(3000, dtype=torch.int64), inner, trainer_of())
    assert torch.equal(whole, torch.full((3000, 1), 400.0))


def test_it_learns_and_leaves_no_hook() -> None:
    model = trained(Dropout(share=0.3), epochs=12)
    assert accuracy(model) > 0.9
    assert not any(layer._forward_pre_hooks for layer in model.modules())
    x, y = batch()

    def fails(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        raise ZeroDivisionError

    model = network()
    with pytest.raises(ZeroDivisionError):
        Dropout().loss(model, x, y, fails, trainer_of())
    assert not any(layer._forward_pre_hooks for layer in model.modules())


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^share must be in \[0, 1\), got 1"):
        Dropout(share=1.0)
