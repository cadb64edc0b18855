"""ibp: both terms by hand, the schedules, and what it is for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import robustbench_lite as rbl
from robustbench_lite.bounds import intervals, least_margins
from robustbench_lite.bounds_ball import box_around
from robustbench_lite.bounds_graph import steps_of
from robustbench_lite.defense import wrap_all
from robustbench_lite.defenses.bit_depth import BitDepth
from robustbench_lite.defenses.ibp import IBP
from robustbench_lite.errors import UserError

from .steps import CLASSES, batch, network, plain, trained, trainer_of, value


def worst_logits(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """By corners: a sum w z over a box is largest where each z is at the end that the sign of its weight points at."""
    first, last = model[1], model[3]  # type: ignore[index]
    low, high = (x - eps).clamp(0, 1).flatten(1), (x + eps).clamp(0, 1).flatten(1)

    def ends(weight: Tensor, bias: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        picked = [torch.where(weight[:, None, :] > 0, *pair) for pair in ((low, high), (high, low))]
        return tuple((weight[:, None, :] * end).sum(2).T + bias for end in picked)  # type: ignore[return-value]

    low, high = (torch.tanh(end) for end in ends(first.weight, first.bias, low, high))
    rows = []
    for i, label in enumerate(y.tolist()):
        weight, bias = last.weight - last.weight[label], last.bias - last.bias[label]
        rows.append(ends(weight, bias, low[i : i + 1], high[i : i + 1])[1][0])
    return torch.stack(rows)


@pytest.mark.parametrize(("done", "grown"), [(0.1, 0.0), (0.5, 0.5), (0.95, 1.0)])
def test_the_loss_by_hand(done: float, grown: float) -> None:
    x, y = batch()
    model = network()
    defense = IBP(eps=0.1, kappa=0.4, warmup=0.25, ramp=0.5)
    trainer = trainer_of(defense)
    trainer.done = done
    kappa = 1 - 0.6 * grown
    assert defense.grown(done) == pytest.approx(grown)
    expected = kappa * plain(model, x, y) + (1 - kappa) * cross_entropy(worst_logits(model, x, y, 0.1 * grown), y)
    assert torch.allclose(value(defense, model, x, y, trainer), expected, atol=1e-6)


def test_its_gradient_is_that_of_the_loss_by_hand() -> None:
    x, y = batch()
    defense = IBP(eps=0.1, kappa=0.0, warmup=0.0, ramp=0.0)
    one, other = network(), network()
    value(defense, one, x, y).backward()  # type: ignore[no-untyped-call]
    cross_entropy(worst_logits(other, x, y, 0.1), y).backward()  # type: ignore[no-untyped-call]
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6)


def test_mixed_labels_count_for_their_larger_part_and_a_network_in_training_stays_so() -> None:
    x, y = batch()
    model = network().train()
    defense = IBP(eps=0.05, kappa=0.0, warmup=0.0, ramp=0.0)
    shares = 0.7 * nn.functional.one_hot(y, CLASSES) + 0.3 / CLASSES
    mixed = defense.loss(model, x, shares, lambda m, x, y: m(x).sum() * 0, trainer_of(defense))
    assert torch.allclose(mixed, cross_entropy(worst_logits(model, x, y, 0.05), y), atol=1e-6)
    assert model.training and all(p.requires_grad for p in model.parameters())


def test_it_can_be_certified() -> None:
    x, y = batch(90)
    nets = (trained(epochs=8), trained(IBP(eps=0.05), epochs=8))
    proved = [rbl.certify(m, x, y, method="interval", eps=0.05).certified_accuracy for m in nets]
    assert proved[1] > max(0.5, proved[0])


@pytest.mark.parametrize("options", [{"kappa": 1.5}, {"warmup": -0.1}, {"ramp": 2.0}, {"eps": -1.0}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(options))} must be"):
        IBP(**options)


def test_a_layer_that_cannot_be_bounded_is_named() -> None:
    x, y = batch()
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.GELU(), nn.Linear(4, CLASSES))
    with pytest.raises(UserError, match=r"^--model: cannot bound 2 \(GELU\)"):
        value(IBP(kappa=0.0, warmup=0.0, ramp=0.0), model, x, y)


def test_a_defense_before_the_network_is_named() -> None:
    x, y = batch()
    with pytest.raises(UserError, match=r"^--defense: bit-depth stands before the network"):
        value(IBP(kappa=0.0, warmup=0.0, ramp=0.0), wrap_all(network(), [BitDepth()]), x, y)


def test_batch_norm_learns_from_the_bounds_too() -> None:
    x = torch.rand(4, 1, 4, 4)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    steps = steps_of(model, x.shape[1:])
    assert model.training
    least_margins(steps, intervals(steps, box_around(x, 0.1)), torch.tensor([0, 1, 2, 0])).sum().backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and bool(p.grad.any()) for p in model[:4].parameters())
