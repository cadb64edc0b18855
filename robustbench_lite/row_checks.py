"""What the rows of a run say of its number: whether anything was attacked, and whether the model beats guessing."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .reliability import Finding

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa

FEWEST = 30  # images: of fewer, that all labels are one class is no surprise
_CAUSES = "were the weights loaded, do labels and classes have one order, is the preprocessing (mean, std, size) right?"
_ADVICE = "compare predictions with labels on a few images; check class order, labels, weights and preprocessing"


@dataclass(frozen=True)
class Rows:
    """The columns that decide, each (n,): integers, truths, and eps as numbers.

    classes: how many there are; a prediction of this number is a rejection. target: as in the record, None untargeted.
    """

    label: npt.NDArray[Any]
    prediction: npt.NDArray[Any]
    attacked: npt.NDArray[Any]
    success: npt.NDArray[Any]
    eps: npt.NDArray[Any]
    classes: int
    target: str | None

    @classmethod
    def of(cls, table: pa.Table, *, classes: int, target: str | None) -> Rows:
        """The rows of a run's table."""
        names = ("label", "prediction", "attacked", "success", "eps")
        return cls(**{name: table[name].to_numpy() for name in names}, classes=classes, target=target)

    @property
    def correct(self) -> npt.NDArray[Any]:
        """Which images the model gets right, (n,)."""
        found: npt.NDArray[Any] = self.label == self.prediction
        return found

    @property
    def idle(self) -> npt.NDArray[Any]:
        """Which images count as robust although nothing could be tried: right, and no target or no room, (n,)."""
        found: npt.NDArray[Any] = self.correct & ~(self.attacked & (self.eps > 0))
        return found

    @property
    def survived(self) -> npt.NDArray[Any]:
        """Which images were attacked and not misclassified, (n,)."""
        found: npt.NDArray[Any] = self.attacked & ~self.success & (self.eps > 0)
        return found


def check_rows(rows: Rows) -> list[Finding]:
    """What is wrong with the number by its rows alone; none where it measures something."""
    chance = list(_chance(rows))
    return [*chance, *([] if chance else [*_order_of_classes(rows), *_idle(rows)])]


def _idle(rows: Rows) -> Iterator[Finding]:
    right, idle = int(rows.correct.sum()), int(rows.idle.sum())
    if not idle:
        return
    some = f"all {right}" if idle == right else f"{idle} of {right}"
    if not rows.eps.any():
        why, advice = "eps is 0: no image may change", "give an eps above 0"
    elif rows.target is None:
        why, advice = f"{some} correctly classified images have an eps of 0", "give an eps above 0"
    else:
        why = f"{some} correctly classified images already have the target class {rows.target}"
        advice = "take another --target, or leave these images out"
    if idle == right:
        yield Finding(f"{why}, so nothing was attacked", fatal=True, invalid=True, advice=advice)
    elif 2 * idle > right:
        yield Finding(f"{why}; they count as robust although nothing was tried", fatal=True, advice=advice)


