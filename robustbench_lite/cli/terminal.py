"""What commands share at the terminal: messages, progress with the time left, and a gentle Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from ..loop import TrainingProgress
    from ..running import Progress as EvaluationProgress

errors = Console(stderr=True, emoji=False, highlight=False, soft_wrap=True)


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
        return Text("" if speed is None else f"{speed:,.{0 if speed >= 10 else 1}f}/s", style="dim")


def new_bar(*details: ProgressColumn) -> Progress:
    """A bar as all of them look, with these columns at its end."""
    return Progress(
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(bar_width=None, table_column=Column(ratio=1)),
        *details,
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        console=errors,
        transient=not errors.is_terminal,
        disable=not errors.is_terminal,
        expand=True,
    )


def short_label(label: str, width: int = 24) -> str:
    """At most so much of a label that in 80 columns there is room for the bar; a name is no markup."""
    return escape(label if len(label) <= width else f"{label[: width - 1]}…")


@contextlib.contextmanager
def attack_bar(label: str, total: int) -> Iterator[Callable[[EvaluationProgress], None]]:
    """A bar of images done, the share still robust, the rate and the time left; what is under way counts in part."""
    details = TextColumn("{task.fields[done]}/{task.total:.0f}"), TextColumn("[dim]{task.fields[robust]}[/]"), _Rate()
    with new_bar(*details) as bar:
        task = bar.add_task(short_label(label), total=total, done=0, robust="", begun=False)

        def show(p: EvaluationProgress) -> None:
            if p.resumed and not bar.tasks[0].fields["begun"]:
                bar.reset(task, completed=p.resumed, begun=True)  # what an earlier process did says nothing of the rate
            # Fooled images are done first: the share of those that are left falls to the final number.
            share = f"still robust {100 * (1 - (p.done - p.robust) / p.total):.1f} %"
            bar.update(task, completed=p.done + p.under_way, done=p.done, robust=share)

        yield show


@contextlib.contextmanager
def count_bar(label: str, total: int, done: int = 0) -> Iterator[Callable[[float], None]]:
    """A bar of images done, `done` of them before; what is given is told how many more."""
    with new_bar(TextColumn("{task.completed:.0f}/{task.total:.0f}"), _Rate()) as bar:
        task = bar.add_task(short_label(label), total=total, completed=done)
        yield lambda more: bar.advance(task, more)


@contextlib.contextmanager
def training_bar(label: str) -> Iterator[Callable[[TrainingProgress], None]]:
    """A bar of batches over the whole training, with epoch, loss and accuracy."""
    with new_bar(TextColumn("[dim]{task.fields[state]}[/]")) as bar:
        task: list[Any] = []

        def show(p: TrainingProgress) -> None:
            if not task:  # nothing is shown for a network that comes from the cache
                task.append(bar.add_task(short_label(label), total=p.epochs * p.batches, state=""))
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

    from . import answers

    out = answers.stream()
    out.write(json.dumps(value, allow_nan=False) + "\n")
    out.flush()
