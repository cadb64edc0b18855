"""Bounds of networks: nothing in the ball lies outside them, closed forms are met, and a tiny network is searched."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from robustbench_lite.bounds import Bounds
from robustbench_lite.bounds_ball import Region
from robustbench_lite.errors import UserError
from robustbench_lite.models.normalize import Normalize
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat

CHANNELS, SIDE, CLASSES = 2, 6, 3
EPS = {"linf": 0.1, "l2": 0.4, "l1": 1.0, "l0": 3.0}


class Residual(nn.Module):
    """Two ways that meet again, one of them scaled, and a part cut out of the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(CHANNELS, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.last = nn.Linear(8 * 4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        one = torch.relu(self.first(x))
        two = F.relu(one - 0.5 * self.second(one) + one)
        both = torch.cat([one, two], 1)[:, :, 1:-1, 1:-1]
        pooled: Tensor = self.last(F.avg_pool2d(F.pad(both, (0, 1, 0, 1)), 2)[:, :, :2, :2].reshape(x.size(0), -1))
        return pooled


def conv(*middle: nn.Module, features: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(CHANNELS, 3, 3, padding=1), *middle, nn.Flatten(), nn.Linear(features, CLASSES))


def normed() -> nn.Module:
    norm = nn.BatchNorm2d(3)
    norm.running_mean, norm.running_var = torch.tensor([0.2, -0.1, 0.3]), torch.tensor([0.5, 1.5, 2.0])
    nn.init.normal_(norm.weight)
    inner = conv(norm, nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), features=12)
    return Normalize(inner, (0.4, 0.6), (0.3, 0.2))


NETS = {
    "mlp": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(72, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    ),
    "two convolutions": lambda: conv(nn.ReLU(), nn.Conv2d(3, 4, 4, stride=2, padding=1), nn.ReLU(), features=36),
    "three convolutions": lambda: conv(
        *(nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.ReLU()),
        features=48,
    ),
    "two in a row": lambda: conv(
        *(nn.ReLU(), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1), nn.ReLU()), features=72
    ),
    "groups": lambda: conv(nn.ReLU(), nn.Conv2d(3, 6, 3, dilation=2, groups=3), nn.LeakyReLU(0.2), features=24),
    "max pooling": lambda: conv(nn.ReLU(), nn.MaxPool2d(3, 2, 1), nn.Conv2d(3, 2, 2), nn.ReLU(), features=8),
    "tanh": lambda: conv(nn.Tanh(), nn.AvgPool2d(2), nn.Sigmoid(), features=27),
    "others": lambda: conv(nn.ELU(0.7), nn.Conv2d(3, 3, 3), nn.Hardtanh(-0.2, 0.3), nn.Softplus(), features=48),
    "relu6": lambda: conv(nn.ReLU6(), nn.Identity(), nn.Conv2d(3, 3, 3), nn.ReLU(), features=48),
    "normalised": normed,
    "residual": Residual,
}


