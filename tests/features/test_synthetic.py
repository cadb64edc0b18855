"""The synthetic case: the closed form against samples, against integration, and what training makes of it."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from robustbench_lite.errors import UserError
from robustbench_lite.features.synthetic import Synthetic, closed_form, draw, learn, measure, synthetic

SMALL = Synthetic(features=900, correlation=0.08, samples=20_000)


def test_samples_are_of_the_distribution() -> None:
    drawn = draw(SMALL)
    n, d = SMALL.samples, SMALL.features
    assert set(drawn.y.tolist()) == set(drawn.strong.tolist()) == {-1.0, 1.0}
    assert float((drawn.y == drawn.strong).double().mean()) == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / n))
    # Each correlation is off by about 1 / sqrt(n), their mean by a thirtieth of that.
    assert float(drawn.correlation.mean()) == pytest.approx(0.08, abs=4 / math.sqrt(n * d))
    assert float((drawn.correlation - 0.08).std()) == pytest.approx(1 / math.sqrt(n), rel=0.15)
    spread = (drawn.mean - drawn.y * SMALL.eta) * math.sqrt(d)
    assert float(spread.mean()) == pytest.approx(0, abs=4 / math.sqrt(n))
    assert float(spread.std()) == pytest.approx(1, abs=0.03)


def test_the_same_seed_the_same_samples_and_parts_of_their_own() -> None:
    case = Synthetic(features=20, correlation=0.1, samples=50)
    assert draw(case).mean.equal(draw(case).mean)
    assert not draw(case).mean.equal(draw(case, part=1).mean)
    assert not draw(case).mean.equal(draw(Synthetic(features=20, correlation=0.1, samples=50, seed=1)).mean)


@settings(deadline=None, max_examples=15)
@given(
    strong=st.floats(0, 3),
    weak=st.floats(0.01, 500),
    d=st.integers(1, 5000),
    correlation=st.floats(0.005, 0.5),
    p=st.floats(0.55, 0.99),
)
def test_the_closed_form_is_the_integral(strong: float, weak: float, d: int, correlation: float, p: float) -> None:
    """Over the density of the mean, the sign of the score moved against y."""
    case = Synthetic(features=d, correlation=correlation, p=p, eps=min(0.9, 2 * correlation))

    def share(eps: float) -> float:
        total = 0.0
        for sign, w in ((1, p), (-1, 1 - p)):
            least = (-strong * (sign - eps)) / weak + eps  # the mean that just suffices
            low, high = case.eta - 12 / math.sqrt(d), case.eta + 12 / math.sqrt(d)
            if least < high:
                at = np.linspace(max(least, low), high, 5)
                parts = itertools.pairwise(at)
                total += w * sum(quad(norm(case.eta, d**-0.5).pdf, a, b)[0] for a, b in parts)
        return total

    assert closed_form(case, strong, weak) == pytest.approx((share(0.0), share(case.reach)), abs=1e-6)


def test_measured_beside_the_closed_form() -> None:
    frame, notes = synthetic(SMALL)
    error = 4 * 0.5 / math.sqrt(SMALL.samples)
    assert frame["classifier"].is_unique and len(frame) == 5
    np.testing.assert_allclose(frame["measured_accuracy"], frame["accuracy"], atol=error)
    np.testing.assert_allclose(frame["measured_robust_accuracy"], frame["robust_accuracy"], atol=error)
    assert notes["measured_correlation"] == pytest.approx(0.08, abs=0.001)


def test_what_the_paper_says() -> None:
    """Training takes the weak features and is broken; adversarial training leaves them and keeps p, attacked or not."""
    frame, _ = synthetic(SMALL)
    by = frame.set_index("classifier").to_dict("index")
    assert by["one weak feature"]["accuracy"] < 0.54
    assert by["mean of the weak features"]["accuracy"] > 0.99
    plain, adversarial = by["training"], by["adversarial training"]
    assert plain["accuracy"] > 0.99 > 0.96 > adversarial["accuracy"]
    assert plain["robust_accuracy"] < 0.05
    assert adversarial["weak_weight"] == 0
    assert adversarial["accuracy"] == adversarial["robust_accuracy"] == pytest.approx(0.95)
    # Theorem 2.1: no classifier is more accurate under the adversary than p / (1 - p) times its errors.
    assert (frame["robust_accuracy"] <= frame["bound"] + 1e-12).all()


def test_below_the_weak_features_mean_the_adversary_leaves_them_of_use() -> None:
    case = Synthetic(features=900, correlation=0.08, samples=20_000, eps=0.01)
    _, weak = learn(case, draw(case), eps=case.reach)
    assert weak > 0
    assert synthetic(Synthetic(features=90, correlation=0.08, samples=100, eps=0.01))[0]["bound"].isna().all()


def test_learning_finds_the_minimum() -> None:
    """No pair of weights nearby has less loss."""
    case = Synthetic(features=50, correlation=0.2, samples=2000, p=0.8)
    drawn = draw(case)
    found = learn(case, drawn, eps=0.1)

    def loss(a: float, b: float) -> float:
        margin = (drawn.y * (a * drawn.strong + b * drawn.mean) - 0.1 * (a + b)).numpy()
        return float(np.logaddexp(0, -margin).mean())

    best = loss(*found)
    for da in (-0.05, 0, 0.05):
        for db in (-0.5, 0, 0.5):
            if found[0] + da >= 0 and found[1] + db >= 0:
                assert loss(found[0] + da, found[1] + db) >= best - 1e-6
    right, robust = measure(case, drawn, *found)
    assert robust <= right


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": 0}, r"features must be at least 1, got 0"),
        ({"correlation": 1.0}, r"correlation must be in \(0, 1\), got 1.0"),
        ({"p": 0.5}, r"p must be in \(0.5, 1\), got 0.5"),
        ({"eps": -0.1}, r"eps must be in \[0, 1\), got -0.1"),
        ({"samples": 3}, r"samples must be at least 10, got 3"),
    ],
)
def test_values_out_of_range(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Synthetic(**options)  # type: ignore[arg-type]
