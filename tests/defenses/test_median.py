"""median: each window by brute force."""

from __future__ import annotations

import pytest
import torch

from robustbench_lite.defenses.median import Median
from robustbench_lite.errors import UserError


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_each_pixel_is_the_middle_of_its_window(size: int) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 2, 7, 6)
    seen = Median(size=size).transform(x)
    before = size // 2

    def mirror(place: int, length: int) -> int:
        place = abs(place)
        return 2 * (length - 1) - place if place >= length else place

    for n, c, i, j in ((n, c, i, j) for n in range(2) for c in range(2) for i in range(7) for j in range(6)):
        rows = [mirror(i - before + k, 7) for k in range(size)]
        columns = [mirror(j - before + k, 6) for k in range(size)]
        window = sorted(float(x[n, c, r, q]) for r in rows for q in columns)
        assert float(seen[n, c, i, j]) == pytest.approx(window[(len(window) - 1) // 2])


def test_a_lone_pixel_goes_and_its_gradient_with_it() -> None:
    x = torch.zeros(1, 1, 5, 5)
    x[0, 0, 2, 2] = 1
    x.requires_grad_()
    seen = Median(size=3).transform(x)
    assert float(seen.detach().abs().max()) == 0
    gradient = torch.autograd.grad(seen.sum(), x)[0]
    assert float(gradient[0, 0, 2, 2]) == 0 and float(gradient.sum()) == 25


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^size must be in 1\.\.9, got 0"):
        Median(size=0)
    with pytest.raises(UserError, match=r"^size must be at most the image's side 4, got 5"):
        Median(size=5).transform(torch.zeros(1, 1, 4, 8))
