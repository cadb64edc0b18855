"""The files of a leaderboard folder, and what is told where they cannot be written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..errors import UserError
from ..files import replace_whole


def write_in_board(path: Path, write: Callable[[BinaryIO], None]) -> Path:
    """A file of a leaderboard folder, written whole or not at all; the folder is made where it is not there.

    Raises UserError naming --leaderboard where the folder cannot be made or written, or the disk is full.
    """

    def fill(temporary: Path) -> None:
        with open(temporary, "xb") as file:
            write(file)

    make_folder(path.parent)
    try:
        replace_whole(path, fill)
    except OSError as error:
        raise _unwritable(path.parent, error) from error
    return path


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
