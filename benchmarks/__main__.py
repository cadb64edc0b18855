"""The command: `python -m benchmarks`; tables on stdout, what it is doing on stderr."""

from __future__ import annotations

import enum
import functools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from robustbench_lite.errors import UserError

if TYPE_CHECKING:
    from .parts import Part
    from .rivals import Contestant, Rivalry


class Format(enum.StrEnum):
    """How the tables are printed."""

    rich = "rich"
    markdown = "markdown"


class Choice(enum.StrEnum):
    """Which part runs."""

    robust = "robust"
    standard = "standard"
    auto = "auto"
    nearest = "nearest"
    peers = "peers"
    training = "training"
    all = "all"


def main(
    part: Annotated[Choice, typer.Option(help="Which comparison.")] = Choice.all,
    robust_images: Annotated[int, typer.Option(min=10, help="MNIST test images of the robust part.")] = 1000,
    standard_images: Annotated[int, typer.Option(min=10, help="CIFAR-10 test images of the standard part.")] = 128,
    auto_images: Annotated[int, typer.Option(min=10, help="Images for each network of the part auto.")] = 200,
    training_images: Annotated[int, typer.Option(min=10, help="Test images of the part training.")] = 10_000,
    training_epochs: Annotated[
        int, typer.Option(min=1, help="Epochs of the programs of the part training, and after its turns.")
    ] = 10,
    networks: Annotated[str, typer.Option(help="Of the part auto, with commas between; see benchmarks.nets.")] = "all",
    attacks: Annotated[str, typer.Option(help="Of the part peers, with commas between.")] = "all",
    rounds: Annotated[
        int, typer.Option(min=1, help="Turns on the clock, of the parts robust, standard and training.")
    ] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of PGD.")] = 40,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time, the same for all.")] = 256,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads, the same for all; default: all cores.")] = None,
    peers: Annotated[bool, typer.Option(help="Run the other libraries too.")] = True,
    kept_memory: Annotated[
        bool, typer.Option("--keep-memory", help="Freed memory stays with the process, as `rbl` has it; for all.")
    ] = False,
    format: Annotated[Format, typer.Option(help="How the tables are printed.")] = Format.rich,
) -> None:
    """robustbench-lite beside torchattacks, foolbox and ART, and beside the gradients that nobody can do without."""
    import torch

    from robustbench_lite.cli.speed import keep_memory

    from .parts import Absent
    from .report import machine

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or cores)
    if kept_memory:
        keep_memory()
    status = Console(stderr=True, highlight=False)
    out = Console(width=None if sys.stdout.isatty() else 140)
    out.print(machine(torch.get_num_threads(), cores), highlight=False, soft_wrap=True)

    bench = Bench(status, out, batch_size, peers, format is Format.markdown)
    chosen = [choice.value for choice in Choice if choice is not Choice.all] if part is Choice.all else [part.value]
    ran = 0
    for name in chosen:
        if name == "auto":
            runs = [functools.partial(bench.portfolios, network, auto_images) for network in _networks(networks)]
        elif name == "nearest":
            runs = [functools.partial(bench.nearest, rivalry) for rivalry in bench.rivalries()]
        elif name == "peers":
            runs = [functools.partial(bench.attack_by_attack, _pairs(attacks))]
        elif name == "training":
            runs = [functools.partial(bench.training, rounds, training_images, training_epochs)]
        else:
            images = robust_images if name == "robust" else standard_images
            # The network that somebody else trained is so small that half precision saves nothing there.
            several = [name, "mnist-pgd"] if name == "robust" else [name]
            runs = [functools.partial(bench.pgd, network, images, steps, rounds) for network in several]
        for run in runs:
            try:
                run()
            except Absent as absent:
                bench.note(f"{name} is left out: {absent}")
                break
            except UserError as error:
                bench.note(f"{name}: {error}")
                raise typer.Exit(2) from None
            ran += 1
    if not ran:
        bench.note("nothing was compared: no part has its images and weights here")
        raise typer.Exit(2)
    if bench.missed:
        bench.note(f"more than one point above a peer, and no reason is listed: {', '.join(bench.missed)}")
        raise typer.Exit(1)


def _networks(text: str) -> list[str]:
    """The networks of the part auto."""
    from robustbench_lite.errors import unknown_name

    from .nets import RECIPES

    known = ["mnist-fast-at", *RECIPES]
    given = known if text == "all" else text.split(",")
    for name in given:
        if name not in known:
            raise typer.BadParameter(str(unknown_name("networks", name, known)))
    return given


