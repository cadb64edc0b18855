"""Who is compared in PGD: plain gradients as the floor, robustbench-lite, and the peers, each set up at its best."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import robustbench_lite as rbl

from .parts import Part
from .rivals import EPS, STEP_SIZE, STEPS, Contestant, Run, art, foolbox, installed, torchattacks


def _floor(part: Part) -> Run:
    """As many gradients of cross entropy as the attack takes steps, at the clean images, and nothing else."""

    def run() -> None:
        for x, y in part.batches():
            for _ in range(part.steps):
                leaf = x.detach().requires_grad_()
                torch.autograd.grad(torch.nn.functional.cross_entropy(part.network(leaf), y, reduction="sum"), leaf)

    return run


def _ours(part: Part, *, stop_on_success: bool = True, precision: str = "float32") -> Run:
    def run() -> Tensor | None:
        return rbl.evaluate(
            part.network,
            part.x,
            part.y,
            attack="pgd",
            norm="linf",
            eps=part.eps,
            batch_size=part.batch_size,
            stop_on_success=stop_on_success,
            precision=precision,
            checks=False,
            attack_options={"steps": part.steps, "step_size": part.step_size},
        ).adversarial

    return run


def _has_bf16() -> bool:
    """Whether this processor computes in bf16 itself; where it does not, everything in it is slower."""
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


PEERS = {
    **torchattacks("PGD", eps=EPS, alpha=STEP_SIZE, steps=STEPS),
    **foolbox("LinfPGD", abs_stepsize=STEP_SIZE, steps=STEPS),
    **art("ProjectedGradientDescentPyTorch", eps=EPS, eps_step=STEP_SIZE, max_iter=STEPS, num_random_init=1),
}


def contestants(part: Part, note: Callable[[str], None], *, peers: bool = True) -> Iterator[Contestant]:
    """All that are installed, or all but the peers; `note` is told of a peer that is not."""
    yield Contestant(f"{part.steps} plain gradients", _floor(part), "floor")
    yield Contestant("robustbench-lite, nothing dropped", _ours(part, stop_on_success=False), "ours")
    yield Contestant("robustbench-lite, as shipped", _ours(part), "ours")
    if _has_bf16():
        yield Contestant("robustbench-lite, --precision bf16", _ours(part, precision="bf16"), "ours")
    else:
        note("--precision bf16 is left out: this processor computes no faster in it")
    yield from installed(PEERS if peers else {}, part, note)
