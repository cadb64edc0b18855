"""In the ball and in the box, exactly, whatever comes."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor

from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Ball, Threat, distances

NORMS = ("linf", "l2", "l1", "l0")
quick = settings(max_examples=40, deadline=None)

shapes = st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 16), st.integers(1, 16))
sizes = st.one_of(
    st.sampled_from([0.0, 1e-12, 1e-7, 1e-4, 8 / 255, 0.1, 0.3, 0.5, 0.999, 1.0]), st.floats(0, 1, width=32)
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Ball, Tensor]:
    """A ball around images that like the box's edges and constant colours, and something to project."""
    shape, norm = draw(shapes), draw(st.sampled_from(NORMS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    x = torch.rand(shape, generator=generator)
    kind = draw(st.sampled_from(["random", "edges", "constant", "bytes"]))
    if kind == "edges":
        x = x.round()
    elif kind == "constant":
        x = torch.full(shape, draw(st.floats(0, 1, width=32)))
    elif kind == "bytes":
        x = (x * 255).round() / 255
    low = draw(st.lists(sizes, min_size=shape[0], max_size=shape[0]))
    # The other norms grow with the number of pixels.
    scale = {"linf": 1, "l2": 1, "l1": 4, "l0": 10}[norm]
    ball = Threat(norm, 1).around(x, torch.tensor(low) * scale)
    spread = draw(st.sampled_from([0.0, 1e-8, 1e-3, 0.05, 1.0, 1e6]))
    push = torch.randn(shape, generator=generator)
    return ball, x + spread * (push if draw(st.booleans()) else push.sign().abs())


def strictly_inside(ball: Ball, candidate: Tensor) -> Tensor:
    """The rule in numpy and float64, written apart from the library."""
    delta = candidate.numpy().astype("f8") - ball.x.numpy().astype("f8")
    flat = delta.reshape(len(delta), -1)
    order = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}[ball.norm]
    norm = np.linalg.norm(flat, order, axis=1)
    pixels = candidate.numpy().reshape(len(delta), -1)
    box = (pixels.min(1) >= 0) & (pixels.max(1) <= 1)
    return torch.from_numpy(box & (norm <= ball.eps.numpy().astype("f8")))


@quick
@given(cases())
def test_project_lands_in_ball_and_box(case: tuple[Ball, Tensor]) -> None:
    ball, candidate = case
    landed = ball.project(candidate.clone())
    assert ball.contains(landed).all()
    assert strictly_inside(ball, landed).all()


@quick
@given(cases())
def test_project_is_idempotent_and_leaves_what_is_inside(case: tuple[Ball, Tensor]) -> None:
    ball, candidate = case
    landed = ball.project(candidate.clone())
    assert torch.equal(ball.project(landed.clone()), landed)
    moved = (landed - candidate).flatten(1).abs().amax(1)
    assert (moved[ball.contains(candidate)] <= 1e-6).all()


@quick
@given(cases())
def test_project_does_not_touch_its_argument_nor_the_image(case: tuple[Ball, Tensor]) -> None:
    ball, candidate = case
    kept, x = candidate.clone(), ball.x.clone()
    ball.project(candidate)
    assert torch.equal(candidate, kept)
    assert torch.equal(ball.x, x)


@quick
@given(cases(), st.integers(0, 2**31))
def test_random_is_in_the_ball_and_mixes_no_samples(case: tuple[Ball, Tensor], key: int) -> None:
    ball, _ = case
    keys = torch.arange(len(ball.x)) + key
    drawn = ball.random(Stream(keys))
    assert strictly_inside(ball, drawn).all()
    alone = Threat(ball.norm, 1).around(ball.x[:1], ball.eps[:1]).random(Stream(keys[:1]))
    assert torch.equal(drawn[:1], alone)


@quick
@given(cases())
def test_scaled_is_in_the_ball(case: tuple[Ball, Tensor]) -> None:
    ball, direction = case
    assert strictly_inside(ball, ball.scaled(direction)).all()


def test_scaled_reaches_the_surface_away_from_the_edges() -> None:
    x = torch.full((3, 1, 5, 5), 0.5)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for norm, eps in (("linf", 0.2), ("l2", 0.2), ("l1", 0.2), ("l0", 3)):
        ball = Threat(norm, eps).around(x)
        assert ball.distance(ball.scaled(direction)).numpy() == pytest.approx(eps, rel=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_is_a_unit_vector_that_attains_the_dual_norm(norm: str) -> None:
    gradient = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1)) * torch.logspace(-12, 12, 6).reshape(
        -1, 1, 1, 1
    )
    flat = gradient.double().flatten(1)
    dual = torch.linalg.vector_norm(flat, {"linf": 1, "l2": 2}.get(norm, math.inf), dim=1)
    direction = Threat(norm, 1).around(torch.zeros_like(gradient)).steepest(gradient.clone())
    length = distances(torch.zeros_like(direction), direction)[norm]
    assert length.numpy() == pytest.approx(1, rel=1e-6)
    assert (flat * direction.double().flatten(1)).sum(1).numpy() == pytest.approx(dual.numpy(), rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_is_no_step(norm: str) -> None:
    x = torch.rand(2, 1, 3, 3)
    ball = Threat(norm, 1).around(x)
    for step_size in (0.1, 1):
        assert torch.equal(ball.ascend(x, torch.zeros_like(x), step_size), x)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_step_sizes_of_each_sample(norm: str) -> None:
    x = torch.full((3, 1, 4, 4), 0.5)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    ball = Threat(norm, 0.4).around(x)
    each = ball.ascend(x, gradient.clone(), torch.tensor([0.01, 0.02, 0.3]))
    assert ball.distance(each).numpy() == pytest.approx([0.01, 0.02, 0.3], rel=1e-4)


def _cut(x: Tensor, far: Tensor, amount: float) -> np.ndarray[Any, Any]:
    """Every pixel's change shortened by `amount`, then cut to the box."""
    delta = (far - x).double().numpy()
    short = np.sign(delta) * np.maximum(np.abs(delta) - amount, 0)
    cut: np.ndarray[Any, Any] = np.clip(x.double().numpy() + short, 0, 1)
    return cut


@quick
@given(st.integers(0, 2**31), st.floats(0.01, 5), st.sampled_from([0.05, 0.5, 3.0]))
def test_l1_projection_is_the_nearest_point(seed: int, eps: float, spread: float) -> None:
    # By the optimality conditions the nearest point shortens all changes by one amount, here found by bisection.
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((1, 1, 3, 5), generator=generator)
    far = x + spread * torch.randn(x.shape, generator=generator)
    landed = Threat("l1", eps).around(x).project(far).numpy()
    low, high = 0.0, float((far - x).abs().max())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if np.abs(_cut(x, far, middle) - x.numpy()).sum() > eps else (low, middle)
    assert landed == pytest.approx(_cut(x, far, high), abs=1e-5 * (1 + eps))


@quick
@given(st.integers(0, 2**31), st.integers(0, 4))
def test_l0_projection_is_the_nearest_point(seed: int, eps: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((1, 1, 2, 3), generator=generator)
    far = x + torch.randn(x.shape, generator=generator)
    landed = Threat("l0", eps).around(x).project(far)
    box = far.clamp(0, 1)
    every = [torch.tensor(kept).reshape(x.shape) for kept in itertools.product([False, True], repeat=6)]
    nearest = min(float((torch.where(k, box, x) - far).square().sum()) for k in every if int(k.sum()) <= eps)
    assert float((landed - far).square().sum()) == pytest.approx(nearest, rel=1e-5)


@quick
@given(st.integers(0, 2**31), st.sampled_from(["l1", "l0"]), st.integers(1, 6))
def test_a_full_step_reaches_the_best_corner(seed: int, norm: str, eps: int) -> None:
    """For a linear function: in l1 pixels are filled in the order of their slope, in l0 by what each can gain."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((2, 1, 4, 4), generator=generator)
    slope = torch.randn(x.shape, generator=generator)
    landed = Threat(norm, eps).around(x).ascend(x, slope.clone(), float(eps))
    got = ((landed - x) * slope).double().flatten(1).sum(1)
    room = torch.where(slope > 0, 1 - x, x).double().flatten(1).numpy()
    for row, rate in enumerate(slope.abs().double().flatten(1).numpy()):
        if norm == "l0":
            best = np.sort(rate * room[row])[-eps:].sum()
        else:
            bounds = [(0, width) for width in room[row]]
            best = -linprog(-rate, np.ones((1, 16)), [eps], bounds=bounds).fun
        assert float(got[row]) == pytest.approx(best, rel=1e-4)


def test_a_short_l1_step_moves_a_hundredth_of_the_pixels() -> None:
    x = torch.full((1, 1, 20, 20), 0.5)
    slope = torch.arange(400.0).reshape(x.shape) + 1
    moved = Threat("l1", 12).around(x).ascend(x, slope, 0.2) - x
    assert moved.flatten().nonzero()[:, 0].tolist() == [396, 397, 398, 399]
    assert moved.sum().item() == pytest.approx(0.2, rel=1e-4)


def test_l0_wants_whole_numbers() -> None:
    with pytest.raises(UserError, match=r"^eps must be a whole number for l0, .* got 2\.5"):
        Threat("l0", 2.5)


def test_distances_are_those_of_numpy() -> None:
    a, b = torch.rand(4, 2, 3, 3), torch.rand(4, 2, 3, 3)
    b[0] = a[0]
    b[1, 0, 0] = a[1, 0, 0]
    delta = (b.numpy().astype("f8") - a.numpy().astype("f8")).reshape(4, -1)
    found = distances(a, b)
    for norm, order in (("linf", np.inf), ("l2", 2), ("l1", 1), ("l0", 0)):
        assert found[norm].dtype == torch.float64
        assert found[norm].numpy() == pytest.approx(np.linalg.norm(delta, order, axis=1), rel=1e-14)


def test_random_fills_the_ball() -> None:
    x = torch.full((4000, 1, 2, 2), 0.5)
    stream = Stream(torch.arange(4000))
    scipy = pytest.importorskip("scipy.stats")
    linf = (Threat("linf", 0.25).around(x).random(stream) - x).flatten() / 0.5 + 0.5
    assert scipy.kstest(linf.numpy(), "uniform").pvalue > 1e-3
    radius = Threat("l2", 0.25).around(x).distance(Threat("l2", 0.25).around(x).random(stream)) / 0.25
    assert scipy.kstest(radius.numpy() ** 4, "uniform").pvalue > 1e-3
    radius = Threat("l1", 0.25).around(x).distance(Threat("l1", 0.25).around(x).random(stream)) / 0.25
    assert scipy.kstest(radius.numpy() ** 4, "uniform").pvalue > 1e-3
    changed = Threat("l0", 1).around(x).random(stream) != x
    assert (changed.flatten(1).sum(1) == 1).all()
    assert scipy.chisquare(changed.flatten(1).sum(0).numpy()).pvalue > 1e-3


@pytest.mark.parametrize("eps", [8 / 255, 0.1, 0.3, 1 / 3])
def test_eps_is_rounded_down(eps: float) -> None:
    each = Threat("linf", eps).each(2).double()
    assert (each <= eps).all()
    assert each.numpy() == pytest.approx(eps, rel=1e-6)


@pytest.mark.parametrize("high", [1.0, 2.0, 255.0])
def test_other_boxes_keep_the_ball(high: float) -> None:
    x = torch.rand(8, 3, 16, 16) * high
    for norm in NORMS:
        ball = Threat(norm, 7 if norm == "l0" else 0.03 * high, high=high).around(x)
        landed = ball.project(x + torch.randn_like(x) * high)
        assert ball.contains(landed).all()


BAD: list[Any] = [-0.1, "-1/255", float("nan"), float("inf"), "nan", "inf", "8/0", "eight", "", None, "1e999", 1.01, 8]


@pytest.mark.parametrize("eps", BAD)
def test_bad_eps_is_one_line_that_names_it(eps: Any) -> None:
    with pytest.raises(UserError, match=r"^eps") as raised:
        Threat("linf", eps)
    assert "\n" not in str(raised.value)


def test_l2_may_not_exceed_the_diagonal() -> None:
    Threat("l2", math.sqrt(12)).check_shape((3, 2, 2))
    with pytest.raises(UserError, match=r"eps must be at most 3\.464"):
        Threat("l2", 3.5).check_shape((3, 2, 2))


def test_fractions_and_unknown_norms() -> None:
    assert Threat("linf", "8/255").eps == 8 / 255  # type: ignore[arg-type]
    with pytest.raises(UserError, match="norm: unknown name 'linff'; did you mean linf"):
        Threat("linff", 0.1)
