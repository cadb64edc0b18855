"""weight-decay: the sum by hand, and smaller weights."""

from __future__ import annotations

import pytest
from torch import nn

from robustbench_lite.defenses.weight_decay import WeightDecay
from robustbench_lite.errors import UserError

from .steps import batch, network, plain, trained, value


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_the_weights_count_and_biases_do_not(kind: str) -> None:
    x, y = batch()
    model = network()
    found = value(WeightDecay(decay=0.3, kind=kind), model, x, y).item()
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    total = sum(float((w.weight.detach() ** 2 / 2 if kind == "l2" else w.weight.detach().abs()).sum()) for w in layers)
    assert found == pytest.approx(plain(model, x, y).item() + 0.3 * total, rel=1e-5)


@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_training_keeps_them_small(kind: str) -> None:
    def size(model: nn.Module) -> float:
        return sum(float(p.detach().abs().sum()) for p in model.parameters() if p.ndim > 1)

    assert size(trained(WeightDecay(decay=0.05, kind=kind))) < 0.8 * size(trained())


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^decay must be >= 0"):
        WeightDecay(decay=-1.0)
    with pytest.raises(UserError, match=r"^kind: unknown name 'l3'"):
        WeightDecay(kind="l3")
