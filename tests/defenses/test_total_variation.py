"""total-variation: the minimum against another solver, and what is left out is filled in."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from robustbench_lite.defenses.total_variation import TotalVariation, smoothest
from robustbench_lite.errors import UserError


def objective(z: Tensor, x: Tensor, kept: Tensor, weight: float) -> Tensor:
    down = torch.zeros_like(z)
    across = torch.zeros_like(z)
    down[:, :, :-1] = z[:, :, 1:] - z[:, :, :-1]
    across[:, :, :, :-1] = z[:, :, :, 1:] - z[:, :, :, :-1]
    length = (down.square() + across.square() + 1e-12).sqrt()
    return 0.5 * (kept * (z - x).square()).sum() + weight * length.sum()


@pytest.mark.parametrize("weight", [0.02, 0.2])
def test_it_is_the_minimum(weight: float) -> None:
    torch.manual_seed(0)
    x = torch.rand(1, 1, 8, 8, dtype=torch.float64)
    kept = (torch.rand(1, 1, 8, 8) > 0.4).double()
    found = objective(smoothest(x, kept, weight, 2000), x, kept, weight)
    z = x.clone().requires_grad_()
    solver = torch.optim.LBFGS([z], max_iter=3000, history_size=50, line_search_fn="strong_wolfe", tolerance_change=0)

    def closure() -> Tensor:
        solver.zero_grad()
        value = objective(z, x, kept, weight)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(closure)  # type: ignore[no-untyped-call]
    best = objective(z.detach(), x, kept, weight)
    assert float(found) <= float(best) + 1e-4
    few = objective(smoothest(x, kept, weight, 100), x, kept, weight)
    assert float(few) <= 1.15 * float(best) + 1e-3


def test_a_flat_image_is_whole_again_and_noise_goes() -> None:
    torch.manual_seed(0)
    flat = torch.full((4, 3, 10, 10), 0.6)
    assert torch.allclose(TotalVariation(drop=0.5, steps=400).transform(flat), flat, atol=0.02)
    noisy = (flat + 0.05 * torch.randn_like(flat)).clamp(0, 1)
    seen = TotalVariation(drop=0.0, weight=0.2).transform(noisy)
    assert float((seen - 0.6).abs().mean()) < 0.5 * float((noisy - 0.6).abs().mean())


def test_nothing_dropped_and_no_weight_is_the_image() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 1, 6, 6)
    assert torch.allclose(TotalVariation(drop=0.0, weight=0.0).transform(x), x, atol=1e-5)


@pytest.mark.parametrize("options", [{"drop": 1.0}, {"weight": -1.0}, {"steps": 0}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"^{next(iter(options))} must be"):
        TotalVariation(**options)  # type: ignore[arg-type]
