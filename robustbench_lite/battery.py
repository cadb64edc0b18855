"""Whether the number can be trusted: a second look at some of the images that an attack left standing.

After Carlini et al. 2019 (arXiv:1902.06705) and Pintor et al. 2022 (arXiv:2106.09947): each check is a small attack
of another kind. Where it fools what a strong attack left, robustness was overestimated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .ascents import Climbed, fresh, scaled, smoothed, straight, transferred, unbounded, vanishing
from .attack import Attack
from .checks import Finding
from .more_steps import continued
from .portfolio import Portfolio
from .squares import QUERIES, search
from .subjects import Scene
from .surrogate import Transfer

_POINTS = 0.02  # of robust accuracy: an overestimate that matters


def second_look(
    attack: Attack,
    scene: Scene,
    *,
    images: int,
    seed: int = 0,
    target: str | int | None = None,
    own: nn.Module | None = None,
    limited: bool = False,
) -> list[Finding]:
    """What small attacks of other kinds find on images that an attack left standing.

    images: how many the run had in all. own: as in `transferred`. limited: the attack was given only so many queries.
    Of gradients is spoken where the attack follows them. Looks that should find nothing are asked of an attack that
    follows gradients over several steps; of one that asks without gradients again and again, a search of its own
    kind; of one step, of noise and of a transfer nobody expects that nothing beats them.
    """
    if not len(scene.left.y):
        return []
    asks = not attack.own_limits and (isinstance(attack, Portfolio) or attack.length > 1)
    tally = _Tally(scene, images)
    if attack.access != "gradient":
        if asks and not limited and not attack.learns and not isinstance(attack, Transfer):
            tally.add(f"black box: a search of {QUERIES} queries without gradients", search(scene, None, None))
        return tally.findings
    findings = vanishing(scene)
    if not asks:
        return findings + unbounded(scene, None)
    more = continued(attack, scene, seed=seed, target=target)
    if more:
        tally.add(*more)
    tally.climbed(scaled(scene))
    value, _ = tally.climbed(fresh(scene))
    findings += unbounded(scene, value)
    for look in (straight(scene), transferred(scene, own)):
        if look:
            tally.climbed(look)
    tally.climbed(smoothed(scene))
    tally.add(f"black box: a search of {QUERIES} queries without gradients", search(scene, tally.at, tally.value))
    return findings + tally.every()


class _Tally:
    """What looks found: which images they fooled, and the best that any ascent came to (`value`, `at`)."""

    def __init__(self, scene: Scene, images: int) -> None:
        left = scene.left
        self.images = images
        self.weight = left.weight.double()
        self.findings: list[Finding] = []
        self.known = torch.zeros(len(left.y), dtype=torch.bool, device=left.y.device)  # and reported
        self.fooled = self.known
        self.value, self.at = torch.full_like(self.weight, -torch.inf).float(), left.x

    def climbed(self, look: tuple[str, Climbed]) -> Climbed:
        """Count an ascent, and keep where it ended."""
        what, (value, at) = look
        better = value > self.value
        self.value, self.at = torch.maximum(value, self.value), torch.where(better.reshape(-1, 1, 1, 1), at, self.at)
        self.add(what, value > 0)
        return value, at

    def add(self, what: str, fooled: Tensor, least: int = 2) -> None:
        """A finding where this fooled at least so many, and enough to matter for the number.

        An image that was reported of another look does not count again.
        """
        self.fooled = self.fooled | fooled
        new = fooled & ~self.known
        points = self._points(new, least)
        if points < _POINTS:
            return
        self.known = self.known | fooled
        self.findings.append(
            Finding(
                f"{what} fools {int(new.sum())} of {len(new)} images that the attack left standing: robust accuracy is "
                f"some {100 * points:.0f} points lower",
                fatal=True,
            )
        )

    def every(self) -> list[Finding]:
        """All findings; where no look has one by itself, what they fooled together."""
        if not self.findings:  # Many looks find one or two by chance sooner than one does.
            self.add("several looks together: all of the second look", self.fooled, least=3)
        return self.findings

    def _points(self, fooled: Tensor, least: int) -> float:
        """Robust accuracy lost. The image that was looked at for most others counts for itself alone: it may be one."""
        count, total = int(fooled.sum()), len(fooled)
        if count < min(least, total):
            return 0.0
        each = self.weight[fooled]
        return float(each.sum() - each.max() + 1) / self.images
