"""Training of networks: the loop that every train-time defense uses, and what decided the result."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter import Adapted, adapt
from .augment import augment
from .convolution import FoldedConvolutions
from .decided import describe
from .defense import Loss, TrainingDefense
from .errors import RblError, UserError
from .foreign import ask, isolated
from .history import History
from .loop import Batches, Loop, TrainingProgress, Watch, copied, plain_answers, running_average
from .models.seeding import seeded
from .modes import evaluation_mode
from .network import PRECISIONS, frozen
from .processes import Processes, alone
from .recipe import Recipe, make_optimizer, set_lr
from .registry import guard
from .resuming import Checkpoint
from .stacking import check_losses, stacked
from .validation import Validation

if TYPE_CHECKING:
    from .data.dataset import Dataset


class Trainer:
    """The training loop, given to a train-time defense.

    defenses: whose losses stand one on another in every `fit`, the first outermost.
    perturb: stands in for `robustbench_lite.perturbation.perturb`, with the same arguments.
    checkpoint: where a training that is under way is kept, so that a killed one goes on; None: nowhere.
    processes: those that train together, each on its part of every batch.
    unlabeled: images without labels, for a loss that learns from them.

    done: the share of the present training that is over, in [0, 1), for losses that change on the way. epoch, batch:
    of the present batch, from 0; a loss may see it more than once.
    classes: of the labels. memory: tensors that a loss keeps from step to step; they are stored with a training that
    is under way.
    drawn: how often `perturb` was called in the present training. history: of all trainings so far.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        defenses: Sequence[TrainingDefense] = (),
        device: torch.device | str = "cpu",
        progress: Callable[[TrainingProgress], None] | None = None,
        say: Callable[[str], None] | None = None,
        perturb: Callable[..., Tensor] | None = None,
        checkpoint: Checkpoint | None = None,
        processes: Processes | None = None,
        unlabeled: Dataset | None = None,
    ) -> None:
        self.recipe = recipe
        self.defenses = tuple(defenses)
        self.device = torch.device(device)
        self.done = 0.0
        self.epoch = self.batch = 0
        self.classes = 0
        self.memory: dict[str, Tensor] = {}
        self.history = History()
        self._progress = progress
        self._say = say
        self._perturb = perturb
        self._checkpoint = checkpoint
        self._processes = processes or alone()
        self._unlabeled = unlabeled
        self._fits = 0
        self.drawn = 0
        self._made: list[Tensor] = []
        self._again: int | None = None
        self._after_backward: list[Callable[[], None]] = []

    @property
    def threat(self) -> tuple[str, float] | None:
        """Norm and eps of the first defense that states them; None where none does."""
        for defense in self.defenses:
            norm, eps = getattr(defense, "norm", None), getattr(defense, "eps", None)
            if isinstance(norm, str) and isinstance(eps, float):
                return norm, eps
        return None

    def fit(self, model: nn.Module, data: Dataset, *, loss: Loss | None = None) -> nn.Module:
        """Train `model` in place on `data` and return it, in evaluation mode and on the trainer's device.

        loss: of (model, x, y), x (n, C, H, W) in [0, 1] and y (n,) on the device, the innermost of the losses that
        stand one on another; by default the cross-entropy with the recipe's label smoothing.

        The same seed, device and number of threads give the same weights; the global random state is
        left as it was found. Raises UserError where the loss stops being a number, or where there is
        nothing to train.
        """
        recipe = self.recipe.resolve(len(data))
        assert recipe.epochs is not None
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise UserError("--model: the network has no parameters to train")
        passes = max((defense.passes for defense in self.defenses), default=1)
        if passes > 1 and recipe.accumulate > 1:
            raise UserError(f"accumulate must be 1 for a defense that learns {passes} times from each batch")
        _training_mode(model.to(self.device))
        stage, self._fits = self._fits, self._fits + 1
        validation = Validation.of(data, recipe, self.threat)
        index = torch.arange(len(data)) if validation is None else validation.rest(len(data))
        batches = Batches(index, recipe.batch_size, at_least=2 * self._processes.count)
        self.drawn, self.memory, self.classes = 0, {}, len(data.classes)
        loop = Loop(
            model=model,
            optimizer=make_optimizer(recipe, parameters),
            average=running_average(model, recipe.ema),
            order=torch.Generator().manual_seed(recipe.seed),
            scaler=torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "f16"),
            epochs=max(1, round(recipe.epochs / passes)),
        )
        whole = stacked(self.defenses, loss or self._plain, self)
        try:
            with (
                torch.enable_grad(),
                seeded(recipe.seed, device=self.device),
                isolated(model),
                plain_answers(model, self.classes),
                Watch(model) as watch,
            ):
                if self._checkpoint is not None and self._checkpoint.restore(stage, loop, self):
                    return model
                while loop.epoch < loop.epochs:
                    if not loop.batch:
                        loop.permutation = batches.shuffled(loop.order)
                        loop.watched, loop.seconds = (0.0, 0, 0), 0.0
                        self._processes.draw_apart(recipe.seed, loop.epoch, self.device)
                    watch.start(loop.watched)
                    began = time.monotonic() - loop.seconds
                    for x, y in self._batches(data, batches, loop):
                        self.epoch, self.batch = loop.epoch, loop.batch
                        for k in range(passes):
                            done = (loop.epoch + (loop.batch + k / passes) / batches.count) / loop.epochs
                            middle = 0.5 / (batches.count * loop.epochs * passes)
                            set_lr(loop.optimizer, recipe, done + middle)
                            self.done = done
                            together = min(recipe.accumulate, batches.count - loop.batch + loop.accumulated)
                            watch.add(self._step(loop, whole, x, y, parameters, together), y)
                        loop.batch += 1
                        if self._progress is not None:
                            self._progress(watch.progress(loop.epoch, loop.epochs, loop.batch, batches.count))
                        if self._checkpoint is not None and loop.batch < batches.count:
                            loop.watched, loop.seconds = watch.counts, time.monotonic() - began
                            self._checkpoint.maybe(stage, loop, self, self._processes)
                    self._end_epoch(stage, loop, watch, validation, time.monotonic() - began)
                self._finish(loop)
                if self._checkpoint is not None:
                    self._checkpoint.store(stage, loop, self, self._processes, over=True)
        finally:
            evaluation_mode(model)
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

        if self._again is not None and self._again < len(self._made):
            self._again += 1
            return self._made[self._again - 1].clone()
        run = self._perturb or perturb
        seed = (self.recipe.seed << 32) + self.drawn * self._processes.count + self._processes.rank
        self.drawn += 1
        label = hard(y)
        made = run(model, x, label, attack=attack, norm=norm, eps=eps, attack_options=dict(options or {}), seed=seed)
        self._made.append(made.clone())
        return made

    def gradient(self, network: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """The gradient in x (n, C, H, W) of `loss(logits)`, a number; in evaluation mode, of the frozen network."""
        x = x.detach().requires_grad_()
        with frozen(network), torch.enable_grad(), FoldedConvolutions():
            return torch.autograd.grad(loss(ask(network, x)), x)[0].detach().clone()

    def logits(self, network: nn.Module, x: Tensor) -> Tensor:
        """The logits (n, K) in evaluation mode, without a gradient."""
        with frozen(network), torch.no_grad():
            return ask(network, x)  # type: ignore[no-any-return]

    def without_labels(self, n: int) -> Tensor:
        """As many images without labels, drawn at random and augmented as the others; none where there are none."""
        data = self._unlabeled
        if data is None:
            return torch.empty(0, device=self.device)
        x = data.images(torch.randint(len(data), (n,)))
        return augment(x, self.recipe.augment, generator=torch.default_generator).to(self.device)

    @contextlib.contextmanager
    def same_images(self) -> Iterator[None]:
        """Within: `perturb` gives again what it made since the step began, for a loss that is computed twice."""
        self._again = 0
        try:
            yield
        finally:
            self._again = None

    def after_backward(self, undo: Callable[[], None]) -> None:
        """Have `undo` called once, when this step's gradients are there and before the weights move."""
        self._after_backward.append(undo)

    def note(self, name: str, value: float) -> None:
        """Add a number to the history: the mean over the epoch of what is noted under a name is a column."""
        self.history.note(name, value)

    def say(self, text: str) -> None:
        """Tell whoever watches the training, in one line."""
        if self._say is not None and self._processes.main:
            self._say(text)

    def _plain(self, network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(ask(network, x), y, label_smoothing=self.recipe.label_smoothing)

    def _batches(self, data: Dataset, batches: Batches, loop: Loop) -> Iterator[tuple[Tensor, Tensor]]:
        left = loop.permutation[loop.batch * batches.size :]
        for _, x, y in data.blocks(left, batches.size):
            moved = augment(x, self.recipe.augment, generator=loop.order)
            mine = self._processes.part(len(y))
            yield moved[mine].to(self.device), y[mine].to(self.device)

    def _step(
        self,
        loop: Loop,
        loss: Loss,
        x: Tensor,
        y: Tensor,
        parameters: Sequence[nn.Parameter],
        together: int,
    ) -> float:
        """Learn from a batch, one of so many whose gradients make a step together; its loss."""
        self._made, self._again, self._after_backward = [], None, []
        loop.model.train()  # what made adversarial images may have left it otherwise
        precision = self.recipe.precision
        shorter = torch.autocast(self.device.type, PRECISIONS[precision], enabled=precision != "float32")
        with shorter, _blaming():
            value = loss(loop.model, x.clone(), y.clone())
        number = float(value.detach())
        if not math.isfinite(number):
            raise UserError(
                f"lr: the loss became {number} in epoch {loop.epoch + 1} of the training; lower lr, it is "
                f"{self.recipe.lr:g}"
            )
        if not loop.accumulated:
            loop.optimizer.zero_grad(set_to_none=True)
        with _blaming():
            loop.scaler.scale(value if together == 1 else value / together).backward()  # type: ignore[no-untyped-call]
        for undo in self._after_backward:
            undo()
        loop.accumulated += 1
        if loop.accumulated == together:
            self._processes.mean_gradients(parameters, len(y))
            loop.scaler.step(loop.optimizer)
            loop.scaler.update()
            loop.accumulated = 0
            if loop.average is not None:
                loop.average.update_parameters(loop.model)
        return number

    def _end_epoch(self, stage: int, loop: Loop, watch: Watch, validation: Validation | None, seconds: float) -> None:
        row: dict[str, Any] = {"stage": stage + 1, "epoch": loop.epoch + 1, **watch.row()}
        row |= {"lr": loop.optimizer.param_groups[0]["lr"], "seconds": seconds}
        loop.epoch, loop.batch = loop.epoch + 1, 0
        if validation is not None:
            if self._processes.main:
                seen = validation.look(loop.kept, self.device)
                row |= seen.row
                if loop.best is None or seen.value > loop.best_value:
                    loop.best, loop.best_value = copied(loop.kept), seen.value
            loop.model.train()
        self.history.add(row)
        if self._checkpoint is not None and loop.epoch < loop.epochs:
            self._checkpoint.maybe(stage, loop, self, self._processes)

    def _finish(self, loop: Loop) -> None:
        """Put into the network what is kept of the training, the same in every process."""
        state = loop.best if loop.best is not None else copied(loop.kept)
        with torch.no_grad():
            loop.model.load_state_dict(state)
        self._processes.same(loop.model)


def _training_mode(model: nn.Module) -> None:
    try:
        model.train()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--model: the network cannot be put into training mode ({reason}); give the module that it was made from"
        ) from error


@contextlib.contextmanager
def _blaming() -> Iterator[None]:
    """Context manager: what the network or a loss raises is the user's, in one line."""
    try:
        yield
    except RblError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError("--batch-size: out of memory in the training; give a smaller one") from error
    except Exception as error:
        raise guard("--model: a step of its training", error) from error


def hard(y: Tensor) -> Tensor:
    """Labels (n,) int64 of labels, or of shares of classes (n, K)."""
    return y.argmax(1) if y.ndim == 2 else y


def train_model(
    model: nn.Module,
    data: Dataset,
    *,
    recipe: Recipe,
    defenses: Sequence[TrainingDefense] = (),
    device: torch.device | str = "cpu",
    progress: Callable[[TrainingProgress], None] | None = None,
    say: Callable[[str], None] | None = None,
    checkpoint: Path | str | None = None,
    history: History | None = None,
    unlabeled: Dataset | None = None,
    binary: bool = False,
) -> nn.Module:
    """Train `model` on `data`: plainly, or by train-time defenses, whose losses stand one on another.

    A defense with a `fit` of its own is asked for it; of several such, in the order given.
    checkpoint: a file in which the training is kept while it is under way; the same call goes on with it, and it is
    removed at the end. history: receives a row for each epoch. unlabeled: images for defenses that need no label.
    binary: the model gives one number for each image, the logit or the probability of class 1.
    Under `torchrun` each process learns from its part of every batch, and all return the same network.

    Returns the network in evaluation mode, `model` itself unless a defense made another. The global
    random state is left as it was found. Raises UserError as `Trainer.fit` does and for a checkpoint of another
    training, PluginError for a defense that raises.
    """
    check_losses(defenses)
    if binary:
        few = data.images(torch.arange(min(64, len(data))))
        first = next(model.parameters(), torch.empty(0))
        with torch.random.fork_rng():
            model = adapt(model, few.to(first.device), n_classes=len(data.classes), binary=True).module
    processes = Processes.of_torchrun(device)
    kept = None
    if checkpoint is not None:
        kept = Checkpoint(Path(checkpoint), describe(data, recipe, defenses, unlabeled), model)
    trainer = Trainer(
        recipe,
        defenses=defenses,
        device=processes.device(device),
        progress=progress if processes.main else None,
        say=say,
        checkpoint=kept,
        processes=processes,
        unlabeled=unlabeled,
    )
    if history is not None:
        trainer.history = history
    fitting = [defense for defense in defenses if type(defense).fit is not TrainingDefense.fit]
    with seeded(recipe.seed, device=device):
        if not fitting:
            model = trainer.fit(model, data)
        for defense in fitting:
            try:
                fitted = defense.fit(model, data, trainer)
            except RblError:
                raise
            except Exception as error:
                raise guard(f"--defense: {defense.name}.fit", error) from error
            if not isinstance(fitted, nn.Module):
                raise UserError(
                    f"--defense: {defense.name}.fit returned a {type(fitted).__name__}, expected the trained network"
                )
            model = fitted
    if kept is not None:
        kept.remove(processes)
    evaluation_mode(model)
    return model.network if binary and isinstance(model, Adapted) else model
