"""Fast adversarial training beside a plain loop of the same recipe, in turns: in one process, and as programs."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import robustbench_lite as rbl
from robustbench_lite.models import build_model
from robustbench_lite.prepare import make_defenses
from robustbench_lite.recipe import recipe_for

from . import plain
from .parts import folder

ROOT = Path(__file__).resolve().parent.parent
HEADS = ("", "seconds an epoch", "ratio", "least", "most", "clean %", "PGD-50 x 10 %")
PROGRAM_HEADS = ("", "seconds", "ratio", "least", "most")
PLAIN = "plain loop"


@dataclass(frozen=True)
class Turns:
    """One side: seconds of each turn, and what its network withstands where that was measured."""

    name: str
    seconds: tuple[float, ...]
    clean: float | None = None
    robust: float | None = None

    def cells(self, base: Turns) -> list[str]:
        """Ratios are of the same turn: the median of them, the least and the most."""
        ratios = [own / other for own, other in zip(self.seconds, base.seconds, strict=True)]
        shown = (statistics.median(self.seconds), statistics.median(ratios), min(ratios), max(ratios))
        return [self.name, *(f"{value:.2f}" for value in shown)]


def timed(sides: Mapping[str, Callable[[int], object]], rounds: int, note: Callable[[str], None]) -> list[Turns]:
    """Each side `rounds` times, all of them in each turn."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name, run in sides.items():
            note(f"{name}, turn {turn + 1} of {rounds} ...")
            began = time.perf_counter()
            run(turn)
            seconds[name].append(time.perf_counter() - began)
    return [Turns(name, tuple(seconds[name])) for name in sides]


def compared(rounds: int, images: int, epochs: int, note: Callable[[str], None]) -> list[Turns]:
    """An epoch of each side in turn, then ours and the plain loop for `epochs`: robust accuracy on the first images."""
    place = folder("RBL_DATA", "data", "MNIST").parent
    data, test = (rbl.load_dataset("mnist", split=split, data_dir=place) for split in ("train", "test"))
    x, y = data.images(torch.arange(len(data))), data.labels
    steps = len(x) // plain.BATCH

    def ours(precision: str) -> Callable[[int, int], nn.Module]:
        def run(count: int, seed: int) -> nn.Module:
            defenses: Any = make_defenses(["fast-at"], [f"eps={plain.EPS}"])
            said = {"epochs": count, "seed": seed, "precision": precision}
            recipe = recipe_for(defenses, said, argument="recipe")
            return rbl.train_model(network(seed), data, recipe=recipe, defenses=defenses)

        return run

    def network(seed: int) -> nn.Module:
        return build_model("small-cnn", n_classes=10, shape=data.shape, seed=seed)

    sides: dict[str, Callable[[int, int], nn.Module]] = {
        "ours": ours("float32"),
        "ours, precision=bf16": ours("bf16"),
        PLAIN: lambda count, seed: plain.train(network(seed), plain.from_memory(x, y, seed), steps, count),
        f"{PLAIN}, DataLoader": lambda count, seed: plain.train(
            network(seed), plain.from_loader(x, y, seed), steps, count
        ),
    }
    turns = timed({name: lambda turn, run=run: run(1, turn) for name, run in sides.items()}, rounds, note)  # type: ignore[misc]
    index = torch.arange(images)
    options = {"steps": 50, "step_size": 0.01, "restarts": 10}
    found = []
    for side in turns:
        if side.name.endswith("DataLoader"):  # the plain loop's network, in another order
            found.append(side)
            continue
        note(f"{side.name}, {epochs} epochs ...")
        model = sides[side.name](epochs, 0)
        note(f"{side.name}, attacked ...")
        x_test, y_test = test.images(index), test.labels[index]
        seen = rbl.evaluate(model, x_test, y_test, eps=plain.EPS, attack_options=options, checks=False)
        found.append(Turns(side.name, side.seconds, seen.clean_accuracy, seen.robust_accuracy))
    return found


def programs(rounds: int, epochs: int, note: Callable[[str], None]) -> list[Turns]:
    """`rbl train` and the plain loop as a script, each a process from its start to the weights on disk.

    `rbl train` also tells the accuracy on the test images, which the script does not. Both on the CPU, with as many
    threads as this process; each runs once for an epoch before the clock does, so that Python's bytecode is there, as
    it is on most machines.
    """
    place = folder("RBL_DATA", "data", "MNIST").parent
    with tempfile.TemporaryDirectory() as kept:

        def run(*arguments: str, turn: int) -> None:
            # A cache of its own in each turn: a network that is there already is not trained again.
            environment = {
                **os.environ,
                "RBL_CACHE": f"{kept}/cache-{turn}-{len(arguments)}",
                "OMP_NUM_THREADS": f"{torch.get_num_threads()}",
                "PYTHONPYCACHEPREFIX": f"{kept}/bytecode",
            }
            environment.pop("PYTHONDONTWRITEBYTECODE", None)
            command = [sys.executable, "-m", *arguments]
            subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)

        def ours(count: int, *extra: str) -> Callable[[int], None]:
            options = ("--defense", "fast-at", "--defense-option", f"eps={plain.EPS}", "--epochs", f"{count}", *extra)
            data = ("--dataset", "mnist", "--data-dir", f"{place}", "--device", "cpu")
            train = ("robustbench_lite.cli.main", "train", "--model", "small-cnn", *data, *options)
            return lambda turn: run(*train, "--out", f"{kept}/{turn}-{len(extra)}.safetensors", turn=turn)

        def script(count: int) -> Callable[[int], None]:
            return lambda turn: run("benchmarks.plain", f"{place}", f"{count}", f"{kept}/{turn}.pt", turn=turn)

        note("both once, off the clock ...")
        ours(1)(-1)
        script(1)(-1)
        sides: dict[str, Callable[[int], object]] = {
            "rbl train": ours(epochs),
            "rbl train, precision=bf16": ours(epochs, "--train-option", "precision=bf16"),
            PLAIN: script(epochs),
        }
        return timed(sides, rounds, note)


def rows(found: Sequence[Turns], *, measured: bool) -> list[list[str]]:
    """The table; measured: with what the networks withstand."""
    base = next(side for side in found if side.name == PLAIN)
    lines = []
    for side in found:
        shares = [f"{100 * value:.1f}" if value is not None else "" for value in (side.clean, side.robust)]
        lines.append(side.cells(base) + (shares if measured else []))
    return lines
