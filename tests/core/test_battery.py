"""Every planted masking is found and named, `auto` goes below plain PGD on it, and honest networks are left alone."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import robustbench_lite as rbl
from robustbench_lite.data import load_dataset
from robustbench_lite.inside import network_inside
from robustbench_lite.straight import StraightModules, StraightThrough, blocked

EPS = 0.1


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = load_dataset("digits")
    index = torch.arange(96)
    return data.images(index), data.labels[index]


@pytest.fixture(scope="module")
def base() -> nn.Module:
    """A small network trained for six epochs on real digits."""
    data = load_dataset("digits", split="train")
    x, y = data.images(torch.arange(len(data))), data.labels
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
    )
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    with torch.enable_grad():
        for _ in range(6):
            for rows in torch.split(torch.randperm(len(x)), 64):
                optimiser.zero_grad()
                F.cross_entropy(model(x[rows]), y[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
    return model.eval()


class Planted(nn.Module):
    """A network behind something that hides its gradient."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def logits(self, x: Tensor) -> Tensor:
        found: Tensor = self.model(x)
        return found


class Quantised(Planted):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits((x * 7).round() / 7)


class Sign(Planted):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x - 0.04 * torch.sign(torch.sin(x * 400)))


class Resized(Planted):
    def forward(self, x: Tensor) -> Tensor:
        side = int(torch.randint(26, 33, ()))
        small = F.interpolate(x, size=(side, side), mode="nearest")
        left = int(torch.randint(0, 33 - side, ()))
        top = int(torch.randint(0, 33 - side, ()))
        return self.logits(F.pad(small, (left, 32 - side - left, top, 32 - side - top)))


class Stochastic(Planted):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(F.dropout(x, 0.3, training=True))


class Hot(Planted):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x) * 1000


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clamp(0, 0)


class Clipped(Planted):
    def forward(self, x: Tensor) -> Tensor:
        return self.logits(_Clipped.apply(x))


class Hashes(Planted):
    """Finds the stored image of nearest hash, and answers with what the network says of that one."""

    def __init__(self, model: nn.Module, x: Tensor) -> None:
        super().__init__(model)
        self.stored = nn.Buffer(x)

    @staticmethod
    def hashed(x: Tensor) -> Tensor:
        small = F.avg_pool2d(x, 4).flatten(1)
        return (small > small.mean(1, keepdim=True)).float()

    def forward(self, x: Tensor) -> Tensor:
        near = torch.cdist(self.hashed(x), self.hashed(self.stored)).argmin(1)
        return self.logits(self.stored[near])


PLANTED: dict[str, tuple[Callable[[nn.Module, Tensor], nn.Module], str]] = {
    "quantised input": (lambda base, x: Quantised(base), "gradient is zero.*BPDA"),
    "sign inside": (lambda base, x: Sign(base), "disagrees with finite differences"),
    "random resize": (lambda base, x: Resized(base), "random and nothing states it"),
    "stochastic layer": (lambda base, x: Stochastic(base), "random and nothing states it"),
    "gradient clipped to zero": (lambda base, x: Clipped(base), "gradient is zero"),
    "temperature": (lambda base, x: Hot(base), "float32 saturation"),
    "stored hashes": (Hashes, "gradient is zero.*unbounded attack fails"),
}


def evaluated(model: nn.Module, digits: tuple[Tensor, Tensor], attack: str, eps: float = EPS) -> rbl.Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rbl.evaluate(model, *digits, attack=attack, eps=eps)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_masking_is_caught_and_auto_goes_below_pgd(
    name: str, base: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    plant, words = PLANTED[name]
    model = plant(base, digits[0])
    plain = evaluated(model, digits, "pgd")
    assert plain.verdict.startswith("unreliable: ")
    assert re.search(words, plain.verdict)
    assert evaluated(model, digits, "auto").robust_accuracy < plain.robust_accuracy


@pytest.mark.parametrize("eps", [0.02, 0.05, EPS])
@pytest.mark.parametrize("attack", ["pgd", "auto"])
def test_an_honest_network_is_reliable(attack: str, eps: float, base: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    found = evaluated(base, digits, attack, eps)
    assert 0 < found.robust_accuracy < found.clean_accuracy
    assert found.verdict == "reliable"


def test_an_attack_of_too_few_steps_is_found_out(base: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = rbl.evaluate(base, *digits, eps=EPS, attack_options={"steps": 2, "step_size": 0.01})
    assert "more steps" in found.verdict


@dataclass(frozen=True)
class WrongWay(rbl.InferenceDefense):
    """States a surrogate whose slope points the wrong way."""

    name: ClassVar[str] = "wrong-way"
    summary: ClassVar[str] = "planted"
    source: ClassVar[str] = "none"
    differentiable: ClassVar[bool] = False

    def transform(self, x: Tensor) -> Tensor:
        return x

    def surrogate(self, x: Tensor) -> Tensor:
        return 1 - x


@pytest.mark.parametrize("defended", [False, True])
def test_a_transfer_from_the_network_inside_is_told(
    defended: bool, base: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    """Where nothing but the gradient of the network inside, without what stands before it, leads anywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = rbl.evaluate(base, *digits, eps=EPS, defenses=[WrongWay()] if defended else [])
    assert ("transfer" in found.verdict) == defended


def test_the_network_inside_is_the_innermost_that_takes_images(base: nn.Module) -> None:
    x = torch.rand(2, 1, 32, 32)
    assert network_inside(base, x) is None
    for model, name in ((Hot(base), "model"), (Hot(Quantised(base)), "model.model")):
        found = network_inside(model, x)
        assert found == (name, base)
        assert not model._forward_hooks


def test_it_may_be_left_out_and_its_passes_are_counted(base: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    calls = {}
    for checks in (True, False):
        seen = 0

        def count(module: nn.Module, args: Any, out: Tensor) -> None:
            nonlocal seen
            seen += len(out)

        handle = base.register_forward_hook(count)
        found = rbl.evaluate(base, *digits, eps=0.05, checks=checks)
        handle.remove()
        calls[checks] = found.run.specification.calls
        assert seen - 1 == calls[checks]["forwards"] + calls[checks]["check_forwards"]
    assert calls[True]["forwards"] == calls[False]["forwards"]
    assert calls[True]["check_backwards"] > calls[False]["check_backwards"]


def test_blocked_modules_are_named_and_passed() -> None:
    class Steps(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0.5).float()

    last = nn.Linear(4, 2)
    model = nn.Sequential(nn.Identity(), Steps(), nn.Flatten(), last)
    x = torch.rand(3, 1, 2, 2)
    assert blocked(model, x) == ["1"]
    with torch.enable_grad(), StraightModules(model, ["1"]):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    assert torch.allclose(gradient.flatten(1), last.weight[0].expand(3, -1))


@pytest.mark.parametrize("step", [torch.round, torch.sign, Tensor.floor, lambda x: x.clone().round_()])
def test_steps_pass_gradients_and_keep_their_values(step: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-2, 2, 9)
    with torch.enable_grad(), StraightThrough() as mode:
        leaf = x.clone().requires_grad_()
        out = step(leaf)
        (gradient,) = torch.autograd.grad(out.sum(), leaf)
    assert torch.equal(gradient, torch.ones(9))
    assert torch.equal(out.detach(), step(x.clone()))
    assert len(mode.seen) == 1
