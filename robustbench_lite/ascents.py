"""Small attacks of a second look that follow gradients: other losses, other gradients, the whole box."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import UserError
from .inside import network_inside
from .losses import margin
from .network import Network
from .reliability import Finding
from .rows import take
from .straight import StraightModules, StraightThrough, blocked
from .subjects import STEPS, Loss, Scene
from .threat import Threat

SCALE = 1e-3  # of logits, where cross entropy may saturate
COPIES = 4  # of an image, with noise, over which a gradient is averaged
Climbed = tuple[Tensor, Tensor]  # the best margin (n,) and where it is


def vanishing(scene: Scene) -> list[Finding]:
    """Gradients that are zero, tiny or not numbers at the images themselves, and margins that float32 lost."""
    left, findings = scene.left, []
    gradient, logits = scene.network.gradient(left.x, left.noise, margin, left.y, left.targets)
    size = gradient.flatten(1).abs().amax(1)
    tiny = int((size <= 1e-12 * (1 + logits.abs().amax(1))).sum())
    if tiny >= max(1, 0.25 * len(left.y)):
        findings.append(
            Finding(
                f"gradient vanishes for {tiny} of {len(left.y)} images: an attack that follows it stands still there",
                fatal=True,
                advice="state differentiable = False with a surrogate (docs/defenses.md), or run --attack square",
            )
        )
    return findings + saturated(scene, logits)


def saturated(scene: Scene, logits: Tensor) -> list[Finding]:
    """Probabilities, whose logarithms were taken, where float32 rounded all but one to nothing: no margin is left."""
    if not scene.network.probabilities:
        return []
    lost = torch.finfo(torch.float32).tiny * 1e3
    count = int((logits.topk(2).values[:, 1].exp() <= lost).sum())
    if count < max(1, 0.25 * len(logits)):
        return []
    return [
        Finding(
            f"softmax saturates for {count} of {len(logits)} images: float32 rounds all other probabilities to 0, "
            "and with them goes the margin; return the values before the softmax",
            fatal=True,
            advice="return the values before the softmax",
        )
    ]


def unbounded(scene: Scene, near: Tensor | None) -> list[Finding]:
    """With the whole box to move in all must fall that can, and rise above the best margin in the ball, `near` (n,).

    That one can is known where the box holds an image of the class wanted: an honest network may have none.
    """
    box = scene.threat
    wide = Threat("linf", box.high - box.low, box.low, box.high).around(scene.left.x)
    best, _ = scene.climb(ball=wide)
    can, findings = scene.left.witness, []
    total, standing = int(can.sum()), int((can & (best <= 0)).sum())
    if standing > 0.1 * total:
        findings.append(
            Finding(
                f"unbounded attack fails: with the whole box to move in {standing} of {total} images stand, although "
                "it holds images of the classes wanted; the gradient misleads or the search is too short, so smaller "
                "eps prove nothing",
                fatal=True,
            )
        )
    lower = 0 if near is None else int(((best <= 0) & (best < near - 1e-3 * (1 + near.abs()))).sum())
    if lower > 0.25 * len(best):
        findings.append(
            Finding(
                f"loss does not rise with eps: for {lower} of {len(best)} images the whole box gives a lower one than "
                "the ball, so the search does not find what is there",
                fatal=True,
            )
        )
    return findings


def fresh(scene: Scene) -> tuple[str, Climbed]:
    """The margin, whatever the attack's loss was."""
    return f"more steps: a fresh ascent of {STEPS} steps on the margin", scene.climb()


def scaled(scene: Scene) -> tuple[str, Climbed]:
    """Logits on a scale on which cross entropy in float32 does not saturate; what it fools at their own is left out."""
    value, at = scene.climb(_cross_entropy(SCALE))
    plain, _ = scene.climb(_cross_entropy(1.0))
    return f"float32 saturation: cross entropy of the logits times {SCALE:g}", (torch.where(plain > 0, -1, value), at)


def straight(scene: Scene) -> tuple[str, Climbed] | None:
    """Gradients that pass rounding, signs and blocked modules as if these were not there; None where there are none."""
    network, few = scene.network, scene.left.x[:2]
    names: list[str] = []
    with contextlib.suppress(Exception):  # A model that runs in no other way than the network's has no such parts.
        network.forward_rows += len(few)
        names = blocked(network.model, few)
    mode = StraightThrough()
    with mode, StraightModules(network.model, names):
        if not names:
            one = take(scene.left, torch.zeros(1, dtype=torch.int64, device=few.device))
            network.gradient(one.x, one.noise, margin, one.y, one.targets)
            if not mode.seen:
                return None
        climbed = scene.climb()
    return f"BPDA: a gradient straight through {', '.join([*sorted(mode.seen), *names])}", climbed


def transferred(scene: Scene, own: nn.Module | None) -> tuple[str, Climbed] | None:
    """Gradients of the network inside, where the model is one behind something else: an attack on a surrogate.

    own: the module whose passes are counted, where defenses stand before it: passes of it alone are passes too.
    """
    network, left, found = scene.network, scene.left, None
    with contextlib.suppress(Exception):  # As above.
        network.forward_rows += len(left.x[:2])
        found = network_inside(network.model, left.x[:2])
    if found is None:
        return None
    name, inside = found
    surrogate = Network(inside, n_classes=network.n_classes, device=network.device, block=network.block)

    def gradient(x: Tensor) -> Tensor:
        return surrogate.gradient(x, left.noise, margin, left.y, left.targets)[0]

    try:
        # A module that only calls another hides nothing.
        differs = not torch.equal(gradient(left.x), scene.gradient(left.x))
    except UserError:  # One that does not run alone, as in batches of one size, is no surrogate.
        return None
    climbed = scene.climb(gradient=gradient) if differs else None
    if inside is own:
        network.forward_rows += surrogate.forward_rows
        network.backward_rows += surrogate.backward_rows
    return None if climbed is None else (f"transfer: an attack on the network inside ({name})", climbed)


def smoothed(scene: Scene) -> tuple[str, Climbed]:
    """The mean gradient over noisy copies: what is shattered is smooth from afar."""
    count = len(scene.left.y)
    copies, stream = scene.left.copies(COPIES)
    around = scene.threat.around(copies.x, copies.eps)
    spread = (around.random(stream.child("battery copy")) - copies.x) * 0.5

    def gradient(x: Tensor) -> Tensor:
        noisy = (x.repeat_interleave(COPIES, 0) + spread).clamp(scene.threat.low, scene.threat.high)
        each, _ = scene.network.gradient(noisy, copies.noise, margin, copies.y, copies.targets)
        return each.reshape(count, COPIES, *each.shape[1:]).mean(1)

    return "shattered gradient: the mean gradient over noisy copies", scene.climb(gradient=gradient)


def _cross_entropy(scale: float) -> Loss:
    def loss(logits: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
        aim, sign = (y, 1) if targets is None else (targets, -1)
        return sign * F.cross_entropy(logits * scale, aim, reduction="none")

    return loss
