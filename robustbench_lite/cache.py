"""Where computed things are kept on disk, and files that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from .errors import UserError


def cache_dir() -> Path:
    """The folder for trained networks and other things that can be made again; it may not exist yet.

    The environment variable `RBL_CACHE` names it, else it is the platform's own place for caches.
    """
    given = os.environ.get("RBL_CACHE")
    if given:
        return Path(given).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("robustbench-lite")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Make the file `path` by `write(temporary)`: at any moment it is the old one, absent, or complete.

    `write` gets a temporary name in the same folder (made where it is missing), which is synced and
    renamed; when anything raises, an interrupt too, it is removed and `path` is as it was.

    Raises UserError naming `path` for what the file system refuses: a full disk, a folder that cannot
    be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(f"cannot write {path}: {reason}; free space there or name another folder") from error
    finally:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
