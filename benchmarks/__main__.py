"""The command: `python -m benchmarks`; tables on stdout, what it is doing on stderr."""

from __future__ import annotations

import enum
import os
import sys
from typing import Annotated

import typer
from rich.console import Console

from robustbench_lite.errors import UserError


class Format(enum.StrEnum):
    """How the tables are printed."""

    rich = "rich"
    markdown = "markdown"


class Choice(enum.StrEnum):
    """Which part runs."""

    robust = "robust"
    standard = "standard"
    all = "all"


def main(
    part: Annotated[Choice, typer.Option(help="Which comparison.")] = Choice.all,
    robust_images: Annotated[int, typer.Option(min=10, help="MNIST test images of the robust part.")] = 1000,
    standard_images: Annotated[int, typer.Option(min=10, help="CIFAR-10 test images of the standard part.")] = 128,
    rounds: Annotated[int, typer.Option(min=1, help="Turns on the clock.")] = 5,
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

    from .contestants import contestants
    from .measure import measure
    from .parts import PARTS, Absent
    from .report import machine, show

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(threads or cores)
    if kept_memory:
        keep_memory()
    status = Console(stderr=True, highlight=False)
    out = Console(width=None if sys.stdout.isatty() else 140)
    out.print(machine(torch.get_num_threads(), cores), highlight=False, soft_wrap=True)

    ran = False
    for name, images in (("robust", robust_images), ("standard", standard_images)):
        if part not in (name, "all"):
            continue
        try:
            made = PARTS[name](images, steps, batch_size)
        except Absent as absent:
            status.print(f"{name} is left out: {absent}", markup=False, soft_wrap=True)
            continue
        except UserError as error:
            status.print(f"{name}: {error}", markup=False, soft_wrap=True)
            raise typer.Exit(2) from None
        field = list(contestants(made, lambda text: status.print(text, markup=False, soft_wrap=True), peers=peers))
        with status.status(f"{name} ...") as shown:
            found = measure(made, field, rounds=rounds, note=shown.update)
        show(out, made, found, rounds=rounds, markdown=format is Format.markdown)
        ran = True
    if not ran:
        status.print("nothing was compared: no part has its images and weights here")
        raise typer.Exit(2)


if __name__ == "__main__":
    typer.run(main)
