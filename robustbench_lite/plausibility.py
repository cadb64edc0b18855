"""Mistakes that no error stops, told as warnings: settings without effect, and a network that only guesses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from .checks import Finding
from .plan import Plan

FEWEST = 30  # images: of fewer, a good network may be at chance by chance


def of_settings(plan: Plan, found: Iterable[Finding]) -> Iterator[Finding]:
    """Settings of a plan that change nothing; `found`: what the probes said of the network."""
    eps = plan.threat.eps if plan.eps is None else float(plan.eps.max())
    if eps == 0:
        yield Finding("eps is 0: no image may change, so nothing can be attacked", fatal=False)
    # A fatal finding may be that it is random and does not say so.
    if plan.stated.randomized or any(finding.fatal for finding in found):
        return
    for name in ("eot", "votes"):
        count = getattr(plan, name)
        if count is not None and count > 1:
            yield Finding(f"{name} {count}: the model is not random, so every draw is the same and costs", fatal=False)


def at_chance(columns: Mapping[str, Tensor], classes: int) -> str | None:
    """A warning where the share of right answers is within two standard deviations of 1 / classes, else None."""
    right = columns["prediction"] == columns["y"]
    share, n = 1 / classes, len(right)
    if n < FEWEST or abs(float(right.double().mean()) - share) > 2 * math.sqrt(share * (1 - share) / n):
        return None
    return "clean accuracy is at chance: were the weights loaded, are the labels those of the data?"
