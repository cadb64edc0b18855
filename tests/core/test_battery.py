"""Every planted masking is found and named, `auto` goes below plain PGD on it, and honest networks are left alone."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import robustbench_lite as rbl
from robustbench_lite.attack import Attack, Batch
from robustbench_lite.attacks.pgd import PGD, PGDState
from robustbench_lite.battery import _Tally
from robustbench_lite.data import load_dataset
from robustbench_lite.inside import network_inside
from robustbench_lite.network import Network
from robustbench_lite.query import Query
from robustbench_lite.straight import StraightModules, StraightThrough, blocked
from robustbench_lite.subjects import Scene, Subjects
from robustbench_lite.threat import Threat

EPS = 0.1
Digits = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Digits:
    data = load_dataset("digits")
    index = torch.arange(96)
    return data.images(index), data.labels[index]


def trained(seed: int) -> nn.Module:
    """A small network trained for six epochs on real digits."""
    data = load_dataset("digits", split="train")
    x, y = data.images(torch.arange(len(data))), data.labels
    torch.manual_seed(seed)
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


@pytest.fixture(scope="module")
def base() -> nn.Module:
    return trained(0)


@pytest.fixture(scope="module")
def undefended(base: nn.Module, digits: Digits) -> float:
    """What `auto` leaves of the network that nothing hides."""
    return evaluated(base, digits, "auto").robust_accuracy


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
        return self.logits(x) * 100


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
    "stored hashes": (Hashes, "gradient is zero.*unbounded attack fails"),
}
MASKING_ALONE = ("quantised input", "sign inside", "gradient clipped to zero")  # what they compute is hardly another


def evaluated(
    model: nn.Module, digits: Digits, attack: str | Attack = "pgd", eps: float = EPS, **more: Any
) -> rbl.Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return rbl.evaluate(model, *digits, attack=attack, eps=eps, **more)


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_masking_is_caught_and_auto_goes_below_pgd(
    name: str, base: nn.Module, digits: Digits, undefended: float
) -> None:
    plant, words = PLANTED[name]
    model = plant(base, digits[0])
    plain = evaluated(model, digits)
    assert plain.verdict.startswith("unreliable: ")
    assert re.search(words, plain.verdict)
    found = evaluated(model, digits, "auto", checks=False).robust_accuracy
    assert found < plain.robust_accuracy
    if name in MASKING_ALONE:
        assert found <= undefended + 0.08


@dataclass(frozen=True)
class SoftmaxPGD(PGD):
    """PGD on cross entropy as most write it, whose gradient underflows where the network is sure."""

    name: ClassVar[str] = "softmax-pgd"

    def step(self, query: Query, batch: Batch, state: PGDState) -> PGDState:  # type: ignore[override]
        def loss(logits: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
            return -logits.softmax(1).gather(1, y.unsqueeze(1))[:, 0].log()

        slope = query.gradient(state.candidate, loss).gradient
        return PGDState(batch.ball.ascend(state.candidate, slope, 2.5 / self.steps * batch.ball.eps), state.velocity)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_under_a_temperature_of_100_the_number_is_right_or_unreliable(seed: int, digits: Digits) -> None:
    """The loss of `pgd` does not underflow, so that it is not hurt; what others write is."""
    model = trained(seed)
    bare = evaluated(model, digits, checks=False).robust_accuracy
    ours, others = evaluated(Hot(model), digits), evaluated(Hot(model), digits, SoftmaxPGD())
    assert ours.robust_accuracy <= bare + 0.03 or ours.verdict.startswith("unreliable: ")
    assert others.robust_accuracy > bare + 0.2
    assert re.search("unreliable: .*float32 saturation", others.verdict)


def test_auto_sees_through_a_temperature(base: nn.Module, digits: Digits, undefended: float) -> None:
    assert evaluated(Hot(base), digits, "auto", checks=False).robust_accuracy <= undefended + 0.02


@pytest.mark.parametrize(("attack", "reliable"), [("pgd", False), ("auto", True)])
def test_a_search_without_gradients_beats_pgd_on_a_network_that_masks(
    attack: str, reliable: bool, shared_data: Path, shared_weights: Path
) -> None:
    data = load_dataset("mnist", data_dir=shared_data)
    weights = str(shared_weights / "mnist-fast-at" / "fgsm.pth")
    model = rbl.load_model("small-cnn", n_classes=10, shape=data.shape, weights=weights).module
    index = torch.arange(200)
    found = evaluated(model, (data.images(index), data.labels[index]), attack, 0.3)
    assert (found.verdict == "reliable") == reliable
    assert ("black box" in found.verdict) != reliable


@pytest.mark.parametrize(("norm", "eps"), [("l1", 5.0), ("l2", 2.0)])
def test_other_attacks_beat_pgd_in_a_norm_that_the_network_was_not_trained_for(
    norm: str, eps: float, shared_data: Path, shared_weights: Path
) -> None:
    data = load_dataset("mnist", data_dir=shared_data)
    weights = str(shared_weights / "mnist-fast-at" / "fgsm.pth")
    model = rbl.load_model("small-cnn", n_classes=10, shape=data.shape, weights=weights).module
    index = torch.arange(60)
    few = data.images(index), data.labels[index]
    found = evaluated(model, few, "pgd", eps, norm=norm)
    assert "other attacks" in found.verdict
    for result, expected in ((found, True), (evaluated(model, few, "auto", eps, norm=norm), False)):
        checks = result.run.specification.checks
        assert checks is not None and ("other attacks" in checks.after) == expected


@pytest.mark.parametrize("eps", [0.02, 0.05, EPS])
@pytest.mark.parametrize("attack", ["pgd", "auto"])
def test_an_honest_network_is_reliable(attack: str, eps: float, base: nn.Module, digits: Digits) -> None:
    found = evaluated(base, digits, attack, eps)
    assert 0 < found.robust_accuracy < found.clean_accuracy
    assert found.verdict == "reliable"


@pytest.mark.parametrize("target", [None, "next", "all"])
def test_an_attack_of_too_few_steps_is_found_out(target: str | None, base: nn.Module, digits: Digits) -> None:
    found = evaluated(base, digits, target=target, attack_options={"steps": 2, "step_size": 0.01})
    assert "more steps" in found.verdict
    assert any("the attack with 5 times its steps" in text for text in found.warnings)


def test_with_a_target_the_second_look_aims_at_it(base: nn.Module, digits: Digits) -> None:
    """Most images that stand there fall without a target, which says nothing of the number."""
    few = (digits[0][:48], digits[1][:48])
    found = evaluated(base, few, target="next")
    assert found.robust_accuracy > evaluated(base, few).robust_accuracy + 0.2
    assert found.verdict == "reliable"


@pytest.mark.parametrize("attack", ["noise", "transfer:pgd"])
def test_who_follows_no_gradient_is_not_accused_of_one(attack: str, base: nn.Module, digits: Digits) -> None:
    more = {"surrogates": [base]} if attack == "transfer:pgd" else {}
    found = evaluated(Quantised(base), digits, attack, 0.05, **more)
    assert found.verdict.startswith("upper bound: ")
    assert any("gradient is zero" in text for text in found.warnings)


def test_a_short_search_is_beaten_by_another(base: nn.Module, digits: Digits) -> None:
    few = (digits[0][:32], digits[1][:32])
    short, long = (evaluated(Quantised(base), few, "square", attack_options={"steps": n}) for n in (5, 1000))
    assert short.robust_accuracy > long.robust_accuracy
    assert short.verdict.startswith("unreliable: ") and "gradient is zero" not in short.verdict
    # What the search finds no more of, a gradient that passes the rounding still does.
    assert long.verdict == "unreliable: BPDA"


class Never(nn.Module):
    """Says one class of every image in the box: 100 % robust."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 2)
        self.bias = nn.Buffer(torch.tensor([bias, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1)) + self.bias
        return logits


@pytest.mark.parametrize("attack", ["pgd", "fgsm", "auto"])
def test_nobody_must_fall_where_the_box_is_not_known_to_hold_another_class(attack: str) -> None:
    x = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    found = evaluated(Never(100.0), (x, torch.zeros(20, dtype=torch.int64)), attack)
    assert found.robust_accuracy == 1
    assert found.verdict == ("upper bound: a single step" if attack == "fgsm" else "reliable")


class Warm(Planted):
    """Probabilities of logits times a number."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__(model)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return (self.logits(x) * self.factor).softmax(1)


@pytest.mark.parametrize(("factor", "lost"), [(1.0, False), (1000.0, True)])
def test_a_softmax_is_fatal_where_float32_loses_the_margin(
    factor: float, lost: bool, base: nn.Module, digits: Digits
) -> None:
    found = evaluated(Warm(base, factor), digits, eps=0.05)
    assert any("softmax seen" in text for text in found.warnings)
    assert ("softmax saturates" in found.verdict) == lost
    assert (found.verdict == "reliable") != lost


class Seldom(Planted):
    """Drops out in two calls of a hundred."""

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(F.dropout(x, 0.5, training=float(torch.rand(())) < 0.02))


class Bright(Planted):
    """Drops out in the brightest images alone."""

    def forward(self, x: Tensor) -> Tensor:
        bright = (x.mean((1, 2, 3)) > 0.37).reshape(-1, 1, 1, 1)
        return self.logits(torch.where(bright, F.dropout(x, 0.5, training=True), x))


@pytest.mark.parametrize("plant", [Seldom, Bright])
@pytest.mark.parametrize("target", [None, 3])
def test_what_is_random_now_and_then_is_found(
    plant: type[Planted], target: int | None, base: nn.Module, digits: Digits
) -> None:
    assert 0 < int((digits[0].mean((1, 2, 3)) > 0.37).sum()) <= 8
    found = evaluated(plant(base), digits, eps=0.02, target=target, attack_options={"steps": 5})
    assert "answers change in the course of the run" in found.verdict


def tally(weight: list[float], images: int) -> _Tally:
    count = len(weight)
    zero, x = torch.zeros(count, dtype=torch.int64), torch.rand(count, 1, 2, 2)
    left = Subjects(x, zero, None, torch.ones(count), zero, torch.tensor(weight), zero == 0)
    network = Network(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
    return _Tally(Scene(network, Threat("linf", 0.1), left, 1), images)


def rows(count: int, *where: int) -> Tensor:
    return torch.tensor([i in where for i in range(count)])


def test_what_looks_find_too_little_of_alone_counts_together() -> None:
    found = tally([1.0] * 10, 100)
    found.add("first", rows(10, 0))
    found.add("second", rows(10, 1))
    assert not found.every()
    found.add("third", rows(10, 2))
    assert [f.text.split(":")[0] for f in found.every()] == ["several looks together"]
    assert [f.text for f in tally([1.0] * 10, 100).every()] == []


def test_an_image_counts_for_one_look_that_is_reported() -> None:
    found = tally([1.0] * 10, 100)
    for what, where in (("first", (0,)), ("second", (0, 1)), ("third", (0, 1)), ("fourth", (0, 1, 2, 3))):
        found.add(f"{what}: look", rows(10, *where))
    assert [f.text.split(":")[0] for f in found.every()] == ["second", "fourth"]


def test_an_image_counts_for_those_it_was_chosen_from_but_not_alone() -> None:
    """Of 8 others each stands for 20 of 200: one of them may be chance."""
    found = tally([1.0] * 4 + [20.0] * 8, 200)
    found.add("chance", rows(12, 0, 4))
    assert not found.findings
    found.add("sure", rows(12, 4, 5))
    assert "some 10 points lower" in found.findings[0].text


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
def test_a_transfer_from_the_network_inside_is_told(defended: bool, base: nn.Module, digits: Digits) -> None:
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


@pytest.mark.parametrize("wrapped", ["none", "model", "defense"])
def test_it_may_be_left_out_and_its_passes_are_counted(wrapped: str, base: nn.Module, digits: Digits) -> None:
    """Passes of the network that was given, also where the network inside it is attacked, or a defense wraps it."""
    model = Hot(base) if wrapped == "model" else base
    calls = {}
    for checks in (True, False):
        seen = 0

        def count(module: nn.Module, args: Any, out: Tensor) -> None:
            nonlocal seen
            seen += len(out)

        handle = model.register_forward_hook(count)
        defenses = [WrongWay()] if wrapped == "defense" else []
        found = evaluated(model, digits, eps=0.05, checks=checks, defenses=defenses)
        handle.remove()
        calls[checks] = found.run.specification.calls
        # Three images are shown to see what kind of network it is (`adapt`), one to count the classes.
        assert seen - 4 == calls[checks]["forwards"] + calls[checks]["check_forwards"]
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
