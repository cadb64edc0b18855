"""What a photograph does to images, and the share of adversarial images that it makes harmless."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite import print_photo
from robustbench_lite.errors import UserError
from robustbench_lite.print_photo import TRANSFORMATIONS, destruction_rate
from robustbench_lite.streams import Stream

from .core.nets import images, labels_of, mlp

SHAPE = (1, 12, 12)


class Lit(nn.Module):
    """Class 1 where the mean of an image is above one half."""

    def forward(self, x: Tensor) -> Tensor:
        above = 100 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-above, above], 1)


def streams(count: int) -> Stream:
    return Stream(torch.arange(count)).child("test")


def grey(*levels: float) -> Tensor:
    return torch.tensor(levels).reshape(-1, 1, 1, 1).expand(-1, *SHAPE).clone()


def test_the_rate_where_it_is_known() -> None:
    # Five dark images of class 0; four are made light, one of which was wrong before, and one stays dark.
    x, y = grey(0.45, 0.45, 0.3, 0.55, 0.45), torch.zeros(5, dtype=torch.int64)
    adversarial = grey(0.55, 0.55, 0.65, 0.7, 0.48)
    table = destruction_rate(Lit(), x, adversarial, y)
    assert (table.fooled == 3).all()
    told = {str(name): (row["destroyed"], row["clean"]) for name, row in table.iterrows()}
    assert told["brightness -0.1"] == (pytest.approx(2 / 3), 1.0)  # 0.65 stays light
    assert told["brightness +0.1"] == (0.0, pytest.approx(1 / 4))  # of 0.45, 0.45, 0.3 and 0.45 only 0.3 stays dark
    for name in ("contrast x 0.7", "contrast x 1.3", "blur 0.5", "blur 1.0", "jpeg 90", "jpeg 50", "perspective 10 %"):
        assert told[name] == (0.0, 1.0), name
    assert list(table.index) == list(TRANSFORMATIONS) and list(table.columns) == ["fooled", "destroyed", "clean"]


def test_where_nothing_fools_there_is_no_rate() -> None:
    x, y = grey(0.3, 0.4), torch.zeros(2, dtype=torch.int64)
    table = destruction_rate(Lit(), x, x, y)
    assert (table.fooled == 0).all() and table.destroyed.isna().all() and table.clean["contrast x 0.7"] == 1
    wrong = destruction_rate(Lit(), x, 1 - x, 1 - y)
    assert (wrong.fooled == 0).all() and wrong.clean.isna().all()


def test_results_hang_neither_on_the_batch_nor_on_the_order() -> None:
    model, x = mlp(shape=SHAPE, scale=4.0), images(20, SHAPE)
    y = labels_of(model, x)
    moved = (x + 0.6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))).clamp(0, 1)
    whole = destruction_rate(model, x, moved, y)
    assert whole.fooled.iloc[0] > 4 and whole.destroyed.between(0, 1).all() and whole.destroyed.max() > 0
    assert whole.equals(destruction_rate(model, x.flip(0), moved.flip(0), y.flip(0), batch_size=3))
    drawn = ("noise 0.03", "noise 0.08", "perspective 5 %", "perspective 10 %", "photo")
    other = destruction_rate(model, x, moved, y, seed=1)
    assert whole.drop(index=[*drawn]).equals(other.drop(index=[*drawn]))


def test_everything_is_left_as_it_was() -> None:
    model, x = mlp(shape=SHAPE).train(), images(6, SHAPE)
    before, state = x.clone(), torch.get_rng_state()
    destruction_rate(model, x, x, torch.zeros(6, dtype=torch.int64))
    assert torch.equal(before, x) and torch.equal(state, torch.get_rng_state()) and model.training


@pytest.mark.parametrize("wrong", ["images", "labels", "axes"])
def test_shapes_that_do_not_fit(wrong: str) -> None:
    x, y = images(4, SHAPE), torch.zeros(4, dtype=torch.int64)
    given = {"images": (x, x[:3], y), "labels": (x, x, y[:3]), "axes": (x[0], x[0], y)}[wrong]
    with pytest.raises(UserError, match=r"^adversarial: expected images \(.*\) like x and labels"):
        destruction_rate(Lit(), *given)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 40, 32)])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_a_transformation_keeps_the_box_and_mixes_no_images(name: str, shape: tuple[int, ...]) -> None:
    x = images(5, shape)
    before = x.clone()
    found = TRANSFORMATIONS[name](x, streams(5))
    assert found.shape == x.shape and torch.equal(x, before)
    assert found.min() >= 0 and found.max() <= 1 and (found - x).abs().max() > 0.01
    alone = TRANSFORMATIONS[name](x[2:3], Stream(streams(5).keys[2:3]))
    assert torch.allclose(alone[0], found[2], atol=1e-6)


def test_light_by_hand() -> None:
    x = images(3, SHAPE)
    assert torch.equal(print_photo.brightness(x, 0.1), (x + 0.1).clamp(max=1))
    assert torch.allclose(print_photo.contrast(x, 0.7), 0.7 * x + 0.15)
    assert torch.allclose(print_photo.contrast(x, 1.3), (1.3 * x - 0.15).clamp(0, 1), atol=1e-6)


def test_blur_grows_with_the_image_and_keeps_its_light() -> None:
    point = torch.zeros(1, 1, 33, 33)
    point[..., 16, 16] = 1
    small = print_photo.blur(point, 1.0)
    place = torch.arange(33.0) - 16
    sigma = 33 / 32
    assert float(small.sum()) == pytest.approx(1, abs=1e-5)
    assert float((small[0, 0].sum(0) * place**2).sum()) == pytest.approx(sigma**2, rel=0.02)
    wide = torch.zeros(1, 1, 65, 65)
    wide[..., 32, 32] = 1
    spread = (print_photo.blur(wide, 1.0)[0, 0].sum(0) * (torch.arange(65.0) - 32) ** 2).sum()
    assert float(spread) == pytest.approx((65 / 32) ** 2, rel=0.02)
    assert torch.allclose(print_photo.blur(grey(0.3), 1.0), grey(0.3))


def test_noise_has_the_size_asked() -> None:
    x = grey(0.5, 0.5, 0.5, 0.5)
    added = print_photo.noise(x, 0.05, streams(4)) - x
    assert float(added.std()) == pytest.approx(0.05, rel=0.1) and abs(float(added.mean())) < 0.01
    assert not torch.equal(added[0], added[1])


def test_perspective_moves_the_corners_and_no_farther() -> None:
    ramp = torch.linspace(0, 1, 21).expand(1, 1, 21, 21)
    assert torch.allclose(print_photo.perspective(ramp, 0.0, streams(1)), ramp, atol=1e-6)
    found = print_photo.perspective(ramp.expand(50, 1, 21, 21), 0.1, streams(50))[:, 0]
    # A ramp over the width tells from which column each pixel came; corners go round from the left upper one.
    drawn = 0.1 * (2 * streams(50).child("corners").uniform((4, 2)) - 1)
    for number, (row, column) in enumerate([(0, 0), (0, 20), (20, 20), (20, 0)]):
        came = (float(column == 20) + drawn[:, number, 0]).clamp(0, 1)
        assert torch.allclose(found[:, row, column], came, atol=1e-5)
    assert (found - ramp[:, 0]).abs().max() < 0.15


def test_the_rate_is_a_share() -> None:
    assert math.isnan(print_photo._share(torch.empty(0, dtype=torch.bool)))
    assert print_photo._share(torch.tensor([True, False, False, True])) == 0.5
