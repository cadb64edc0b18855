"""label-smoothing: the smoothed cross-entropy, closed form."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from robustbench_lite.defenses.label_smoothing import LabelSmoothing
from robustbench_lite.errors import UserError

from .steps import batch, network, value


def test_it_is_the_library_s_smoothing() -> None:
    x, y = batch()
    model = network()
    by_hand = cross_entropy(model(x), y, label_smoothing=0.3)
    assert torch.allclose(value(LabelSmoothing(share=0.3), model, x, y), by_hand)


def test_shares_are_smoothed_too() -> None:
    x, y = batch()
    model = network()
    shares = 0.5 * one_hot(y, 3).float() + 0.5 * one_hot(y.roll(1), 3).float()
    by_hand = cross_entropy(model(x), 0.8 * shares + 0.2 / 3)
    assert torch.allclose(value(LabelSmoothing(share=0.2), model, x, shares), by_hand)


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^share must be in \[0, 1\), got 1"):
        LabelSmoothing(share=1.0)
