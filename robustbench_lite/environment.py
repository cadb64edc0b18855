"""The circumstances of a run: versions, machine, commit."""

from __future__ import annotations

import functools
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .records.specification import EnvironmentRecord


def environment_record() -> EnvironmentRecord:
    """What a run file says of where it was made."""
    import torch

    from .records.specification import EnvironmentRecord

    return EnvironmentRecord(
        python=platform.python_version(),
        torch=str(torch.__version__),
        torchvision=installed_version("torchvision"),
        numpy=installed_version("numpy") or "",
        platform=f"{platform.system()} {platform.machine()}",
        threads=torch.get_num_threads(),
        git_commit=git_commit(),
    )


@functools.cache
def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, without importing it."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


@functools.cache
def git_commit() -> str | None:
    """The commit of the clone that this package runs from; None for an installed copy."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
