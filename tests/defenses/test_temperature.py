"""temperature: no prediction changes, and no attack of the suite is fooled by it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import robustbench_lite as rbl
from benchmarks.textbook import TextbookPGD
from robustbench_lite.defenses.temperature import Temperature
from robustbench_lite.errors import UserError


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.Tanh(), nn.Linear(16, 3)).eval().requires_grad_(False)


@pytest.mark.parametrize("temperature", [1e-4, 0.01, 100.0])
def test_attacks_find_what_they_find_without_it(temperature: float) -> None:
    network, x = _network(), torch.rand(60, 1, 6, 6)
    y = network(x).argmax(1)
    defense = Temperature(temperature=temperature)
    assert torch.allclose(defense.wrap(network)(x) * temperature, network(x), atol=1e-5)
    for attack in ("pgd", "apgd-dlr"):
        given = {"attack": attack, "eps": 0.1, "checks": False}
        bare = rbl.evaluate(network, x, y, **given)  # type: ignore[arg-type]
        divided = rbl.evaluate(network, x, y, defenses=[defense], **given)  # type: ignore[arg-type]
        assert bare.robust_accuracy < 0.9
        assert divided.robust_accuracy <= bare.robust_accuracy + 0.02


def test_the_textbook_attack_is_fooled_by_it_and_its_gradient_comes_back() -> None:
    network, x = _network(), torch.rand(60, 1, 6, 6)
    y = network(x).argmax(1)

    def left(*temperatures: float) -> float:
        defenses = [Temperature(temperature=t) for t in temperatures]
        return rbl.evaluate(
            network, x, y, attack=TextbookPGD(), eps=0.1, defenses=defenses, checks=False
        ).robust_accuracy

    assert left(1e-5) > 0.9 > 0.4 > left()
    assert left(1e5, 1e-5) == pytest.approx(left(), abs=0.02)


def test_a_temperature_that_is_none() -> None:
    with pytest.raises(UserError, match=r"^temperature must be > 0, got 0"):
        Temperature(temperature=0.0)
