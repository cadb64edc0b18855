"""Settings of a plan that have no effect, or that leave nothing to measure, told before the run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .plan import Plan
from .reliability import Finding

RESOLUTION = 2.0**-24  # of float32 at a pixel value near 1


def of_settings(plan: Plan, found: Iterable[Finding]) -> Iterator[Finding]:
    """Settings of a plan that change nothing; `found`: what the probes said of the network."""
    eps = plan.threat.eps if plan.eps is None else float(plan.eps.max())
    if eps == 0:
        yield Finding(
            "eps is 0: no image may change, so nothing can be attacked",
            fatal=True,
            invalid=True,
            advice="give an eps above 0",
        )
    elif eps < RESOLUTION:
        yield Finding(
            f"eps {eps:g} is below the resolution of float32 pixels (6e-08)",
            fatal=True,
            invalid=True,
            advice="give an eps in pixels of [0, 1], such as 8/255",
        )
    # A fatal finding may be that it is random and does not say so.
    if plan.stated.randomized or any(finding.fatal for finding in found):
        return
    for name in ("eot", "votes"):
        count = getattr(plan, name)
        if count is not None and count > 1:
            yield Finding(f"{name} {count}: the model is not random, so every draw is the same and costs", fatal=False)