def _pairs(text: str) -> list[Rivalry]:
    """What the part peers compares."""
    from robustbench_lite.errors import unknown_name

    from .pairs import PAIRS

    known = {pair.attack for pair in PAIRS}
    given = known if text == "all" else set(text.split(","))
    for name in given - known:
        raise typer.BadParameter(str(unknown_name("attacks", name, known)))
    return [pair for pair in PAIRS if pair.attack in given]


@dataclass(frozen=True)
class Bench:
    """Where tables and remarks go, and what all comparisons share."""

    status: Console
    out: Console
    batch_size: int
    peers: bool
    markdown: bool
    missed: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """A remark beside the tables."""
        self.status.print(text, markup=False, soft_wrap=True)

    def pgd(self, name: str, images: int, steps: int, rounds: int) -> None:
        """PGD beside the peers' and beside the gradients alone."""
        from .contestants import contestants
        from .parts import PARTS, own
        from .report import STEPS

        size = self.batch_size
        made = PARTS[name](images, steps, size) if name in PARTS else own(name, images, size, self.note, steps)
        entered = list(contestants(made, self.note, peers=self.peers))
        self._compare(made, entered, f"PGD of {steps} steps from a random start", STEPS, rounds)

    def portfolios(self, network: str, images: int) -> None:
        """`auto` beside the reference, on one network."""
        from .parts import own
        from .portfolios import portfolios
        from .report import PORTFOLIOS

        made = own(network, images, self.batch_size, self.note)
        self._compare(made, list(portfolios(made, self.note, peers=self.peers)), "portfolios", PORTFOLIOS, 0)

    def rivalries(self) -> Sequence[Rivalry]:
        """The attacks that peers have too."""
        from .nearest import RIVALRIES

        return RIVALRIES

    def nearest(self, rivalry: Rivalry) -> None:
        """One attack beside those of the peers, on the network that somebody else trained."""
        from .report import NEAREST
        from .rivals import rivals

        made = rivalry.part(self.batch_size)
        entered = list(rivals(rivalry, made, self.note, peers=self.peers))
        self._compare(made, entered, rivalry.what, NEAREST, 0, minimal=rivalry.minimal)

    def attack_by_attack(self, pairs: Sequence[Rivalry]) -> None:
        """Every attack beside the same of each peer, in one table."""
        from .peers import HEADS, LEFT, compared
        from .report import grid

        if not self.peers:
            self.note("attack by attack needs the peers")
            return
        with self.status.status("peers ...") as shown:
            rows = [row for pair in pairs for row in compared(pair, self.batch_size, self.note, shown.update)]
        title = "attack by attack: what ours leaves standing, and the same attack of a peer"
        grid(self.out, title, HEADS, [row.cells() for row in rows], left=LEFT, markdown=self.markdown)
        self.missed.extend(
            f"{row.rivalry.attack} {row.rivalry.norm} on {row.rivalry.on} ({row.peer})" for row in rows if row.missed
        )

    def training(self, rounds: int, images: int, epochs: int) -> None:
        """Fast adversarial training beside a plain loop."""
        from .report import grid
        from .training import HEADS, PROGRAM_HEADS, compared, programs, rows

        what = "fast-at on MNIST, linf 0.3, small-cnn"
        with self.status.status("training ...") as shown:
            found = programs(rounds, epochs, shown.update)
        title = f"{what}: programs from start to end, {epochs} epochs, {rounds} turns"
        grid(self.out, title, PROGRAM_HEADS, rows(found, measured=False), markdown=self.markdown)
        with self.status.status("training ...") as shown:
            found = compared(rounds, images, epochs, shown.update)
        title = f"{what}: in one process, {rounds} turns of an epoch, then {epochs} epochs; {images} images"
        grid(self.out, title, HEADS, rows(found, measured=True), markdown=self.markdown)

    def _compare(
        self,
        made: Part,
        entered: Sequence[Contestant],
        what: str,
        columns: Sequence[str],
        rounds: int,
        *,
        minimal: bool = False,
    ) -> None:
        from .measure import measure
        from .report import show

        with self.status.status(f"{made.name} ...") as shown:
            found = measure(made, entered, rounds=rounds, note=shown.update, minimal=minimal)
        show(self.out, made, found, what=what, columns=columns, rounds=rounds, markdown=self.markdown)


if __name__ == "__main__":
    typer.run(main)
