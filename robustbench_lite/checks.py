"""Whether what a model and its defenses state of themselves is true: probes on a few images before a run.

After Carlini et al. 2019 (arXiv:1902.06705): an attack is only as good as the gradient it follows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .losses import margin
from .network import Network, Noise, seed_torch
from .reliability import Checked, Finding
from .streams import Stream

IMAGES = 16
_STEP = 1e-3  # of the finite difference, in pixels: a quarter of one level of 8 bits
_SEEDS = (1, 2)
_ALONE, _TOGETHER = 160, 64  # clean images asked again: in calls of one, and the rest in batches


_SURROGATE = "state differentiable = False with a surrogate (docs/defenses.md), or run --attack square"
_RANDOM = "state it by a defense with randomized = True, or take the randomness out"


@dataclass(frozen=True)
class Stated:
    """What the model with its defenses states: randomised, and differentiable throughout."""

    randomized: bool = False
    differentiable: bool = True


def check_model(network: Network, x: Tensor, y: Tensor, stated: Stated, *, follows: bool = True) -> Checked:
    """What probes on images x (N, C, H, W) with labels y find, and which ran.

    They take about 8 forward passes and one gradient per image.

    follows: whether the attack follows gradients; for another what is found of them is no more than a warning.
    """
    x, y = x[:IMAGES].to(network.device), y[:IMAGES].to(network.device)
    checked = Checked()
    checked.add("output", _check_output(network, x))
    checked.add("randomness", _check_randomness(network, x, stated))
    if not any(f.fatal for f in checked.findings) and not stated.randomized and len(x) > 1:
        checked.add("batch", _check_batch(network, x))
    slopes = _check_gradient(network, x, y, stated)
    checked.add("gradient", slopes if follows else [replace(finding, fatal=False) for finding in slopes])
    return checked


def check_again(
    network: Network, x: Tensor, y: Tensor, keys: Tensor, stored: Tensor, *, votes: int = 1
) -> list[Finding]:
    """Whether images x (N, C, H, W) get the answers that they got before, whose margins are `stored` (N,).

    keys: (N,) of their streams. Some are asked alone, in many calls: what is random in few calls of a hundred, or for
    a few images only, does not show in one batch. Every image is asked once, and together they are at least `_ALONE`
    calls.
    """
    rows = torch.arange(len(x))
    alone = rows.repeat(-(-_ALONE // max(1, len(x))))[:_ALONE] if len(x) else rows
    calls = [*torch.split(alone, network.block or 1), *torch.split(rows[_ALONE:], _TOGETHER)]
    other = torch.zeros(len(x), dtype=torch.bool)
    for call in calls:
        own = keys[call.to(keys.device)]
        noise = Noise(Stream(own), torch.zeros_like(own))
        logits = network.logits(x[call].to(network.device), noise, draws=votes).cpu()
        size = 1 + logits.abs().amax(1).double()
        other[call] |= (-margin(logits, y[call]).double() - stored[call]).abs() > 1e-3 * size
    if not other.any():
        return []
    return [
        Finding(
            f"answers change in the course of the run: {int(other.sum())} of {len(x)} clean images, asked again at its "
            "end in other batches, are answered otherwise; the model is random or mixes images, and nothing states it",
            fatal=True,
            advice=_RANDOM,
        )
    ]


def _noise(x: Tensor, draw: int) -> Noise:
    rows = torch.arange(len(x), device=x.device)
    return Noise(Stream(rows).child("check"), torch.full_like(rows, draw))


def _seeded(network: Network, x: Tensor, draw: int) -> Tensor:
    """Logits with both kinds of randomness, torch's own and that of the streams, set by `draw`."""
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices):
        seed_torch(draw, x.device)
        return network.logits(x, _noise(x, draw))


def _check_output(network: Network, x: Tensor) -> list[Finding]:
    _seeded(network, x, _SEEDS[0])
    if network.probabilities:
        return [
            Finding(
                "softmax seen: the model's outputs are probabilities; their logarithms are attacked in their place, so "
                "return the values before the softmax where float32 rounds shares to 0 or 1",
                fatal=False,
            )
        ]
    return []


def _draws_globally(network: Network, x: Tensor) -> bool:
    """Whether a forward pass takes numbers from torch's own generator."""
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices):
        seed_torch(_SEEDS[0], x.device)

        def state() -> Tensor:
            return torch.cuda.get_rng_state(x.device) if x.is_cuda else torch.get_rng_state()

        before = state()
        network.logits(x, _noise(x, _SEEDS[0]))
        return not torch.equal(before, state())


