"""Projections on a hyperplane in the box, against closed forms, bisection and properties of any case."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustbench_lite.errors import UserError
from robustbench_lite.hyperplane import to_hyperplane
from robustbench_lite.threat import distances

NORMS = ["linf", "l2", "l1"]
DUAL = {"linf": 1.0, "l2": 2.0, "l1": math.inf}


def _gained(change: Tensor, normal: Tensor) -> Tensor:
    return (change.double() * normal.double()).flatten(1).sum(1)


def _length(norm: str, change: Tensor) -> Tensor:
    return distances(torch.zeros_like(change), change)[norm]


def _shortest(norm: str, x: Tensor, normal: Tensor, gain: Tensor) -> Tensor:
    """The least length by bisection on the most that a change of a given length can gain; inf where none does."""
    w = normal.flatten(1).double() * gain.double().sign().unsqueeze(1)
    room = torch.where(w > 0, 1 - x.flatten(1).double(), x.flatten(1).double())
    low, high = torch.zeros(len(x), dtype=torch.float64), torch.full((len(x),), 100.0, dtype=torch.float64)
    for _ in range(80):
        middle = (low + high) / 2
        enough = _most(norm, w.abs(), room, middle) >= gain.double().abs()
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return torch.where(high > 99, torch.inf, high)


def _most(norm: str, w: Tensor, room: Tensor, length: Tensor) -> Tensor:
    if norm == "linf":
        return (w * torch.minimum(room, length.unsqueeze(1))).sum(1)
    if norm == "l1":
        w, order = w.sort(dim=1, descending=True)
        left = length.unsqueeze(1) - (room.gather(1, order).cumsum(1) - room.gather(1, order))
        return (w * torch.minimum(left.clamp_min(0), room.gather(1, order))).sum(1)
    # Maximise along w within a sphere and a box: min(room, factor * w), the factor by bisection.
    low, high = torch.zeros_like(length), torch.full_like(length, 1e6)
    for _ in range(100):
        middle = (low + high) / 2
        over = torch.minimum(room, middle.unsqueeze(1) * w).square().sum(1).sqrt() > length
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    return (w * torch.minimum(room, low.unsqueeze(1) * w)).sum(1)


@pytest.mark.parametrize("norm", NORMS)
def test_without_the_box_it_is_the_gain_over_the_dual_norm(norm: str) -> None:
    generator = torch.Generator().manual_seed(1)
    x, normal = torch.full((50, 3, 4, 4), 0.5), torch.randn((50, 3, 4, 4), generator=generator)
    gain = torch.randn(50, generator=generator) * 0.1
    change = to_hyperplane(norm, x, normal, gain)
    optimum = gain.abs() / torch.linalg.vector_norm(normal.flatten(1), ord=DUAL[norm], dim=1)
    torch.testing.assert_close(_length(norm, change), optimum.double(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(_gained(change, normal), gain.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [5, 200, 1000])
def test_within_the_box_none_is_shorter(norm: str, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    x = torch.rand((40, size), generator=generator)
    x = torch.where(torch.rand((40, size), generator=generator) < 0.3, x.round(), x)
    normal = torch.randn((40, size), generator=generator) * (torch.rand((40, size), generator=generator) < 0.7)
    # From gains that one pixel gives to those that need most of the box.
    gain = torch.randn(40, generator=generator) * normal.abs().sum(1) * torch.linspace(0.001, 0.5, 40)
    change = to_hyperplane(norm, x, normal, gain)
    least = _shortest(norm, x, normal, gain)
    reached = torch.isfinite(least)
    assert int(reached.sum()) > 20
    torch.testing.assert_close(_length(norm, change)[reached], least[reached], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(_gained(change, normal)[reached], gain.double()[reached], rtol=1e-4, atol=1e-4)


@st.composite
def _cases(draw: st.DrawFn) -> tuple[str, Tensor, Tensor, Tensor]:
    rows, size = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 7]))
    pixel = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1, width=32))
    slope = st.one_of(st.sampled_from([0.0, 1.0, -1.0]), st.floats(-1024, 1024, width=32, allow_subnormal=False))
    x = draw(st.lists(pixel, min_size=rows * size, max_size=rows * size))
    normal = draw(st.lists(slope, min_size=rows * size, max_size=rows * size))
    gain = draw(st.lists(st.floats(-1024, 1024, width=32, allow_subnormal=False), min_size=rows, max_size=rows))
    pixels, slopes = torch.tensor(x).reshape(rows, size), torch.tensor(normal).reshape(rows, size)
    return draw(st.sampled_from(NORMS)), pixels, slopes, torch.tensor(gain)


@settings(max_examples=150, deadline=None)
@given(_cases())
@example(("l1", torch.full((1, 90), 0.99), torch.ones((1, 90)), torch.tensor([0.8])))
@example(("l2", torch.zeros((2, 3)), torch.zeros((2, 3)), torch.tensor([1.0, 0.0])))
@example(("linf", torch.ones((1, 2)), torch.tensor([[1.0, 1.0]]), torch.tensor([1.0])))
def test_it_stays_in_the_box_and_goes_as_near_as_that_allows(case: tuple[str, Tensor, Tensor, Tensor]) -> None:
    norm, x, normal, gain = case
    before = [t.clone() for t in (x, normal, gain)]
    change = to_hyperplane(norm, x, normal, gain)
    assert all(torch.equal(a, b) for a, b in zip(before, (x, normal, gain), strict=True))
    assert change.shape == x.shape
    assert bool(torch.isfinite(change).all())
    moved = x.double() + change.double()
    assert float(moved.min()) >= -1e-6
    assert float(moved.max()) <= 1 + 1e-6
    assert bool((change[normal == 0] == 0).all())
    # No pixel goes the wrong way.
    assert bool((change.double() * normal.double() * gain.double().sign().unsqueeze(1) >= 0).all())
    sign = gain.double().sign().unsqueeze(1) * normal.double()
    most = (sign.abs() * torch.where(sign > 0, 1 - x.double(), x.double())).sum(1)
    wanted = torch.minimum(gain.double().abs(), most)
    # Pixels of no more than 1e-7 of the largest slope stay where they are.
    scale = 1e-5 * most + 1.01e-7 * x.shape[1] * normal.double().abs().amax(1) + 1e-30
    assert bool(((_gained(change, normal).abs() - wanted).abs() <= scale + 1e-5 * wanted).all())


@pytest.mark.parametrize("norm", NORMS)
def test_rows_are_apart(norm: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x, normal = torch.rand((30, 300), generator=generator), torch.randn((30, 300), generator=generator)
    gain = torch.randn(30, generator=generator) * 40
    together = to_hyperplane(norm, x, normal, gain)
    alone = torch.cat([to_hyperplane(norm, x[i : i + 1], normal[i : i + 1], gain[i : i + 1]) for i in range(30)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_another_box_and_a_gain_of_either_precision(dtype: torch.dtype) -> None:
    x, normal = torch.tensor([[-0.5, 2.0]]), torch.tensor([[1.0, -1.0]])
    change = to_hyperplane("l1", x, normal, torch.tensor([4.0], dtype=dtype), low=-1.0, high=2.0)
    torch.testing.assert_close(change, torch.tensor([[2.5, -1.5]]))


@pytest.mark.parametrize("norm", NORMS)
def test_out_of_reach_nothing_moves_for_nothing(norm: str) -> None:
    change = to_hyperplane(norm, torch.full((1, 3), 0.5), torch.tensor([[1.0, 1e-11, -0.5]]), torch.tensor([10.0]))
    torch.testing.assert_close(change, torch.tensor([[0.5, 0.0, -0.5]]))


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(UserError, match="norm"):
        to_hyperplane("l3", torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1))
