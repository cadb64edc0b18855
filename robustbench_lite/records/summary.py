"""A run in one row: the numbers that a leaderboard shows, each from the rows."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pyarrow as pa

from .run import Run
from .specification import OWN_LIMITS
from .verdict import verdict_of

Z95 = 1.959963984540054

SUMMARY_SCHEMA = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("model_sha256", pa.string(), nullable=False),
        pa.field("defense", pa.string(), nullable=False),
        pa.field("defense_options", pa.string(), nullable=False),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("attack", pa.string(), nullable=False),
        pa.field("attack_options", pa.string(), nullable=False),
        # "own limits", and eps 1, of an attack whose options are its limits
        pa.field("norm", pa.string(), nullable=False),
        pa.field("eps", pa.float64(), nullable=False),
        pa.field("target", pa.string()),
        # null where the run is not complete: a part of the samples says nothing about all
        pa.field("clean_accuracy", pa.float64()),
        pa.field("clean_low", pa.float64()),
        pa.field("clean_high", pa.float64()),
        pa.field("robust_accuracy", pa.float64()),
        pa.field("robust_low", pa.float64()),
        pa.field("robust_high", pa.float64()),
        # of the clean images, those that a defense turned away; null where none can
        pa.field("false_positive_rate", pa.float64()),
        # proved by a certificate beside the run, over the same images; null where there is none
        pa.field("certified_accuracy", pa.float64()),
        pa.field("certified_low", pa.float64()),
        pa.field("certified_high", pa.float64()),
        # of the attacked; null where none was
        pa.field("attack_success", pa.float64()),
        # of minimal attacks, in the threat's norm, over all: a wrong sample is at 0; null where half were never fooled
        pa.field("median_distance", pa.float64()),
        # sums over the samples
        pa.field("forwards", pa.int64(), nullable=False),
        pa.field("backwards", pa.int64(), nullable=False),
        pa.field("seconds", pa.float64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("warnings", pa.int64(), nullable=False),
        pa.field("started", pa.string(), nullable=False),
    ]
)


def wilson(count: int, n: int, *, z: float = Z95) -> tuple[float, float]:
    """The score interval of a share `count / n` (Wilson 1927), 95 % by default; (0, 1) where n is 0.

    >>> [round(bound, 4) for bound in wilson(8, 10)]
    [0.4902, 0.9433]
    """
    if not 0 <= count <= n:
        raise ValueError(f"count must be within 0 and n={n}, got {count}")
    if n == 0:
        return 0.0, 1.0
    share, spread = count / n, z * z / n
    centre = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    # Exact at the ends, where rounding would leave the share just outside.
    return (0.0 if count == 0 else centre - half), (1.0 if count == n else centre + half)


def summarize(run: Run, *, run_id: str | None = None) -> dict[str, Any]:
    """One leaderboard row: clean accuracy is mean(correct), robust accuracy mean(correct and not success).

    The accuracies are None where the run is not complete, so that a failed one never counts as robust.
    """
    s, table = run.specification, run.table
    n = table.num_rows
    correct, success = table["correct"].to_pylist(), table["success"].to_pylist()
    robust = sum(c and not s for c, s in zip(correct, success, strict=True))
    attacked = sum(table["attacked"].to_pylist())
    rejected = sum(seen == s.dataset.classes for seen in table["prediction"].to_pylist())
    complete = s.status == "complete" and n > 0
    return {
        "run_id": run_id or s.run_id(),
        "status": s.status,
        "verdict": verdict_of(run),
        "model": s.model.name,
        "model_sha256": s.model.sha256,
        "defense": s.defense,
        "defense_options": s.defense_options,
        "dataset": s.dataset.name,
        "split": s.dataset.split,
        "n": n,
        "attack": s.attack.name,
        "attack_options": s.attack_options,
        "norm": OWN_LIMITS if s.attack.own_limits else s.threat.norm,
        "eps": s.threat.eps,
        "target": s.target,
        **_accuracy("clean", sum(correct), n if complete else 0),
        **_accuracy("robust", robust, n if complete else 0),
        "false_positive_rate": rejected / n if complete and s.rejects else None,
        "attack_success": sum(success) / attacked if complete and attacked else None,
        "median_distance": _median_distance(run) if complete and s.attack.minimal else None,
        "forwards": sum(table["forwards"].to_pylist()),
        "backwards": sum(table["backwards"].to_pylist()),
        "seconds": s.times.seconds,
        "seed": s.seed,
        "warnings": len(s.warnings),
        "started": s.times.started,
    }


def distances(run: Run) -> list[float]:
    """How far the nearest adversarial image of each sample is, in the threat's norm; 0 where the clean one is wrong.

    Infinity where none was found, or none was looked for (no possible target).
    """
    columns = (
        "correct",
        "attacked",
        "label",
        "target",
        "adversarial_prediction",
        f"distance_{run.specification.threat.norm}",
    )
    found, rejected = [], run.specification.dataset.classes
    for correct, attacked, label, target, seen, distance in zip(
        *(run.table[name].to_pylist() for name in columns), strict=True
    ):
        fooled = seen not in (label, rejected) if run.specification.target is None else seen == target
        found.append(0.0 if not correct else float(distance) if attacked and fooled else math.inf)
    return found


def _median_distance(run: Run) -> float | None:
    median = statistics.median(distances(run))
    return median if math.isfinite(median) else None


def _accuracy(name: str, count: int, n: int) -> dict[str, float | None]:
    low, high = wilson(count, n) if n else (None, None)
    return {f"{name}_accuracy": count / n if n else None, f"{name}_low": low, f"{name}_high": high}