def _check_randomness(network: Network, x: Tensor, stated: Stated) -> list[Finding]:
    first, again, other = (_seeded(network, x, draw) for draw in (_SEEDS[0], _SEEDS[0], _SEEDS[1]))
    random = not torch.equal(first, other)
    if not torch.equal(first, again) and not _close(first, again):
        return [
            Finding(
                "the model's answers change between equal calls, from a source that no seed controls",
                fatal=True,
                advice="draw random numbers from robustbench_lite.normal_like or uniform_like, or take them out",
            )
        ]
    if random and not _close(first, other) and not stated.randomized:
        return [
            Finding(
                "the model is random and nothing states it: its answers were judged on one draw; state it by a "
                "defense with randomized = True, or take the randomness out",
                fatal=True,
                advice=_RANDOM,
            )
        ]
    if stated.randomized and _draws_globally(network, x):
        return [
            Finding(
                "it draws from torch's global generator: an image's verdict depends on its batch; use "
                "robustbench_lite.normal_like or uniform_like, whose numbers belong to the image",
                fatal=True,
                advice="draw random numbers from robustbench_lite.normal_like or uniform_like",
            )
        ]
    if not random and stated.randomized:
        return [Finding("a defense states randomized = True, but two draws gave the same logits", fatal=False)]
    return []


def _check_batch(network: Network, x: Tensor) -> list[Finding]:
    together = _seeded(network, x, _SEEDS[0])
    alone = _seeded(network, x[:1], _SEEDS[0])
    if not _close(together[:1], alone):
        return [
            Finding(
                "an image's logits depend on the other images of its batch (batch statistics at test time?), "
                "so no verdict belongs to one image",
                fatal=True,
                advice="take stored statistics in the network's normalisation layers, not those of the batch",
            )
        ]
    return []


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-3 * (1 + a.abs().max()))


def _check_gradient(network: Network, x: Tensor, y: Tensor, stated: Stated) -> list[Finding]:
    """Zero gradients, and gradients that finite differences contradict."""
    devices = [x.device] if x.is_cuda else []
    noise = _noise(x, _SEEDS[0])

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return margin(logits, y)

    with torch.random.fork_rng(devices):
        seed_torch(_SEEDS[0], x.device)
        gradient, _ = network.gradient(x, noise, loss, y)
    if network.detached:
        return [
            Finding(
                f"the gradient is zero for all {len(x)} images: the model cuts its answer off from its input "
                "(torch.no_grad, .detach, .numpy or a quantised layer in forward); attack it by its scores "
                "(--attack square), or put the cut into a defense with differentiable = False and a surrogate",
                fatal=True,
                advice=_SURROGATE,
            )
        ]
    zero = gradient.flatten(1).abs().amax(1) == 0
    if int(zero.sum()) * 2 >= len(x):
        return [
            Finding(
                f"the gradient is zero for {int(zero.sum())} of {len(x)} images: a gradient attack cannot see "
                "through this model; state differentiable = False with a surrogate, or use a score attack",
                fatal=True,
                advice=_SURROGATE,
            )
        ]
    if not stated.differentiable:
        return []  # A surrogate's gradient is not that of what is computed, and says so.
    return _check_slope(network, x, y, gradient)


def _check_slope(network: Network, x: Tensor, y: Tensor, gradient: Tensor) -> list[Finding]:
    inside = x.clamp(_STEP, 1 - _STEP)
    direction = gradient.sign()
    expected = 2 * _STEP * gradient.flatten(1).abs().sum(1).double()

    def value(at: Tensor) -> Tensor:
        return margin(network.unrejected(_seeded(network, at, _SEEDS[0]), y), y).double()

    up, down = value(inside + _STEP * direction), value(inside - _STEP * direction)
    told = expected > 1e-4 * (1 + up.abs())  # below that float32 says nothing
    if int(told.sum()) * 2 < len(x):
        return []
    ratio = ((up - down)[told] / expected[told]).median()
    if not 0.25 <= float(ratio) <= 4:
        return [
            Finding(
                f"the gradient disagrees with finite differences (their slope is {float(ratio):.2g} of the gradient's, "
                "median): some part is not differentiable as stated; state differentiable = False with a surrogate",
                fatal=True,
                advice=_SURROGATE,
            )
        ]
    return []
