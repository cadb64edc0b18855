"""Every planted lie is found, and nobody honest is accused."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.checks import Stated, check_again, check_model
from robustbench_lite.defense import InferenceDefense, wrap_all
from robustbench_lite.defenses.bit_depth import BitDepth
from robustbench_lite.defenses.random_noise import RandomNoise
from robustbench_lite.losses import margin
from robustbench_lite.network import Network, frozen
from robustbench_lite.reliability import Finding, decide

from .nets import SHAPE, Rows, conv, filled, images, labels_of, mlp


def pixels(count: int = 16, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Images of 8 bits, as real ones are."""
    return (images(count, shape) * 255).round() / 255


def probe(
    model: nn.Module, *defenses: InferenceDefense, x: Tensor | None = None, eot: int = 1, stated: Stated | None = None
) -> list[Finding]:
    x = pixels() if x is None else x
    y = labels_of(model, x)
    if stated is None:
        stated = Stated(any(d.randomized for d in defenses), all(d.differentiable for d in defenses))
    defended = wrap_all(model, defenses)
    with frozen(defended), torch.no_grad():
        return check_model(Network(defended, eot=eot), x, y, stated).findings


class Through(nn.Module):
    """A model whose logits, or whose images, go through a function."""

    def __init__(self, logits: Callable[[Tensor], Tensor] | None = None, x: Callable[[Tensor], Tensor] | None = None):
        super().__init__()
        self.model = mlp()
        self.after = logits or (lambda z: z)
        self.before = x or (lambda z: z)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.model(self.before(x)))


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 3).round() / 3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Backwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


def torch_noise(x: Tensor) -> Tensor:
    return x + 0.1 * torch.randn_like(x)


LIES: dict[str, tuple[nn.Module, str]] = {
    "quantised": (Through(x=lambda x: (x * 7).round() / 7), "gradient is zero"),
    "quantised, straight through": (Through(x=_Straight.apply), "gradient disagrees with finite differences"),
    "detached": (Through(x=lambda x: x.detach()), "gradient is zero"),
    "gradient turned round": (Through(x=_Backwards.apply), "gradient disagrees with finite differences"),
    "shattered": (Through(x=lambda x: x + 0.02 * torch.sin(x * 3000)), "gradient disagrees with finite differences"),
    "torch's noise": (Through(x=torch_noise), "the model is random and nothing states it"),
    "numpy's noise": (
        Through(x=lambda x: x + 0.2 * torch.from_numpy(np.random.randn(*x.shape)).float()),
        "no seed controls",
    ),
    "python's noise": (Through(x=lambda x: x * random.uniform(0.3, 3)), "no seed controls"),
    "dropout that stays on": (
        Through(logits=lambda z: nn.functional.dropout(z, 0.5, training=True)),
        "the model is random and nothing states it",
    ),
    "batch statistics": (
        Through(x=lambda x: (x - x.mean(0)) / (x.std(0, correction=0) + 1e-3)),
        "depend on the other images of its batch",
    ),
    "batch norm in training": (
        Through(logits=lambda z: nn.functional.batch_norm(z, None, None, training=len(z) > 1) if len(z) > 1 else z),
        "depend on the other images of its batch",
    ),
    "sign of logits": (Through(logits=lambda z: z.sign()), "gradient is zero"),
}


@pytest.mark.parametrize("lie", sorted(LIES))
def test_a_lie_is_found(lie: str) -> None:
    model, text = LIES[lie]
    fatal = [finding for finding in probe(model) if finding.fatal]
    assert any(text in finding.text for finding in fatal), fatal
    assert decide(fatal).startswith("unreliable: ")
    assert "\n" not in decide(fatal)
    assert all(finding.advice for finding in fatal)


def test_softmax_is_seen_and_is_a_warning() -> None:
    findings = probe(Through(logits=lambda z: z.softmax(1)))
    assert [f.fatal for f in findings if "softmax seen" in f.text] == [False]
    assert decide(findings) == "reliable"


def test_logits_that_happen_to_be_positive_are_no_softmax() -> None:
    assert not probe(Through(logits=lambda z: z - z.amin(1, keepdim=True) + 0.01))
    assert not probe(Through(logits=lambda z: z.log_softmax(1)))


@dataclass(frozen=True)
class Rounds(InferenceDefense):
    """Says that it is differentiable; it is not."""

    name: ClassVar[str] = "rounds"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""

    def transform(self, x: Tensor) -> Tensor:
        return (x * 15).round() / 15


@dataclass(frozen=True)
class Still(InferenceDefense):
    """Says that it is random; it is not."""

    name: ClassVar[str] = "still"
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""
    randomized: ClassVar[bool] = True

    def transform(self, x: Tensor) -> Tensor:
        return x * 1


@dataclass(frozen=True)
class Blocked(Rounds):
    """States that it is not differentiable, and its surrogate has no gradient either."""

    differentiable: ClassVar[bool] = False

    def surrogate(self, x: Tensor) -> Tensor:
        return x.detach()


def test_defenses_that_lie() -> None:
    assert any("gradient is zero" in f.text and f.fatal for f in probe(mlp(), Rounds()))
    assert any("gradient is zero" in f.text and f.fatal for f in probe(mlp(), Blocked()))
    assert any("two draws gave the same logits" in f.text for f in probe(mlp(), Still()))
    noisy = RandomNoise(sigma=0.2)
    assert any("nothing states it" in f.text for f in probe(mlp(), noisy, stated=Stated()))


