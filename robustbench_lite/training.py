"""Training of networks: the recipe, the loop that every train-time defense uses, and what decided the result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import RblError, UserError
from .files import sha256_file
from .models.seeding import seeded
from .registry import guard, source_hash

if TYPE_CHECKING:
    from .data.dataset import Dataset

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Fits(Protocol):
    """What a train-time defense is to the trainer; `defense.TrainingDefense` is one."""

    def fit(self, model: nn.Module, data: Dataset, trainer: Trainer) -> nn.Module:
        """The trained network."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults suit small images and a processor without an accelerator.

    epochs: passes over the training set; None takes `epochs_for` its size.
    lr: the highest learning rate. schedule: "one-cycle" rises over the first three tenths and falls to
    zero as a cosine, "cosine" only falls, "constant" stays.
    optimizer: "sgd" has Nesterov momentum 0.9.
    augment: "crop" shifts each image by up to an eighth of its side, "crop-flip" mirrors half of them too.
    seed: of the order, the augmentation and what the network itself draws (dropout).

    Raises UserError for a value out of its range.
    """

    epochs: int | None = None
    batch_size: int = 64
    lr: float = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    weight_decay: float = 5e-4
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle"
    label_smoothing: float = 0.0
    augment: Literal["none", "crop", "crop-flip"] = "crop"
    seed: int = 0

    def __post_init__(self) -> None:
        _want("epochs", self.epochs, self.epochs is None or self.epochs >= 1, "at least 1")
        _want("batch_size", self.batch_size, self.batch_size >= 1, "at least 1")
        _want("lr", self.lr, 0 < self.lr < math.inf, "a positive number")
        _want("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        _want("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "in [0, 1)")
        _want("seed", self.seed, 0 <= self.seed < 2**31, "in 0..2147483647")
        for name, choices in (
            ("optimizer", ("sgd", "adamw")),
            ("schedule", ("one-cycle", "cosine", "constant")),
            ("augment", ("none", "crop", "crop-flip")),
        ):
            _want(name, getattr(self, name), getattr(self, name) in choices, f"one of {', '.join(choices)}")

    def resolve(self, n: int) -> Recipe:
        """The same recipe with its epochs settled for a training set of `n` images."""
        return self if self.epochs is not None else dataclasses.replace(self, epochs=epochs_for(n))


def _want(name: str, value: object, right: bool, expected: str) -> None:
    if not right:
        raise UserError(f"{name} must be {expected}, got {value!r}")


def epochs_for(n: int) -> int:
    """Epochs for a training set of `n` images: fewer the larger it is, 20 for the 1,437 digits, 5 to 50.

    >>> epochs_for(1437), epochs_for(60_000)
    (20, 5)
    """
    return min(50, max(5, round(20 * math.sqrt(1437 / n))))


@dataclass(frozen=True)
class TrainingProgress:
    """How far a training is: counts from 1, and mean loss and accuracy over the epoch so far."""

    epoch: int
    epochs: int
    batch: int
    batches: int
    loss: float
    accuracy: float


class Trainer:
    """The training loop, given to a train-time defense's `fit`.

    perturb: stands in for `robustbench_lite.perturbation.perturb`, with the same arguments.
    done: the share of the present training that is over, in [0, 1), for losses that change on the way.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        device: torch.device | str = "cpu",
        progress: Callable[[TrainingProgress], None] | None = None,
        perturb: Callable[..., Tensor] | None = None,
    ) -> None:
        self.recipe = recipe
        self.device = torch.device(device)
        self._progress = progress
        self.done = 0.0
        self._perturb = perturb
        self._perturbed = 0

    def fit(self, model: nn.Module, data: Dataset, *, loss: Loss | None = None) -> nn.Module:
        """Train `model` in place on `data` and return it, in evaluation mode and on the trainer's device.

        loss: of (model, x, y), x (n, C, H, W) in [0, 1] and y (n,) on the device, the number to be made
        small; by default the cross entropy with the recipe's label smoothing.

        The same seed, device and number of threads give the same weights; the global random state is
        left as it was found. Raises UserError where the loss stops being a number, or where there is
        nothing to train.
        """
        recipe = self.recipe.resolve(len(data))
        assert recipe.epochs is not None
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise UserError("--model: the network has no parameters to train")
        self._perturbed = 0
        model.to(self.device).train()
        optimizer = _optimizer(recipe, parameters)
        order = torch.Generator().manual_seed(recipe.seed)
        batches = _Batches(len(data), recipe.batch_size)
        total = recipe.epochs * batches.count
        try:
            with seeded(recipe.seed, device=self.device), _Watch(model) as watch:
                for epoch in range(recipe.epochs):
                    watch.start()
                    for batch, (x, y) in enumerate(self._batches(data, batches, order)):
                        _set_lr(optimizer, recipe, (epoch * batches.count + batch + 0.5) / total)
                        self.done = (epoch * batches.count + batch) / total
                        watch.add(self._step(model, x, y, loss, optimizer, epoch), y)
                        if self._progress is not None:
                            self._progress(watch.progress(epoch, recipe.epochs, batch, batches.count))
        finally:
            model.eval()
        return model

    def perturb(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        attack: str,
        norm: str,
        eps: float,
        options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Adversarial images for a batch by the attack of that name, (n, C, H, W) in [0, 1].

        Each call of a training draws its own random numbers, the same in every training of that seed.
        """
        from .perturbation import perturb

        run = self._perturb or perturb
        seed = (self.recipe.seed << 32) + self._perturbed
        self._perturbed += 1
        return run(model, x, y, attack=attack, norm=norm, eps=eps, attack_options=dict(options or {}), seed=seed)

    def _batches(self, data: Dataset, batches: _Batches, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for _, x, y in data.blocks(batches.shuffled(order), batches.size):
            yield augment(x, self.recipe.augment, generator=order).to(self.device), y.to(self.device)

    def _step(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        loss: Loss | None,
        optimizer: torch.optim.Optimizer,
        epoch: int,
    ) -> float:
        model.train()  # what made adversarial images may have left it otherwise
        if loss is None:
            value = F.cross_entropy(model(x), y, label_smoothing=self.recipe.label_smoothing)
        else:
            value = loss(model, x, y)
        number = float(value.detach())
        if not math.isfinite(number):
            raise UserError(
                f"lr: the loss became {number} in epoch {epoch + 1} of the training; lower lr, it is {self.recipe.lr:g}"
            )
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return number


class _Batches:
    """Batches of nearly equal size, none of one image alone, of which batch normalisation has no variance."""

    def __init__(self, n: int, batch_size: int) -> None:
        if n < 2:
            raise UserError(f"--dataset: training needs at least 2 images, got {n}")
        batch_size = max(2, min(batch_size, n))
        self.size = math.ceil(n / math.ceil(n / batch_size))
        self.n = n
        self.used = n - 1 if n % self.size == 1 else n
        self.count = math.ceil(self.used / self.size)

    def shuffled(self, generator: torch.Generator) -> Tensor:
        """An epoch's index in a new order."""
        return torch.randperm(self.n, generator=generator)[: self.used]


class _Watch:
    """Loss and accuracy of the epoch so far, seen from outside, so that a defense's loss need not tell."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._output: Tensor | None = None

    def __enter__(self) -> _Watch:
        self._hook = self._model.register_forward_hook(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _see(self, _model: nn.Module, _inputs: object, output: object) -> None:
        self._output = output.detach() if isinstance(output, Tensor) else None

    def start(self) -> None:
        self._loss, self._right, self._seen = 0.0, 0, 0

    def add(self, loss: float, y: Tensor) -> None:
        self._loss += loss * len(y)
        self._seen += len(y)
        # The last thing the network saw in a step is the batch it learnt from, as far as it has its size.
        if self._output is not None and self._output.ndim == 2 and len(self._output) == len(y):
            self._right += int((self._output.argmax(1) == y).sum())

    def progress(self, epoch: int, epochs: int, batch: int, batches: int) -> TrainingProgress:
        loss, accuracy = self._loss / self._seen, self._right / self._seen
        return TrainingProgress(epoch + 1, epochs, batch + 1, batches, loss, accuracy)


def _optimizer(recipe: Recipe, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(parameters, lr=recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)


def _set_lr(optimizer: torch.optim.Optimizer, recipe: Recipe, done: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr * lr_factor(recipe.schedule, done)


def lr_factor(schedule: str, done: float) -> float:
    """The share of the highest learning rate when the part `done`, in [0, 1], of a training is over."""
    if schedule == "constant":
        return 1.0
    rise = 0.3 if schedule == "one-cycle" else 0.0
    if done < rise:
        return done / rise
    return 0.5 * (1 + math.cos(math.pi * (done - rise) / (1 - rise)))


def augment(x: Tensor, how: str, *, generator: torch.Generator) -> Tensor:
    """Each image of x (N, C, H, W) shifted ("crop", over black) and mirrored ("crop-flip") at random."""
    if how == "none":
        return x
    n, channels, height, width = x.shape
    top, left = height // 8, width // 8
    padded = F.pad(x, (left, left, top, top))
    down = torch.randint(0, 2 * top + 1, (n, 1), generator=generator)
    right = torch.randint(0, 2 * left + 1, (n, 1), generator=generator)
    rows = (down + torch.arange(height))[:, None, :, None]
    columns = right + torch.arange(width)
    if how == "crop-flip":
        mirrored = torch.rand(n, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    samples = torch.arange(n)[:, None, None, None]
    return padded[samples, torch.arange(channels)[None, :, None, None], rows, columns[:, None, None, :]]


def train_model(
    model: nn.Module,
    data: Dataset,
    *,
    recipe: Recipe,
    defenses: Sequence[Fits] = (),
    device: torch.device | str = "cpu",
    progress: Callable[[TrainingProgress], None] | None = None,
) -> nn.Module:
    """Train `model` on `data`: plainly, or by the `fit` of each train-time defense in the order given.

    Returns the network in evaluation mode, `model` itself unless a defense made another. The global
    random state is left as it was found. Raises UserError as `Trainer.fit` does, PluginError for a
    defense that raises.
    """
    trainer = Trainer(recipe, device=device, progress=progress)
    with seeded(recipe.seed, device=device):
        if not defenses:
            return trainer.fit(model, data)
        for defense in defenses:
            name = getattr(defense, "name", type(defense).__name__)
            try:
                fitted = defense.fit(model, data, trainer)
            except RblError:
                raise
            except Exception as error:
                raise guard(f"--defense: {name}.fit", error) from error
            if not isinstance(fitted, nn.Module):
                raise UserError(
                    f"--defense: {name}.fit returned a {type(fitted).__name__}, expected the trained network"
                )
            model = fitted
    return model.eval()


def describe(data: Dataset, recipe: Recipe, defenses: Sequence[Fits] = ()) -> dict[str, Any]:
    """All that decides what `train_model` makes of a network, as plain JSON values.

    A defense is described by its name, its options and the SHA-256 of its source file.
    """
    described: dict[str, Any] = {
        "dataset": {"name": data.name, "split": data.split, "n": len(data), "fingerprint": data.fingerprint},
        **dataclasses.asdict(recipe.resolve(len(data))),
        "defenses": describe_defenses(defenses),
    }
    return described


def describe_defenses(defenses: Sequence[Fits]) -> list[dict[str, Any]]:
    """What `describe` says of the defenses."""
    return [_describe(defense) for defense in defenses]


def _describe(defense: Fits) -> dict[str, Any]:
    options = dataclasses.asdict(defense) if dataclasses.is_dataclass(defense) else dict(vars(defense))
    plain = {
        key: value if isinstance(value, bool | int | float | str | None) else repr(value)
        for key, value in options.items()
    }
    # An option may name a plug-in (an attack of the user's own), whose source decides the result too.
    named = [value.rpartition(":")[0] for value in plain.values() if isinstance(value, str) and ".py:" in value]
    sources = {Path(file).name: sha256_file(Path(file)) for file in named if Path(file).is_file()}
    name = getattr(defense, "name", type(defense).__name__)
    return {"name": name, "options": plain, "source_sha256": source_hash(type(defense)), "plugins": sources}
