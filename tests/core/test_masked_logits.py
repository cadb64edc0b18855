"""Logits of -inf: classes that a network rules out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.errors import UserError
from robustbench_lite.losses import LOSSES
from robustbench_lite.network import Network, Noise
from robustbench_lite.streams import Stream

X = torch.rand(24, 1, 6, 6, generator=torch.Generator().manual_seed(0))
ROWS = torch.zeros(24, dtype=torch.int64)


class Masked(nn.Module):
    """A linear network of six classes, of which some have the logit `value`; `by_image`: of half the images only."""

    def __init__(self, classes: tuple[int, ...], value: float, *, by_image: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(36, 6)
        self.classes, self.value, self.by_image = list(classes), value, by_image

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        masked = torch.zeros_like(logits, dtype=torch.bool)
        masked[:, self.classes] = True
        if self.by_image:
            masked &= (x.flatten(1)[:, :1] > 0.5) | (torch.arange(6) == 5)
        return logits.masked_fill(masked, self.value)


def ask(model: nn.Module, name: str, y: Tensor) -> tuple[Tensor, Tensor]:
    return Network(model.eval()).gradient(X, Noise(Stream(ROWS), ROWS), LOSSES[name], y, None)


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("by_image", [False, True])
def test_losses_and_gradients_are_those_of_the_other_classes(loss: str, by_image: bool) -> None:
    model = Masked((4, 5), -torch.inf, by_image=by_image)
    y = model(X).argmax(1)
    gradient, logits = ask(model, loss, y)
    expected, others = ask(Masked((4, 5), -1e4, by_image=by_image), loss, y)
    assert torch.isfinite(logits).all() and (gradient.flatten(1).norm(dim=1) > 0).all()
    assert torch.allclose(gradient, expected, atol=1e-6)
    assert torch.equal(logits.argmax(1), others.argmax(1))
    value = LOSSES[loss](logits, y, None)
    assert torch.allclose(value, LOSSES[loss](others, y, None), atol=1e-5)


def test_the_slope_of_dlr_is_kept_where_two_classes_are_left() -> None:
    model = Masked((2, 3, 4, 5), -torch.inf)
    y = model(X).argmax(1)
    gradient, _ = ask(model, "dlr", y)
    direction, _ = ask(model, "margin", y)
    assert (torch.cosine_similarity(gradient.flatten(1), direction.flatten(1)) > 0.999).all()


@pytest.mark.parametrize("attack", ["pgd", "apgd-dlr", "fab-t", "deepfool", "square"])
def test_attacks_get_as_far_as_without_a_mask(attack: str) -> None:
    options: dict[str, Any] = {"attack": attack, "eps": 0.05, "checks": False}
    with_mask, without = (
        rbl.evaluate(Masked((3, 4, 5), value).eval(), X, Masked((3, 4, 5), value)(X).argmax(1), **options)
        for value in (-torch.inf, -1e4)
    )
    assert with_mask.clean_accuracy == 1
    assert with_mask.robust_accuracy == without.robust_accuracy < 1
    assert np.isfinite(with_mask.run.table["adversarial_margin"].to_numpy()).all()


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_other_values_are_refused(value: float) -> None:
    with pytest.raises(UserError, match=r"^model: expected finite logits, got NaN or infinity"):
        rbl.evaluate(Masked((1,), value).eval(), X, ROWS)
    with pytest.raises(UserError, match=r"^model: expected finite logits"):
        rbl.evaluate(Masked((0, 1, 2, 3, 4, 5), -torch.inf).eval(), X, ROWS)
