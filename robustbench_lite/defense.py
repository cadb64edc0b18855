"""The contracts of a defense: one that trains a network, and one that stands in front of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .data import balanced_subset
from .errors import RblError, UserError
from .foreign import lend
from .network import frozen, seed_torch
from .registry import guard
from .streams import replaying

if TYPE_CHECKING:
    from .data.dataset import Dataset
    from .training import Trainer

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Defense:
    """Base of every defense: a frozen dataclass whose fields are its options.

    Class attributes: name, summary, source (paper). adaptive, adaptive_options: the attack, with its options, that is
    made for this defense or known to break it, which `rbl sweep` runs where an attack is named `adaptive`; the
    strongest general one where none is known.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]
    adaptive: ClassVar[str] = "auto"
    adaptive_options: ClassVar[Mapping[str, Any]] = {}


@dataclass(frozen=True)
class TrainingDefense(Defense):
    """A defense that is a way of training: it states its loss, and what it does to a batch on the way.

    Several stand one on another in the order given, each on the next one's loss: with adversarial-training and awp
    the first makes the images and the second moves the weights against what the first handed on.

    recipe: what its paper trains with, by the names of `Recipe`; it holds where the user says nothing.
    innermost: its loss takes the place of the one that it would stand on, so none may stand behind it; one that does
    not state it is found out at the first batch.
    """

    recipe: ClassVar[Mapping[str, Any]] = {}
    innermost: ClassVar[bool] = False

    @property
    def passes(self) -> int:
        """How often in a row each batch is learned from; the epochs are divided by it."""
        return 1

    def loss(self, network: nn.Module, x: Tensor, y: Tensor, inner: Loss, trainer: Trainer) -> Tensor:
        """The number to be made small for a batch.

        x: (n, C, H, W) in [0, 1]. y: (n,) int64, or where a defense before this one mixed labels their shares (n, K).
        inner: of (network, x, y), the loss that this one stands on: the next defense's, in the end the cross-entropy.
        trainer: makes adversarial images by any attack of the suite (`perturb`), gives input gradients (`gradient`).
        """
        del trainer
        return inner(network, x, y)

    def fit(self, model: nn.Module, data: Dataset, trainer: Trainer) -> nn.Module:
        """The trained network; to be overridden where one training with one loss is not all."""
        return trainer.fit(model, data)