def trained(model: nn.Module) -> nn.Module:
    """Fitted to its own small world until it is sure of itself, where gradients are steep and kinks sharp."""
    x = pixels(64)
    y = (x.flatten(1)[:, :18].sum(1) > x.flatten(1)[:, 18:].sum(1)).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    with torch.enable_grad():
        for _ in range(60):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model.train()(x), y))
            optimizer.step()
    return model.eval()


def layers(activation: nn.Module, *more: nn.Module) -> nn.Module:
    return filled(
        nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *more, activation, nn.Flatten(), nn.Linear(288, 4)), scale=2
    )


def net(activation: nn.Module, *more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *more, activation, nn.Flatten(), nn.Linear(288, 4)).eval()


HONEST: dict[str, Callable[[], nn.Module]] = {
    "one linear layer": lambda: filled(nn.Sequential(nn.Flatten(), nn.Linear(36, 3))),
    "mlp": mlp,
    "mlp with large logits": lambda: mlp(scale=20),
    "mlp with small logits": lambda: mlp(scale=0.05),
    "two classes": lambda: mlp(2),
    "convolutions and max pooling": conv,
    "relu": lambda: layers(nn.ReLU()),
    "gelu": lambda: layers(nn.GELU()),
    "silu": lambda: layers(nn.SiLU()),
    "hardtanh": lambda: layers(nn.Hardtanh()),
    "batch norm": lambda: layers(nn.ReLU(), nn.BatchNorm2d(8)).eval(),
    "group norm": lambda: layers(nn.ReLU(), nn.GroupNorm(2, 8)),
    "dropout": lambda: layers(nn.ReLU(), nn.Dropout(0.5)).eval(),
    "trained relu": lambda: trained(net(nn.ReLU())),
    "trained batch norm": lambda: trained(net(nn.ReLU(), nn.BatchNorm2d(8))),
    "trained dropout and gelu": lambda: trained(net(nn.GELU(), nn.Dropout(0.2))),
    "log softmax": lambda: nn.Sequential(mlp(), nn.LogSoftmax(1)),
    "mean of all pixels": lambda: filled(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 3))),
}


@pytest.mark.parametrize("name", sorted(HONEST))
@pytest.mark.parametrize(
    ("defenses", "eot"),
    [((), 1), ((BitDepth(4),), 1), ((RandomNoise(0.1),), 4), ((BitDepth(3), RandomNoise(0.05)), 2)],
    ids=["none", "bit-depth", "random-noise", "both"],
)
def test_the_honest_are_not_accused(name: str, defenses: tuple[InferenceDefense, ...], eot: int) -> None:
    findings = probe(HONEST[name](), *defenses, eot=eot)
    assert findings == []


def answered_again(model: nn.Module, count: int = 96) -> list[Finding]:
    """What is found where the clean images were answered in batches of 32 before."""
    x = pixels(count)
    y, keys = torch.arange(count) % 2, torch.arange(count)
    with frozen(model), torch.no_grad():
        before = torch.cat([model(part) for part in torch.split(x, 32)])
        return check_again(Network(model), x, y, keys, -margin(before, y).double())


class Now(Through):
    """Random in few calls, or for few images."""

    def __init__(self, calls: float = 1.0, brighter: float = 0.0) -> None:
        super().__init__()
        self.calls = calls
        self.brighter = brighter

    def forward(self, x: Tensor) -> Tensor:
        if float(torch.rand(())) >= self.calls:
            return super().forward(x)
        bright = (x.mean((1, 2, 3)) > self.brighter).reshape(-1, 1, 1, 1)
        return super().forward(torch.where(bright, torch_noise(x), x))


@pytest.mark.parametrize("count", [1, 7, 96, 300])
def test_answers_that_change_later_are_found(count: int) -> None:
    torch.manual_seed(0)
    brightest = float(pixels(count).mean((1, 2, 3)).max()) - 1e-6
    assert [f.fatal for f in answered_again(Now(calls=0.03), count)] == [True]
    (finding,) = answered_again(Now(brighter=brightest), count)
    assert f"1 of {count} clean images" in finding.text


@pytest.mark.parametrize("name", sorted(HONEST))
def test_the_honest_answer_alike(name: str) -> None:
    assert answered_again(HONEST[name]()) == []


def test_gradients_are_no_reason_to_doubt_who_follows_none() -> None:
    model = LIES["quantised"][0]
    x = pixels()
    with frozen(model), torch.no_grad():
        findings = check_model(Network(model), x, labels_of(model, x), Stated(), follows=False).findings
    assert [f.fatal for f in findings] == [False]


@pytest.mark.parametrize("x", [torch.zeros(16, *SHAPE), torch.ones(16, *SHAPE), pixels(1), pixels(3).round()])
def test_flat_and_black_images_accuse_nobody(x: Tensor) -> None:
    assert probe(mlp(), x=x) == []
    assert probe(conv(), RandomNoise(0.1), x=x, eot=4) == []


@pytest.mark.parametrize("defense", [None, BitDepth(4), RandomNoise(0.05)])
def test_a_resnet_is_honest(defense: InferenceDefense | None) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(num_classes=10).eval()
    assert probe(model, *([defense] if defense else []), x=pixels(4, (3, 32, 32)), eot=2) == []


def test_probes_cost_little_and_leave_no_trace() -> None:
    model, x = mlp(), pixels()
    model.train()
    seen, state = Rows().watch(model), torch.random.get_rng_state()
    probe(model, x=x)
    assert seen.count <= 16 * 10
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_verdict_names_the_fatal_ones_only() -> None:
    findings = [Finding("mild: a", fatal=False), Finding("bad; b", fatal=True)]
    assert decide(findings) == "unreliable: bad"
    assert decide(findings[:1]) == "reliable"
