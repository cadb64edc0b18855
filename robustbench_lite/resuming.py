"""A training that is under way, in a file, so that a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .errors import UserError
from .files import write_whole
from .loop import Loop, copied
from .models.identity import state_sha256
from .processes import Processes

if TYPE_CHECKING:
    from .training import Trainer

FORMAT = "robustbench-lite training 1"
EVERY = 30.0  # seconds between two
_NUMBERS = ("epoch", "batch", "accumulated", "best_value", "seconds")


class Checkpoint:
    """The file of one training, told from others by what decides it (`describe`) and by the initial weights.

    Several trainings of one defense (a teacher, then a student) share it: `stage` counts them, and of those that are
    over the weights are kept.
    """

    def __init__(self, path: Path, decided_by: Mapping[str, Any], model: nn.Module) -> None:
        said = json.dumps({"decided_by": decided_by, "start": state_sha256(model)}, sort_keys=True)
        self.path = path
        self.key = hashlib.sha256(said.encode()).hexdigest()
        self._over: dict[str, dict[str, Any]] = {}
        self._stored = time.monotonic()
        self._read: dict[str, Any] | None = None

    def maybe(self, stage: int, loop: Loop, trainer: Trainer, processes: Processes) -> None:
        """Store, where the last time is long enough ago."""
        if processes.count > 1 or time.monotonic() - self._stored >= EVERY:
            # Processes store at the end of each epoch alone, where none is ahead of another.
            if processes.count > 1 and loop.batch:
                return
            self.store(stage, loop, trainer, processes)

    def store(self, stage: int, loop: Loop, trainer: Trainer, processes: Processes, *, over: bool = False) -> None:
        """Write all that is needed to go on, whole or not at all; the first process does."""
        now: dict[str, Any] = {"model": loop.model.state_dict()}
        if over:
            # In memory of its own: a defense may go on with the same network.
            self._over[str(stage)] = {"model": copied(loop.model)}
        else:
            now |= {
                "optimizer": loop.optimizer.state_dict(),
                "average": None if loop.average is None else loop.average.state_dict(),
                "scaler": loop.scaler.state_dict(),
                "best": loop.best,
                "memory": trainer.memory,
                "permutation": loop.permutation,
                "order": loop.order.get_state(),
                "generator": torch.get_rng_state(),
                "accelerator": torch.cuda.get_rng_state(trainer.device) if trainer.device.type == "cuda" else None,
                "gradients": [p.grad for p in loop.model.parameters()] if loop.accumulated else None,
                "numbers": {
                    **{name: getattr(loop, name) for name in _NUMBERS},
                    "watched": list(loop.watched),
                    "perturbed": trainer.drawn,
                    "noted": {name: list(pair) for name, pair in trainer.history.noted.items()},
                },
            }
        self._stored = time.monotonic()
        if not processes.main:
            return
        kept = {
            "format": FORMAT,
            "key": self.key,
            "over": self._over,
            "stage": stage,
            "now": None if over else now,
            "history": json.dumps(trainer.history.rows),
        }
        write_whole(self.path, lambda temporary: torch.save(kept, temporary))

    def restore(self, stage: int, loop: Loop, trainer: Trainer) -> bool:
        """Put the loop where it was; whether that training is over already.

        Raises UserError, naming the file, for what is no such file or belongs to another training; it is left alone.
        """
        kept = self._load(trainer.device)
        if kept is None:
            return False
        over = kept["over"].get(str(stage))
        if over is not None:
            self._over[str(stage)] = over
            loop.model.load_state_dict(over["model"])
            trainer.history.rows[:] = json.loads(kept["history"])
            return True
        now = kept["now"]
        if now is None or kept["stage"] != stage:
            return False
        loop.model.load_state_dict(now["model"])
        loop.optimizer.load_state_dict(now["optimizer"])
        if loop.average is not None:
            loop.average.load_state_dict(now["average"])
        if now["scaler"]:
            loop.scaler.load_state_dict(now["scaler"])
        loop.best, loop.permutation = now["best"], now["permutation"].cpu()
        loop.order.set_state(now["order"].cpu())
        torch.set_rng_state(now["generator"].cpu())
        if now["accelerator"] is not None:
            torch.cuda.set_rng_state(now["accelerator"].cpu(), trainer.device)
        numbers = now["numbers"]
        for name in _NUMBERS:
            setattr(loop, name, numbers[name])
        loop.watched = tuple(numbers["watched"])
        for parameter, gradient in zip(loop.model.parameters(), now["gradients"] or [], strict=False):
            parameter.grad = gradient
        trainer.drawn = numbers["perturbed"]
        trainer.memory = now["memory"]
        trainer.history.rows[:] = json.loads(kept["history"])
        trainer.history.noted = {name: (total, count) for name, (total, count) in numbers["noted"].items()}
        trainer.say(f"going on with a training that was stopped in epoch {loop.epoch + 1} of {loop.epochs}")
        return False

    def remove(self, processes: Processes) -> None:
        """The training is over."""
        processes.wait()
        if processes.main:
            self.path.unlink(missing_ok=True)

    def _load(self, device: torch.device) -> dict[str, Any] | None:
        if self._read is None:
            if not self.path.exists():
                return None
            try:
                read = torch.load(self.path, map_location=device, weights_only=True)
            except Exception as error:
                raise UserError(
                    f"the training under way in {self.path} cannot be read ({type(error).__name__}); "
                    "it is left alone: move it away to begin anew"
                ) from None
            if not isinstance(read, dict) or read.get("format") != FORMAT or read.get("key") != self.key:
                raise UserError(
                    f"{self.path} is of another training or no training at all; it is left alone: "
                    "move it away to begin anew"
                )
            self._read = read
        return self._read
