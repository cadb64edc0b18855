"""`auto` and AutoAttack on a matrix of networks, norms and eps: `python -m benchmarks.matrix`.

Networks are attacked in the threat that they were trained for and in others, in which they mask their gradients.
Results of the reference are kept in the cache, so that the matrix can be measured again for `auto` alone.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor, nn

import robustbench_lite as rbl
from robustbench_lite.cache import cache_dir
from robustbench_lite.files import replace_whole

from .nets import RECIPES, load, trained
from .parts import ROOT, Whole, folder

IMAGES = 100
FEW = 600  # passes per image: below, the reference ends at once, and `auto` may take a tenth of this
L0_REFERENCE = ("sigma-zero", "fmn", "jsma", "pointwise")
RESNET20 = f"{ROOT / 'benchmarks' / 'resnet20.py'}:make"
# Networks trained elsewhere: data set, factory, weights.
SHIPPED = {
    "mnist-fast-at": ("mnist", "small-cnn", "mnist-fast-at/fgsm.pth"),
    "mnist-certified": ("mnist", "small-cnn", "mnist-certified/mnist.pth"),
    "cifar10-resnet20": ("cifar10", RESNET20, "cifar10-resnet20/resnet20-12fca82f.th"),
}  # fmt: skip
MATRIX: dict[str, dict[str, tuple[float, ...]]] = {
    "mnist-fast-at": {"linf": (0.1, 0.3, 0.35), "l2": (1.0, 1.5, 2.0), "l1": (5.0, 10.0), "l0": (10,)},
    "mnist-certified": {"linf": (0.05, 0.1, 0.2), "l2": (1.0, 1.5, 2.0), "l1": (5.0, 10.0), "l0": (10,)},
    "mnist-trades": {"linf": (0.2, 0.3, 0.35), "l2": (1.0, 2.0), "l1": (10.0,), "l0": (10,)},
    "mnist-pgd": {"linf": (0.2, 0.3, 0.35), "l2": (1.0, 2.0), "l1": (10.0,)},
    "mnist-pgd-l2": {"linf": (0.1, 0.2), "l2": (1.0, 2.0, 2.5), "l1": (10.0,)},
    "mnist-standard": {"linf": (0.05, 0.1), "l2": (1.0,), "l1": (5.0,), "l0": (5,)},
    "mnist-distilled": {"linf": (0.05, 0.1), "l2": (1.0,), "l1": (5.0,)},
    "mnist-vit": {"linf": (0.02, 0.05), "l2": (0.5,), "l1": (3.0,)},
    "mnist-resnet": {"linf": (0.02, 0.05), "l2": (0.5,), "l1": (3.0,)},
    "cifar10-resnet20": {"linf": (0.5 / 255, 2 / 255), "l2": (0.1,), "l1": (2.0,)},
    "cifar10-pgd": {"linf": (4 / 255, 8 / 255, 12 / 255), "l2": (0.5,), "l1": (5.0,)},
    "cifar10-pgd-l2": {"linf": (4 / 255,), "l2": (0.25, 0.5, 1.0), "l1": (5.0,)},
    "cifar10-trades": {"linf": (4 / 255, 8 / 255), "l2": (0.5,)},
    "cifar10-distilled": {"linf": (1 / 255,), "l2": (0.25,)},
    "cifar10-vit": {"linf": (1 / 255,), "l2": (0.25,)},
    "cifar10-vit-pgd": {"linf": (4 / 255, 8 / 255), "l2": (0.5,), "l1": (5.0,)},
}


@dataclass(frozen=True)
class Cell:
    """One network in one threat."""

    network: str
    norm: str
    eps: float

    @property
    def title(self) -> str:
        """The threat as the table shows it; eps of small linf threats in 255ths."""
        small = self.norm == "linf" and self.network.startswith("cifar10")
        return f"{self.norm} {255 * self.eps:g}/255" if small else f"{self.norm} {self.eps:g}"


@dataclass(frozen=True)
class Measured:
    """One attack in one cell. robust: of each image; passes: forward and backward, per image; seconds: of the CPU."""

    robust: list[bool]
    passes: float
    seconds: float


def cells() -> Iterator[Cell]:
    """All of the matrix."""
    for network, threats in MATRIX.items():
        for norm, several in threats.items():
            yield from (Cell(network, norm, eps) for eps in several)


def network(name: str) -> tuple[nn.Module, str]:
    """The network, frozen, and its data set."""
    if name not in SHIPPED:
        return trained(name, _say), RECIPES[name].data
    data, factory, weights = SHIPPED[name]
    path = folder("RBL_WEIGHTS", "weights", *weights.split("/"))
    model = rbl.load_model(
        factory, n_classes=10, shape=(1, 28, 28) if data == "mnist" else (3, 32, 32), weights=str(path)
    )
    return Whole(model.module).eval().requires_grad_(False), data


def images(data: str, count: int, first: int) -> tuple[Tensor, Tensor]:
    """Test images (N, C, H, W) and labels (N,), from `first` on."""
    found = load(data, "test")
    index = torch.arange(first, first + count)
    return found.images(index), found.labels[index]


def attacked(model: nn.Module, x: Tensor, y: Tensor, cell: Cell, attack: str, options: dict[str, object]) -> Measured:
    """One attack in one cell, without checks."""
    begun = time.process_time()
    result = rbl.evaluate(
        *(model, x, y), attack=attack, norm=cell.norm, eps=cell.eps, attack_options=options, checks=False
    )
    seconds = time.process_time() - begun
    rows = result.samples
    passes = float((rows.forwards + rows.backwards).mean())
    return Measured((rows.correct & ~rows.success).tolist(), passes, seconds)


def reference(model: nn.Module, x: Tensor, y: Tensor, cell: Cell) -> Measured:
    """AutoAttack, in l0 the worst case of four attacks; from the cache where it was measured before."""
    digest = hashlib.sha256(f"1 {cell.norm} {cell.eps!r}".encode())
    for tensor in (*model.state_dict().values(), x, y):
        digest.update(tensor.contiguous().numpy().tobytes())
    path = cache_dir() / "benchmarks" / "matrix" / f"{digest.hexdigest()[:16]}.json"
    if path.exists():
        return Measured(**json.loads(path.read_text("utf-8")))
    if cell.norm == "l0":
        each = [attacked(model, x, y, cell, name, {}) for name in L0_REFERENCE]
        robust = [all(image) for image in zip(*(m.robust for m in each), strict=True)]
        found = Measured(robust, sum(m.passes for m in each), sum(m.seconds for m in each))
    else:
        found = attacked(model, x, y, cell, "autoattack", {})
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(path, lambda temporary: Path(temporary).write_text(json.dumps(vars(found)), "utf-8"))
    return found


def row(cell: Cell, found: Measured, other: Measured) -> tuple[str, ...]:
    """A line of the table: robust accuracies, images missed and found alone, costs."""
    missed = [i for i, (mine, theirs) in enumerate(zip(found.robust, other.robust, strict=True)) if mine and not theirs]
    alone = sum(theirs and not mine for mine, theirs in zip(found.robust, other.robust, strict=True))
    share, time_share = found.passes / other.passes, found.seconds / max(other.seconds, 1e-9)
    return (
        *(cell.network, cell.title, f"{_percent(other)}", f"{_percent(found)}"),
        *(" ".join(map(str, missed)) or "-", str(alone), f"{other.passes:.0f}", f"{found.passes:.0f}"),
        *(f"{share:.3f}", f"{time_share:.3f}", "yes" if _kept(found, other) else "no"),
    )


HEADS = (
    *("network", "threat", "AutoAttack %", "auto %", "missed", "found alone"),
    *("passes, AutoAttack", "passes, auto", "ratio", "CPU time", "within"),
)


def _kept(found: Measured, other: Measured) -> bool:
    """Whether a cell meets what is asked: not above the reference, at a tenth of its passes."""
    most = 0.1 * max(other.passes, FEW)
    return sum(found.robust) <= sum(other.robust) and found.passes <= most


def _percent(found: Measured) -> str:
    return f"{100 * sum(found.robust) / len(found.robust):.1f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(
    networks: Annotated[str, typer.Option(help="With commas between; all by default.")] = "all",
    norms: Annotated[str, typer.Option(help="With commas between.")] = "linf,l2,l1,l0",
    count: Annotated[int, typer.Option("--images", min=1, help="Test images in each cell.")] = IMAGES,
    first: Annotated[int, typer.Option(min=0, help="The first test image.")] = 0,
    effort: Annotated[str, typer.Option(help="Of `auto`.")] = "standard",
    only_reference: Annotated[bool, typer.Option("--only-reference", help="Fill the cache and stop.")] = False,
    threads: Annotated[int, typer.Option(min=1, help="The same for both.")] = 1,
) -> None:
    """Compare `auto` with AutoAttack in every cell; prints a Markdown table."""
    torch.set_num_threads(threads)
    chosen = set(MATRIX) if networks == "all" else set(networks.split(","))
    print("| " + " | ".join(HEADS) + " |\n|" + " --- |" * len(HEADS), flush=True)
    pairs: list[tuple[Measured, Measured]] = []
    for cell in cells():
        if cell.network not in chosen or cell.norm not in norms.split(","):
            continue
        model, data = network(cell.network)
        x, y = images(data, count, first)
        other = reference(model, x, y, cell)
        if only_reference:
            _say(f"{cell.network} {cell.title}: {_percent(other)} %, {other.passes:.0f} passes, {other.seconds:.0f} s")
            continue
        found = attacked(model, x, y, cell, "auto", {"effort": effort})
        pairs.append((found, other))
        print("| " + " | ".join(row(cell, found, other)) + " |", flush=True)
    if pairs:
        print("\n" + summary(pairs))


def summary(pairs: Sequence[tuple[Measured, Measured]]) -> str:
    """The whole matrix in one sentence."""
    ratios = [found.passes / other.passes for found, other in pairs]
    times = [found.seconds / max(other.seconds, 1e-9) for found, other in pairs]
    higher = sum(sum(found.robust) > sum(other.robust) for found, other in pairs)
    kept = sum(_kept(found, other) for found, other in pairs)
    return (
        f"{len(pairs)} cells: `auto` above AutoAttack in {higher}; passes: median {statistics.median(ratios):.3f}, "
        f"largest {max(ratios):.3f}; CPU time {statistics.median(times):.3f} and {max(times):.3f}; {kept} within limits"
    )


if __name__ == "__main__":
    typer.run(main)