def _chance(rows: Rows) -> Iterator[Finding]:
    """Whether accuracy is no better than predictions that do not depend on the image.

    These agree with the labels as often as the frequencies of both give (chance agreement, Cohen 1960), with the
    variance over all permutations. Labels of one class alone say nothing of that: 1 / classes is the chance then.
    """
    n, right = len(rows.label), int(rows.correct.sum())
    bins = rows.classes + 1
    labels, seen = (np.bincount(v, minlength=bins).astype(float) for v in (rows.label, rows.prediction))
    kinds = int((labels > 0).sum())
    if kinds > 1:
        expected = float(labels @ seen) / n
        inner = n * expected - float(labels @ seen**2 + seen @ labels**2) / n + expected**2
        spread = math.sqrt(max(0.0, inner) / max(1, n - 1))
    else:
        expected, spread = n / rows.classes, math.sqrt(n * (1 - 1 / rows.classes) / rows.classes)
    skill = (right - expected) / (n - expected) if n > expected else 0.0
    low = right <= expected + 1e-9 or right * rows.classes <= n or (right <= expected + 2 * spread and skill < 0.5)
    images = f"{n} image{'s' if n > 1 else ''}"
    if low:
        constant = int((seen > 0).sum()) == 1
        if kinds > 1 and constant and right:
            told = f"the model answers class {int(seen.argmax())} for all {images}, right for {100 * right / n:.1f} %"
        else:
            where = "below" if right < expected - 2 * spread else "at"
            guess = max(expected / n, 1 / rows.classes)
            shares = f"{100 * right / n:.1f} % of {images}, guessing {100 * guess:.1f} %"
            told = f"clean accuracy is {where} chance ({shares})"
        # A constant answer is off by one number for some label, which says nothing of the order of classes.
        hint = (None if constant and kinds > 1 else _renamed(rows)) or (
            _CAUSES if n > 1 else "one image cannot tell; take more"
        )
        yield Finding(f"{told}: {hint}", fatal=True, invalid=True, advice=_ADVICE)
    elif kinds > 1 and n >= FEWEST and right <= labels.max():
        told = f"class {int(labels.argmax())}, would be right for {100 * labels.max() / n:.1f} % of the images"
        yield Finding(f"a constant answer, {told}, which is no less than clean accuracy", fatal=False)
    elif kinds == 1 and n >= FEWEST:
        told = f"all {n} images are of class {int(rows.label[0])}"
        yield Finding(f"{told}: a constant answer would be right for all", fatal=False)


def _order_of_classes(rows: Rows) -> Iterator[Finding]:
    """Classes that are mostly predicted as one another, although the rest is right."""
    moved = _moved(rows)
    if len(moved) > 1:
        names = ", ".join(f"{one} as {other}" for one, other in list(moved.items())[:4])
        yield Finding(
            f"classes look exchanged: most images of class {names} are predicted; labels and model have another order",
            fatal=True,
            advice=_ADVICE,
        )


def _renamed(rows: Rows) -> str | None:
    """How predictions follow from labels where they do: one number more or less, or classes in another order."""
    n, classes = len(rows.label), rows.classes
    offset = (rows.prediction - rows.label) % classes
    offset = np.where(rows.prediction < classes, offset, 0)
    counts = np.bincount(offset, minlength=classes)
    counts[0] = 0
    best = int(counts.argmax())
    if counts[best] >= 3 and 2 * counts[best] >= n:
        share = f"{100 * counts[best] / n:.1f} % of the predictions"
        if classes == 2:
            return f"{share} are the other class, so the two classes are exchanged"
        signed = best if 2 * best <= classes else best - classes
        wraps = (rows.prediction - rows.label)[offset == best] != signed
        modulo = f" (modulo {classes})" if wraps.any() else ""
        return f"{share} equal the label {'+' if signed > 0 else '-'} {abs(signed)}{modulo}"
    moved = _moved(rows)
    if len(moved) > 1:
        names = ", ".join(f"{one} -> {other}" for one, other in list(moved.items())[:5])
        return f"the predictions fit the labels in another order of the classes ({names}{', ...' * (len(moved) > 5)})"
    return None


def _moved(rows: Rows) -> dict[int, int]:
    """Classes, by label, most of whose images are predicted as one other that is no other label's; else nothing."""
    kept = rows.prediction < rows.classes
    label, prediction = rows.label[kept], rows.prediction[kept]
    if len(label) < 3 * len(np.unique(label)) or not len(label):
        return {}
    pairs, counts = np.unique(np.stack([label, prediction]), axis=1, return_counts=True)
    total = np.bincount(label)
    # Of each label the class that more than half of its images are predicted as.
    most = {
        int(one): (int(other), int(count))
        for one, other, count in zip(*pairs, counts, strict=True)
        if 2 * count > total[one]
    }
    claimed = Counter(other for other, _ in most.values())
    if sum(count for _, count in most.values()) < 0.6 * len(rows.label):
        return {}
    return {one: other for one, (other, count) in most.items() if count >= 3 and one != other and claimed[other] == 1}
