"""Every attack against the closed form of one linear layer: success at 1.25 times the optimum, or as near as that."""

from __future__ import annotations

import pytest
import torch

from benchmarks import optimum


@pytest.mark.parametrize(("name", "norm"), [pair for pair in optimum.suited() if pair[0] not in optimum.EXEMPT])
def test_it_comes_as_near_as_it_must(name: str, norm: str) -> None:
    found = optimum.measured(name, norm)
    assert found.fooled == 1
    if found.ratio is not None:
        median, largest = found.ratio
        assert 1 - 1e-6 <= median <= optimum.SLACK, "nothing is nearer than the optimum"
        assert largest <= 1.5


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_the_optimum_is_one(norm: str) -> None:
    """A step of that length the steepest way crosses, a shorter one does not."""
    layer = optimum.Layer().eval()
    x = layer.images()
    distance = layer.optimum(x, norm)
    z = layer(x)[:, 0]
    w = layer.weight
    toward = -torch.sign(z)[:, None]
    for factor in (0.99, 1.01):
        length = distance * factor if norm != "l0" else distance - int(factor < 1)
        if norm == "linf":
            step = length[:, None] * w.sign()
        elif norm == "l2":
            step = length[:, None] * w / w.norm()
        elif norm == "l1":
            step = length[:, None] * torch.nn.functional.one_hot(w.abs().argmax(), len(w)) * w.sign()
        else:
            room = torch.where((toward * w) > 0, 1 - x.flatten(1), x.flatten(1))
            order = (room * w.abs()).argsort(1, descending=True).argsort(1)
            step = torch.where(order < length[:, None], room * w.sign(), 0)
        moved = (x.flatten(1) + toward * step.float()).reshape(x.shape)
        assert bool((moved >= -1e-6).all() and (moved <= 1 + 1e-6).all())
        crossed = layer(moved)[:, 0].sign() != z.sign()
        assert bool(crossed.all()) == (factor > 1)
        assert bool(crossed.any()) == (factor > 1)
