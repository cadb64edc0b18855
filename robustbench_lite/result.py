"""What an evaluation found: numbers, images, one row a sample, and the record that proves it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .engine import Entry
from .row_checks import Rows
from .streams import content_hashes, hash_rows
from .threat import distances

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from .records.run import Run


@dataclass(frozen=True, repr=False)
class Result:
    """The outcome of one attack on one model.

    adversarial: (N, C, H, W) float32, the final image of each sample (the clean one where it was not
    attacked), or None where images were not kept. success: (N,) bool. Rows are in order of index.
    confidence: (N,) float32, the probability that the network gives to its class of the final image; None but for
    attacks that persist, such as fooling. It is not part of the run file.
    learned: what the attack learned before it attacked, by name; empty for one that learns nothing. It is not part of
    the run file, but of the saved examples.
    """

    run: Run
    adversarial: Tensor | None = None
    file: Path | None = None
    settled: str = ""
    confidence: Tensor | None = None
    learned: Mapping[str, Tensor] = field(default_factory=dict)

    def __repr__(self) -> str:
        """One line; `str` says more."""
        s = self.run.specification
        told = f"clean {100 * self.clean_accuracy:.1f} %, robust {100 * self.robust_accuracy:.1f} %"
        name = type(self).__name__
        return f"<{name}: {s.attack.name} on {s.model.name}, {self.n} images, {told}, {s.verdict.split(':')[0]}>"

    def __str__(self) -> str:
        """The lines that the command line says."""
        from .report import text

        return text(self)

    @property
    def samples(self) -> pd.DataFrame:
        """One row a sample, with the columns of the run file."""
        frame: pd.DataFrame = self.run.table.to_pandas()
        return frame

    @property
    def by_attack(self) -> pd.DataFrame:
        """One row for each of several attacks, in their order; empty where the run is of one.

        Columns: `attack`, `options` as passed; `images` that it was given, its `successes`; `surviving`, the share of
        all images that are right and that no attack up to this one moved; `forwards` and `backwards` for an image.
        """
        import pandas as pd

        specification = self.run.specification
        left, rows = int(self.column("correct").sum()), []
        for name, options, outcome in specification.attacks:
            left -= outcome.successes
            each = max(1, outcome.images)
            rows.append(
                {
                    "attack": name,
                    "options": options,
                    "images": outcome.images,
                    "successes": outcome.successes,
                    "surviving": left / self.n,
                    "forwards": outcome.forwards / each,
                    "backwards": outcome.backwards / each,
                }
            )
        columns = ["attack", "options", "images", "successes", "surviving", "forwards", "backwards"]
        return pd.DataFrame(rows, columns=columns)

    def column(self, name: str) -> Tensor:
        """One column of numbers or truths as a tensor; NaN where there is none."""
        values = self.run.table[name].to_pylist()
        return torch.tensor([math.nan if value is None else value for value in values])

    @property
    def n(self) -> int:
        """How many samples were judged."""
        return int(self.run.table.num_rows)

    @property
    def success(self) -> Tensor:
        """Which samples the attack brought to its goal, proved: (N,) bool."""
        return self.column("success")

    @property
    def clean_accuracy(self) -> float:
        """Share of samples that the model gets right."""
        return float(self.column("correct").double().mean())

    @property
    def robust_accuracy(self) -> float:
        """Share of samples that the model gets right and the attack could not move."""
        return float((self.column("correct") & ~self.success).double().mean())

    @property
    def rejected(self) -> float:
        """Share of the attacked samples whose final image a defense turned away; 0 where none was attacked."""
        away = self.column("adversarial_prediction") == self.run.specification.dataset.classes
        attacked = self.column("attacked").bool()
        return float(away[attacked].double().mean()) if attacked.any() else 0.0

    @property
    def confident(self) -> float | None:
        """Share of the attacked samples brought to the goal with more than 50 % confidence; None as `confidence`."""
        attacked = self.column("attacked")
        if self.confidence is None or not attacked.any():
            return None
        return float((self.success & (self.confidence > 0.5))[attacked].double().mean())

    @property
    def forwards(self) -> int:
        """Forward passes of images, in all."""
        return int(self.column("forwards").sum())

    @property
    def backwards(self) -> int:
        """Backward passes of images, in all."""
        return int(self.column("backwards").sum())

    @property
    def fit_forwards(self) -> int:
        """Forward passes of images that the attack took to learn, once for all samples; not among `forwards`."""
        return self.run.specification.calls.get("fit_forwards", 0)

    @property
    def fit_backwards(self) -> int:
        """As `fit_forwards`."""
        return self.run.specification.calls.get("fit_backwards", 0)

    @property
    def idle(self) -> float:
        """Share of samples that count as robust although nothing could be tried: right, and of the target class."""
        s = self.run.specification
        rows = Rows.of(self.run.table, classes=s.dataset.classes, target=s.target)
        return float(rows.idle.mean())

    @property
    def verdict(self) -> str:
        """Whether the number can be trusted: a word of `reliability.Word`, and the reason where there is one."""
        return self.run.specification.verdict

    @property
    def next_step(self) -> str:
        """What to run after this verdict; empty where it is `reliable`."""
        return self.run.specification.next_step

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know."""
        return self.run.specification.warnings

    def summary(self) -> dict[str, Any]:
        """The numbers as plain JSON."""
        from .records.summary import summarize

        row, checks = summarize(self.run), self.run.specification.checks
        keep = (
            *("run_id", "status", "model", "defense", "defense_options", "dataset"),
            *("attack", "attack_options", "norm", "eps", "target", "n"),
        )
        return {
            **{name: row[name] for name in keep},
            "run_file": None if self.file is None else str(self.file),
            "clean_accuracy": row["clean_accuracy"],
            "robust_accuracy": row["robust_accuracy"],
            "robust_low": row["robust_low"],
            "robust_high": row["robust_high"],
            "median_distance": row["median_distance"],
            "forwards": row["forwards"],
            "backwards": row["backwards"],
            "seconds": row["seconds"],
            "not_attackable": self.idle,
            "verdict": self.verdict,
            "next_step": self.next_step,
            "checks": None if checks is None else dataclasses.asdict(checks),
            "warnings": list(self.warnings),
            **({name: getattr(self, name) for name in ("fit_forwards", "fit_backwards")} if self.learned else {}),
            **(
                {"false_positive_rate": row["false_positive_rate"], "rejected": self.rejected}
                if self.run.specification.rejects
                else {}
            ),
            **({} if self.confidence is None else {"confident": self.confident}),
            **({"by_attack": self.by_attack.to_dict("records")} if self.run.specification.by_attack else {}),
        }


