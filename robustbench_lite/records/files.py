"""Files written whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError


def write_whole(path: Path, write: Callable[[BinaryIO], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, sync it and rename it to `path`.

    A reader sees the old file or the new one, never a part; whatever is raised leaves the old one as it was.
    """
    # A reader looks for the ending of `path`, so the temporary name must not have it.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` outlive a power cut, where the system lets a folder be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_in_board(path: Path, write: Callable[[BinaryIO], None]) -> Path:
    """`write_whole` for a file of a leaderboard folder, made where it is not there yet.

    Raises UserError naming --leaderboard where the folder cannot be made or written, or the disk is full.
    """
    make_folder(path.parent)
    try:
        return write_whole(path, write)
    except OSError as error:
        raise _unwritable(path.parent, error) from error


def make_folder(folder: Path) -> Path:
    """A folder of a leaderboard, made where it is not there. Raises UserError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error) from error
    return folder


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(
        f"--leaderboard must be a folder that can be written, got {str(folder)!r} "
        f"({error.strerror or error}); free it or give another folder"
    )


def board_folder(directory: str | Path) -> Path:
    """The leaderboard folder that is there.

    Raises UserError where the path is a file or nothing.
    """
    path = Path(directory).expanduser()
    if path.is_dir():
        return path
    what = "a file" if path.exists() else "nothing there"
    raise UserError(
        f"--leaderboard must be a folder, got {str(directory)!r} ({what}); "
        "give another folder, or make one with rbl evaluate --leaderboard DIR"
    )
