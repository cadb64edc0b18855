"""One process's share of a run: the engine driven to its end, stored on the way, stopped when asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .engine import Engine, Entry
from .errors import RblError
from .network import Noise
from .plan import Plan
from .portfolio import Chain
from .result import finished_columns
from .rows import concat
from .streams import Stream


class Interrupted(RblError):
    """The run was asked to stop; what was done is kept where there is a leaderboard folder."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: samples done, of them still robust, and all; `resumed` were done by an earlier process.

    under_way: what was done for samples that are not finished, in samples, were all to take every step.
    """

    done: int
    robust: int
    total: int
    resumed: int = 0
    under_way: float = 0.0


class Running:
    """One process's share of a run: the engine driven to its end, stored on the way."""

    def __init__(
        self,
        plan: Plan,
        engine: Engine | Chain,
        total: int,
        progress: Callable[[Progress], None] | None,
        stop: Callable[[], bool] | None,
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.total = total
        self.progress = progress
        self.stop = stop
        self.done: list[dict[str, Tensor]] = []
        self.robust = 0
        self.count = 0
        self.resumed = 0
        self.waiting: list[tuple[Entry, Tensor]] = []
        self.waiting_rows = 0

    def finish(
        self, checkpoint: Checkpoint | None, note: Callable[[str], None] | None = None
    ) -> tuple[dict[str, Tensor], float]:
        """All columns, and the seconds spent by this process and those before it."""
        began, before = time.monotonic(), 0.0
        if checkpoint and (loaded := checkpoint.load(self.engine)):
            parts, before = loaded
            for part in parts:
                self._take(part)
                self._count(part["y"], part["prediction"], part["success"])
            self.resumed = self.count
            if note:
                note(f"an unfinished run goes on: {self.count} of {self.total} samples were done")
        elif checkpoint and checkpoint.exists and note:
            note("an unfinished run is there, computed in another way (batch size, threads, versions): it starts anew")
        for entry, x in self.engine.run():
            if len(entry.y):
                self._wait(entry, x)
            if self.waiting_rows >= self.plan.batch_size:
                self._settle(checkpoint)
            if self.progress:
                self.progress(Progress(self.count, self.robust, self.total, self.resumed, self.engine.under_way))
            stopping = self.stop is not None and self.stop()
            if checkpoint and (stopping or checkpoint.due()):
                self._settle(checkpoint)
                checkpoint.store(self.engine, before + time.monotonic() - began)
            if stopping and self.count < self.total:
                kept = "; they are kept, and the same command goes on" if checkpoint else ""
                raise Interrupted(f"stopped with {self.count} of {self.total} samples done{kept}")
        self._settle(checkpoint)
        columns = {name: torch.cat([part[name] for part in self.done]) for name in self.done[0]}
        order = columns["index"].argsort()
        return {name: column[order] for name, column in columns.items()}, before + time.monotonic() - began

    def _take(self, columns: dict[str, Tensor]) -> None:
        self.done.append(columns)

    def _wait(self, entry: Entry, x: Tensor) -> None:
        """Finished samples, whose columns are made with those of others: they come a few at a time."""
        self.waiting.append((entry, x))
        self.waiting_rows += len(entry.y)
        self._count(entry.y, entry.prediction, entry.success)

    def _settle(self, checkpoint: Checkpoint | None) -> None:
        """Make the columns of what waits."""
        if not self.waiting:
            return
        entries, images = zip(*self.waiting, strict=True)
        entry = concat(entries)
        columns = finished_columns(entry, torch.cat(images), keep_images=self.plan.keep_images)
        if self.plan.attack.persists:
            noise = Noise(Stream(entry.key), torch.zeros_like(entry.y))
            logits = self.engine.network.logits(entry.adversarial, noise, draws=self.plan.draws[1])
            voted = self.engine.network.hard_votes and self.plan.draws[1] > 1  # shares of a vote are what it is
            logits = logits if voted else logits.softmax(1)
            columns["confidence"] = logits.gather(1, entry.adversarial_prediction[:, None])[:, 0].cpu()
        self.waiting, self.waiting_rows = [], 0
        self._take(columns)
        if checkpoint:
            checkpoint.add(columns)

    def _count(self, y: Tensor, prediction: Tensor, success: Tensor) -> None:
        self.count += len(y)
        self.robust += int(((prediction == y) & ~success).sum())
