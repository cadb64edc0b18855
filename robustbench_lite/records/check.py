"""Does a run prove what it says? Every fault that its rows and its specification show without the model."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .run import Run, name_fault, rows_sha256
from .schema import SCHEMA
from .specification import Specification

Mask = npt.NDArray[np.bool_]

# The engine decides "inside" on the same float64 distances that it writes; this is for their rounding alone.
SLACK = 1e-9


class _Columns:
    """The rows as numpy arrays: `columns.success`, and `columns.null(name)`."""

    def __init__(self, run: Run) -> None:
        self._table = run.table

    def __getattr__(self, name: str) -> Any:
        column = self._table[name].combine_chunks()
        if column.null_count and str(column.type) == "int64":
            column = column.fill_null(-1)
        return column.to_numpy(zero_copy_only=False)

    def null(self, name: str) -> Mask:
        mask: Mask = self._table[name].is_null().to_numpy()
        return mask


def shard_positions(samples: int, shard: tuple[int, int]) -> range:
    """The positions, in the data set of the run, that shard (I, N) holds: every N-th, from the I-th on."""
    number, count = shard
    return range(number - 1, samples, count)


def check_run(run: Run) -> list[str]:
    """The faults of a run, one line each; none where it is sound.

    A fault names the rule and the first rows (by index) that break it. Margins are held against predictions
    where one prediction is made, not where several are voted on.
    """
    if not run.table.schema.equals(SCHEMA, check_metadata=False):
        return ["the columns are not those of a run"]
    faults = list(_file_faults(run))
    columns = _Columns(run)
    # Absurd values (infinite distances) are what the rules look for, not a reason to warn.
    with np.errstate(all="ignore"):
        for rule, broken in _row_rules(run.specification, columns):
            count = int(np.count_nonzero(broken))
            if count:
                first = ", ".join(str(i) for i in columns.index[broken][:3])
                faults.append(f"{rule}: {count} rows, index {first}{', ...' if count > 3 else ''}")
    return faults


def _file_faults(run: Run) -> Iterator[str]:
    specification, table = run.specification, run.table
    if run.path is not None:
        fault = name_fault(run.path, specification)
        if fault:
            yield fault
    if rows_sha256(table) != specification.rows_sha256:
        yield "the rows are not those that were hashed (rows_sha256)"
    expected = specification.dataset.samples
    if specification.shard:
        expected = len(shard_positions(expected, specification.shard))
    rows = table.num_rows
    if rows > expected or (rows < expected and specification.status != "failed"):
        yield f"{rows} rows where {expected} samples were to be evaluated"
    for name in ("forwards", "backwards"):
        total = sum(table[name].to_pylist())
        if specification.calls.get(name) != total:
            yield f"calls.{name} is {specification.calls.get(name)}, the rows add up to {total}"
    yield from _attack_faults(specification, table)
    if not (math.isfinite(specification.times.seconds) and specification.times.seconds >= 0):
        yield f"times.seconds must be >= 0, got {specification.times.seconds}"
    if not _is_utc(specification.times.started):
        yield f"times.started must be an ISO 8601 time in UTC, got {specification.times.started!r}"


def _attack_faults(specification: Specification, table: Any) -> Iterator[str]:
    """What is said of each of several attacks, against what the rows add up to."""
    each, left = specification.by_attack, sum(table["attacked"].to_pylist())
    for outcome in each:
        counts = (outcome.images, outcome.successes, outcome.forwards, outcome.backwards)
        if min(counts) < 0 or outcome.successes > outcome.images or outcome.images > left:
            yield f"by_attack: {outcome.name} has {outcome.successes} successes on {outcome.images} of {left} images"
        left -= outcome.successes
    clean = specification.votes * table.num_rows
    for name, extra in (("success", 0), ("forwards", clean), ("backwards", 0)) if each else ():
        said = extra + sum(getattr(outcome, "successes" if name == "success" else name) for outcome in each)
        total = sum(table[name].to_pylist())
        if said != total:
            yield f"by_attack: {name} is {said} in all, the rows add up to {total}"


def _is_utc(text: str) -> bool:
    try:
        return datetime.datetime.fromisoformat(text).utcoffset() == datetime.timedelta(0)
    except ValueError:
        return False


def _row_rules(specification: Specification, c: _Columns) -> Iterator[tuple[str, Mask]]:
    yield from _sample_rules(specification, c)
    yield from _verdict_rules(specification, c)
    yield from _distance_rules(specification, c)


def _sample_rules(specification: Specification, c: _Columns) -> Iterator[tuple[str, Mask]]:
    classes = specification.dataset.classes
    _, inverse, counts = np.unique(c.index, return_inverse=True, return_counts=True)
    yield "index is not unique", counts[inverse] > 1
    yield "index is negative", c.index < 0
    for name in ("label", "prediction", "adversarial_prediction"):
        values = getattr(c, name)
        top = classes + (specification.rejects and name != "label")  # one more: rejected
        yield f"{name} is outside the {classes} classes", (values < 0) | (values >= top)
    for name in ("forwards", "backwards"):
        yield f"{name} is negative", getattr(c, name) < 0
    for name in ("content_hash", "adversarial_hash"):
        yield f"{name} is no SHA-256", ~c.null(name) & _each(_is_no_hash, getattr(c, name))
    yield "seed is not that of the run", c.seed != specification.seed
    yield "correct does not follow from prediction and label", c.correct != (c.prediction == c.label)
    for name in ("margin", "adversarial_margin"):
        yield f"{name} is not a number", np.isnan(getattr(c, name))
    if specification.votes == 1:
        yield "margin contradicts prediction", _contradicts(c.margin, c.correct)
        agrees = c.adversarial_prediction == c.label
        yield "adversarial_margin contradicts adversarial_prediction", _contradicts(c.adversarial_margin, agrees)


def _contradicts(margin: npt.NDArray[np.float64], is_label: Mask) -> Mask:
    # At a margin of zero the tie may go either way.
    return np.where(is_label, margin < 0, margin > 0)


def _is_no_hash(value: Any) -> bool:
    return not (isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef"))


def _each(test: Callable[[Any], bool], values: Any) -> Mask:
    return np.fromiter((test(value) for value in values), bool, len(values))


def _verdict_rules(specification: Specification, c: _Columns) -> Iterator[tuple[str, Mask]]:
    targeted = specification.target is not None
    yield "attacked although misclassified", c.attacked & ~c.correct
    yield "success without attack", c.success & ~c.attacked
    yield "success of a misclassified sample", c.success & ~c.correct
    yield "success that was not verified", c.success & ~c.verified
    aim = ~c.null("target")
    if targeted:
        fooled = aim & (c.adversarial_prediction == c.target)
        yield "attacked without a target", c.attacked & ~aim
        yield (
            "target is the label or outside the classes",
            (aim & ((c.target == c.label) | (c.target < 0) | (c.target >= specification.dataset.classes))),
        )
        yield "success without reaching the target", c.success & ~fooled
    else:
        fooled = (c.adversarial_prediction != c.label) & (c.adversarial_prediction < specification.dataset.classes)
        yield "target in an untargeted run", aim
        yield "success without misclassification", c.success & ~fooled
    inside = ~c.null(f"distance_{specification.threat.norm}") & ~_beyond(specification, c)
    yield "no success although the final image is one", c.attacked & ~c.success & fooled & inside
    yield (
        "adversarial_prediction differs although not attacked",
        (~c.attacked & (c.adversarial_prediction != c.prediction)),
    )
    for name in ("step", "restart"):
        yield f"{name} of a success that is none", ~c.null(name) & ~c.success
        yield f"{name} is negative", ~c.null(name) & (getattr(c, name) < 0)


def _beyond(specification: Specification, c: _Columns) -> Mask:
    distance = np.asarray(getattr(c, f"distance_{specification.threat.norm}"), float)
    beyond: Mask = ~(distance <= c.eps * (1 + SLACK))
    return beyond


def _distance_rules(specification: Specification, c: _Columns) -> Iterator[tuple[str, Mask]]:
    threat = specification.threat
    yield "eps is not within that of the threat", ~((c.eps >= 0) & (c.eps <= threat.eps * (1 + SLACK)))
    yield "adversarial_hash is missing", c.attacked & c.null("adversarial_hash")
    for name in ("linf", "l2", "l1", "l0"):
        null = c.null(f"distance_{name}")
        yield f"distance_{name} is missing", c.attacked & null
        yield f"distance_{name} although not attacked", ~c.attacked & ~null
    yield f"success beyond eps in {threat.norm}", c.success & _beyond(specification, c)
    linf, l2, l1 = (np.asarray(getattr(c, f"distance_{name}"), float) for name in ("linf", "l2", "l1"))
    l0, a = c.distance_l0, c.attacked
    # Norms of one and the same difference; float32 sums are good to about 1e-6 a component.
    more = 1 + 1e-4
    yield "a distance is negative or not finite", a & ~(np.isfinite(linf + l2 + l1) & (np.minimum(linf, l0) >= 0))
    yield "the image has left the box", a & (linf > (threat.high - threat.low) * more)
    yield "more components changed than there are", a & (l0 > math.prod(specification.dataset.shape))
    yield (
        "the distances contradict each other",
        (a & ~((linf <= l2 * more) & (l2 <= l1 * more) & (l2**2 <= l0 * linf**2 * more) & (l1 <= l0 * linf * more))),
    )
    yield "a changed image with the hash of the clean one", a & (c.adversarial_hash == c.content_hash) & (linf > 0)
