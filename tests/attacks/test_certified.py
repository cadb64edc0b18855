"""No attack fools an image of which it is proved, by this file's own bounds, that none in its ball can."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import robustbench_lite as rbl
from robustbench_lite import registry
from robustbench_lite.data import balanced_subset

from .few import OPTIONS

LINF = 0.1


class Line(NamedTuple):
    """A lower bound of a rectifier where it may be on or off, and an upper one of the same slope above it by `gap`."""

    slope: Tensor
    gap: Tensor


def relaxed(low: Tensor, high: Tensor) -> Line:
    """The slope of the upper line through both ends (Wong and Kolter 2018, arXiv:1711.00851, figure 2)."""
    both = (low < 0) & (high > 0)
    slope = torch.where(both, high / (high - low).clamp_min(1e-12), (low >= 0).double())
    return Line(slope, torch.where(both, -low * slope, 0))


def within(constant: Tensor, slack: Tensor, ways: Tensor, middle: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Least and largest of an affine map of the box, (N,), where `slack` (2, N) may be lost below and won above."""
    centre, reach = constant + (ways * middle).sum(1), (ways.abs() * radius).sum(1)
    return centre - reach - slack[0], centre + reach + slack[1]


def lost_and_won(ways: Tensor, line: Line) -> Tensor:
    """How far a weighted sum of rectifiers may be below and above the sum of their lower lines, (2, N)."""
    return torch.stack([-(ways.clamp_max(0) * line.gap).sum(1), (ways.clamp_min(0) * line.gap).sum(1)])


def certified(net: nn.Sequential, x: Tensor, y: int) -> bool:
    """Whether no image of the ball around x (1, 1, 28, 28) has another label, for this network of two convolutions.

    From each layer the linear relaxation of those below is traced back to the pixels.
    """
    first, second, hidden, last = [cast(Any, net[i]) for i in (0, 2, 5, 7)]
    low, high = (x - LINF).clamp(0, 1), (x + LINF).clamp(0, 1)
    middle, radius = (low + high) / 2, (high - low) / 2
    centre = first(middle)
    reach = functional.conv2d(radius, first.weight.abs(), None, 2, 1)
    one = relaxed(centre - reach, centre + reach)
    # A number of the second layer sees 4 x 4 places of the first, and through them 10 x 10 pixels.
    seen = [functional.unfold(part, 4, stride=2, padding=1)[0].T for part in one]
    ways = second.weight.flatten(1).unsqueeze(0)
    back = (ways * seen[0].unsqueeze(1)).flatten(0, 1)
    constant = back.reshape(len(back), 16, 16).sum(2) @ first.bias + second.bias.repeat(49)
    slack = lost_and_won(ways.expand(49, -1, -1).flatten(0, 1), Line(seen[0], seen[1].repeat_interleave(32, 0)))
    pixels = functional.conv_transpose2d(back.reshape(-1, 16, 4, 4), first.weight, None, 2).flatten(1)
    patches = [
        functional.unfold(part, 10, stride=4, padding=3)[0].T.repeat_interleave(32, 0) for part in (middle, radius)
    ]
    two = relaxed(*(bound.reshape(49, 32).T.flatten() for bound in within(constant, slack, pixels, *patches)))

    def bounds(ways: Tensor, constant: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
        """Of weighted sums of the second layer's numbers after their rectifiers."""
        slack = slack + lost_and_won(ways, two)
        ways = (ways * two.slope).reshape(-1, 32, 7, 7)
        constant = constant + ways.sum((2, 3)) @ second.bias
        ways = functional.conv_transpose2d(ways, second.weight, None, 2, 1)
        slack = slack + lost_and_won(ways.flatten(1), Line(one.slope, one.gap.flatten()))
        ways = ways * one.slope
        constant = constant + ways.sum((2, 3)) @ first.bias
        ways = functional.conv_transpose2d(ways, first.weight, None, 2, 1).flatten(1)
        return within(constant, slack, ways, middle.flatten(), radius.flatten())

    three = relaxed(*bounds(hidden.weight, hidden.bias, torch.zeros(2, 100).double()))
    others = [k for k in range(10) if k != y]
    ahead = last.weight[y] - last.weight[others]
    slack = lost_and_won(ahead, three)
    ahead_of = ahead * three.slope
    least, _ = bounds(ahead_of @ hidden.weight, last.bias[y] - last.bias[others] + ahead_of @ hidden.bias, slack)
    return bool((least > 1e-4).all())


class Proved(NamedTuple):
    network: nn.Module
    x: Tensor
    y: Tensor


@pytest.fixture(scope="module")
def proved(shared_data: Path, shared_weights: Path) -> Proved:
    """A network trained to be certified, and those of 60 images for which it is."""
    data = rbl.load_dataset("mnist", data_dir=shared_data)
    weights = str(shared_weights / "mnist-certified" / "mnist.pth")
    network = rbl.load_model("small-cnn", n_classes=10, shape=data.shape, weights=weights).module
    index = balanced_subset(data.labels, 60)
    x, y = data.images(index), data.labels[index]
    exact = rbl.load_model("small-cnn", n_classes=10, shape=data.shape, weights=weights).module.double().eval()
    assert isinstance(exact, nn.Sequential)
    with torch.no_grad():
        sure = torch.tensor([certified(exact, x[i : i + 1].double(), int(y[i])) for i in range(len(x))])
    # 94.2 % of all images are, by the authors' bounds.
    assert sure.sum() >= 48
    return Proved(network, x[sure], y[sure])


def test_what_is_certified_holds_and_the_bounds_are_not_empty(proved: Proved) -> None:
    noise = torch.rand((20, *proved.x.shape), generator=torch.Generator().manual_seed(0)).round() * 2 - 1
    moved = (proved.x + LINF * noise).clamp(0, 1)
    with torch.no_grad():
        labels = proved.network(moved.flatten(0, 1)).argmax(1).reshape(20, -1)
    assert (labels == proved.y).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name",
    [
        name
        for name in sorted(registry.builtins("attacks"))
        for attack in [registry.load("attacks", name)]
        if "linf" in attack.norms and not attack.own_limits and name != "autoattack"  # whose parts are here
    ],
)
def test_no_attack_fools_a_certified_image(name: str, proved: Proved) -> None:
    learns = registry.load("attacks", name).learns
    found = rbl.evaluate(
        proved.network,
        proved.x,
        proved.y,
        attack=name,
        eps=LINF,
        attack_options=OPTIONS.get(name),
        checks=False,
        fit_data=(proved.x[:8], proved.y[:8]) if learns else None,
    )
    assert found.clean_accuracy == 1.0
    assert found.robust_accuracy == 1.0
    rows = found.samples
    assert not ((rows.adversarial_prediction != rows.label) & (rows.distance_linf <= LINF)).any()
