"""Genetic attack: who is bred of whom, how far a child is moved, plateaus, and a linear layer."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.attack import Batch
from robustbench_lite.attacks.gen_attack import GenAttack
from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat

SHAPE = (3, 6, 5)


class Curved:
    """Answers a query with a small network of three classes, and keeps the images."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = torch.randn((90, 9), generator=generator), torch.randn((9, 3), generator=generator)
        self.asked: list[Tensor] = []

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        self.asked.append(x.clone())
        return torch.tanh(x.flatten(1) @ self.first * 0.2) @ self.last


def batch_of(count: int, *, step: int = 0, targets: Tensor | None = None) -> Batch:
    x = torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    zero = torch.zeros(count, dtype=torch.int64)
    return Batch(Threat("linf", 0.1).around(x), zero, targets, zero + step, Stream(torch.arange(count)), zero)


@pytest.mark.parametrize("target", [None, 2])
def test_the_fittest_lives_on_and_the_others_are_children_of_two(target: int | None) -> None:
    network: Any = Curved()
    targets = None if target is None else torch.full((4,), target)
    attack, batch = GenAttack(population=5, mutation_rate=0.1, mutation_range=0.5), batch_of(4, targets=targets)
    state = attack.start(network, batch)
    assert float((state.population - batch.ball.x[:, None]).abs().mean()) == pytest.approx(0.05, rel=0.1)
    moved_share = []
    for step in range(20):
        old, network.asked = state, []
        state = attack.step(network, batch_of(4, step=step, targets=targets), old)
        assert len(torch.cat(network.asked)) == 4 * 4
        chance = network.logits(state.population.flatten(0, 1)).softmax(1)
        fitness = (1 - chance[:, 0] if target is None else chance[:, target]).logit().reshape(4, 5)
        assert torch.allclose(state.fitness, fitness, atol=1e-3)
        for row in range(4):
            assert torch.equal(state.population[row, 0], old.population[row, old.fitness[row].argmax()])
            assert torch.equal(state.candidate[row], state.population[row, state.fitness[row].argmax()])
            for child in state.population[row, 1:]:
                gap = (child - old.population[row]).abs().amin(0)
                assert float(gap.max()) <= 0.05 + 1e-5
                moved_share.append(float((gap > 0).double().mean()))
        assert bool(batch.ball.contains(state.candidate).all())
    assert sum(moved_share) / len(moved_share) == pytest.approx(0.1, abs=0.02)


def test_parents_are_drawn_and_crossed_by_the_softmax_of_their_fitness() -> None:
    network: Any = Curved()
    attack, batch = GenAttack(population=3, mutation_rate=1e-9), batch_of(400)
    state = attack.start(network, batch)
    fitness = torch.tensor([1.0, 0.0, -1.0]).log_softmax(0).expand(400, -1) + 7
    old = dataclasses.replace(state, fitness=fitness)
    born = attack.step(network, batch, old).population[:, 1:]
    chance = torch.tensor([1.0, 0.0, -1.0]).softmax(0)
    taken = torch.stack([(born == state.population[:, [i]]).flatten(2).double().mean(2) for i in range(3)], 2)
    alone = (taken > 0.99).double().mean((0, 1))
    assert torch.allclose(alone, chance.double() ** 2, atol=0.05)
    both = (taken[..., 0] > 0.01) & (taken[..., 1] > 0.01)
    assert float(taken[..., 0][both].mean()) == pytest.approx(float(chance[0] / (chance[0] + chance[1])), abs=0.02)


def test_mutation_shrinks_with_each_plateau_where_it_is_adaptive() -> None:
    network: Any = Curved()
    attack = GenAttack(adaptive=True, patience=3)
    state = attack.start(network, batch_of(3))
    state = dataclasses.replace(state, best=torch.full((3,), 1e9))  # what no member will be better than
    for step in range(7):
        assert state.plateaus.tolist() == [step // 3] * 3
        state = attack.step(network, batch_of(3, step=step), state)
    rate, reach = attack._mutation(torch.tensor([0, 1, 100]))
    assert torch.allclose(rate, torch.tensor([0.5, 0.45, 0.1]))
    assert torch.allclose(reach, torch.tensor([0.4, 0.36, 0.15]))
    rate, reach = GenAttack()._mutation(torch.tensor([0, 1]))
    assert torch.allclose(rate, torch.tensor([0.05, 0.05]))
    assert torch.allclose(reach, torch.ones(2))


@pytest.mark.parametrize("target", [None, "next"])
def test_on_one_linear_layer_it_comes_near_the_best_corner(target: str | None) -> None:
    generator = torch.Generator().manual_seed(3)
    layer = nn.Linear(36, 3)
    layer.weight.data = torch.randn((3, 36), generator=generator)
    model = nn.Sequential(nn.Flatten(), layer).eval()
    x = torch.rand((40, 1, 6, 6), generator=generator) * 0.4 + 0.3
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(1)
    aims = [(y + 1) % 3] if target else [(y + 1) % 3, (y + 2) % 3]
    gaps = torch.stack(
        [
            (logits.gather(1, y[:, None]) - logits.gather(1, aim[:, None]))[:, 0]
            / (layer.weight.data[y] - layer.weight.data[aim]).abs().sum(1)
            for aim in aims
        ]
    ).amin(0)
    eps = float(gaps.median())
    options = {"steps": 300}
    found = rbl.evaluate(model, x, y, attack="gen-attack", eps=eps, target=target, attack_options=options, checks=False)
    assert not found.success[gaps > eps * 1.001].any()
    assert found.success[gaps < 0.7 * eps].double().mean() > (0.75 if target else 0.95)
    assert found.backwards == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be >= 1, got 0"),
        ({"restarts": 0}, "restarts must be >= 1, got 0"),
        ({"population": 1}, "population must be >= 2, got 1"),
        ({"patience": 0}, "patience must be >= 1, got 0"),
        ({"mutation_rate": 0.0}, r"mutation_rate must be in \(0, 1\], got 0"),
        ({"mutation_range": -1.0}, "mutation_range must be > 0, got -1"),
        ({"loss": "mergin"}, "margin"),
    ],
)
def test_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GenAttack(**options)
