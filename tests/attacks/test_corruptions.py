"""The common corruptions: each by what is known of it, and the attack that tries them in turn."""

from __future__ import annotations

import colorsys
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite import corruptions
from robustbench_lite.attacks.corruptions import Corruptions
from robustbench_lite.corruptions import CORRUPTIONS, corrupted, poisson
from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream

from ..core.nets import images, labels_of, mlp

RANDOM = {
    *("gaussian-noise", "shot-noise", "impulse-noise", "glass-blur", "motion-blur"),
    *("snow", "frost", "fog", "elastic-transform"),
}


def streams(count: int, tag: str = "test") -> Stream:
    return Stream(torch.arange(count)).child(tag)


def natural(count: int, shape: tuple[int, int, int] = (3, 32, 32)) -> Tensor:
    """Smooth images, as photographs are."""
    from robustbench_lite.filters import smoothed

    rough = smoothed(images(count, shape), 2.0)
    low, high = rough.amin((1, 2, 3), keepdim=True), rough.amax((1, 2, 3), keepdim=True)
    return 0.1 + 0.7 * (rough - low) / (high - low)


def test_there_are_fifteen() -> None:
    assert len(CORRUPTIONS) == 15 and set(CORRUPTIONS) >= RANDOM


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_each_keeps_the_box_and_mixes_no_images(kind: str) -> None:
    for shape in ((3, 32, 32), (1, 28, 20)):
        x = natural(3, shape)
        before = x.clone()
        for severity in (1, 5):
            found = corrupted(x, kind, severity, streams(3))
            assert found.shape == x.shape and found.dtype == x.dtype and torch.equal(x, before)
            assert found.min() >= 0 and found.max() <= 1 and found.isfinite().all()
            alone = corrupted(x[1:2], kind, severity, Stream(streams(3).keys[1:2]))
            assert torch.allclose(alone[0], found[1], atol=1e-6)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_random_numbers_belong_to_the_image(kind: str) -> None:
    x = natural(1).expand(2, 3, 32, 32)
    found = corrupted(x, kind, 3, streams(2))
    assert torch.equal(found, corrupted(x, kind, 3, streams(2)))
    assert torch.allclose(found[0], found[1], atol=1e-6) == (kind not in RANDOM)


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_severest_is_worse_than_the_slightest(kind: str) -> None:
    x = natural(8)
    far = [float((corrupted(x, kind, severity, streams(8)) - x).square().mean()) for severity in (1, 5)]
    # Of the elastic transform the severities differ in kind more than in size, as in the authors' code.
    assert far[0] > 0 and (far[1] > far[0] or kind == "elastic-transform")


STILL = ("defocus-blur", "glass-blur", "motion-blur", "zoom-blur", "contrast", "elastic-transform", "pixelate")


@pytest.mark.parametrize("severity", [1, 5])
@pytest.mark.parametrize("kind", STILL)
def test_what_has_no_pattern_stays(kind: str, severity: int) -> None:
    x = torch.full((2, 3, 32, 32), 0.4)
    assert torch.allclose(corrupted(x, kind, severity, streams(2)), x, atol=1e-5)


def test_noise_has_the_size_of_the_authors() -> None:
    x = torch.full((4, 3, 32, 32), 0.5)
    for severity, sigma in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), 1):
        added = corrupted(x, "gaussian-noise", severity, streams(4)) - x
        assert float(added.std()) == pytest.approx(sigma, rel=0.05)
    for severity, photons in enumerate((500, 250, 100, 75, 50), 1):
        shot = corrupted(x, "shot-noise", severity, streams(4))
        assert float(shot.mean()) == pytest.approx(0.5, abs=0.01)
        assert float(shot.std()) == pytest.approx(math.sqrt(0.5 / photons), rel=0.05)
        assert torch.allclose((shot * photons).round(), shot * photons, atol=1e-3)
    for severity, share in enumerate((0.01, 0.02, 0.03, 0.05, 0.07), 1):
        found = corrupted(x, "impulse-noise", severity, streams(4))
        assert set(found.flatten().tolist()) == {0.0, 0.5, 1.0}
        assert float((found != 0.5).double().mean()) == pytest.approx(share, rel=0.2)


