"""stochastic-pruning: the mean is the activation, small ones go, and the chance is the paper's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.defenses.stochastic_pruning import StochasticPruning
from robustbench_lite.errors import UserError

ACTIVATIONS = torch.tensor([0.0, 0.05, 0.1, 0.3, 0.55])


def draws(samples: float, count: int = 20_000) -> Tensor:
    model = nn.Sequential(nn.Flatten(), nn.ReLU()).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        seen: Tensor = StochasticPruning(samples=samples).wrap(model)(
            ACTIVATIONS.reshape(1, 1, 1, 5).repeat(count, 1, 1, 1)
        )
    return seen


@pytest.mark.parametrize("samples", [0.4, 1.0, 3.0])
def test_kept_by_the_paper_s_chance_and_right_on_average(samples: float) -> None:
    seen = draws(samples)
    share = ACTIVATIONS / ACTIVATIONS.sum()
    chance = 1 - (1 - share) ** (samples * 5)
    assert torch.allclose((seen > 0).float().mean(0), chance, atol=0.015)
    assert torch.allclose(seen.mean(0), ACTIVATIONS, atol=0.02)
    kept = seen[:, 3][seen[:, 3] > 0]
    assert torch.allclose(kept, (0.3 / chance[3]).expand_as(kept))


def test_drawing_with_replacement_keeps_as_often() -> None:
    """The departure: independent draws of the same chance as the paper's drawing with replacement."""
    torch.manual_seed(1)
    drawn = torch.multinomial(ACTIVATIONS.expand(20_000, -1), 5, replacement=True)
    often = torch.zeros(20_000, 5).scatter_(1, drawn, 1.0).mean(0)
    assert torch.allclose((draws(1.0) > 0).float().mean(0), often, atol=0.02)


def test_a_network_without_activations_is_refused() -> None:
    with pytest.raises(UserError, match=r"^--defense stochastic-pruning: the network has no layer such as nn\.ReLU"):
        StochasticPruning().wrap(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(UserError, match=r"^samples must be > 0, got 0"):
        StochasticPruning(samples=0.0)
