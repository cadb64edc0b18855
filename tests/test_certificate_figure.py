"""The curve of certified accuracy is, at every radius, the share of images that are right and certified there."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from robustbench_lite.certificate_figure import staircase

N = 12


@given(
    radius=arrays.arrays(np.float64, N, elements=st.integers(0, 8).map(lambda k: k / 4)),
    correct=arrays.arrays(np.bool_, N),
)
def test_the_curve_is_certified_accuracy(radius: np.ndarray, correct: np.ndarray) -> None:
    x, y = staircase(radius, correct)
    assert x[0] == 0.0 and (np.diff(x) >= 0).all() and (np.diff(y) <= 0).all()
    assert y[0] == correct.mean() and y[-1] == 0
    top = radius[correct].max() if correct.any() else 0.0
    for r in np.arange(0.125, top, 0.25):  # between the radii that occur
        assert np.isclose(np.interp(r, x, y), (correct & (radius >= r)).mean())
