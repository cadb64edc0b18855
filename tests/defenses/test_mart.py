"""mart: its three terms by hand, and that it stands last."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

import robustbench_lite as rbl
from robustbench_lite.defense import Loss
from robustbench_lite.defenses.label_smoothing import LabelSmoothing
from robustbench_lite.defenses.mart import Mart
from robustbench_lite.defenses.weight_decay import WeightDecay
from robustbench_lite.errors import UserError
from robustbench_lite.prepare import make_defenses
from robustbench_lite.training import Trainer

from .steps import batch, network, plain, trained, trainer_of, value


def test_its_terms_by_hand() -> None:
    x, y = batch()
    model = network()
    trainer = trainer_of(perturb=lambda _model, x, y, **_: (x + 0.1).clamp(0, 1))
    found = value(Mart(weight=2.0), model, x, y, trainer)
    clean, moved = (model(z).softmax(1).detach() for z in (x, (x + 0.1).clamp(0, 1)))
    total = 0.0
    for i, label in enumerate(y.tolist()):
        others = max(float(moved[i, k]) for k in range(3) if k != label)
        kl = kl_div(moved[i].log(), clean[i], reduction="sum")
        total += -moved[i, label].log() - torch.log(torch.tensor(1 - others)) + 2 * kl * (1 - clean[i, label])
    assert found.item() == pytest.approx(float(total / len(y)), rel=1e-5)


def test_it_hardens() -> None:
    x, y = batch(90)
    options = {"attack": "pgd", "eps": 0.1, "checks": False}
    nets = (trained(), trained(Mart(eps=0.1, steps=4), epochs=12))
    robust = [rbl.evaluate(m, x, y, **options).robust_accuracy for m in nets]  # type: ignore[arg-type]
    assert robust[1] > robust[0]


def test_what_stands_behind_it_would_be_lost_and_is_refused() -> None:
    with pytest.raises(UserError, match=r"^defenses: mart takes the place of the loss behind it"):
        trained(Mart(eps=0.1, steps=1), WeightDecay(), epochs=1)
    with pytest.raises(UserError, match=r"^--defense: mart takes the place of the loss behind it"):
        make_defenses(["mart", "weight-decay"])
    trained(WeightDecay(), Mart(eps=0.1, steps=1), epochs=1)


def test_one_of_ones_own_that_does_not_state_it_is_found_out() -> None:
    class Alone(WeightDecay):
        def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
            return plain(network, x, y)

    trained(Alone(), epochs=1)
    with pytest.raises(UserError, match=r"^--defense: weight-decay takes the place of the loss behind it"):
        trained(Alone(), LabelSmoothing(), epochs=1)


def test_labels_that_are_mixed_are_refused() -> None:
    with pytest.raises(UserError, match=r"^--defense mart: it takes labels"):
        trained(LabelSmoothing(), Mart(eps=0.1, steps=1), epochs=1)
