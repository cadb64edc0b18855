"""What an attack makes grow: losses of logits, one number a sample, larger when the attack is nearer its goal.

Each takes logits (N, K), labels y (N,) int64 and targets (N,) int64 or None, and returns (N,). With
targets the loss grows as the target wins; `y` keeps its meaning. All hold for any K >= 2.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .errors import unknown_name

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _pick(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes.unsqueeze(1)).squeeze(1)


def _without(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.scatter(1, classes.unsqueeze(1), float("-inf"))


def cross_entropy(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """Cross entropy as log-odds: log((1 - p_y) / p_y), or log(p_t / (1 - p_t)) with targets.

    Cross entropy is softplus of this, so both order images alike and their gradients point the same
    way; but this one never underflows: where p_y rounds to 1 the gradient of cross entropy is zero in
    float32 and an attack stands still (gradient masking by large logits, Carlini and Wagner 2017,
    arXiv:1608.04644, section V). Departure from the usual: the gradient's length, which no attack that
    normalises it can see; averaged over draws of a randomised network, a draw that is fooled already weighs
    as much as one that is not.
    """
    if targets is None:
        return torch.logsumexp(_without(logits, y), 1) - _pick(logits, y)
    return _pick(logits, targets) - torch.logsumexp(_without(logits, targets), 1)


def margin(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """Largest other logit minus the label's; with targets the target's minus the largest other.

    Positive exactly where the goal is reached (ties aside). Carlini and Wagner 2017 (arXiv:1608.04644), f6.
    """
    if targets is None:
        return _without(logits, y).amax(1) - _pick(logits, y)
    return _pick(logits, targets) - _without(logits, targets).amax(1)


def dlr(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """Difference of logits ratio: the margin over z_(1) - z_(3). Croce and Hein 2020 (arXiv:2003.01690), eq. 6, 7.

    With targets: (z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2). Departure: the paper needs 3 classes, 4
    with targets. With 3 classes and targets the denominator is z_(1) - (z_(2) + z_(3)) / 2 (over
    z_(1) - z_(3) the ratio stands still at -1 while the target is last); with 2 classes any ratio would be
    constant, so the margin itself is returned.
    """
    classes = logits.shape[1]
    gain = margin(logits, y) if targets is None else _pick(logits, targets) - _pick(logits, y)
    if classes < 3:
        return gain
    top = logits.topk(min(4, classes), dim=1).values
    below = top[:, 2] if targets is None else top[:, -2:].mean(1)
    return gain / (top[:, 0] - below).clamp_min(1e-12)


def _cross_entropy_slope(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    aim = y if targets is None else targets
    slope = _without(logits, aim).softmax(1).scatter_(1, aim.unsqueeze(1), -1.0)
    return slope if targets is None else slope.neg_()


def _margin_slope(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    aim = y if targets is None else targets
    other = _without(logits, aim).argmax(1, keepdim=True)
    slope = torch.zeros_like(logits).scatter_(1, other, 1.0).scatter_(1, aim.unsqueeze(1), -1.0)
    return slope if targets is None else slope.neg_()


# Gradients in the logits (N, K), written down where they are simple: differentiating a loss of a few numbers by
# autograd takes as long as 3 to 6 % of a small network's whole gradient.
_SLOPES: dict[object, Loss] = {cross_entropy: _cross_entropy_slope, margin: _margin_slope}


def slope_of(loss: object) -> Loss | None:
    """The gradient of a loss in its logits as a function of the same arguments, where one is known."""
    return _SLOPES.get(loss)


def divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """KL(softmax(clean) || softmax(logits)) of two (N, K), (N,) float64: there it keeps a slope where both are sure."""
    log_clean = clean.double().log_softmax(1)
    return (log_clean.exp() * (log_clean - logits.double().log_softmax(1))).sum(1)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "margin": margin, "dlr": dlr}


def get_loss(name: str) -> Loss:
    """The loss of this name; UserError with the close ones where there is none."""
    if name not in LOSSES:
        raise unknown_name("loss", name, LOSSES)
    return LOSSES[name]


def reached(logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
    """Which samples are where the attack wants them: (N,) bool."""
    predicted = logits.argmax(1)
    return predicted != y if targets is None else predicted == targets
