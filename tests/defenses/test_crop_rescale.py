"""crop-rescale: a window by hand, places of each image's own, and the attack that averages over them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustbench_lite as rbl
from robustbench_lite.defenses.crop_rescale import CropRescale
from robustbench_lite.errors import UserError


def test_a_slope_keeps_its_steepness_times_the_share() -> None:
    """Of an image that rises in a line from left to right a window rises by its share of it, from its own place."""
    x = (torch.arange(20) / 19).expand(1, 1, 20, 20).repeat(50, 1, 1, 1)
    torch.manual_seed(0)
    seen = CropRescale(share=0.5).transform(x)
    steps = (seen[:, :, :, 2:-1] - seen[:, :, :, 1:-2])[:, 0]
    assert torch.allclose(steps, torch.full_like(steps, 0.5 / 19), atol=1e-5)
    first = seen[:, 0, 0, 0]
    assert float(first.min()) < 0.05 and float(first.max()) > 0.45
    assert float(seen.min()) >= 0 and float(seen.max()) <= 1


def test_the_whole_window_is_the_image() -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 2, 6, 9)
    assert torch.allclose(CropRescale(share=1.0).transform(x), x, atol=1e-6)


def test_the_attack_averages_over_places() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.rand(40, 1, 8, 8)
    with torch.no_grad():
        y = model(x).argmax(1)
    defense = CropRescale(share=0.9)
    pgd, noise = (
        rbl.evaluate(model, x, y, attack=name, eps=0.2, defenses=[defense], eot=8).robust_accuracy
        for name in ("pgd", "noise")
    )
    assert pgd < noise - 0.2


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^share must be in \(0, 1\], got 0"):
        CropRescale(share=0.0)
