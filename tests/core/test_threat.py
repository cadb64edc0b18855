"""In the ball and in the box, exactly, whatever comes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Ball, Threat, distances

NORMS = ("linf", "l2")
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
    ball = Threat(norm, 0.5).around(x, torch.tensor(low))
    spread = draw(st.sampled_from([0.0, 1e-8, 1e-3, 0.05, 1.0, 1e6]))
    push = torch.randn(shape, generator=generator)
    return ball, x + spread * (push if draw(st.booleans()) else push.sign().abs())


def strictly_inside(ball: Ball, candidate: Tensor) -> Tensor:
    """The rule in numpy and float64, written apart from the library."""
    delta = candidate.numpy().astype("f8") - ball.x.numpy().astype("f8")
    flat = delta.reshape(len(delta), -1)
    norm = np.abs(flat).max(1) if ball.norm == "linf" else np.sqrt((flat**2).sum(1))
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
    alone = Threat(ball.norm, 0.5).around(ball.x[:1], ball.eps[:1]).random(Stream(keys[:1]))
    assert torch.equal(drawn[:1], alone)


@quick
@given(cases())
def test_scaled_is_in_the_ball(case: tuple[Ball, Tensor]) -> None:
    ball, direction = case
    assert strictly_inside(ball, ball.scaled(direction)).all()


def test_scaled_reaches_the_surface_away_from_the_edges() -> None:
    x = torch.full((3, 1, 5, 5), 0.5)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    for norm in NORMS:
        ball = Threat(norm, 0.2).around(x)
        assert ball.distance(ball.scaled(direction)).numpy() == pytest.approx(0.2, rel=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_steepest_is_a_unit_vector_that_attains_the_dual_norm(norm: str) -> None:
    gradient = torch.randn(6, 2, 4, 4, generator=torch.Generator().manual_seed(1)) * torch.logspace(-12, 12, 6).reshape(
        -1, 1, 1, 1
    )
    flat = gradient.double().flatten(1)
    dual = flat.abs().sum(1) if norm == "linf" else flat.square().sum(1).sqrt()
    direction = Threat(norm, 0.1).around(torch.zeros_like(gradient)).steepest(gradient.clone())
    length = distances(torch.zeros_like(direction), direction)[norm]
    assert length.numpy() == pytest.approx(1, rel=1e-6)
    assert (flat * direction.double().flatten(1)).sum(1).numpy() == pytest.approx(dual.numpy(), rel=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_is_no_step(norm: str) -> None:
    x = torch.rand(2, 1, 3, 3)
    ball = Threat(norm, 0.1).around(x)
    assert torch.equal(ball.ascend(x, torch.zeros_like(x), 0.1), x)


@pytest.mark.parametrize("norm", NORMS)
def test_step_sizes_of_each_sample(norm: str) -> None:
    x = torch.full((3, 1, 4, 4), 0.5)
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    ball = Threat(norm, 0.4).around(x)
    each = ball.ascend(x, gradient.clone(), torch.tensor([0.01, 0.02, 0.3]))
    assert ball.distance(each).numpy() == pytest.approx([0.01, 0.02, 0.3], rel=1e-4)


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


@pytest.mark.parametrize("eps", [8 / 255, 0.1, 0.3, 1 / 3])
def test_eps_is_rounded_down(eps: float) -> None:
    each = Threat("linf", eps).each(2).double()
    assert (each <= eps).all()
    assert each.numpy() == pytest.approx(eps, rel=1e-6)


@pytest.mark.parametrize("high", [1.0, 2.0, 255.0])
def test_other_boxes_keep_the_ball(high: float) -> None:
    x = torch.rand(8, 3, 16, 16) * high
    for norm in NORMS:
        ball = Threat(norm, 0.03 * high, high=high).around(x)
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
