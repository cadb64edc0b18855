"""What the tests of the command line share: networks in a file, images in a file, and what a command said."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

# Three linear layers on 8x8 images, four classes; and networks that somebody got wrong.
NETS = """
import time

import torch
from torch import nn


def make(scale=4.0, width=32):
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 4))
    with torch.no_grad():
        net[1].weight.mul_(scale)
    return net


def in_training_mode():
    return nn.Sequential(make(), nn.Dropout(0.5)).train()


def softmax():
    return nn.Sequential(make(), nn.Softmax(1))


def seven_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))


class Scores(nn.Module):
    def forward(self, x):
        return x.flatten(1).sum(1)


class NotANumber(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :4] / 0 * 0


class Raises(nn.Module):
    def forward(self, x):
        raise KeyError("deep inside")


class Slow(nn.Module):
    def __init__(self, inner, seconds):
        super().__init__()
        self.inner, self.seconds = inner, seconds

    def forward(self, x):
        time.sleep(self.seconds)
        return self.inner(x)


class Later(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.calls = make(), 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 14:
            raise ValueError("after a while")
        return self.inner(x)


def slow():
    return Slow(make(), 0.05)


def raises():
    return Raises()


def later():
    return Later()


def breaks():
    raise RuntimeError("my own fault")


def number():
    return 3


def leaves():
    raise SystemExit("bye")


def wants_a_path(path):
    return make()


not_callable = 5
"""


@dataclass(frozen=True)
class Outcome:
    """What a command left behind: exit status, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout, and nothing else on it."""
        assert self.code == 0, self.err
        assert self.out.count("\n") == 1, self.out
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value

    @property
    def error(self) -> str:
        """The one line of an error that the user can mend, after `error: `; nothing else was said."""
        assert self.code == 2, f"exit status {self.code}: {self.err or self.out}"
        assert self.out == ""
        assert "Traceback" not in self.err
        return self.last_line

    @property
    def remarks(self) -> str:
        """What stderr holds besides the line on the data set."""
        return re.sub(r"(?m)^\S+: [\d,]+ class(es)? \(.*\n", "", self.err)

    @property
    def last_line(self) -> str:
        """Of a plug-in that raised: our one line, which comes after its own traceback."""
        assert self.code == 2, f"exit status {self.code}: {self.err or self.out}"
        ours = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(ours) == 1 and self.err.rstrip("\n").endswith(ours[0]), self.err
        return ours[0].removeprefix("error: ")


class Rbl(Protocol):
    """Runs one command line, in this process."""

    def __call__(self, *arguments: str | Path) -> Outcome:
        """Run it."""


def write_nets(folder: Path) -> None:
    """nets.py, and ok.npz: 24 images of which the network gets 20 right."""
    (folder / "nets.py").write_text(NETS, "utf-8")
    images = np.random.default_rng(7).integers(0, 256, (24, 8, 8), dtype=np.uint8)
    labels = network()(torch.from_numpy(images)[:, None] / 255).argmax(1).numpy()
    labels[::6] = (labels[::6] + 1) % 4
    np.savez(folder / "ok.npz", images=images, labels=labels, n_classes=4)


def network() -> nn.Module:
    """What `nets.py:make` gives."""
    names: dict[str, Any] = {}
    exec(NETS, names)
    with torch.random.fork_rng(), torch.no_grad():
        net: nn.Module = names["make"]()
        return net.requires_grad_(False)


def listing(folder: Path) -> set[str]:
    """Every file below a folder but Python's own."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {str(path.relative_to(folder)) for path in files}


def rows(file: str | Path) -> list[dict[str, Any]]:
    """The rows of a run file."""
    table: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    return table


def environment(cache: Path, **more: str) -> Mapping[str, str]:
    """For a process of its own: nothing of the user's is read, one thread, no colours."""
    return {**os.environ, "RBL_CACHE": str(cache), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **more}


PROGRAM = [sys.executable, "-m", "robustbench_lite.cli.main"]