def test_a_poisson_count_is_the_least_whose_probability_is_enough() -> None:
    rate = torch.tensor([0.0, 1e-6, 0.3, 2.0, 17.5, 120.0, 499.0]).double()[:, None].expand(-1, 200)
    chance = torch.rand((7, 200), generator=torch.Generator().manual_seed(0)).double()
    chance[:, 0], chance[:, 1] = 2.0**-25, 1 - 2.0**-25
    count = poisson(rate, chance)
    k = torch.arange(0, 700).double()
    for row, r in zip(range(7), rate[:, 0].tolist(), strict=True):
        if r == 0:
            assert (count[row] == 0).all()
            continue
        cumulated = torch.exp(k * math.log(r) - r - torch.lgamma(k + 1)).cumsum(0)
        assert torch.equal(count[row].long(), torch.searchsorted(cumulated, chance[row].contiguous()))


def test_brightness_is_the_value_of_a_colour() -> None:
    x = natural(1)
    found = corrupted(x, "brightness", 4, streams(1))
    for row, column in ((0, 0), (5, 30), (17, 9)):
        hue, saturation, value = colorsys.rgb_to_hsv(*x[0, :, row, column].double().tolist())
        by_hand = colorsys.hsv_to_rgb(hue, saturation, min(1.0, value + 0.2))
        assert found[0, :, row, column].tolist() == pytest.approx(by_hand, abs=1e-6)
    black = torch.zeros(1, 3, 32, 32)
    assert torch.allclose(corrupted(black, "brightness", 4, streams(1)), torch.full_like(black, 0.2))
    grey = natural(1, (1, 32, 32))
    assert torch.allclose(corrupted(grey, "brightness", 1, streams(1)), grey + 0.05)


