"""Fast adversarial training beside a plain loop of the same recipe: seconds an epoch, turn by turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.models import build_model
from robustbench_lite.prepare import make_defenses
from robustbench_lite.recipe import recipe_for

from .parts import folder

EPS, STEP, LR, BATCH = 0.3, 0.375, 5e-3, 100
HEADS = ("", "seconds an epoch", "ratio", "least", "most", "clean %", "PGD-50 x 10 %")


@dataclass(frozen=True)
class Trained:
    """One side: seconds of each turn, and of the network of the longest training what it withstands."""

    name: str
    seconds: tuple[float, ...]
    clean: float
    robust: float


def plain(model: nn.Module, x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Module:
    """The recipe as a plain loop (Wong et al. 2020, algorithm 3): one random start, one step, Adam, a cyclic rate."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    generator, steps = torch.Generator().manual_seed(seed), len(x) // BATCH
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=generator)
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            images, labels = x[rows], y[rows]
            done = (epoch + (step + 1) / steps) / epochs
            for group in optimizer.param_groups:
                group["lr"] = LR * (done / 0.4 if done < 0.4 else (1 - done) / 0.6)
            delta = torch.zeros_like(images).uniform_(-EPS, EPS).requires_grad_()
            F.cross_entropy(model(images + delta), labels).backward()  # type: ignore[no-untyped-call]
            assert delta.grad is not None
            delta = (delta.detach() + STEP * delta.grad.sign()).clamp(-EPS, EPS)
            delta = torch.max(torch.min(1 - images, delta), 0 - images)
            loss = F.cross_entropy(model((images + delta).clamp(0, 1)), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def ours(model: nn.Module, data: rbl.Dataset, epochs: int, seed: int) -> nn.Module:
    """`rbl train --defense fast-at`."""
    defenses: Any = make_defenses(["fast-at"], [f"eps={EPS}"])
    recipe = recipe_for(defenses, {"epochs": epochs, "seed": seed}, argument="recipe")
    return rbl.train_model(model, data, recipe=recipe, defenses=defenses)


def compared(rounds: int, images: int, epochs: int, note: Callable[[str], None]) -> list[Trained]:
    """Both in turn for an epoch, `rounds` times, then each for `epochs`; robust accuracy on the first `images`."""
    place = folder("RBL_DATA", "data", "MNIST").parent
    data, test = (rbl.load_dataset("mnist", split=split, data_dir=place) for split in ("train", "test"))
    x, y = data.images(torch.arange(len(data))), data.labels
    sides: dict[str, Callable[[nn.Module, int, int], nn.Module]] = {
        "ours": lambda model, count, seed: ours(model, data, count, seed),
        "plain loop": lambda model, count, seed: plain(model, x, y, count, seed),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name, train in sides.items():
            note(f"{name}, an epoch, turn {turn + 1} of {rounds} ...")
            model = build_model("small-cnn", n_classes=10, shape=data.shape, seed=turn)
            began = time.perf_counter()
            train(model, 1, turn)
            seconds[name].append(time.perf_counter() - began)
    found = []
    index = torch.arange(images)
    for name, train in sides.items():
        note(f"{name}, {epochs} epochs ...")
        model = train(build_model("small-cnn", n_classes=10, shape=data.shape, seed=0), epochs, 0)
        note(f"{name}, attacked ...")
        options = {"steps": 50, "step_size": 0.01, "restarts": 10}
        result = rbl.evaluate(
            model, test.images(index), test.labels[index], eps=EPS, attack_options=options, checks=False
        )
        found.append(Trained(name, tuple(seconds[name]), result.clean_accuracy, result.robust_accuracy))
    return found


def rows(found: list[Trained]) -> list[list[str]]:
    """The table: ratios are of the same turn, the median of them, the least and the most."""
    base = next(side for side in found if side.name == "plain loop")
    lines = []
    for side in found:
        ratios = [own / other for own, other in zip(side.seconds, base.seconds, strict=True)]
        lines.append(
            [
                side.name,
                f"{statistics.median(side.seconds):.2f}",
                *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))),
                *(f"{100 * value:.1f}" for value in (side.clean, side.robust)),
            ]
        )
    return lines
