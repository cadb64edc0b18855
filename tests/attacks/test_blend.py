"""The smallest amount that fools: against closed forms, and colours that keep their brightness."""

from __future__ import annotations

import colorsys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.blend import Blur, Colour, Contrast, from_hsv, to_hsv
from robustbench_lite.errors import UserError


class Threshold(nn.Module):
    """Class 1 where a number of the image is above a level."""

    def __init__(self, what: str, level: float) -> None:
        super().__init__()
        self.what, self.level = what, level

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1)
        number = {"spread": rows.amax(1) - rows.amin(1), "peak": rows.amax(1), "red": x[:, 0].mean((1, 2))}[self.what]
        return torch.stack([self.level - number, number - self.level], 1)


def _x(count: int = 20, shape: tuple[int, ...] = (3, 6, 6)) -> Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(2))


def test_contrast_is_reduced_no_further_than_needed() -> None:
    x, model = _x(), Threshold("spread", 0.3).eval()
    y = torch.ones(20, dtype=torch.int64)
    found = rbl.evaluate(model, x, y, attack="contrast", norm="linf", eps=0.5, checks=False)
    rows = x.flatten(1)
    amount = 1 - 0.3 / (rows.amax(1) - rows.amin(1))
    wanted = amount * (rows - 0.5).abs().amax(1)
    distance = torch.tensor(found.samples.distance_linf.to_numpy())
    assert (found.samples.adversarial_prediction == 0).all()
    assert (distance >= wanted - 1e-5).all()
    assert (distance <= wanted + 1e-3 * 0.5).all()
    # Two passes more than the amounts tried: the clean one and the proof.
    tried = (amount * 100).ceil() + 10
    assert (found.column("forwards") - tried - 2).abs().max() <= 1


def test_what_no_amount_fools_stays_robust_after_the_last() -> None:
    x, model = _x(), Threshold("spread", -1).eval()
    y = torch.ones(20, dtype=torch.int64)
    found = rbl.evaluate(model, x, y, attack="contrast", attack_options={"steps": 7}, checks=False)
    assert not found.success.any()
    assert (found.column("forwards") <= 1 + 7 + 1).all()


def test_blur_keeps_what_is_flat_and_the_mean_and_is_a_gaussian_inside() -> None:
    flat = torch.full((2, 1, 9, 5), 0.3)
    amount = torch.tensor([0.1, 1.0]).double()
    assert torch.allclose(Blur().changed(flat, amount), flat, atol=1e-6)
    x = _x(2, (3, 9, 5))
    assert torch.allclose(Blur().changed(x, amount).mean((2, 3)), x.mean((2, 3)), atol=1e-6)
    assert torch.allclose(Blur().changed(x, amount * 0), x, atol=1e-6)
    point = torch.zeros((1, 1, 41, 41))
    point[0, 0, 20, 20] = 1
    blurred = Blur().changed(point, torch.tensor([2 / 41]).double())[0, 0].double()
    apart = torch.arange(-20, 21).double()
    gauss = torch.exp(-apart.square() / 8)
    gauss = gauss / gauss.sum()
    assert torch.allclose(blurred, gauss[:, None] * gauss[None], atol=1e-7)


def test_blur_finds_the_width_at_which_a_point_is_lost() -> None:
    x = torch.zeros((1, 1, 21, 21))
    x[0, 0, 10, 10] = 1
    model, y = Threshold("peak", 0.01).eval(), torch.ones(1, dtype=torch.int64)
    found = rbl.evaluate(model, x, y, attack="blur", norm="linf", eps=1, checks=False)
    assert found.adversarial is not None
    assert found.adversarial.max() == pytest.approx(0.01, abs=1e-4) and found.adversarial.max() < 0.01
    assert found.success.all()


def test_hue_saturation_and_value_are_those_of_the_standard_library() -> None:
    x = torch.cat([_x(3, (3, 2, 2)), torch.zeros((1, 3, 2, 2)), torch.ones((1, 3, 2, 2)) * 0.4]).double()
    hue, saturation, value = to_hsv(x)
    for image in range(5):
        for pixel in range(4):
            at = (image, pixel // 2, pixel % 2)
            wanted = colorsys.rgb_to_hsv(*(float(x[at[0], c, at[1], at[2]]) for c in range(3)))
            assert (float(hue[at]), float(saturation[at]), float(value[at])) == pytest.approx(wanted)
    assert torch.allclose(from_hsv(hue, saturation, value), x, atol=1e-9)


def test_colour_keeps_the_brightness_and_turns_red_away() -> None:
    x = _x() * torch.tensor([1.0, 0.3, 0.3]).reshape(1, 3, 1, 1)
    model = Threshold("red", 0.3).eval()
    found = rbl.evaluate(model, x, torch.ones(20, dtype=torch.int64), attack="colour", attack_options={"steps": 60})
    assert found.success.sum() == found.column("attacked").sum() > 15
    assert found.adversarial is not None
    assert torch.allclose(found.adversarial.amax(1), x.amax(1), atol=1e-6)


def test_colour_needs_colours() -> None:
    with pytest.raises(UserError, match="attack colour: expected images of 3 channels, red, green and blue, got 1"):
        rbl.evaluate(Threshold("peak", 0.1).eval(), _x(2, (1, 4, 4)), torch.ones(2, dtype=torch.int64), attack="colour")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Contrast(steps=0), "steps must be >= 1, got 0"),
        (lambda: Contrast(bisections=-1), "bisections must be >= 0, got -1"),
        (lambda: Contrast(level=2), r"level must be in \[0, 1\], got 2"),
        (lambda: Blur(largest=0), r"largest must be in \(0, 10\], a share of the longer side, got 0"),
        (lambda: Colour(steps=0), "steps must be >= 1, got 0"),
    ],
)
def test_options_are_refused(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
