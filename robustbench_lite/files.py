"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

from .errors import UserError


def check_output(path: Path | str, *, argument: str, suffix: str | tuple[str, ...]) -> None:
    """Raise UserError naming `argument` unless `path` ends in a `suffix` and its folder takes a file; nothing stays.

    The folder must be there: a mistyped path makes none.
    """
    path = Path(path)
    suffixes = (suffix,) if isinstance(suffix, str) else suffix
    if path.suffix.lower() not in suffixes:
        raise UserError(f"{argument} must be a path that ends in {' or '.join(suffixes)}, got {str(path)!r}")
    if path.is_dir():
        raise UserError(f"{argument} must be a file, got the folder {str(path)!r}; name a file in it")
    if not path.parent.exists():
        raise UserError(f"{argument}: no such folder {str(path.parent)!r}; make it first")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"{argument}: cannot write {str(path)!r}: {reason}; give a folder that can be written"
        ) from None


def write_whole(path: Path | str, write: Callable[[Path], object]) -> None:
    """`replace_whole`, with UserError naming `path` for what the file system refuses: a full disk, say."""
    try:
        replace_whole(path, write)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise UserError(f"cannot write {path}: {reason}; free space there or name another folder") from error


def replace_whole(path: Path | str, write: Callable[[Path], object]) -> None:
    """Make the file `path` by `write(temporary)`: at any moment it is the old one, absent, or complete.

    `write` gets a temporary name in the same folder (made where it is missing), which is synced and
    renamed; when anything raises, an interrupt too, it is removed and `path` is as it was. The temporary
    name has an ending of its own, so that no reader takes it for a file of the folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode
        temporary.unlink()
        write(temporary)
        temporary.chmod(mode)  # some writers make a file that nobody else may read
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the folder may not be one at all
            temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Make a file, or the renames in a folder, outlive a power cut."""
    if path.is_dir() and os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path | str) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
