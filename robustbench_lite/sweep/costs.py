"""What a defense costs at inference: its forward pass beside that of the undefended network, timed and counted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..foreign import ask
from ..network import exact_float32, frozen, placed, seed_torch

LEAST_CALLS, MOST_CALLS = 11, 1001  # of each network
SECONDS = 0.5  # in which as many calls are made as there is time for
MOST_SECONDS = 20.0


def forward_costs(
    defended: nn.Module, bare: nn.Module, x: Tensor, *, network: nn.Module | None = None, device: str = "cpu"
) -> tuple[float, float]:
    """(ratio, passes): time of a forward pass over that of the undefended network, and network passes in it.

    defended, bare: pixels to logits. x: (n, C, H, W), the images of one pass. network: what is inside `defended`, where
    it is built otherwise than `bare`. Both are called in turns, so that what
    else the machine does meets both; the ratio is the median of those of calls side by side. passes: images that went
    through networks that print themselves as `network` does, over those that were asked about.
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
        passes = counted(defended, bare if network is None else network, images)
        return timed(lambda: ask(defended, images), lambda: ask(bare, images), ready=_ready(device)), passes


def counted(defended: nn.Module, bare: nn.Module, x: Tensor) -> float:
    """Network passes in one pass of each image of x: those of every part that prints itself as `bare` does."""
    told, rows = repr(bare), [0]

    def count(_network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        rows[0] += len(inputs[0])

    handles = [part.register_forward_pre_hook(count) for part in defended.modules() if repr(part) == told]
    try:
        ask(defended, x)
    finally:
        for handle in handles:
            handle.remove()
    return rows[0] / len(x)


def timed(one: Callable[[], object], other: Callable[[], object], *, ready: Callable[[], None]) -> float:
    """The time of a call of `one` over that of one of `other` beside it, the median of many; ready: waits for both."""
    took: tuple[list[float], list[float]] = ([], [])
    for each in (one, other):
        _seconds(each, ready)  # warms up
    began = time.perf_counter()
    while len(took[0]) < LEAST_CALLS or (len(took[0]) < MOST_CALLS and time.perf_counter() - began < SECONDS):
        # Also which of the two comes first is in turns.
        for place in (0, 1) if len(took[0]) % 2 else (1, 0):
            took[place].append(_seconds((one, other)[place], ready))
        if time.perf_counter() - began > MOST_SECONDS:
            break
    return statistics.median(first / second for first, second in zip(*took, strict=True))


def _seconds(each: Callable[[], object], ready: Callable[[], None]) -> float:
    ready()
    began = time.perf_counter()
    each()
    ready()
    return time.perf_counter() - began


def _ready(device: str) -> Callable[[], None]:
    return (lambda: torch.cuda.synchronize(device)) if torch.device(device).type == "cuda" else (lambda: None)
