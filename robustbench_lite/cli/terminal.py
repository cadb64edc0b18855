"""What commands share at the terminal: messages, progress with the time left, and a gentle Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

if TYPE_CHECKING:
    from ..evaluation import Progress as EvaluationProgress
    from ..training import TrainingProgress

errors = Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """A line for the person, apart from the result."""
    errors.print(text, style="dim", markup=False)


def warn(text: str) -> None:
    """A line that the person should read."""
    errors.print(f"warning: {text}", style="yellow", markup=False)


class _Rate(ProgressColumn):
    """Images a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="dim")


def _bar(*details: str) -> Progress:
    return Progress(
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        *(TextColumn(detail) for detail in details),
        _Rate(),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=errors,
        transient=not errors.is_terminal,
        disable=not errors.is_terminal,
    )


@contextlib.contextmanager
def attack_bar(label: str) -> Iterator[Callable[[EvaluationProgress], None]]:
    """A bar of images done, how many are still robust, the rate and the time left."""
    with _bar("[dim]{task.fields[robust]}[/]") as bar:
        task = bar.add_task(label, total=None, robust="")

        def show(p: EvaluationProgress) -> None:
            share = f"robust so far {100 * p.robust / p.done:.1f} %" if p.done else ""
            bar.update(task, total=p.total, completed=p.done, robust=share)

        yield show


@contextlib.contextmanager
def training_bar(label: str) -> Iterator[Callable[[TrainingProgress], None]]:
    """A bar of batches over the whole training, with epoch, loss and accuracy."""
    with _bar("[dim]{task.fields[state]}[/]") as bar:
        task: list[Any] = []

        def show(p: TrainingProgress) -> None:
            if not task:  # nothing is shown for a network that comes from the cache
                task.append(bar.add_task(label, total=p.epochs * p.batches, state=""))
            state = f"epoch {p.epoch}/{p.epochs}, loss {p.loss:.3f}, accuracy {100 * p.accuracy:.1f} %"
            bar.update(task[0], completed=(p.epoch - 1) * p.batches + p.batch, state=state)

        yield show


@contextlib.contextmanager
def gentle_interrupt() -> Iterator[Callable[[], bool]]:
    """Within: the first Ctrl-C only asks the work to stop at its next step; the second stops it at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        errors.print("stopping after this step; Ctrl-C again stops at once", style="yellow")

    found = signal.signal(signal.SIGINT, ask)
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, found)


def print_json(value: Any) -> None:
    """One JSON object on one line of stdout."""
    import json

    sys.stdout.write(json.dumps(value, allow_nan=False) + "\n")
