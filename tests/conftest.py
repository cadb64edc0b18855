"""What every test may lean on: the real data and networks beside the project, where they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

# Where Python is told to keep no bytecode, every program that a test starts would compile all of torch anew.
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
    os.environ.setdefault("PYTHONPYCACHEPREFIX", str(ROOT / "build" / "bytecode"))

# The networks of tests are small: a pool of threads costs them more than it gives, and workers would fight for cores.
torch.set_num_threads(1)


def _beside(variable: str, folder: str) -> Path:
    path = Path(os.environ.get(variable) or ROOT.parent / "shared" / folder)
    if not path.is_dir():
        pytest.skip(f"no {folder} here: set {variable} to the folder that holds the real {folder}")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with MNIST/raw and cifar10-jpeg."""
    return _beside("RBL_DATA", "data")


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    """Folder with networks that somebody else trained."""
    return _beside("RBL_WEIGHTS", "weights")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("RBL_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
