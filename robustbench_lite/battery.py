"""Whether the number can be trusted: a second look at some of the images that an attack left standing.

After Carlini et al. 2019 (arXiv:1902.06705) and Pintor et al. 2022 (arXiv:2106.09947): each check is a small attack
of another kind. Where it fools what a strong attack left, robustness was overestimated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .ascents import Climbed, fresh, scaled, smoothed, straight, transferred, unbounded, vanishing
from .attack import Attack
from .further_attacks import continued, longer, others
from .portfolio import Portfolio
from .reliability import Checked, Finding
from .squares import QUERIES, search
from .subjects import Scene
from .surrogate import Transfer

_POINTS = 0.02  # of robust accuracy: an overestimate that matters
_SURROGATE = "state differentiable = False with a surrogate (docs/defenses.md)"
_LOSS = "--loss margin, where the attack has it"
_SHORT = ("no search", "a single step")  # by the attack's length


def second_look(
    attack: Attack,
    scene: Scene,
    *,
    images: int,
    seed: int = 0,
    target: str | int | None = None,
    own: nn.Module | None = None,
    limited: bool = False,
) -> Checked:
    """What other attacks find on images that survived an attack, and which of these sanity checks ran.

    images: how many the run had in all. own: as in `transferred`. limited: the attack was given only so many queries.
    An attack that searches for the worst case of each image faces all of them, whatever its access; that the
    gradient misleads is held against one that follows it. One that does not search (`upper_bound`) faces only what
    concerns its gradient: its number bounds robust accuracy from above, and other attacks would only confirm that.
    """
    made = Checked()
    if not len(scene.left.y):
        return made
    follows = attack.access == "gradient"
    if follows:
        made.add("gradient of survivors", vanishing(scene))
    if upper_bound(attack, limited=limited):
        if follows:
            made.add("unbounded attack", unbounded(scene, None))
        return made
    tally = _Tally(scene, images)
    more = continued(attack, scene, seed=seed, target=target)
    if more:
        made.add("more steps")
        tally.add(*more, advice=_more_steps(attack, scene))
    tally.climbed(scaled(scene), advice=_LOSS)
    value, _ = tally.climbed(fresh(scene))
    made.ran += ["float32 saturation", "fresh ascent"]
    if follows:
        made.add("unbounded attack", unbounded(scene, value))
    for name, look in (("BPDA", straight(scene)), ("transfer from inside", transferred(scene, own))):
        if look:
            made.add(name)
            tally.climbed(look, advice=_SURROGATE)
    more = others(attack, scene, seed=seed, target=target)
    if more:
        made.add("other attacks")
        tally.add(*more)
    tally.climbed(smoothed(scene))
    tally.add(f"black box: a search of {QUERIES} queries without gradients", search(scene, tally.at, tally.value))
    made.ran += ["averaged gradient", "black box"]
    made.findings += tally.every()
    return made


def upper_bound(attack: Attack, *, limited: bool = False) -> str | None:
    """Why an attack does not search for the worst case of each image, in a few words; None where it does.

    limited: it was given only so many queries, which binds what asks without gradients.
    """
    if attack.own_limits:
        return "a custom threat model"
    if isinstance(attack, Transfer):
        return "a transfer attack"
    if isinstance(attack, Portfolio):
        return None
    if attack.length <= 1:
        return "learned for all images at once" if attack.learns else _SHORT[attack.length]
    return "a limit of queries" if limited and attack.access != "gradient" else None


def _more_steps(attack: Attack, scene: Scene) -> str:
    """The setting with which more steps found more."""
    found = longer(attack, scene)
    return "" if found is None else f"--steps {getattr(found[0], 'steps', '')}"


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

    def climbed(self, look: tuple[str, Climbed], advice: str = "") -> Climbed:
        """Count an ascent, and keep where it ended."""
        what, (value, at) = look
        better = value > self.value
        self.value, self.at = torch.maximum(value, self.value), torch.where(better.reshape(-1, 1, 1, 1), at, self.at)
        self.add(what, value > 0, advice=advice)
        return value, at

    def add(self, what: str, fooled: Tensor, least: int = 2, advice: str = "") -> None:
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
                advice=advice,
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
