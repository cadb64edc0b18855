"""Networks that the benchmark trains itself, once: standard, distilled, adversarially trained (PGD), TRADES-like."""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

import robustbench_lite as rbl
from robustbench_lite.cache import cache_dir
from robustbench_lite.files import replace_whole

from . import architectures
from .architectures import ARCHITECTURES
from .parts import Whole, folder

TEMPERATURE = 100.0  # of defensive distillation (Papernot et al. 2016, arXiv:1511.04508)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    kind: standard, distilled, pgd or trades. eps: of the training attack, in pixels of [0, 1]; steps: of that attack.
    """

    data: str
    kind: str
    norm: str
    eps: float
    steps: int
    epochs: int
    rate: float = 2e-3
    images: int = 20_000  # of the training set: enough for a network to attack, in minutes
    architecture: str = "cnn"

    @property
    def attacked(self) -> float:
        """As far as it was trained for; a standard network a quarter as far as the others."""
        return self.eps or (0.1 if self.data == "mnist" else 2 / 255)


RECIPES = {
    "mnist-standard": Recipe("mnist", "standard", "linf", 0.0, 0, 2),
    "mnist-pgd": Recipe("mnist", "pgd", "linf", 0.3, 3, 4),
    "mnist-trades": Recipe("mnist", "trades", "linf", 0.3, 3, 4),
    "mnist-pgd-l2": Recipe("mnist", "pgd", "l2", 2.0, 3, 4),
    "mnist-distilled": Recipe("mnist", "distilled", "linf", 0.0, 0, 2),
    "mnist-vit": Recipe("mnist", "standard", "linf", 0.0, 0, 4, architecture="vit"),
    "mnist-resnet": Recipe("mnist", "standard", "linf", 0.0, 0, 2, architecture="resnet"),
    "cifar10-standard": Recipe("cifar10", "standard", "linf", 0.0, 0, 5),
    "cifar10-pgd": Recipe("cifar10", "pgd", "linf", 8 / 255, 2, 5),
    "cifar10-trades": Recipe("cifar10", "trades", "linf", 8 / 255, 2, 5),
    "cifar10-pgd-l2": Recipe("cifar10", "pgd", "l2", 0.5, 2, 5),
    "cifar10-distilled": Recipe("cifar10", "distilled", "linf", 0.0, 0, 5),
    "cifar10-vit": Recipe("cifar10", "standard", "linf", 0.0, 0, 8, architecture="vit"),
    "cifar10-vit-pgd": Recipe("cifar10", "pgd", "linf", 4 / 255, 2, 6, architecture="vit"),
}


def network(recipe: Recipe) -> nn.Module:
    """The recipe's network with weights drawn at random."""
    return Whole(ARCHITECTURES[recipe.architecture](*((1, 28) if recipe.data == "mnist" else (3, 32))))


def trained(name: str, say: Callable[[str], None] = print) -> nn.Module:
    """The network of a recipe, from the cache or trained now."""
    recipe = RECIPES[name]
    here = [inspect.getsource(thing) for thing in (architectures, _train, _loss, _attack, _pushed)]
    key = hashlib.sha256(repr((sorted(asdict(recipe).items()), here)).encode()).hexdigest()[:12]
    path = cache_dir() / "benchmarks" / f"{name}-{key}.safetensors"
    torch.manual_seed(0)
    model = network(recipe)
    if path.exists():
        model.load_state_dict(load_file(path))
    else:
        start = time.perf_counter()
        x, y = (part[: recipe.images] for part in images(recipe.data, "train"))
        teacher = None
        if recipe.kind == "distilled":
            teacher = network(recipe)
            _train(teacher, recipe, x, y, say=lambda text: say(f"{name}, teacher: {text}"))
        _train(model, recipe, x, y, say=lambda text: say(f"{name}: {text}"), teacher=teacher)
        say(f"{name}: trained in {time.perf_counter() - start:.0f} s")
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(path, lambda temporary: save_file(dict(model.state_dict()), temporary))
    return model.eval().requires_grad_(False)


def load(data: str, split: str) -> rbl.Dataset:
    """MNIST or CIFAR-10 from the folder of data; Absent where it is not there."""
    if data == "mnist":
        return rbl.load_dataset("mnist", data_dir=folder("RBL_DATA", "data", "MNIST").parent, split=split)
    return rbl.load_dataset(f"parquet:{folder('RBL_DATA', 'data', 'cifar10-jpeg')}", split=split)


def images(data: str, split: str) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) in [0, 1] and labels (N,)."""
    found = load(data, split)
    return found.images(torch.arange(len(found))), found.labels


def _train(
    model: nn.Module,
    recipe: Recipe,
    x: Tensor,
    y: Tensor,
    *,
    say: Callable[[str], None],
    teacher: nn.Module | None = None,
) -> None:
    batch, generator = 128, torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=recipe.rate)
    total = recipe.epochs * (len(x) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.rate, total_steps=total)
    model.train()
    seen = 0
    for epoch in range(recipe.epochs):
        losses = []
        for rows in torch.randperm(len(x), generator=generator)[: total // recipe.epochs * batch].reshape(-1, batch):
            # The ball grows over the first third: from a full one a small network learns to say one class only.
            loss = _loss(model, recipe, x[rows], y[rows], recipe.eps * min(1.0, 3 * seen / total), teacher)
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
            seen += 1
        say(f"epoch {epoch + 1} of {recipe.epochs}, loss {sum(losses) / len(losses):.3f}")


def _loss(model: nn.Module, recipe: Recipe, x: Tensor, y: Tensor, eps: float, teacher: nn.Module | None) -> Tensor:
    if recipe.kind == "distilled":
        logits = model(x) / TEMPERATURE
        if teacher is None:
            return F.cross_entropy(logits, y)
        with torch.no_grad():
            soft = F.softmax(teacher.eval()(x) / TEMPERATURE, 1)
        return F.cross_entropy(logits, soft)
    adversarial = _attack(model, recipe, x, y, eps) if recipe.steps else x
    logits = model(adversarial)
    if recipe.kind == "trades":
        natural = model(x)
        kl = F.kl_div(F.log_softmax(logits, 1), F.softmax(natural, 1), reduction="batchmean")
        return F.cross_entropy(natural, y) + 6.0 * kl
    return F.cross_entropy(logits, y)


def _attack(model: nn.Module, recipe: Recipe, x: Tensor, y: Tensor, eps: float) -> Tensor:
    natural = F.softmax(model(x), 1).detach() if recipe.kind == "trades" else None
    delta = (torch.rand_like(x) * 2 - 1) * (eps if recipe.norm == "linf" else eps / x[0].numel() ** 0.5)
    for _ in range(recipe.steps):
        seen = (x + delta).clamp(0, 1).requires_grad_()
        logits = model(seen)
        if natural is None:
            loss = F.cross_entropy(logits, y)
        else:
            loss = F.kl_div(F.log_softmax(logits, 1), natural, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, seen)
        delta = _pushed(seen.detach() - x, gradient, recipe.norm, eps, 2.5 * eps / (recipe.steps + 1))
    return (x + delta).clamp(0, 1)


def _pushed(delta: Tensor, gradient: Tensor, norm: str, eps: float, step_size: float) -> Tensor:
    if norm == "linf":
        return (delta + step_size * gradient.sign()).clamp(-eps, eps)
    length = gradient.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
    delta = delta + step_size * gradient / length
    far = delta.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, 1, 1, 1)
    shorter: Tensor = delta * (eps / far).clamp_max(1)
    return shorter
