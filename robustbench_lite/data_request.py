"""Which data set a user asked for, loaded when it is needed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data import Dataset


@dataclass(frozen=True)
class DataRequest:
    """Which data set, as `load_dataset` takes it."""

    dataset: str = "digits"
    split: str = "test"
    data_dir: Path | None = None
    download: bool = False
    image_size: int | None = None
    workers: int = 2

    def load(self, split: str | None = None) -> Dataset:
        """The data set, of this split or another."""
        from .data import load_dataset

        return load_dataset(
            self.dataset,
            split=split or self.split,
            data_dir=self.data_dir,
            download=self.download,
            image_size=self.image_size,
            workers=self.workers,
        )


@dataclass(frozen=True, eq=False)
class KeptRequest(DataRequest):
    """A data set whose splits are read once, however many networks ask for it, or are at hand in place of it."""

    kept: dict[Any, Dataset] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, request: DataRequest, *, train: Dataset, test: Dataset) -> KeptRequest:
        """The request, answered with these splits."""
        said = {known.name: getattr(request, known.name) for known in dataclasses.fields(DataRequest)}
        made = cls(**said)
        made.kept.update({made._key("train"): train, made._key("test"): test})
        return made

    def _key(self, split: str) -> tuple[Any, ...]:
        return self.dataset, self.data_dir, self.image_size, split

    def load(self, split: str | None = None) -> Dataset:
        """As DataRequest.load."""
        key = self._key(split or self.split)
        if key not in self.kept:
            self.kept[key] = super().load(split)
        return self.kept[key]
