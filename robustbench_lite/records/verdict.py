"""The verdict of a stored run: whether its sanity checks ran, and how a verdict of an older version is read today."""

from __future__ import annotations

import dataclasses

from ..reliability import Word, decide
from ..row_checks import Rows, check_rows
from .run import Run

_ALONE = 160  # clean images that version 4 asked again after a run, in calls of one: more than its model checks took
_PROBED = 16
_KNOWS = 5  # the first schema version that records which checks ran
TRANSFER = "transfer:"


def has_checks(run: Run) -> bool:
    """Whether sanity checks were made after the run; where an older record cannot tell, yes.

    Before schema version 5 only the passes of the checks are known (`check_forwards`, `check_backwards`). After a run
    of a model that is not random at least 160 clean images were asked again, more than the model checks before it
    take; of a random one the gradients of the model checks are exceeded, where the attack follows gradients and images
    survived it.
    """
    specification = run.specification
    if specification.checks is not None:
        return specification.checks.asked
    if specification.schema_version >= _KNOWS or specification.verdict != Word.RELIABLE:
        return True
    calls = specification.calls
    if not any(defense.randomized for defense in specification.defenses):
        return calls.get("check_forwards", 0) >= _ALONE
    probed = specification.eot * min(_PROBED, specification.dataset.samples)
    if specification.attack.access != "gradient" or calls.get("check_backwards", 0) > probed:
        return True
    return not (run.table.num_rows and _rows(run).survived.any())


def verdict_of(run: Run) -> str:
    """The verdict of a run in today's words.

    `reliable` of a schema version before 5 was also given without sanity checks, at chance and to attacks that do not
    search: as far as record and rows tell, such a run reads as what it is called now. All else is as written.
    """
    s = run.specification
    if s.schema_version >= _KNOWS or s.verdict != Word.RELIABLE or s.status != "complete" or not run.table.num_rows:
        return s.verdict
    rows = _rows(run)
    survived = bool(rows.survived.any())
    return decide(check_rows(rows), checked=has_checks(run), bound=_upper_bound(run, rows) if survived else None)


def _rows(run: Run) -> Rows:
    return Rows.of(run.table, classes=run.specification.dataset.classes, target=run.specification.target)


def _upper_bound(run: Run, rows: Rows) -> str | None:
    """Why the attack of an older record did not search for the worst case, by what its surviving images cost."""
    s = run.specification
    if s.attack.own_limits:
        return "a custom threat model"
    if s.attack.name.startswith(TRANSFER):
        return "a transfer attack"
    asked = (run.table["forwards"].to_numpy()[rows.survived].max() - 2 * s.votes) / max(1, s.eot)
    gradients = run.table["backwards"].to_numpy()[rows.survived].max() / max(1, s.eot)
    if "fit_forwards" in s.calls and not gradients:
        return "learned for all images at once"
    if max(asked, gradients) <= 1:
        return "a single step" if gradients or asked > 0 else "no search"
    if s.attack.access != "gradient":
        return "checked by a search without gradients alone"
    return None


def take_checks(run: Run, other: Run) -> Run:
    """The run with the verdict, warnings and checks of another that has the same verdict on every image."""
    one, source = run.specification, other.specification
    calls = {name: count for name, count in source.calls.items() if name.startswith("check_")}
    changed = dataclasses.replace(
        one,
        # A record that knows which checks ran is of a version that has the field.
        schema_version=max(one.schema_version, source.schema_version),
        warnings=source.warnings,
        verdict=verdict_of(other),
        next_step=source.next_step,
        checks=source.checks,
        calls=one.calls | calls,
    )
    return dataclasses.replace(run, specification=changed)
