"""What would make a number lie without a trace: chance taken for success, one name for two networks, a softer proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.registry import load
from robustbench_lite.streams import Stream, drawing

pytestmark = [
    pytest.mark.filterwarnings("ignore:eps is 0"),
    pytest.mark.filterwarnings("ignore:clean accuracy is at chance"),
]
SHAPE = (1, 6, 6)


def data(n: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand((n, *SHAPE), generator=generator), torch.randint(0, 3, (n,), generator=generator)


def network(activation: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(36, 16), activation, nn.Linear(16, 3)).eval()


@pytest.mark.parametrize(("attack", "options"), [("pgd", {"steps": 8, "restarts": 3}), ("noise", {"restarts": 5})])
def test_no_attack_succeeds_by_being_judged_often(attack: str, options: dict[str, int]) -> None:
    """At eps 0 the only image is the clean one, so a random network must be exactly as robust as it is accurate."""
    net, (x, _) = network(nn.ReLU()), data()
    y = net(x).argmax(1)
    defense = load("defenses", "random-noise")(sigma=0.4)
    r = rbl.evaluate(net, x, y, attack=attack, eps=0, attack_options=options, defenses=[defense])
    assert 0 < r.clean_accuracy < 1
    assert r.robust_accuracy == r.clean_accuracy


def test_same_weights_in_another_network_are_another_run() -> None:
    x, y = data(8)
    ids = {
        rbl.evaluate(network(a), x, y, attack="fgsm").run.specification.run_id()
        for a in (nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.1), nn.LeakyReLU(0.2))
    }
    assert len(ids) == 4


def test_a_callers_autocast_does_not_soften_the_proof() -> None:
    net, (x, y) = network(nn.ReLU()), data()
    plain = rbl.evaluate(net, x, y, attack_options={"steps": 4})
    with torch.autocast("cpu", torch.bfloat16):
        inside = rbl.evaluate(net, x, y, attack_options={"steps": 4})
        assert torch.is_autocast_enabled("cpu")
    assert inside.run.table.equals(plain.run.table)


@dataclass(frozen=True)
class Global(rbl.InferenceDefense):
    """Random as it states, but from torch's own generator."""

    name: ClassVar[str] = "global"
    summary: ClassVar[str] = "noise from torch's generator"
    source: ClassVar[str] = "test"
    randomized: ClassVar[bool] = True

    def transform(self, x: Tensor) -> Tensor:
        return (x + 0.1 * torch.randn_like(x)).clamp(0, 1)


def test_noise_that_belongs_to_no_image_is_found_out() -> None:
    net, (x, _) = network(nn.ReLU()), data(32)
    with pytest.warns(UserWarning, match="global generator"):
        r = rbl.evaluate(net, x, net(x).argmax(1), attack="noise", defenses=[Global()])
    assert r.verdict.startswith("unreliable")


seen: list[Tensor] = []


@dataclass(frozen=True)
class Stepped(rbl.InferenceDefense):
    """Random and not differentiable: its surrogate draws the same noise."""

    name: ClassVar[str] = "stepped"
    summary: ClassVar[str] = "noise, then rounding"
    source: ClassVar[str] = "test"
    randomized: ClassVar[bool] = True
    differentiable: ClassVar[bool] = False

    def _noisy(self, x: Tensor) -> Tensor:
        noise = rbl.normal_like(x)
        seen.append(noise)
        return x + 0.1 * noise

    def transform(self, x: Tensor) -> Tensor:
        return (self._noisy(x) * 8).round().div(8).clamp(0, 1)

    def surrogate(self, x: Tensor) -> Tensor:
        return self._noisy(x)


def test_a_surrogate_stands_in_for_the_draws_that_were_made() -> None:
    x, _ = data(4)
    module = Stepped().wrap(network(nn.ReLU()))
    stream, zero = Stream(torch.arange(4)), torch.zeros(4, dtype=torch.int64)
    with drawing(stream, zero):
        module(x.clone().requires_grad_())
        after = rbl.normal_like(x)
    forward, backward = seen[-2:]
    assert torch.equal(forward, backward)
    with drawing(stream, zero), torch.no_grad():
        module(x)
        assert torch.equal(rbl.normal_like(x), after), "what is drawn later does not hang on the gradient"
