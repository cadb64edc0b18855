"""What a defense costs at inference: its forward pass beside that of the undefended network, timed and counted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..network import exact_float32, frozen, placed, seed_torch

ROUNDS = 11
ROUND_SECONDS = 0.005  # at least, of each network in each round
MOST_SECONDS = 20.0


def forward_costs(defended: nn.Module, bare: nn.Module, x: Tensor, *, device: str = "cpu") -> tuple[float, float]:
    """(ratio, passes): time of a forward pass over that of the undefended network, and network passes in it.

    defended, bare: pixels to logits. x: (n, C, H, W), the images of one pass. Both are timed in turns, in rounds of at
    least 5 ms each, so that what else the machine does meets both; the ratio is the median of the rounds'. passes:
    images that went through networks as `bare` prints itself, `bare` or others, a pass of each image counted once.
    The networks, and the global random state, are left as they were found.
    """
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with (
        torch.inference_mode(False),
        exact_float32(),
        placed(defended, device),
        placed(bare, device),
        frozen(defended),
        frozen(bare),
        torch.random.fork_rng(devices),
        torch.no_grad(),
    ):
        seed_torch(0, device)
        images = x.to(device)
        passes = counted(defended, bare, images)
        return timed(lambda: defended(images), lambda: bare(images), ready=_ready(device)), passes


def counted(defended: nn.Module, bare: nn.Module, x: Tensor) -> float:
    """Network passes in one pass of each image of x: those of every part that prints itself as `bare` does."""
    told, rows = repr(bare), [0]

    def count(_network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows[0] += len(inputs[0])

    handles = [part.register_forward_pre_hook(count) for part in defended.modules() if repr(part) == told]
    try:
        defended(x)
    finally:
        for handle in handles:
            handle.remove()
    return rows[0] / len(x)


def timed(one: Callable[[], object], other: Callable[[], object], *, ready: Callable[[], None]) -> float:
    """The median over rounds of the time that `one` takes over that of `other`; ready: waits for what was asked."""
    calls = [_calls(each, ready) for each in (one, other)]
    ratios, began = [], time.perf_counter()
    for number in range(ROUNDS):
        took = [0.0, 0.0]
        # In turns also within a round: which comes first would else meet the colder cache.
        for place in (0, 1) if number % 2 else (1, 0):
            took[place] = _seconds((one, other)[place], calls[place], ready) / calls[place]
        ratios.append(took[0] / took[1])
        if time.perf_counter() - began > MOST_SECONDS:
            break
    return statistics.median(ratios)


def _calls(each: Callable[[], object], ready: Callable[[], None]) -> int:
    """How many calls make a round, found after one that warms up."""
    _seconds(each, 1, ready)
    return max(1, round(ROUND_SECONDS / max(_seconds(each, 1, ready), 1e-6)))


def _seconds(each: Callable[[], object], calls: int, ready: Callable[[], None]) -> float:
    ready()
    began = time.perf_counter()
    for _ in range(calls):
        each()
    ready()
    return time.perf_counter() - began


def _ready(device: str) -> Callable[[], None]:
    return (lambda: torch.cuda.synchronize(device)) if torch.device(device).type == "cuda" else (lambda: None)
