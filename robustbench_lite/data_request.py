"""Which data set a user asked for, loaded when it is needed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from .data import Dataset, Framing


@dataclass(frozen=True)
class DataRequest:
    """Which data set, as `load_dataset` takes it; each split is read once, and stays as long as the request."""

    dataset: str = "digits"
    split: str = "test"
    data_dir: Path | None = None
    download: bool = False
    image_size: int | None = None
    workers: int = 2
    classes: tuple[str, ...] | None = None
    framing: Framing | None = None
    kept: dict[Any, Dataset] = field(default_factory=dict, repr=False, compare=False)

    def load(self, split: str | None = None) -> Dataset:
        """The data set, of this split or another."""
        from .data import load_dataset

        split = split or self.split
        key = self._key(split)
        if key not in self.kept:
            self.kept[key] = load_dataset(
                self.dataset,
                split=split,
                data_dir=self.data_dir,
                download=self.download,
                image_size=self.image_size,
                workers=self.workers,
                classes=self.classes,
                framing=self.framing,
            )
        return self.kept[key]

    def answered(self, *, train: Dataset, test: Dataset) -> Self:
        """The same request, answered with these splits."""
        return dataclasses.replace(self, kept={self._key("train"): train, self._key("test"): test})

    def _key(self, split: str) -> tuple[Any, ...]:
        return self.dataset, self.data_dir, self.image_size, self.classes, self.framing, split