def finished_columns(entry: Entry, x: Tensor, *, keep_images: bool) -> dict[str, Tensor]:
    """The columns of finished samples as tensors on the CPU; x: their clean images."""
    columns = {
        name: getattr(entry, name)
        for name in (
            *("index", "content", "y", "eps", "prediction", "margin", "forwards", "backwards", "target"),
            *("attacked", "proved", "success", "success_step", "success_attempt"),
            *("adversarial_prediction", "adversarial_margin"),
        )
    }
    if entry.any_class:
        columns["target"] = torch.where(entry.success, entry.adversarial_prediction, entry.target)
    if entry.turn is not None and entry.turn_calls is not None:
        columns |= {"turn": entry.turn, "turn_calls": entry.turn_calls}
    columns |= {f"distance_{norm}": d for norm, d in distances(x, entry.adversarial).items()}
    hashes = content_hashes(entry.adversarial)
    columns["adversarial_content"] = hash_rows(hashes)
    columns["attempts"] = torch.full_like(entry.y, max(1, entry.targets.shape[1]))
    if keep_images:
        columns["adversarial"] = entry.adversarial
    return {name: column.detach().cpu().contiguous() for name, column in columns.items()}


def make_table(columns: dict[str, Tensor], *, seed: int, targeted: bool, eps: float | None) -> pa.Table:
    """The rows of a run from finished columns; what does not apply is null. eps: where all rows have one."""
    import numpy as np
    import pyarrow as pa

    from .records.schema import SCHEMA

    success, attacked = columns["success"].numpy(), columns["attacked"].numpy()

    def hexes(name: str) -> list[str]:
        return [bytes(row).hex() for row in columns[name].numpy()]

    def given(values: Any, valid: Any, kind: pa.DataType) -> pa.Array:
        return pa.array(values, mask=~valid).cast(kind)

    numbers = {name: column.numpy() for name, column in columns.items() if column.ndim == 1}
    arrays: dict[str, Any] = {
        "index": numbers["index"],
        "content_hash": hexes("content"),
        "label": numbers["y"],
        "target": given(numbers["target"], attacked & targeted, pa.int64()),
        "correct": numbers["prediction"] == numbers["y"],
        "attacked": attacked,
        "success": success,
        "prediction": numbers["prediction"],
        "adversarial_prediction": numbers["adversarial_prediction"],
        "margin": numbers["margin"],
        "adversarial_margin": numbers["adversarial_margin"],
        **{f"distance_{n}": given(numbers[f"distance_{n}"], attacked, pa.float64()) for n in ("linf", "l2", "l1")},
        "distance_l0": given(numbers["distance_l0"], attacked, pa.int64()),
        "eps": numbers["eps"].astype("float64") if eps is None else np.full(len(success), eps),
        "forwards": numbers["forwards"],
        "backwards": numbers["backwards"],
        "step": given(numbers["success_step"], success, pa.int64()),
        "restart": given(numbers["success_attempt"] // numbers["attempts"], success, pa.int64()),
        "seed": numbers["y"] * 0 + seed,
        "verified": numbers["proved"],
        "adversarial_hash": [h if a else None for h, a in zip(hexes("adversarial_content"), attacked, strict=True)],
    }
    return pa.table(arrays).cast(SCHEMA)
