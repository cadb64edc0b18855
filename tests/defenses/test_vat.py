"""vat: the direction in which predictions move most, and images without labels."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import kl_div

from robustbench_lite.data.checks import from_arrays
from robustbench_lite.defenses.vat import VAT
from robustbench_lite.errors import UserError
from robustbench_lite.losses import divergence

from .steps import CLASSES, accuracy, batch, network, plain, trained, trainer_of


def test_the_power_method_finds_the_direction_of_the_largest_curvature() -> None:
    """Of a linear network with two classes the divergence curves along one direction alone, the weights' difference."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 2)
    model = nn.Sequential(nn.Flatten(), layer)
    x, y = batch()
    trainer = trainer_of()
    trainer.classes = 2
    found = VAT(eps=0.5, iterations=2, weight=1.0).loss(model, x, y % 2, plain, trainer)
    along = (layer.weight[0] - layer.weight[1]).detach()
    best = []
    for sign in (1, -1):
        moved = x + 0.5 * sign * (along / along.norm()).reshape(1, 1, 4, 4)
        best.append(divergence(model(x), model(moved)))
    smooth = (found - plain(model, x, y % 2)).item()
    low, high = (torch.stack(best).amin(0).mean().item(), torch.stack(best).amax(0).mean().item())
    assert low * 0.99 <= smooth <= high * 1.01


def test_it_moves_predictions_more_than_noise_of_the_same_length() -> None:
    x, y = batch(90)
    model = trained()
    torch.manual_seed(0)
    smooth = (VAT(eps=0.5).loss(model, x, y, plain, trainer_of()) - plain(model, x, y)).item()
    noise = torch.randn_like(x)
    noise *= 0.5 / noise.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    with torch.no_grad():
        usual = kl_div(model(x + noise).log_softmax(1), model(x).softmax(1), reduction="batchmean").item()
    assert smooth > 2 * usual


def test_images_without_labels_join() -> None:
    x, y = batch()
    others = from_arrays(torch.rand(40, 1, 4, 4), torch.zeros(40, dtype=torch.int64), classes=CLASSES, split="train")
    seen: list[int] = []
    model = network()
    model.register_forward_hook(lambda _m, inputs, _o: seen.append(len(inputs[0])))
    VAT().loss(model, x, y, plain, trainer_of(unlabeled=others))
    assert seen == [24, 24, 24, 12]


def test_it_learns_and_predictions_stay_put() -> None:
    x, y = batch(90)
    nets = (trained(VAT(eps=0.5, weight=2.0)), trained())
    assert accuracy(nets[0]) > 0.9
    torch.manual_seed(1)
    moved = [(VAT(eps=0.5).loss(m, x, y, plain, trainer_of()) - plain(m, x, y)).item() for m in nets]
    assert moved[0] < 0.7 * moved[1]


@pytest.mark.parametrize("options", [{"eps": 0.0}, {"xi": 0.0}, {"weight": -1.0}, {"iterations": 0}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(options))} must be"):
        VAT(**options)  # type: ignore[arg-type]
