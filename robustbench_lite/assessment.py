"""What is said of a number beside it: probes of the network before the attack, a second look at what stands after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .battery import IMAGES as SECOND_LOOK
from .battery import Subjects, second_look
from .checks import IMAGES, Finding, check_model, verdict
from .models.identity import tensors_sha256
from .network import Network, Noise
from .plan import Plan, check_images
from .portfolio import Portfolio
from .streams import Stream, content_hashes

if TYPE_CHECKING:
    from .records.specification import Specification


def probe(plan: Plan, network: Network) -> tuple[list[Finding], str]:
    """Checks on some images of the whole run, so that every shard says the same."""
    # Spread over the samples: a data set may come class by class.
    index = plan.index[torch.linspace(0, len(plan.index) - 1, min(IMAGES, len(plan.index))).long()]
    x, y = plan.data.images(index), plan.data.labels[index]
    check_images(x, y, len(plan.data.classes))
    zero = torch.zeros(len(x), dtype=torch.int64, device=network.device)
    logits = network.logits(x.to(network.device), Noise(Stream(zero), zero), draws=1)
    # Two networks of one name and the same weights may still compute differently; a stored run is only gone on with
    # where the answers are the same to the last bit.
    return check_model(network, x, y, plan.stated), tensors_sha256({"logits": logits})


def judged(
    plan: Plan,
    network: Network,
    specification: Specification,
    columns: dict[str, Tensor],
    findings: list[Finding],
    warn: Callable[[str], None] | None,
) -> Specification:
    """The record with what a second look at the images finds, and what it cost."""
    if not plan.checks or plan.target is not None:
        return specification
    before = network.forward_rows, network.backward_rows
    robust = columns["attacked"] & ~columns["success"]
    left, standing = _subjects(plan, columns["index"][robust], network.device), float(robust.double().mean())
    iterative = plan.attack.access == "gradient" and (isinstance(plan.attack, Portfolio) or plan.attack.length > 1)
    iterative = iterative and not plan.attack.own_limits  # whatever the whole box holds, it was not its to find
    found = second_look(network, plan.threat, left, standing=standing, votes=plan.draws[1], iterative=iterative)
    for finding in found:
        if warn:
            warn(finding.text)
    every = [*findings, *found]
    calls = {
        "check_forwards": specification.calls["check_forwards"] + network.forward_rows - before[0],
        "check_backwards": specification.calls["check_backwards"] + network.backward_rows - before[1],
    }
    return dataclasses.replace(
        specification, warnings=tuple(f.text for f in every), verdict=verdict(every), calls=specification.calls | calls
    )


def _subjects(plan: Plan, index: Tensor, device: torch.device) -> Subjects:
    """Some of the samples at these places of the plan, spread over all."""
    chosen = index[torch.linspace(0, len(index) - 1, min(SECOND_LOOK, len(index))).long()] if len(index) else index
    x = plan.data.images(chosen) if len(chosen) else torch.empty((0, *plan.data.shape))
    keys = Stream.of(content_hashes(x), seed=plan.seed, device=device).keys
    eps = plan.threat.each(len(chosen)) if plan.eps is None else plan.eps[chosen]
    return Subjects(x.to(device), plan.data.labels[chosen].to(device), eps.to(device), keys)
