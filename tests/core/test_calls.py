"""What an attack says that it costs at most is what it costs a sample that never falls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite import registry
from robustbench_lite.perturbation import make_attack
from robustbench_lite.portfolio import Part, Portfolio
from robustbench_lite.threat import Threat

from .nets import images, labels_of, mlp

OPTIONS = {
    "pgd": {"steps": 3, "restarts": 2},
    "md": {"steps": 4, "restarts": 2},
    "pma": {"steps": 4},
    "apgd-ce": {"steps": 10, "restarts": 2},
    "apgd-t": {"steps": 5, "classes": 3},
    "square": {"steps": 6, "proposals": 3, "restarts": 2},
    "bim": {"steps": 3},
    "di-fgsm": {"steps": 3, "restarts": 2},
    "jitter": {"steps": 3, "restarts": 2},
    "mi-fgsm": {"steps": 3},
    "ni-fgsm": {"steps": 3},
    "pi-fgsm": {"steps": 3},
    "r-fgsm": {"steps": 3},
    "si-ni-fgsm": {"steps": 3, "scales": 2},
    "ti-fgsm": {"steps": 3, "restarts": 2},
    "tpgd": {"steps": 3, "restarts": 2},
    "vmi-fgsm": {"steps": 3, "neighbours": 2, "restarts": 2},
    "vni-fgsm": {"steps": 3, "neighbours": 2},
    "noise": {"restarts": 3},
    "ddn": {"steps": 4},
    "fmn": {"steps": 4},
    "fgsm": {},
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


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("name", "options", "norm", "eps"),
    [
        ("cw", {"steps": 4, "searches": 2}, "l2", 1.0),
        ("cw", {"steps": 4, "searches": 2}, "linf", 0.1),
        ("ead", {"steps": 4, "searches": 2}, "l1", 5.0),
        ("sigma-zero", {"steps": 4}, "l0", 9.0),
        ("spatial", {"method": "worst-of-k", "k": 4}, "linf", 1.0),
        ("fab-t", {"steps": 3, "classes": 3, "restarts": 2}, "l2", 1.0),
        ("deepfool", {"steps": 4, "classes": 2}, "l2", 1.0),
        ("boundary", {"steps": 5, "proposals": 2, "tries": 9}, "l2", 1.0),
        ("hop-skip-jump", {"steps": 3, "directions": 4, "tries": 9}, "l2", 1.0),
        ("hop-skip-jump", {"steps": 3, "directions": 4, "tries": 9, "most_directions": 5}, "linf", 1.0),
        ("pointwise", {"steps": 10, "tries": 9, "restarts": 2}, "l0", 9.0),
        ("jsma", {"steps": 6}, "l0", 9.0),
        ("sparsefool", {"steps": 3, "deepfool_steps": 4, "classes": 3}, "l1", 5.0),
        ("blur", {"steps": 5, "bisections": 2}, "l2", 1.0),
    ],
)
def test_no_image_costs_more(name: str, options: dict[str, Any], norm: str, eps: float) -> None:
    """Of those that may end sooner, or whose last image needs no proof."""
    attack = make_attack(name, options, Threat(norm, eps))
    said = attack.calls(Threat(norm, eps))
    assert said is not None
    x, most = images(6, (1, 8, 8)), (0, 0)
    for model in (Unmoved(), mlp(shape=(1, 8, 8), scale=8.0)):
        y = labels_of(model, x)
        rows = rbl.evaluate(model, x, y, attack=attack, norm=norm, eps=eps, checks=False).samples
        most = (max(most[0], rows.forwards.max()), max(most[1], rows.backwards.max()))
    # The clean pass, and at most two proofs: of the nearest image and of the last.
    assert most[0] - 3 <= said[0] and most[1] <= said[1]
    if name not in (
        "ead",
        "boundary",
        "hop-skip-jump",
        "pointwise",
        "jsma",
        "blur",
    ):  # which end where nothing is left to do
        assert said[0] <= most[0] - 1 and most[1] == said[1]


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
