"""A defense that is not what it says is found out, by the check that is meant for it; an honest one is not."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate

from robustbench_lite import Dataset, InferenceDefense, Trainer, TrainingDefense, UserError, normal_like
from robustbench_lite.conformance import Check, check_defense, failed

SHAPES = ((3, 8, 8), (1, 9, 12))


@dataclass(frozen=True)
class Honest(InferenceDefense):
    name: ClassVar[str] = "honest"
    summary: ClassVar[str] = "does what it says"
    source: ClassVar[str] = "this test"

    def transform(self, x: Tensor) -> Tensor:
        return (x + 0.2 * (x - 0.5)).clamp(0, 1)


class Through(torch.autograd.Function):
    """Rounds, and hands the gradient back times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float, rounded: bool) -> Tensor:
        ctx.factor = factor
        return (x * 15).round() / 15 if rounded else x.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.factor, None, None


class Square(torch.autograd.Function):
    """x^2 with its gradient times a factor: right for 1 alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x.square()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient * ctx.factor, None


@dataclass(frozen=True)
class Rounded(Honest):
    def transform(self, x: Tensor) -> Tensor:
        return (x * 15).round() / 15


@dataclass(frozen=True)
class Detached(Honest):
    def transform(self, x: Tensor) -> Tensor:
        return x.detach().square()


@dataclass(frozen=True)
class StraightThrough(Honest):
    def transform(self, x: Tensor) -> Tensor:
        return Through.apply(x, 1.0, True)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class WrongScale(Honest):
    factor: float = 2.0

    def transform(self, x: Tensor) -> Tensor:
        return Square.apply(x, self.factor)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class WrongSign(WrongScale):
    factor: float = -1.0


@dataclass(frozen=True)
class HalfDetached(Honest):
    """The gradient of every second column is missing."""

    def transform(self, x: Tensor) -> Tensor:
        even = torch.arange(x.shape[3]) % 2 == 0
        return torch.where(even, x.square(), x.detach().square())


@dataclass(frozen=True)
class SlightlyDetached(Honest):
    """The gradient of one column is missing."""

    def transform(self, x: Tensor) -> Tensor:
        return torch.where(torch.arange(x.shape[3]) == 3, x.detach().square(), x.square())


@dataclass(frozen=True)
class Shattered(Honest):
    """Its gradient is right at a point and tells nothing of the next."""

    def transform(self, x: Tensor) -> Tensor:
        return 0.5 + 0.25 * torch.sin(1e4 * x)


@dataclass(frozen=True)
class NanAtZero(Honest):
    def transform(self, x: Tensor) -> Tensor:
        return x.sqrt()


@dataclass(frozen=True)
class SecretlyRandom(Honest):
    def transform(self, x: Tensor) -> Tensor:
        return (x + 0.1 * normal_like(x)).clamp(0, 1)


@dataclass(frozen=True)
class GlobalNoise(Honest):
    randomized: ClassVar[bool] = True

    def transform(self, x: Tensor) -> Tensor:
        return (x + 0.1 * torch.randn_like(x)).clamp(0, 1)


@dataclass(frozen=True)
class NumpyNoise(Honest):
    randomized: ClassVar[bool] = True

    def transform(self, x: Tensor) -> Tensor:
        return (x + torch.from_numpy(np.random.uniform(0, 0.1, x.shape)).to(x)).clamp(0, 1)


@dataclass(frozen=True)
class Unseeded(Honest):
    randomized: ClassVar[bool] = True

    def transform(self, x: Tensor) -> Tensor:
        return (x + 0.1 * random.SystemRandom().random()).clamp(0, 1)


@dataclass(frozen=True)
class SharedNoise(Honest):
    """The noise of the first image for all."""

    randomized: ClassVar[bool] = True

    def transform(self, x: Tensor) -> Tensor:
        return (x + 0.1 * normal_like(x)[:1]).clamp(0, 1)


@dataclass(frozen=True)
class NotRandom(Honest):
    randomized: ClassVar[bool] = True


@dataclass(frozen=True)
class Reseeds(Honest):
    def transform(self, x: Tensor) -> Tensor:
        torch.default_generator.manual_seed(0)
        return (x + 0.1 * torch.rand_like(x)).clamp(0, 1)


@dataclass(frozen=True)
class OutOfRange(Honest):
    def transform(self, x: Tensor) -> Tensor:
        return x * 2 - 0.5


@dataclass(frozen=True)
class Resized(Honest):
    def transform(self, x: Tensor) -> Tensor:
        return interpolate(x, scale_factor=0.5)


@dataclass(frozen=True)
class Doubled(Honest):
    def transform(self, x: Tensor) -> Tensor:
        return x.double()


@dataclass(frozen=True)
class MixesRows(Honest):
    def transform(self, x: Tensor) -> Tensor:
        return 0.5 * x + 0.5 * x.mean(0, keepdim=True)


@dataclass(frozen=True)
class InPlace(Honest):
    def transform(self, x: Tensor) -> Tensor:
        return x.mul_(0.5) if not x.requires_grad else x * 0.5


@dataclass(frozen=True)
class BadSurrogate(Rounded):
    differentiable: ClassVar[bool] = False

    def surrogate(self, x: Tensor) -> Tensor:
        return (x * 15).round() / 15


@dataclass(frozen=True)
class ResizedSurrogate(Rounded):
    differentiable: ClassVar[bool] = False

    def surrogate(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]


class Blocked(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.model(x)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class BlockedWrap(Honest):
    """A wrap of its own that lets no gradient back."""

    differentiable: ClassVar[bool] = False

    def wrap(self, model: nn.Module) -> nn.Module:
        return Blocked(model)


class Labels(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).argmax(1)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LabelsOnly(Honest):
    def wrap(self, model: nn.Module) -> nn.Module:
        return Labels(model)


@dataclass(frozen=True)
class Raises(Honest):
    def transform(self, x: Tensor) -> Tensor:
        raise KeyError("no such table")


@dataclass(frozen=True)
class Nothing(InferenceDefense):
    name: ClassVar[str] = "nothing"
    summary: ClassVar[str] = "has no transform"
    source: ClassVar[str] = "this test"


LIES: list[tuple[type[InferenceDefense], str, str]] = [
    (Rounded, "gradient", "the gradient is zero for 8 of 8 images"),
    (Detached, "gradient", "no gradient comes back"),
    (StraightThrough, "gradient", "straight-through"),
    (WrongScale, "gradient", "0.5 times the gradient"),
    (WrongSign, "gradient", "wrong way"),
    (HalfDetached, "gradient", "in part missing"),
    (SlightlyDetached, "gradient", "differentiable = True"),
    (Shattered, "gradient", "shattered"),
    (NanAtZero, "gradient", "NaN or infinite"),
    (SecretlyRandom, "randomness", "randomized = False, but two draws of transform differ"),
    (GlobalNoise, "randomness", "draws from torch's global generator: the verdict would depend on the batch size"),
    (NumpyNoise, "randomness", "draws from numpy's global generator"),
    (Unseeded, "randomness", "from a source that no seed controls"),
    (SharedNoise, "rows", "mixes images"),
    (NotRandom, "randomness", "two draws are equal"),
    (Reseeds, "global random state", "moves torch's global generator"),
    (OutOfRange, "shape and range", "[0, 1]"),
    (Resized, "shape and range", "keep the shape"),
    (Doubled, "shape and range", "float32"),
    (MixesRows, "rows", "mixes images"),
    (InPlace, "input untouched", "changes the images"),
    (BadSurrogate, "surrogate", "must be differentiable"),
    (ResizedSurrogate, "surrogate", "keep the shape"),
    (BlockedWrap, "surrogate", "no gradient comes back through the defended network"),
    (LabelsOnly, "logits", "(8, 3) logits, got (8,)"),
    (Raises, "runs", "it raised KeyError: 'no such table' (line "),
    (Nothing, "runs", "neither a transform nor a wrap"),
]


@pytest.mark.parametrize(("lie", "name", "words"), LIES, ids=[lie.__name__ for lie, _, _ in LIES])
def test_a_lie_is_found_out(lie: type[InferenceDefense], name: str, words: str) -> None:
    found = {check.name: check.detail for check in failed(check_defense(lie, shapes=SHAPES))}
    assert name in found
    assert words in found[name]
    assert "\n" not in found[name]


@dataclass(frozen=True)
class RightStraightThrough(WrongScale):
    """A gradient written by hand that is right."""

    factor: float = 1.0


@dataclass(frozen=True)
class OwnNoise(SecretlyRandom):
    randomized: ClassVar[bool] = True


@dataclass(frozen=True)
class FloatOnly(Honest):
    """Refuses float64, so its gradient is checked in float32."""

    def transform(self, x: Tensor) -> Tensor:
        return (x @ torch.eye(x.shape[3], dtype=torch.float32)).square()


@dataclass(frozen=True)
class Timid(Honest):
    """Could state that it is differentiable."""

    differentiable: ClassVar[bool] = False


@dataclass(frozen=True)
class Bounded(Rounded):
    """Not differentiable, with a surrogate that is."""

    differentiable: ClassVar[bool] = False

    def surrogate(self, x: Tensor) -> Tensor:
        return x - 0.02 * torch.sin(94.0 * x)


class Softened(nn.Module):
    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.model(x) / self.temperature)


@dataclass(frozen=True)
class OwnWrap(InferenceDefense):
    """Changes what the network says, not what it sees."""

    name: ClassVar[str] = "own-wrap"
    summary: ClassVar[str] = "bounded logits"
    source: ClassVar[str] = "this test"
    temperature: float = 2.0

    def wrap(self, model: nn.Module) -> nn.Module:
        return Softened(model, self.temperature)


HONEST = [Honest, RightStraightThrough, OwnNoise, FloatOnly, Timid, Bounded, OwnWrap]


@pytest.mark.parametrize("defense", HONEST)
def test_an_honest_one_passes(defense: type[InferenceDefense]) -> None:
    assert not failed(check_defense(defense, shapes=SHAPES))


def _named(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_a_hint_where_it_could_have_stated_more() -> None:
    assert "hint" in _named(check_defense(Timid, shapes=SHAPES), "surrogate").detail
    assert "hint" not in _named(check_defense(Bounded, shapes=SHAPES), "surrogate").detail


def test_the_precision_of_the_check_is_told() -> None:
    assert "float64" in _named(check_defense(Honest, shapes=SHAPES), "gradient").detail
    assert "float32" in _named(check_defense(FloatOnly, shapes=SHAPES), "gradient").detail


def test_the_global_random_state_is_left_as_it_was_found() -> None:
    state, pythons, numpys = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]
    for defense in (GlobalNoise, NumpyNoise, Reseeds, PlainTraining):
        check_defense(defense, shapes=SHAPES)
    assert torch.equal(state, torch.get_rng_state())
    assert random.getstate() == pythons
    assert np.array_equal(np.random.get_state()[1], numpys)  # type: ignore[index]


class NotADataclass(Honest):
    pass


@dataclass
class Thawed:
    name: ClassVar[str] = "thawed"


@dataclass(frozen=True)
class Unsigned(InferenceDefense):
    name: ClassVar[str] = "unsigned"
    summary: ClassVar[str] = "has no source"

    def transform(self, x: Tensor) -> Tensor:
        return x


@dataclass(frozen=True)
class NeedsOption(Honest):
    level: int = 0
    must: float = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.must is None:
            raise UserError("must: give a number")


@pytest.mark.parametrize(
    ("cls", "words"),
    [(NotADataclass, "@dataclass(frozen=True)"), (Thawed, "no subclass"), (Unsigned, "source"), (NeedsOption, "must")],
)
def test_a_class_that_is_no_defense_is_named(cls: Any, words: str) -> None:
    (wrong,) = failed(check_defense(cls))
    assert words in wrong.detail


def test_options_of_the_caller_are_the_callers_to_mend() -> None:
    with pytest.raises(UserError, match="no option 'bitts'"):
        check_defense(NeedsOption, options={"bitts": 3})
    assert not failed(check_defense(NeedsOption, options={"must": "0.5"}, shapes=SHAPES))


# -- defenses that train -----------------------------------------------------------------------------


@dataclass(frozen=True)
class PlainTraining(TrainingDefense):
    name: ClassVar[str] = "plain"
    summary: ClassVar[str] = "trains"
    source: ClassVar[str] = "this test"

    def fit(self, model: nn.Module, data: Dataset, trainer: Trainer) -> nn.Module:
        return trainer.fit(model, data)


@dataclass(frozen=True)
class NoTraining(PlainTraining):
    def fit(self, model: nn.Module, data: Dataset, trainer: Trainer) -> nn.Module:
        return model


@dataclass(frozen=True)
class UnseededTraining(PlainTraining):
    def fit(self, model: nn.Module, data: Dataset, trainer: Trainer) -> nn.Module:
        def loss(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            return cross_entropy(network(x * random.SystemRandom().random()), y)

        return trainer.fit(model, data, loss=loss)


@dataclass(frozen=True)
class ChangesData(PlainTraining):
    def fit(self, model: nn.Module, data: Dataset, trainer: Trainer) -> nn.Module:
        data.labels.zero_()
        return trainer.fit(model, data)


@dataclass(frozen=True)
class ReturnsNothing(PlainTraining):
    def fit(self, model: nn.Module, data: Dataset, trainer: Trainer) -> nn.Module:
        trainer.fit(model, data)
        return None  # type: ignore[return-value]


@dataclass(frozen=True)
class RaisesInTraining(PlainTraining):
    def fit(self, model: nn.Module, data: Dataset, trainer: Trainer) -> nn.Module:
        return trainer.fit(model, data, loss=lambda *_: torch.zeros(2) @ torch.zeros(3))


@dataclass(frozen=True)
class UnwrittenTraining(TrainingDefense):
    name: ClassVar[str] = "unwritten"
    summary: ClassVar[str] = "has no loss and no fit"
    source: ClassVar[str] = "this test"


@pytest.mark.parametrize(
    ("lie", "name", "words"),
    [
        (NoTraining, "fit", "nothing was trained"),
        (UnseededTraining, "same seed, same weights", "no seed controls"),
        (ChangesData, "data untouched", "changes the data set"),
        (ReturnsNothing, "fit", "NoneType"),
        (RaisesInTraining, "fit", "it raised RuntimeError"),
        (UnwrittenTraining, "fit", "neither loss nor fit is written"),
    ],
)
def test_a_training_that_breaks_its_contract_is_found_out(lie: type[TrainingDefense], name: str, words: str) -> None:
    found = {check.name: check.detail for check in failed(check_defense(lie, shapes=SHAPES))}
    assert name in found
    assert words in found[name]


def test_an_honest_training_passes() -> None:
    assert not failed(check_defense(PlainTraining, shapes=SHAPES))
