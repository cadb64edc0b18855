"""Whether the number can be trusted: a second look at the images that an attack left standing.

After Carlini et al. 2019 (arXiv:1902.06705) and Pintor et al. 2022 (arXiv:2106.09947): each check is a small attack
of another kind. Where it fools what a strong attack left, robustness was overestimated. All small attacks run side by
side in one batch, a few rows for each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .checks import Finding
from .inside import network_inside
from .losses import margin
from .network import Network, Noise
from .straight import StraightModules, StraightThrough, blocked
from .streams import Stream
from .threat import Ball, Threat

IMAGES = 16
_STEPS = 10  # gradients of each ascent
_ROUNDS, _PROPOSALS = 12, 8  # of the search without gradients
_COPIES = 4  # of an image, with noise, over which a gradient is averaged
_SCALE = 1e-3  # of logits, where cross entropy may saturate
_POINTS = 0.02  # of robust accuracy: an overestimate that matters


@dataclass(frozen=True)
class Subjects:
    """Images (n, C, H, W) that the model classifies right, their labels (n,), eps (n,) and content keys (n,)."""

    x: Tensor
    y: Tensor
    eps: Tensor
    keys: Tensor

    @property
    def noise(self) -> Noise:
        """The draws of a verdict."""
        return Noise(Stream(self.keys), torch.zeros_like(self.keys))


def second_look(
    network: Network, threat: Threat, left: Subjects, *, standing: float, votes: int, iterative: bool
) -> list[Finding]:
    """What small attacks of other kinds find on images that an attack left standing.

    standing: the share of all images that it left so, of which `left` are some. votes: draws of a verdict.
    iterative: the attack followed gradients over several steps, so that nothing cheaper should do better; of another
    attack only the gradient and the unbounded ball are looked at.
    """
    if not len(left.y):
        return []
    look = _Look(network, threat, left, standing, votes)
    findings = look.vanishing()
    if not iterative:
        return findings + look.unbounded(None)
    more, best = look.climb(_margin)
    findings += look.unbounded(best)
    findings += look.report(more, f"more steps: a fresh ascent of {_STEPS} steps on the margin")
    return [*findings, *look.scaled(), *look.straight(), *look.transferred(), *look.smoothed(), *look.search()]


class _Look:
    """Small attacks on images that were left standing."""

    def __init__(self, network: Network, threat: Threat, left: Subjects, standing: float, votes: int) -> None:
        self.network = network
        self.threat = threat
        self.left = left
        self.standing = standing
        self.votes = votes
        self.ball = threat.around(left.x, left.eps)
        self.known = torch.zeros(len(left.y), dtype=torch.bool, device=left.y.device)

    def climb(self, loss: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
        """A short ascent in the ball."""
        return _climb(self.network, self.ball, self.left, loss, self.votes)

    def report(self, fooled: Tensor, what: str) -> list[Finding]:
        """A finding where this fooled more than one by chance, and enough to matter for the number.

        An image that another look fooled already does not count again.
        """
        count, total = int((fooled & ~self.known).sum()), len(self.left.y)
        self.known |= fooled
        points = self.standing * count / total
        if count < min(2, total) or count < 0.1 * total or points < _POINTS:
            return []
        return [
            Finding(
                f"{what} fools {count} of {total} images that the attack left standing: robust accuracy is some "
                f"{100 * points:.0f} points lower",
                fatal=True,
            )
        ]

    def vanishing(self) -> list[Finding]:
        """Gradients that are zero, tiny or not numbers, at the images themselves."""
        x, y = self.left.x, self.left.y
        gradient, logits = self.network.gradient(x, self.left.noise, _margin, y)
        size = gradient.flatten(1).abs().amax(1)
        tiny = int((size <= 1e-12 * (1 + logits.abs().amax(1))).sum())
        if tiny < max(1, 0.25 * len(y)):
            return []
        return [
            Finding(
                f"gradient vanishes for {tiny} of {len(y)} images: an attack that follows it stands still there",
                fatal=True,
            )
        ]

    def unbounded(self, near: Tensor | None) -> list[Finding]:
        """With the whole box to move in everything must fall, and rise above the best margin in the ball, `near`."""
        threat, left = self.threat, self.left
        wide = Threat("linf", threat.high - threat.low, threat.low, threat.high)
        fooled, best = _climb(self.network, wide.around(left.x), left, _margin, self.votes)
        total, standing, findings = len(left.y), int((~fooled).sum()), []
        if standing > 0.1 * total:
            findings.append(
                Finding(
                    f"unbounded attack fails: with the whole box to move in {standing} of {total} images stand; the "
                    "gradient misleads or the search is too short, so smaller eps prove nothing",
                    fatal=True,
                )
            )
        lower = 0 if near is None else int((~fooled & (best < near - 1e-3 * (1 + near.abs()))).sum())
        if lower > 0.25 * total:
            findings.append(
                Finding(
                    f"loss does not rise with eps: for {lower} of {total} images the whole box gives a lower one than "
                    "the ball, so the search does not find what is there",
                    fatal=True,
                )
            )
        return findings

    def scaled(self) -> list[Finding]:
        """Logits on a scale on which cross entropy in float32 does not saturate."""
        fooled, _ = self.climb(_scaled)
        return self.report(fooled, f"float32 saturation: cross entropy of the logits times {_SCALE:g}")

    def straight(self) -> list[Finding]:
        """Gradients that pass rounding, signs and blocked modules as if these were not there."""
        model = self.network.model
        names = []
        with contextlib.suppress(Exception):  # A model that runs in no other way than the network's has no such parts.
            self.network.forward_rows += len(self.left.x[:2])
            names = blocked(model, self.left.x[:2])
        mode = StraightThrough()
        with mode, StraightModules(model, names):
            if not names and not self._meets(mode):
                return []
            fooled, _ = self.climb(_margin)
        past = ", ".join([*sorted(mode.seen), *names])
        return self.report(fooled, f"BPDA: a gradient straight through {past}")

    def _meets(self, mode: StraightThrough) -> bool:
        self.network.gradient(
            self.left.x[:1], Noise(Stream(self.left.keys[:1]), self.left.y[:1] * 0), _margin, self.left.y[:1]
        )
        return bool(mode.seen)

    def transferred(self) -> list[Finding]:
        """Gradients of the network inside, where the model is one behind something else: an attack on a surrogate."""
        found = None
        with contextlib.suppress(Exception):  # As above.
            self.network.forward_rows += len(self.left.x[:2])
            found = network_inside(self.network.model, self.left.x[:2])
        if found is None:
            return []
        name, inside = found
        surrogate = Network(inside, n_classes=self.network.n_classes, device=self.network.device)

        def gradient(x: Tensor) -> Tensor:
            return surrogate.gradient(x, self.left.noise, _margin, self.left.y)[0]

        fooled, _ = _climb(self.network, self.ball, self.left, _margin, self.votes, gradient)
        return self.report(fooled, f"transfer: an attack on the network inside ({name})")

    def smoothed(self) -> list[Finding]:
        """The mean gradient over noisy copies: what is shattered is smooth from afar."""
        count = len(self.left.y)
        rows = torch.arange(count, device=self.left.y.device).repeat_interleave(_COPIES)
        copies = Subjects(*(t[rows] for t in (self.left.x, self.left.y, self.left.eps, self.left.keys)))
        stream = Stream(copies.keys).child("battery copy").child(torch.arange(len(rows), device=rows.device) % _COPIES)
        spread = (self.threat.around(copies.x, copies.eps).random(stream) - copies.x) * 0.5

        def gradient(x: Tensor) -> Tensor:
            each, _ = self.network.gradient((x[rows] + spread).clamp(0, 1), copies.noise, _margin, copies.y)
            return each.reshape(count, _COPIES, *each.shape[1:]).mean(1)

        fooled, _ = _climb(self.network, self.ball, self.left, _margin, self.votes, gradient)
        return self.report(fooled, "shattered gradient: the mean gradient over noisy copies")

    def search(self) -> list[Finding]:
        """Squares at random places, without any gradient (after Andriushchenko et al. 2020, arXiv:1912.00049)."""
        count, best = len(self.left.y), None
        rows = torch.arange(count, device=self.left.y.device).repeat_interleave(_PROPOSALS)
        many = Subjects(*(t[rows] for t in (self.left.x, self.left.y, self.left.eps, self.left.keys)))
        ball = self.threat.around(many.x, many.eps)
        stream = (
            Stream(many.keys).child("battery search").child(torch.arange(len(rows), device=rows.device) % _PROPOSALS)
        )
        channels, height, width = self.left.x.shape[1:]
        at, fooled = ball.scaled(_stripes(stream, channels, height, width)), torch.zeros_like(self.known)
        first = torch.arange(count, device=rows.device) * _PROPOSALS
        value = torch.full((count,), -torch.inf, device=at.device)
        for step in range(_ROUNDS):
            loss = _value(self.network, at, many, self.votes).reshape(count, _PROPOSALS)
            top = loss.max(1)
            better = top.values > value
            chosen = at[first + top.indices]
            best = chosen if best is None else torch.where(better.reshape(-1, 1, 1, 1), chosen, best)
            value = torch.maximum(value, top.values)
            fooled |= value > 0
            drawn = stream.child("place").uniform((2,), draw=torch.full_like(many.keys, step))
            side = max(1, round((height * width * 0.3 * 0.8**step) ** 0.5))
            inside = _square(drawn, side, height, width)
            signs = stream.child("signs").uniform((channels, 1, 1), draw=torch.full_like(many.keys, step)) < 0.5
            painted = ball.scaled(torch.where(signs, 1.0, -1.0).expand(-1, -1, height, width).contiguous())
            at = ball.project(torch.where(inside, painted, best[rows]))
        return self.report(fooled, f"black box: a search of {_ROUNDS * _PROPOSALS} queries without gradients")


def _climb(
    network: Network,
    ball: Ball,
    some: Subjects,
    loss: Callable[..., Tensor],
    votes: int,
    gradient: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """A short ascent from a random point: which images it fools (n,), by their own draws, and the best margin (n,)."""
    x = ball.random(Stream(some.keys).child("battery start"))
    best = torch.full((len(x),), -torch.inf, device=x.device)
    for step in range(_STEPS):
        if gradient is None:
            slope, logits = network.gradient(x, some.noise, loss, some.y)
        else:
            slope, logits = gradient(x), network.logits(x, some.noise)
        # A verdict of a randomised model takes its own number of draws; a short look is for those alone.
        value = margin(logits, some.y) if votes == 1 else _value(network, x, some, votes)
        best = torch.maximum(best, value)
        if (best > 0).all():
            return best > 0, best
        x = ball.ascend(x, slope, 2 * ball.eps * (1 - step / _STEPS))
    best = torch.maximum(best, _value(network, x, some, votes))
    return best > 0, best


def _value(network: Network, x: Tensor, some: Subjects, votes: int) -> Tensor:
    """The margin by the draws of a verdict, (n,): positive where the image is fooled."""
    return margin(network.logits(x, some.noise, draws=votes), some.y)


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    return margin(logits, y)


def _scaled(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits * _SCALE, y, reduction="none")


def _stripes(stream: Stream, channels: int, height: int, width: int) -> Tensor:
    up = stream.child("stripes").uniform((channels, 1, width)) < 0.5
    return torch.where(up, 1.0, -1.0).expand(-1, -1, height, -1).contiguous()


def _square(drawn: Tensor, side: int, height: int, width: int) -> Tensor:
    """A square at a place that `drawn` (n, 2) in [0, 1) picks, (n, 1, H, W) bool."""

    def span(where: Tensor, length: int) -> Tensor:
        first = torch.floor(where.double() * (length - min(side, length) + 1)).long().unsqueeze(1)
        place = torch.arange(length, device=where.device) - first
        return (place >= 0) & (place < side)

    return (span(drawn[:, 0], height).unsqueeze(2) & span(drawn[:, 1], width).unsqueeze(1)).unsqueeze(1)
