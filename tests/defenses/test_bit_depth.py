"""Fewer bits a pixel, and a gradient that goes through them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustbench_lite as rbl
from robustbench_lite.defenses.bit_depth import BitDepth
from robustbench_lite.errors import UserError


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_pixels_are_at_even_levels(bits: int) -> None:
    x = torch.linspace(0, 1, 999).reshape(1, 1, 27, 37)
    seen = BitDepth(bits=bits).transform(x)
    levels = 2**bits - 1
    assert len(set(seen.flatten().tolist())) == 2**bits
    assert torch.allclose((seen * levels).round(), seen * levels, atol=1e-4)
    assert (seen - x).abs().max() <= 0.5 / levels + 1e-6
    assert (float(seen.min()), float(seen.max())) == (0, 1)
    assert torch.equal(BitDepth(bits=bits).transform(seen), seen)


def test_eight_bits_do_not_change_an_image_of_bytes() -> None:
    x = torch.arange(256).reshape(1, 1, 16, 16) / 255
    assert torch.equal(BitDepth(bits=8).transform(x), x)


def test_the_answer_is_exact_and_the_gradient_is_that_of_the_image_seen() -> None:
    torch.manual_seed(0)
    layer, defense = nn.Linear(16, 3), BitDepth(bits=2)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x = torch.rand(4, 1, 4, 4).requires_grad_()
    logits = defense.wrap(model)(x)
    assert torch.equal(logits, model(defense.transform(x.detach())))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert torch.allclose(gradient.flatten(1), layer.weight[1].expand(4, -1))


def test_the_attack_goes_through_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x = torch.rand(40, 1, 4, 4)
    defense = BitDepth(bits=3)
    y = defense.wrap(model)(x).argmax(1)
    pgd, noise = (
        rbl.evaluate(model, x, y, attack=name, eps=0.3, defenses=[defense]).robust_accuracy for name in ("pgd", "noise")
    )
    assert pgd < noise - 0.3


@pytest.mark.parametrize("bits", [0, 17, -1])
def test_bits_out_of_range(bits: int) -> None:
    with pytest.raises(UserError, match=rf"^bits must be in 1\.\.16, got {bits}"):
        BitDepth(bits=bits)