def test_contrast_and_jpeg_by_hand() -> None:
    x = natural(2)
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(corrupted(x, "contrast", 5, streams(2)), mean + 0.15 * (x - mean), atol=1e-6)
    import io

    levels = (x[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, "JPEG", quality=40)
    by_hand = torch.from_numpy(np.asarray(Image.open(buffer)).astype(np.float32) / 255).permute(2, 0, 1)
    assert torch.equal(corrupted(x, "jpeg-compression", 5, streams(2))[0], by_hand)


def test_pixelate_is_a_box_made_smaller_and_larger() -> None:
    x = natural(1, (1, 32, 32))
    found = corrupted(x, "pixelate", 5, streams(1))
    picture = Image.fromarray(x[0, 0].numpy())
    small = picture.resize((20, 20), Image.Resampling.BOX).resize((32, 32), Image.Resampling.NEAREST)
    assert np.allclose(found[0, 0].numpy(), np.asarray(small), atol=0.06)
    assert float(np.abs(found[0, 0].numpy() - np.asarray(small)).mean()) < 0.01


def test_glass_only_exchanges_what_is_near() -> None:
    x = images(2, (1, 32, 32))
    found = corrupted(x, "glass-blur", 1, streams(2))  # its blur is far below a pixel
    assert torch.allclose(found.flatten(1).sort(1).values, x.flatten(1).sort(1).values, atol=1e-4)
    assert float((found != x).double().mean()) > 0.3


def test_motion_is_drawn_out_in_one_direction_of_each_image() -> None:
    point = torch.zeros(30, 1, 33, 33)
    point[..., 16, 16] = 1
    found = corruptions.motion_blur(point, 5, streams(30))
    rows, columns = torch.meshgrid(torch.arange(33.0) - 16, torch.arange(33.0) - 16, indexing="ij")
    for image in found[:, 0]:
        seen = image > 0.01
        assert 3 <= int(seen.sum()) <= 20
        # Its points lie on a line within 45 degrees of level.
        down, across = rows[seen], columns[seen]
        slope = float((down * across).sum() / across.square().sum())
        assert abs(slope) <= 1.1 and float((down - slope * across).abs().max()) <= 0.75


def test_fog_and_weather_lighten_what_is_dark() -> None:
    dark = torch.full((3, 3, 32, 32), 0.1)
    for kind in ("snow", "frost", "brightness"):
        assert (corrupted(dark, kind, 5, streams(3)).mean((1, 2, 3)) > 0.15).all()
    x = natural(3)
    fog = corrupted(x, "fog", 5, streams(3))
    # As bright at its brightest, at most, and with less contrast.
    assert (fog.amax((1, 2, 3)) <= x.amax((1, 2, 3)) + 1e-6).all()
    small, large = (float((x - corrupted(x, "fog", severity, streams(3))).abs().mean()) for severity in (1, 5))
    assert large > small


# -- the attack ------------------------------------------------------------------------------------------


@pytest.fixture
def model() -> nn.Module:
    return mlp(shape=(1, 12, 12), scale=6.0)


@pytest.fixture
def x() -> Tensor:
    return images(30, (1, 12, 12))


def test_attempts_are_the_kinds_from_the_severest() -> None:
    assert Corruptions().attempts == 75 and Corruptions().length == 0
    assert Corruptions().cells[0] == ("gaussian-noise", "5") and Corruptions().cells[-1] == ("jpeg-compression", "1")
    chosen = Corruptions(kinds="fog, jpeg_compression,fog", severities="1,4")
    assert chosen.cells == (("fog", "4"), ("jpeg-compression", "4"), ("fog", "1"), ("jpeg-compression", "1"))


def test_robust_is_who_is_right_under_all(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    options = {"kinds": "gaussian-noise,contrast,pixelate", "severities": "2,5"}
    found = rbl.evaluate(model, x, y, attack="corruptions", attack_options=options, checks=False)
    assert found.adversarial is not None and 0 < found.robust_accuracy < 1
    cells = Corruptions(**options).cells
    rows = found.samples
    keys = Stream.of(rows.content_hash.tolist(), seed=0).child("attack corruptions")
    right = torch.ones(len(x), dtype=torch.bool)
    for number, (kind, severity) in enumerate(cells):
        changed = corrupted(x, kind, int(severity), keys.child(torch.full((len(x),), number)))
        here = labels_of(model, changed) != y
        first = right & here
        assert torch.allclose(found.adversarial[first], changed[first], atol=1e-6)
        assert (rows.restart[first.numpy()] == number).all()
        right &= ~here
    assert found.success.tolist() == (~right).tolist()
    assert (rows.forwards[right.numpy()] == 1 + len(cells)).all() and (rows.backwards == 0).all()


def test_it_has_limits_of_its_own(model: nn.Module, x: Tensor) -> None:
    y = labels_of(model, x)
    found = rbl.evaluate(model, x, y, attack="corruptions", attack_options={"kinds": "fog"}, checks=False)
    assert (found.run.specification.threat.norm, found.run.specification.threat.eps) == ("linf", 1.0)
    with pytest.raises(UserError, match=r"^norm, eps: attack corruptions has limits of its own"):
        rbl.evaluate(model, x, y, attack="corruptions", eps=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": "fgo"}, "^kinds: unknown name 'fgo'; did you mean fog"),
        ({"kinds": ""}, "^kinds: unknown name ''"),
        ({"severities": "0"}, "^severities must be of 1, 2, 3, 4, 5 with commas between them, got '0'"),
        ({"severities": "1,2,x"}, "^severities must be of 1, 2, 3, 4, 5 with commas between them, got '1,2,x'"),
    ],
)
def test_options_out_of_range(options: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Corruptions(**options)
