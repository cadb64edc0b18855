"""What is seen of a sweep while it runs: a bar over all with the time left, one of what is running, a line a cell."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.progress import TextColumn

from .terminal import new_bar, note, short_label, warn

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from ..loop import TrainingProgress
    from ..running import Progress
    from ..sweep import Done, Watch

# The part of a cell that may be under way before it is done.
_MOST = 0.95


@contextlib.contextmanager
def watching(total: int, stop: Callable[[], bool]) -> Iterator[Watch]:
    """Within: bars on the terminal, where there is one, fed by the watch that is given."""
    from ..sweep import Watch

    with new_bar(TextColumn("[dim]{task.fields[state]}[/]")) as bars:
        whole = bars.add_task("sweep", total=total, state="")
        seen = _Seen(bars, whole, total)
        yield Watch(note=note, warn=warn, training=seen.training, attacking=seen.attacking, done=seen.done, stop=stop)


class _Seen:
    """The bars of a sweep."""

    def __init__(self, bars: Bars, whole: TaskID, total: int) -> None:
        self.bars, self.whole, self.total = bars, whole, total
        self.count = self.ran = 0
        self.said = False

    @contextlib.contextmanager
    def training(self, label: str) -> Iterator[Callable[[TrainingProgress], None]]:
        """A bar of batches, which a network from the cache never shows."""
        task: list[TaskID] = []

        def show(p: TrainingProgress) -> None:
            if not task:
                self._going_on()
                task.append(self.bars.add_task(short_label(f"training {label}"), total=p.epochs * p.batches, state=""))
            state = f"epoch {p.epoch}/{p.epochs}, loss {p.loss:.3f}"
            self.bars.update(task[0], completed=(p.epoch - 1) * p.batches + p.batch, state=state)

        try:
            yield show
        finally:
            for each in task:
                self.bars.remove_task(each)

    @contextlib.contextmanager
    def attacking(self, label: str, total: int) -> Iterator[Callable[[Progress], None]]:
        """A bar of images; the one over all moves with it."""
        self._going_on()
        task = self.bars.add_task(short_label(label), total=total, state="")

        def show(p: Progress) -> None:
            part = (p.done + p.under_way) / max(1, p.total)
            robust = f"{p.done}/{p.total}, still robust {100 * (1 - (p.done - p.robust) / p.total):.1f} %"
            self.bars.update(task, completed=p.done + p.under_way, state=robust)
            self.bars.update(self.whole, completed=self.count + _MOST * part)

        try:
            yield show
        finally:
            self.bars.remove_task(task)

    def done(self, done: Done) -> None:
        """A cell is over; what was there already says nothing of the time that the others take."""
        self.count += 1
        if done.state == "there" and not self.ran:
            self.bars.reset(self.whole, completed=self.count, total=self.total, state=self._state())
        else:
            self.ran += 1
            self.bars.update(self.whole, completed=self.count, state=self._state())
            note(f"[{self.count}/{self.total}] {done.cell}: {_told(done)}")

    def _going_on(self) -> None:
        """Say, once, that what was stopped goes on."""
        if self.count and not self.ran and not self.said:
            self.said = True
            note(f"the first {self.count} of {self.total} runs are there; going on")

    def _state(self) -> str:
        return f"{self.count}/{self.total} runs"


def _told(done: Done) -> str:
    from ..records.run import read_run
    from ..records.summary import summarize

    if done.file is None:
        return f"failed: {done.error}"
    row = summarize(read_run(done.file))
    return f"clean {100 * row['clean_accuracy']:.1f} %, robust {100 * row['robust_accuracy']:.1f} %"
