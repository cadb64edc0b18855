"""What an attack says that it costs at most is what it costs a sample that never falls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite import registry
from robustbench_lite.perturbation import make_attack
from robustbench_lite.portfolio import Part, Portfolio
from robustbench_lite.threat import Threat

from .nets import images

OPTIONS = {
    "pgd": {"steps": 3, "restarts": 2},
    "md": {"steps": 4, "restarts": 2},
    "pma": {"steps": 4},
    "apgd-ce": {"steps": 10, "restarts": 2},
    "apgd-t": {"steps": 5, "classes": 3},
    "square": {"steps": 6, "proposals": 3, "restarts": 2},
}


class Unmoved(nn.Module):
    """The label wins by far, whatever the image; its gradient is not zero."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits + torch.tensor([100.0, 0, 0, 0])


@pytest.mark.filterwarnings("ignore::UserWarning")  # of a network that cannot fall the probes say so
@pytest.mark.parametrize(
    ("name", "norm"),
    [(n, norm) for n in OPTIONS for norm in registry.load("attacks", n).norms if norm in ("linf", "l2", "l1")],
)
def test_the_most_an_image_costs(name: str, norm: str) -> None:
    eps = {"linf": 0.1, "l2": 1.0, "l1": 5.0}[norm]
    attack = make_attack(name, OPTIONS[name], Threat(norm, eps))
    said = attack.calls(Threat(norm, eps))
    x, y = images(6, (1, 8, 8)), torch.zeros(6, dtype=torch.int64)
    rows = rbl.evaluate(Unmoved(), x, y, attack=attack, norm=norm, eps=eps, checks=False).samples
    assert said is not None
    # The clean pass, and a proof at the end of each attempt.
    assert (rows.forwards == 1 + said[0] + attack.attempts).all()
    assert (rows.backwards == said[1]).all()


def test_a_portfolio_costs_what_its_parts_cost() -> None:
    threat = Threat("linf", 0.1)
    auto = make_attack("auto", {"effort": "quick"}, threat)
    assert isinstance(auto, Portfolio)
    parts = [Part.of(part).attack.resolve(threat).calls(threat) for part in auto.parts(threat)]
    assert auto.calls(threat) == tuple(map(sum, zip(*parts, strict=True)))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_efforts_rise(norm: str) -> None:
    threat = Threat(norm, 0.1)
    costs = []
    for effort in ("quick", "standard", "exhaustive"):
        calls = make_attack("auto", {"effort": effort}, threat).calls(threat)
        assert calls is not None
        costs.append(calls)
    assert costs[0] < costs[1] < costs[2]
