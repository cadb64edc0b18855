"""jpeg: what another reader of the format unpacks, and the attack that goes through it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import robustbench_lite as rbl
from robustbench_lite.defenses.jpeg import Jpeg
from robustbench_lite.errors import UserError


def test_it_is_what_the_library_unpacks() -> None:
    torch.manual_seed(0)
    x = torch.rand(3, 3, 16, 16)
    seen = Jpeg(quality=40).transform(x)
    for image, unpacked in zip(x, seen, strict=True):
        buffer = io.BytesIO()
        levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(levels).save(buffer, "JPEG", quality=40)
        by_hand = np.asarray(Image.open(buffer)).astype(np.float32) / 255
        assert np.allclose(unpacked.permute(1, 2, 0).numpy(), by_hand)


def test_low_quality_changes_more_and_a_flat_image_stays() -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 1, 16, 16)
    gaps = [float((Jpeg(quality=q).transform(x) - x).abs().mean()) for q in (95, 50, 5)]
    assert gaps == sorted(gaps)
    flat = torch.full((1, 1, 16, 16), 100 / 255)
    assert torch.allclose(Jpeg(quality=50).transform(flat), flat, atol=2 / 255)


def test_the_attack_goes_through_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    x = torch.rand(40, 1, 8, 8)
    defense = Jpeg(quality=75)
    with torch.no_grad():
        y = defense.wrap(model)(x).argmax(1)
    pgd, noise = (
        rbl.evaluate(model, x, y, attack=name, eps=0.2, defenses=[defense]).robust_accuracy for name in ("pgd", "noise")
    )
    assert pgd < noise - 0.3


@pytest.mark.parametrize("quality", [0, 101])
def test_options_out_of_range(quality: int) -> None:
    with pytest.raises(UserError, match=rf"^quality must be in 1\.\.100, got {quality}"):
        Jpeg(quality=quality)
