"""What a run keeps while it goes on, so that it can be killed at any moment and go on to the same rows.

Beside the run file stands a folder `RUN_ID.partial`: `part-NNNNN.safetensors` with finished samples, and
`engine.safetensors` with the engine between two steps, which names how many parts belong to it; before them, of an
attack that learns, `fit.safetensors`. Each is written whole or not at all, the engine last, so what is on disk is
always one moment of the run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import UserError
from .files import write_whole
from .fitting import Fit

EVERY = 2.0  # seconds between stores, at least
_SHARE = 0.05  # of the run's time that storing may take


class Resumable(Protocol):
    """What can be stored between two steps, an engine say, and put where it was."""

    def snapshot(self) -> dict[str, Tensor]:
        """Everything needed to go on."""

    def restore(self, stored: dict[str, Tensor]) -> None:
        """Go on where a snapshot was taken."""


class Checkpoint:
    """The folder of an unfinished run; `key` says which run, and which way of computing it, it belongs to."""

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder = folder
        self.key = json.dumps(key, sort_keys=True)
        self.parts = 0
        self.unsaved: list[dict[str, Tensor]] = []
        self.last = time.monotonic()
        self.cost = 0.0
        self.ours = False  # whether what lies in the folder is of this run

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within: no other process is at this run. UserError where one is."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / "lock").open("w")
        except OSError as error:
            raise UserError(
                f"--leaderboard: cannot write {self.folder}: {error.strerror}; give a folder that can be written"
            ) from error
        with lock:
            try:
                import fcntl
            except ImportError:  # Windows has no flock; there the lock is the user's care.
                yield
                return
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"another process is at this run ({self.folder.name}); wait for it, or stop it"
                ) from None
            yield

    @property
    def exists(self) -> bool:
        """Whether a process before this one stored something."""
        return (self.folder / "engine.safetensors").exists()

    def load(self, engine: Resumable) -> tuple[list[dict[str, Tensor]], float] | None:
        """Put the engine where it was stored: the finished columns and the seconds spent; None where nothing fits."""
        try:
            tensors, note = _read(self.folder / "engine.safetensors")
            if note.get("key") != self.key:
                return None
            done = [_read(self.folder / f"part-{number:05d}.safetensors")[0] for number in range(int(note["parts"]))]
            engine.restore(tensors)
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, RuntimeError):
            if self.ours:  # what was learned stays; an old engine must not count the parts that are stored from now on
                (self.folder / "engine.safetensors").unlink(missing_ok=True)
            return None
        self.parts = int(note["parts"])
        self.ours = True
        return done, float(note["seconds"])

    def load_fit(self) -> Fit | None:
        """What the attack learned in an earlier process of this run."""
        try:
            tensors, note = _read(self.folder / "fit.safetensors")
            if note.get("key") != self.key:
                return None
            fit = Fit(tensors, int(note["forwards"]), int(note["backwards"]), float(note["seconds"]))
        except (OSError, SafetensorError, LookupError, ValueError):
            return None
        self.ours = True
        return fit

    def store_fit(self, fit: Fit) -> None:
        """What the attack learned, on disk before the first sample is attacked."""
        self.clear()
        note = {"key": self.key, **{name: repr(getattr(fit, name)) for name in ("forwards", "backwards", "seconds")}}
        self._write("fit.safetensors", {name: tensor.cpu() for name, tensor in fit.learned.items()}, note)
        self.ours = True

    def add(self, columns: dict[str, Tensor]) -> None:
        """Columns of finished samples, kept from the next store on."""
        self.unsaved.append(columns)

    def due(self) -> bool:
        """Whether it is time to store."""
        return time.monotonic() - self.last >= max(EVERY, self.cost / _SHARE)

    def store(self, engine: Resumable, seconds: float) -> None:
        """Everything up to now, on disk."""
        began = time.monotonic()
        if not self.ours:
            # A new part beside an old engine would be taken for the part that the old engine counts.
            self.clear()
            self.ours = True
        if self.unsaved:
            columns = {name: torch.cat([part[name] for part in self.unsaved]) for name in self.unsaved[0]}
            self._write(f"part-{self.parts:05d}.safetensors", columns, {})
            self.parts += 1
            self.unsaved.clear()
        note = {"key": self.key, "parts": str(self.parts), "seconds": repr(seconds)}
        self._write("engine.safetensors", engine.snapshot(), note)
        self.last = time.monotonic()
        self.cost = self.last - began

    def _write(self, name: str, tensors: dict[str, Tensor], note: dict[str, str]) -> None:
        def write(path: Path) -> None:
            try:
                save_file(tensors, path, metadata=note)
            except SafetensorError as error:  # what a full disk is called there
                raise OSError(str(error)) from error

        write_whole(self.folder / name, write)

    def clear(self) -> None:
        """Forget the unfinished run."""
        (self.folder / "engine.safetensors").unlink(missing_ok=True)  # first: parts without an engine count for nothing
        for file in self.folder.glob("*.safetensors"):
            file.unlink()
        self.parts = 0

    def remove(self) -> None:
        """The run is finished: the folder goes."""
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(os.fspath(path), framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
