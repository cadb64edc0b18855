"""Rotation and translation: exact where pixels fall on pixels, within the limits, every one of the grid tried."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attacks.spatial import Spatial
from robustbench_lite.errors import UserError
from robustbench_lite.filters import moved


def _x(count: int = 6, shape: tuple[int, ...] = (2, 8, 8)) -> Tensor:
    return torch.rand((count, *shape), generator=torch.Generator().manual_seed(1))


def _each(value: float, count: int = 6) -> Tensor:
    return torch.full((count,), value)


class Mean(nn.Module):
    """Class 1 where the left half is brighter than the right, else 0; remembers how many images it saw."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
        bright = left.flatten(1).sum(1) - right.flatten(1).sum(1)
        return torch.stack([-bright, bright], 1)


def test_what_is_moved_by_nothing_stays() -> None:
    assert torch.allclose(moved(_x(), _each(0), _each(0), _each(0)), _x(), atol=1e-6)


def test_whole_turns_and_whole_pixels_are_exact() -> None:
    x = _x()
    for quarter in (1, 2, 3):
        assert torch.allclose(moved(x, _each(90 * quarter), _each(0), _each(0)), x.rot90(quarter, (2, 3)), atol=1e-6)
    shifted = moved(x, _each(0), _each(2 / 8), _each(-1 / 8))
    assert torch.allclose(shifted[:, :, :-1, 2:], x[:, :, 1:, :-2], atol=1e-6)
    assert shifted[:, :, -1].abs().max() == 0 == shifted[..., :2].abs().max()


def test_sides_that_differ_keep_a_circle_round() -> None:
    x = torch.zeros((1, 1, 9, 21))
    x[0, 0, 4, 13] = 1.0  # three to the right of the middle
    turned = moved(x, torch.tensor([90.0]), torch.zeros(1), torch.zeros(1))
    assert turned[0, 0, 1, 10] == pytest.approx(1.0)  # three above it


def test_the_grid_has_every_transformation_once_and_none_last() -> None:
    attack = Spatial(shifts=3, angles=5)
    grid = attack._grid(torch.arange(attack.length))
    assert len({tuple(row) for row in grid.tolist()}) == attack.length == 45
    assert grid[-1].tolist() == [0, 0, 0]
    assert grid.abs().max() == 1


def test_it_finds_the_turn_that_is_needed_and_only_within_its_limits() -> None:
    x = torch.zeros((1, 1, 16, 16))
    x[0, 0, :, 6] = 1.0  # left of the middle: a shift by two pixels carries it over
    options: dict[str, Any] = {"rotation": 0, "translation": 2 / 16, "angles": 1}
    found = rbl.evaluate(Mean().eval(), x, torch.ones(1, dtype=torch.int64), attack="spatial", attack_options=options)
    assert found.success.all() and found.run.specification.threat.eps == 1
    assert found.adversarial is not None
    assert found.adversarial[0, 0, 2:-2, 8].min() == pytest.approx(1.0, abs=1e-5)
    options["translation"] = 1 / 16
    found = rbl.evaluate(Mean().eval(), x, torch.ones(1, dtype=torch.int64), attack="spatial", attack_options=options)
    assert not found.success.any()
    # The clean pass, 25 transformations, and the last image's judgement.
    assert found.forwards == 1 + 25 + 1


def test_worst_of_k_draws_other_turns_for_each_image_and_step() -> None:
    x = _x(40)
    y = Mean()(x).argmax(1)
    rate = {}
    for k in (1, 20):
        found = rbl.evaluate(
            Mean().eval(), x, y, attack="spatial", attack_options={"method": "worst-of-k", "k": k, "rotation": 90}
        )
        rate[k] = float(found.success.double().mean())
    assert 0 < rate[1] < rate[20]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": 181}, r"rotation must be in \[0, 180\] degrees, got 181"),
        ({"translation": 1.5}, r"translation must be in \[0, 1\], a share of the side, got 1.5"),
        ({"method": "all"}, "method must be grid or worst-of-k, got 'all'"),
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"angles": 0}, "angles must be >= 1, got 0"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Spatial(**options)


@pytest.mark.parametrize("threat", [{"eps": 0.1}, {"norm": "l2"}, {"norm": "l2", "eps": 1}])
def test_a_norm_is_not_its_limit(threat: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="attack spatial has limits of its own, which are its options; leave both out"):
        rbl.evaluate(Mean().eval(), _x(), torch.zeros(6, dtype=torch.int64), attack="spatial", **threat)