@dataclass(frozen=True)
class InferenceDefense(Defense):
    """A defense that changes what a trained network sees or says.

    randomized: its answer changes from call to call; it draws with `robustbench_lite.normal_like` and
    `uniform_like`, which keep each image's noise its own. differentiable: the gradient through
    `transform` is that of what it computes; where not, attacks go through `surrogate` on the way back
    (BPDA, Athalye et al. 2018, arXiv:1802.00420). trained_behind: the network is trained behind the defense, not put
    behind it afterwards. votes: the class of an image is the one that most of so many draws say, where the mean of
    their logits decides for another randomised defense; None: it is no vote. What it states is checked.

    An image that is rejected is not fooled; a clean one that is rejected is not classified right.
    """

    randomized: ClassVar[bool] = False
    differentiable: ClassVar[bool] = True
    trained_behind: ClassVar[bool] = False
    votes: ClassVar[int | None] = None

    @property
    def sigma_of_votes(self) -> float | None:
        """The standard deviation of the noise of a vote over images with Gaussian noise and nothing else; else None."""
        return None

    @property
    def rejects(self) -> bool:
        """Whether the defended network may turn an image away, by a logit after those of the classes, (N, K + 1)."""
        return False

    @property
    def fit_samples(self) -> int:
        """From how many training images `fit` learns; 0: it learns nothing, and `wrap` is all."""
        return 0

    def seen_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """The shape (C, H, W) of what the network sees in place of images of `shape`."""
        return shape

    def transform(self, x: Tensor) -> Tensor:
        """What the network sees in place of the images x (N, C, H, W) in [0, 1]; in [0, 1], of `seen_shape`."""
        raise NotImplementedError

    def surrogate(self, x: Tensor) -> Tensor:
        """A differentiable stand-in for `transform`, used for gradients only; by default the identity."""
        return x

    def wrap(self, model: nn.Module) -> nn.Module:
        """The defended network; override it for a defense that does more than transform its input."""
        return Defended(model, self)

    def fit(self, model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
        """The defended network of a defense that first learns from training images x (n, C, H, W) and labels y (n,).

        model: in evaluation mode, on the device of x; without a gradient.
        """
        del x, y
        return self.wrap(model)


class Defended(nn.Module):
    """A network behind a defense of its input."""

    def __init__(self, model: nn.Module, defense: InferenceDefense) -> None:
        super().__init__()
        self.model = model
        self.defense = defense

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W) in [0, 1]."""
        return self.model(see_through(self.defense, x))  # type: ignore[no-any-return]


def see_through(defense: InferenceDefense, x: Tensor) -> Tensor:
    """`defense.transform(x)`, with the gradient of its surrogate where it is not differentiable."""
    if defense.differentiable:
        return defense.transform(x.clone())
    with replaying() as again:
        with torch.no_grad():
            seen = defense.transform(x.clone())
        if not (x.requires_grad and torch.is_grad_enabled()):
            return seen
        again()  # a random surrogate stands in for the draws that were made
        return with_gradient_of(defense.surrogate(x.clone()), seen)


def with_gradient_of(stand_in: Tensor, seen: Tensor) -> Tensor:
    """The numbers of `seen` with the gradient of `stand_in`, of the same shape."""
    replaced: Tensor = _Substitute.apply(seen, stand_in)
    return replaced


class _Substitute(torch.autograd.Function):
    """Forward: the first input, exactly. Backward: all to the second."""

    @staticmethod
    def forward(ctx: Any, seen: Tensor, surrogate: Tensor) -> Tensor:
        return seen.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def check_stack(defenses: Sequence[InferenceDefense], *, argument: str = "defenses") -> None:
    """Raise UserError for defenses that cannot stand before a network in this order, whatever the network is."""
    for what, those in (
        ("learn from images", [defense for defense in defenses if defense.fit_samples]),
        ("reject images", [defense for defense in defenses if defense.rejects]),
    ):
        if len(those) > 1:
            names = " and ".join(defense.name for defense in those)
            raise UserError(f"{argument}: at most one may {what}, got {names}; leave one out")
    for defense in defenses[1:]:
        if defense.fit_samples:
            raise UserError(
                f"{argument}: {defense.name} learns from images as they are, so it must meet them first; "
                f"give it before {defenses[0].name}"
            )


def wrap_all(
    model: nn.Module, defenses: Sequence[InferenceDefense], learn_from: tuple[Tensor, Tensor] | None = None
) -> nn.Module:
    """The network behind defenses in the order given: an image meets the first one first.

    learn_from: training images (n, C, H, W) and labels (n,) for defenses that learn.
    Raises UserError as `check_stack` does and where one needs images and there are none, PluginError where one
    raises.
    """
    check_stack(defenses)
    for defense in reversed(defenses):
        if not defense.fit_samples:
            model = defense.wrap(lend(model))
            continue
        if learn_from is None:
            raise UserError(
                f"fit_data: defense {defense.name} learns from training images; give some as (x, y), got none"
            )
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        rows = balanced_subset(learn_from[1].cpu(), min(defense.fit_samples, len(learn_from[1])))
        x, y = learn_from[0][rows].to(device), learn_from[1][rows].to(device)
        lend(model)
        with frozen(model), torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            seed_torch(0, device)  # of a model that is random itself
            try:
                model = defense.fit(model, x, y)
            except RblError:
                raise
            except Exception as error:
                raise guard(f"--defense: {defense.name}.fit", error) from error
    return model
