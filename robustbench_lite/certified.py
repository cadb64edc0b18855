"""What a certification found: numbers, one row an image, and the record that proves it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

    from .records.certificate import Certificate

_STEPS = 3  # of the radii that a table shows, at least


@dataclass(frozen=True)
class Certified:
    """What a certification found: numbers, one row an image, and the record that proves it."""

    certificate: Certificate
    file: Path | None = None
    settled: str = ""

    @property
    def samples(self) -> pd.DataFrame:
        """One row an image, with the columns of the file."""
        frame: pd.DataFrame = self.certificate.table.to_pandas()
        return frame

    @property
    def certified_accuracy(self) -> float:
        """Share of images that are right and proved to stay so within eps."""
        return self._share("certified")

    @property
    def clean_accuracy(self) -> float:
        """Share of images that are right; where the method abstains they are not."""
        return self._share("correct")

    @property
    def abstained(self) -> float:
        """Share of images of which the method says no class."""
        return int(self.certificate.table["prediction"].null_count) / int(self.certificate.table.num_rows)

    def accuracy_at(self, radius: float) -> float:
        """Share of images that are right and proved to stay so within this radius."""
        table = self.certificate.table
        return float((table["correct"].to_numpy() & (table["radius"].to_numpy() >= radius)).mean())

    def radii(self) -> list[float]:
        """Round radii, from 0 to the first at which nothing is certified, and the eps that was asked for."""
        largest = float(np.max(self.certificate.table["radius"].to_numpy(), initial=0.0))
        radii, rough = {0.0, self.certificate.specification.threat.eps}, largest / _STEPS
        if rough:
            power = 10.0 ** np.floor(np.log10(rough))
            step = float(max(factor * power for factor in (1, 2, 2.5, 5) if factor * power <= rough * (1 + 1e-9)))
            radii |= {round(step * k, 10) for k in range(int(largest / step) + 2)}
        return sorted(radii)

    def summary(self) -> dict[str, Any]:
        """The numbers as plain JSON."""
        from .records.summary import wilson

        s, table = self.certificate.specification, self.certificate.table
        low, high = wilson(int(np.count_nonzero(table["certified"].to_numpy())), table.num_rows)
        row: dict[str, Any] = {
            "certificate_id": s.certificate_id(),
            "model": s.model.name,
            "defense": s.defense,
            "dataset": s.dataset.name,
            "method": s.method.name,
            "method_options": s.method.resolved,
            "norm": s.threat.norm,
            "eps": s.threat.eps,
            "n": table.num_rows,
            "certificate_file": None if self.file is None else str(self.file),
            "clean_accuracy": self.clean_accuracy,
            "certified_accuracy": self.certified_accuracy,
            "certified_low": low,
            "certified_high": high,
            "abstained": self.abstained,
            "seconds": s.times.seconds,
        }
        if s.method.per_image:
            row["certified_at"] = {f"{radius:g}": self.accuracy_at(radius) for radius in self.radii()}
        return row

    def _share(self, name: str) -> float:
        return float(self.certificate.table[name].to_numpy().mean())