def made(name: str, seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETS[name]().eval()


def images(seed: int, count: int = 2) -> Tensor:
    x = torch.rand((count, CHANNELS, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    # Some numbers at the end of the box, where the ball is cut.
    return torch.where(x < 0.15, torch.zeros(()), torch.where(x > 0.85, torch.ones(()), x))


def inside(x: Tensor, norm: str, eps: float, seed: int, count: int = 24) -> Tensor:
    """Points of the ball of each image, many of them on its border, (count, N, ...)."""
    threat, keys = Threat(norm, eps), torch.arange(len(x)) + 97 * seed
    ball = threat.around(x)
    points = []
    for k in range(count):
        stream = Stream(keys).child(f"point {k}")
        point = ball.random(stream)
        if k % 2:
            point = ball.ascend(point, stream.normal(x.shape[1:]), eps)
        points.append(ball.project(point))
    return torch.stack(points)


@pytest.mark.parametrize("norm", sorted(EPS))
@pytest.mark.parametrize("name", sorted(NETS))
def test_nothing_in_the_ball_is_outside_whatever_the_layers_and_the_norm(name: str, norm: str) -> None:
    hold_against_points(name, norm, seed=11)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(NETS)), norm=st.sampled_from(sorted(EPS)), seed=st.integers(0, 1000))
def test_nothing_in_the_ball_is_outside_of_a_random_network(name: str, norm: str, seed: int) -> None:
    hold_against_points(name, norm, seed)


def hold_against_points(name: str, norm: str, seed: int) -> None:
    """Points of the ball give nothing outside the bounds, and CROWN's margins are at least as tight."""
    network, x = made(name, seed), images(seed)
    points = inside(x, norm, EPS[norm], seed)
    with torch.no_grad():
        answers = network.double()(points.double().flatten(0, 1)).reshape(len(points), len(x), CLASSES)
    y = torch.tensor([seed % CLASSES] * len(x))
    others = [k for k in range(CLASSES) if k != seed % CLASSES]
    margins = answers[:, :, [seed % CLASSES]] - answers[:, :, others]
    exact = Bounds(network, x.shape[1:], method="interval")
    values = exact.layers(Region(points.double().flatten(0, 1), "linf", 0.0))  # without a ball: every layer's result
    found = {}
    for method in ("interval", "crown"):
        bounds = Bounds(network, x.shape[1:], method=method)
        for value, layer in zip(values, bounds.layers(Region(x.double(), norm, EPS[norm])), strict=True):
            each = value.lower.reshape(len(points), *layer.lower.shape)
            assert (each >= layer.lower - 1e-9).all()
            assert (each <= layer.upper + 1e-9).all()
        logits = bounds.logits(x, norm=norm, eps=EPS[norm])
        assert (answers >= logits.lower - 1e-9).all()
        assert (answers <= logits.upper + 1e-9).all()
        found[method], _ = bounds.margins(x, y, norm=norm, eps=EPS[norm])
        assert (margins >= found[method] - 1e-9).all()
    assert (found["crown"] >= found["interval"] - 1e-12).all()


@pytest.mark.parametrize("name", sorted(NETS))
def test_without_a_ball_the_bounds_are_the_network(name: str) -> None:
    network, x = made(name, 3), images(4)
    with torch.no_grad():
        exact = network.double()(x.double())
    for method in ("interval", "crown"):
        bounds = Bounds(network, x.shape[1:], method=method)
        logits = bounds.logits(x, norm="linf", eps=0.0)
        assert torch.allclose(logits.lower, exact, atol=1e-7)
        assert torch.allclose(logits.upper, exact, atol=1e-7)


@pytest.mark.parametrize("name", sorted(NETS))
def test_the_slack_covers_what_float32_does(name: str) -> None:
    network, x = made(name, 5), images(6, 20)
    y = torch.zeros(20, dtype=torch.int64)
    with torch.no_grad():
        single = network(x).double()
        exact = network.double()(x.double())
    _, slack = Bounds(network.float(), x.shape[1:]).margins(x, y, norm="linf", eps=0.01)
    off = ((single[:, :1] - single[:, 1:]) - (exact[:, :1] - exact[:, 1:])).abs()
    assert (off <= slack).all()
    assert off.max() > 0
    assert slack.max() < 0.05


@pytest.mark.parametrize("norm", sorted(EPS))
def test_of_one_linear_layer_the_margin_is_exact(norm: str) -> None:
    """The box out of reach: the margin falls by eps times the dual norm of the weights' difference."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES)).double()
    x = 0.5 + 0.01 * (images(1) - 0.5)
    eps = {"linf": 0.05, "l2": 0.3, "l1": 0.4, "l0": 4}[norm]
    y = torch.tensor([0, 2])
    margin, _ = Bounds(network, x.shape[1:]).margins(x, y, norm=norm, eps=eps)
    layer = network[1]
    assert isinstance(layer, nn.Linear)
    for i, label in enumerate(y.tolist()):
        others = [k for k in range(CLASSES) if k != label]
        ways = (layer.weight[label] - layer.weight[others]).detach()
        clean = ways @ x[i].double().flatten() + (layer.bias[label] - layer.bias[others]).detach()
        room = torch.where(ways > 0, x[i].double().flatten(), 1 - x[i].double().flatten())
        lost = {
            "linf": eps * ways.abs().sum(1),
            "l2": eps * ways.norm(dim=1),
            "l1": eps * ways.abs().amax(1),
            "l0": (ways.abs() * room).topk(4, dim=1).values.sum(1),
        }[norm]
        assert torch.allclose(margin[i], clean - lost, atol=1e-7)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), eps=st.floats(0.01, 2.0))
def test_the_least_over_a_ball_cut_by_the_box(seed: int, eps: float) -> None:
    """Against the exact optimum in l2 (bisection on the multiplier) and in l1 (a fractional knapsack)."""
    generator = torch.Generator().manual_seed(seed)
    x, ways = torch.rand((1, 5), generator=generator).double(), torch.randn((1, 3, 5), generator=generator).double()
    x = torch.where(x < 0.3, 0.0, x)
    room = torch.where(ways > 0, x.unsqueeze(1), 1 - x.unsqueeze(1))
    here = (ways @ x.unsqueeze(2)).squeeze(2)
    low, high = torch.zeros(1, 3, 1).double() + 1e-9, torch.full((1, 3, 1), 1e9).double()
    for _ in range(200):
        middle = (low * high).sqrt()
        longer = (ways.abs() / middle).minimum(room).norm(dim=2, keepdim=True) > eps
        low, high = torch.where(longer, middle, low), torch.where(longer, high, middle)
    exact = here - (ways.abs() * (ways.abs() / high).minimum(room)).sum(2)
    least = Region(x, "l2", eps).least(ways)
    assert (least <= exact + 1e-6).all()
    assert (least >= here - (ways.abs() * room).sum(2).minimum(eps * ways.norm(dim=2)) - 1e-6).all()
    best = torch.full((1, 3), math.inf).double()
    for order in itertools.permutations(range(5)):
        left, value = torch.full((1, 3), eps).double(), here.clone()
        for k in order:
            step = room[..., k].minimum(left)
            value, left = value - ways[..., k].abs() * step, left - step
        best = best.minimum(value)
    assert torch.allclose(Region(x, "l1", eps).least(ways), best, atol=1e-7)


def test_a_tiny_network_against_a_search_of_its_ball() -> None:
    """Two inputs and three units: the least margin is searched on a fine grid."""
    for seed in range(6):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
        x = torch.tensor([[[[0.4, 0.55]]]])
        grid = torch.linspace(-0.2, 0.2, 401).double()
        points = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 1, 1, 2) + x.double()
        with torch.no_grad():
            answers = network(points)
        least = float((answers[:, 0] - answers[:, 1]).min())
        y = torch.tensor([0])
        crown, _ = Bounds(network, (1, 1, 2)).margins(x, y, norm="linf", eps=0.2)
        interval, _ = Bounds(network, (1, 1, 2), method="interval").margins(x, y, norm="linf", eps=0.2)
        assert interval.item() <= crown.item() + 1e-12
        assert crown.item() <= least + 1e-6
        open_units = Bounds(network, (1, 1, 2)).layers(Region(x.double(), "linf", 0.2))[2]
        if not ((open_units.lower < 0) & (open_units.upper > 0)).any():  # linear in the ball: nothing may be lost
            assert crown.item() == pytest.approx(least, abs=1e-6)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_bound_does_not_hang_on_its_batch(norm: str) -> None:
    network, x = made("two convolutions", 1), images(2, 7)
    y = torch.arange(7) % CLASSES
    bounds = Bounds(network, x.shape[1:])
    together = bounds.margins(x, y, norm=norm, eps=EPS[norm])
    alone = [bounds.margins(x[i : i + 1], y[i : i + 1], norm=norm, eps=EPS[norm]) for i in range(7)]
    for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.allclose(whole, torch.cat(parts), rtol=0, atol=1e-12)


class Wave(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)


class Mixes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) - x.flatten(1).mean(0)


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum() > 0 else -x.flatten(1)


@pytest.mark.parametrize(
    ("network", "told"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.GELU(), nn.Linear(9, 3)), r"cannot bound 2 \(GELU\);"),
        (nn.Sequential(nn.Flatten(), nn.Linear(72, 3), Wave()), r"cannot bound sin \(sin\);"),
        (nn.Sequential(nn.Flatten(), nn.Linear(72, 3), nn.Softmax(1)), r"cannot bound 2 \(Softmax\);"),
        (Mixes(), r"cannot bound mean \(mean\)"),
        (Branches(), r"cannot bound Branches \(its forward pass cannot be followed\)"),
        (
            nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten()),
            r"cannot bound 0 \(Conv2d\);",
        ),
        (nn.Sequential(nn.MaxPool2d(2, dilation=2), nn.Flatten()), r"cannot bound 0 \(MaxPool2d\);"),
        (nn.Sequential(nn.Flatten(), nn.Linear(72, 8), nn.LayerNorm(8)), r"cannot bound 2 \(LayerNorm\);"),
    ],
)
def test_what_cannot_be_bounded_is_named(network: nn.Module, told: str) -> None:
    with pytest.raises(UserError, match=rf"^--model: {told}") as caught:
        Bounds(network, (CHANNELS, SIDE, SIDE))
    assert "\n" not in str(caught.value)


def test_the_network_and_the_random_state_are_left_as_they_were() -> None:
    network = made("normalised", 0).train()
    before, state = [p.clone() for p in network.state_dict().values()], torch.get_rng_state()
    Bounds(network, (CHANNELS, SIDE, SIDE)).margins(images(0), torch.tensor([0, 1]), norm="linf", eps=0.1)
    assert network.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one, other) for one, other in zip(before, network.state_dict().values(), strict=True))
    assert next(network.parameters()).dtype == torch.float32


class _Escapes(nn.Module):
    """Networks whose trace does not say what they compute."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.inplace = nn.ReLU(inplace=True)
        if kind == "hook":
            self.first.register_forward_hook(lambda _layer, _given, out: out + 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.first(x.flatten(1))
        if self.kind == "dropout":
            z = torch.nn.functional.dropout(z, 0.5)
        elif self.kind == "in place":
            z = z + self.inplace(z)
        elif self.kind == "floor":
            z = torch.div(z, 0.25, rounding_mode="floor")
        elif self.kind == "batch":
            z = z - z.mean()
        return self.last(z)  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", ["hook", "dropout", "in place", "floor", "batch"])
@pytest.mark.parametrize("method", ["interval", "crown"])
def test_what_escapes_a_trace_is_refused(kind: str, method: Any) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match=r"^--model: cannot bound "):
        Bounds(_Escapes(kind), (1, 2, 3), method=method)
