"""One pixel: the paper's evolution written out, what is painted, and a linear layer with a known best pixel."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Batch
from robustbench_lite.attacks.one_pixel import OnePixel
from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat

SHAPE = (3, 5, 4)


class Curved:
    """Answers a query with a small network of three classes, and keeps the images."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = torch.randn((60, 9), generator=generator), torch.randn((9, 3), generator=generator)
        self.asked: list[Tensor] = []

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        self.asked.append(x.clone())
        return torch.tanh(x.flatten(1) @ self.first * 0.2) @ self.last


def batch_of(count: int, *, step: int = 0, eps: float = 6.0, targets: Tensor | None = None) -> Batch:
    x = torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    zero = torch.zeros(count, dtype=torch.int64)
    return Batch(Threat("l0", eps).around(x), zero, targets, zero + step, Stream(torch.arange(count)), zero)


@pytest.mark.parametrize("base", ["random", "best"])
@pytest.mark.parametrize("target", [None, 2])
def test_a_child_is_made_of_other_members_and_replaces_its_own_parent_only(base: Any, target: int | None) -> None:
    network: Any = Curved()
    targets = None if target is None else torch.full((3,), target)
    attack = OnePixel(population=7, pixels=2, base=base)
    state = attack.start(network, batch_of(3, targets=targets))
    for step in range(6):
        old, network.asked = state, []
        state = attack.step(network, batch_of(3, step=step, targets=targets), old)
        asked = torch.cat(network.asked)
        assert len(asked) == 21
        chance = network.logits(asked).softmax(1)
        fitness = (1 - chance[:, 0] if target is None else chance[:, target]).logit().reshape(3, 7)
        for row in range(3):
            for i in range(7):
                mine, before = state.population[row, i], old.population[row]
                if torch.equal(mine, before[i]):
                    assert fitness[row, i] <= old.loss[row, i] + 1e-4
                    continue
                assert fitness[row, i] > old.loss[row, i] - 1e-4
                assert float(state.loss[row, i]) == pytest.approx(float(fitness[row, i]), abs=1e-4)
                first = [int(old.loss[row].argmax())] if base == "best" else [a for a in range(7) if a != i]
                children = [
                    before[a] + 0.5 * (before[b] - before[c])
                    for a in first
                    for b in range(7)
                    for c in range(7)
                    if i not in (b, c) and b != c and (base == "best" or a not in (b, c))
                ]
                outside = [(child < 0) | (child > 1) for child in children]
                gaps = [((child - mine).abs() * ~left).max() for child, left in zip(children, outside, strict=True)]
                assert min(map(float, gaps)) < 1e-6
                assert 0 <= float(mine.min()) <= float(mine.max()) <= 1
            best = int(state.loss[row].argmax())
            whole = attack._painted(batch_of(3).ball, state.population[:, best])
            assert torch.equal(state.candidate[row], whole[row])


def test_parents_are_drawn_evenly() -> None:
    network: Any = Curved()
    attack, batch = OnePixel(population=5, pixels=1, base="random"), batch_of(600)
    state = attack.start(network, batch)
    # Members that a sum tells apart: a + (b - c) / 2 is another number for each three.
    marks = 0.3 + torch.tensor([5e-4, 25e-4, 0.0125, 0.0625, 0.3125]).reshape(1, 5, 1, 1).expand_as(state.population)
    old = type(state)(state.candidate, marks.contiguous(), torch.full_like(state.loss, -1e9))
    children = attack.step(network, batch, old).population[:, 0, 0, 3]
    counts = Counter(children.mul(1e5).round().tolist())
    assert len(counts) == 4 * 3 * 2
    assert 8 < min(counts.values()) < max(counts.values()) < 50  # 25 each


def test_as_many_pixels_are_painted_as_eps_allows_and_no_other_changes() -> None:
    x = batch_of(5).ball.x
    ball = Threat("l0", 9.0).around(x, torch.tensor([9.0, 8.0, 6.0, 3.0, 0.0]))
    members = torch.rand((5, 4, 5), generator=torch.Generator().manual_seed(2))
    members[:, :, :2] = torch.tensor([[0.1, 0.1], [0.9, 1.0], [0.5, 0.6], [1.0, 0.0]])
    painted = OnePixel()._painted(ball, members)
    changed = (painted != x).any(1)
    assert changed.flatten(1).sum(1).tolist() == [3, 2, 2, 1, 0]
    assert bool(ball.contains(painted).all())
    assert changed[0].nonzero().tolist() == [[0, 0], [2, 2], [4, 3]]
    assert torch.equal(painted[0, :, 2, 2], members[0, 2, 2:])


@pytest.mark.parametrize("target", [None, "next"])
def test_on_one_linear_layer_it_finds_the_best_pixels(target: str | None) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(49, 3)
    layer.weight.data = torch.randn((3, 49), generator=generator)
    layer.bias.data = torch.zeros(3)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x = torch.rand((40, 1, 7, 7), generator=generator)
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    # What one pixel can gain over each class, the place and colour that are best for it.
    slope = layer.weight.data[None] - layer.weight.data[y][:, None]
    gain = torch.maximum(slope * (1 - x.flatten(1))[:, None], -slope * x.flatten(1)[:, None]).amax(2)
    lead = gain - (logits.gather(1, y[:, None]) - logits)
    lead = lead.scatter(1, y[:, None], -1e9) if target is None else lead.gather(1, (y[:, None] + 1) % 3)
    possible = (lead > 0).any(1)
    options = {"steps": 30, "population": 60}
    found = rbl.evaluate(
        model, x, y, attack="one-pixel", norm="l0", eps=1, target=target, attack_options=options, checks=False
    )
    sure = (lead > 0.2).any(1)
    assert int(sure.sum()) >= 3
    assert found.success[sure].double().mean() > 0.85
    if target is None:  # with a target the gain over it is no bound: the third class may lie between
        assert not found.success[~possible].any()
    assert (found.samples.distance_l0 <= 1).all()
    assert found.backwards == 0


def test_what_is_too_few_numbers_for_a_pixel_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(60, 3)).eval()
    x = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = model(x).argmax(1)
    with pytest.raises(UserError, match=r"eps must be at least 3 for one-pixel on images of 3 channels.*got 2"):
        rbl.evaluate(model, x, y, attack="one-pixel", norm="l0", eps=2, checks=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"restarts": 0}, "restarts must be >= 1, got 0"),
        ({"population": 3}, "population must be >= 4, got 3"),
        ({"weight": 0.0}, "weight must be > 0, got 0"),
        ({"base": "bets"}, "base: unknown name 'bets'.*best"),
        ({"pixels": 0}, "pixels must be >= 1, got 0"),
        ({"loss": "mergin"}, "margin"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OnePixel(**options)
