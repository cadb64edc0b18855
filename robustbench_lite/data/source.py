"""What a source of data sets is, and the arguments that sources have in common."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol

from ..cache import cache_dir
from ..errors import UserError
from .dataset import Dataset

SPLITS = ("train", "test")


class Source(Protocol):
    """A kind of data set that `--dataset` can name; built-in, from an entry point or from FILE.py:NAME.

    name     what `--dataset NAME` or `--dataset NAME:ARGUMENT` says
    summary  one sentence on what it is
    source   the paper or publisher
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    source: ClassVar[str]

    @staticmethod
    def load(
        argument: str | None,
        *,
        split: str,
        data_dir: Path | None,
        download: bool,
        image_size: int | None,
        workers: int,
    ) -> Dataset:
        """The data set.

        argument    what follows NAME: in the specification, None where nothing does
        split       "train" or "test"
        data_dir    where files are looked for, and fetched to when `download`; None for the cache
        image_size  side that images are brought to, None for the data set's own
        workers     processes that decode a streamed set

        Raises UserError, one line, for what the user can mend.
        """


def default_data_dir() -> Path:
    """Where data sets are looked for and fetched to: `data` in the cache."""
    return cache_dir() / "data"


def no_argument(name: str, argument: str | None) -> None:
    """Raise UserError unless `--dataset` was the bare name."""
    if argument is not None:
        raise UserError(f"--dataset: {name} takes nothing after its name, got {name}:{argument}")


def own_size(name: str, image_size: int | None, *, shape: tuple[int, int]) -> None:
    """Raise UserError unless `image_size` is what the data set's images (H, W) are."""
    if image_size is not None and shape != (image_size, image_size):
        raise UserError(f"--image-size: the images of {name} are {shape[0]}x{shape[1]}, got {image_size}; leave it out")


def path_argument(name: str, argument: str | None) -> Path:
    """The existing file or folder after `NAME:`."""
    if not argument:
        raise UserError(f"--dataset: {name} needs a path, {name}:PATH")
    path = Path(argument).expanduser()
    if not path.exists():
        raise UserError(f"--dataset: no such file or folder {argument!r} in {name}:{argument}")
    return path


def recorded_name(name: str, path: Path) -> str:
    """`NAME:LAST` with the last part of a path: a record says nothing of the machine it was made on."""
    return f"{name}:{path.name if path.name not in ('', '..') else path.resolve().name}"
