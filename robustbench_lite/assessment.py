"""What is said of a number beside it: probes of the network before the attack, a second look at what stands after."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .battery import second_look, upper_bound
from .checks import IMAGES, check_again, check_model
from .models.identity import tensors_sha256
from .network import Network, Noise
from .plan import Plan, check_images
from .portfolio import Portfolio
from .preprocessing_check import check_preprocessing
from .registry import load
from .reliability import Checked, Finding, decide, next_step
from .row_checks import FEWEST, Rows, check_rows
from .streams import Stream, content_hashes
from .subjects import Scene, Subjects
from .targets import check_target
from .worst_case import WorstCase

if TYPE_CHECKING:
    from .records.specification import Specification

_NEAR, _SPREAD = 16, 8  # images of the second look: nearest to falling, and of the others
_SHARE = 0.1  # of those that stand, which are near
_PREPARED = 64  # clean images that are shown prepared in other ways
_COPIES = 0.05  # of the images at least that a warning tells of
_AGAIN = 512  # clean images that are asked again at most


def probe(plan: Plan, network: Network) -> tuple[Checked, str]:
    """Checks on some images of the whole run, so that every shard says the same."""
    # Spread over the samples: a data set may come class by class.
    index = plan.index[torch.linspace(0, len(plan.index) - 1, min(IMAGES, len(plan.index))).long()]
    x, y = plan.data.images(index), plan.data.labels[index]
    check_images(x, y, len(plan.data.classes))
    zero = torch.zeros(len(x), dtype=torch.int64, device=network.device)
    logits = network.logits(x.to(network.device), Noise(Stream(zero), zero), draws=1)
    # Two networks of one name and the same weights may still compute differently; a stored run is only gone on with
    # where the answers are the same to the last bit.
    checked = check_model(network, x, y, plan.stated, follows=plan.attack.access == "gradient")
    return checked, tensors_sha256({"logits": logits})


def judged(
    plan: Plan,
    network: Network,
    specification: Specification,
    columns: dict[str, Tensor],
    checked: Checked,
    warn: Callable[[str], None] | None,
) -> Specification:
    """The record with the verdict: what the model checks, the rows and the sanity checks found, and what these cost.

    checked: the model checks. The rows of a shard say nothing of the whole, which is judged when it is put together.
    """
    from .records.specification import ChecksRecord

    before = network.forward_rows, network.backward_rows
    attack = plan.attack.checked_as if isinstance(plan.attack, WorstCase) else plan.attack
    rows = rows_of(plan, columns)
    known = {finding.reason for finding in checked.findings}
    after = Checked([f for f in check_rows(rows) if f.reason not in known] if plan.shard is None else [])
    if plan.shard is None:
        after.findings += _copies(columns["content"])
    images, passes = 0, 0
    if plan.checks:
        found, passes = _preprocessing(plan, columns, network)
        # What the network is given comes first: at chance it may be the reason.
        chance = any(finding.invalid for finding in after.findings)
        after.findings[:0] = [dataclasses.replace(f, invalid=chance and f.fatal) for f in found]
        after.ran.append("preprocessing")
        if not plan.stated.randomized and not any(f.fatal for f in checked.findings):
            after.add("repeated answers", _again(plan, network, columns))
        scene = Scene(network, plan.threat, _subjects(plan, columns, network.device), plan.draws[1])
        looked = second_look(
            attack,
            scene,
            images=len(columns["index"]),
            seed=plan.seed,
            target=check_target(plan.target, plan.data.classes),
            own=plan.model.module,
            limited=plan.max_queries is not None,
        )
        after.findings += looked.findings
        after.ran += looked.ran
        images = len(scene.left.y)
    for finding in after.findings:
        if warn:
            warn(finding.text)
    every = [*checked.findings, *after.findings]
    bound = upper_bound(attack, limited=plan.max_queries is not None) if rows.survived.any() else None
    verdict = decide(every, checked=plan.checks, bound=bound)
    calls = {
        "check_forwards": specification.calls["check_forwards"] + network.forward_rows - before[0] + passes,
        "check_backwards": specification.calls["check_backwards"] + network.backward_rows - before[1],
    }
    return dataclasses.replace(
        specification,
        warnings=tuple(f.text for f in every),
        verdict=verdict,
        next_step=next_step(every, verdict, stronger=_stronger(plan)),
        checks=ChecksRecord(asked=plan.checks, before=tuple(checked.ran), after=tuple(after.ran), images=images),
        calls=specification.calls | calls,
    )


def rows_of(plan: Plan, columns: dict[str, Tensor]) -> Rows:
    """Finished columns as what the checks of rows are given."""
    named = {"label": "y", "prediction": "prediction", "attacked": "attacked", "success": "success", "eps": "eps"}
    return Rows(
        **{name: columns[column].numpy() for name, column in named.items()},
        classes=len(plan.data.classes),
        target=None if plan.target is None else str(check_target(plan.target, plan.data.classes)),
    )


def _stronger(plan: Plan) -> str:
    """What attacks harder than this plan: the portfolio of this package, or more steps where it has not the norm."""
    if plan.attack.own_limits:
        return ""  # no other attack knows its threat model
    auto = load("attacks", "auto", argument="attack")
    attacks = plan.attack.attacks if isinstance(plan.attack, WorstCase) else (plan.attack,)
    if any(isinstance(attack, auto) for attack in attacks):
        return "--attack auto --attack-option effort=exhaustive"
    fits = plan.threat.norm in auto.norms and (plan.target is None or auto.targeted)
    if fits and not any(isinstance(attack, Portfolio) for attack in attacks):
        return "--attack auto"
    return "--attack pgd --steps 200 --restarts 5"


def _preprocessing(plan: Plan, columns: dict[str, Tensor], network: Network) -> tuple[list[Finding], int]:
    """What `check_preprocessing` finds on some clean images, without defenses, and the forward passes it took."""
    shape = (plan.data.shape[0], plan.data.shape[1], plan.data.shape[2])
    if any(defense.seen_shape(shape) != shape for defense in plan.inference):
        return [], 0  # the network proper does not take these images
    chosen = _spread(torch.arange(len(columns["index"])), _PREPARED)
    x = plan.data.images(columns["index"][chosen]).to(network.device)
    bare = Network(plan.model.module, device=network.device, max_batch=plan.batch_size)
    rows = torch.arange(len(x), device=network.device)
    noise = Noise(Stream(rows), torch.zeros_like(rows))
    stated = {"mean", "std"} & set(plan.model.preprocessing)
    found = check_preprocessing(lambda z: bare.logits(z, noise), x, columns["y"][chosen], stated=bool(stated))
    return found, bare.forward_rows


def _again(plan: Plan, network: Network, columns: dict[str, Tensor]) -> list[Finding]:
    """Whether clean images are answered at the end of the run as they were in its course, in other batches."""
    chosen = _spread(torch.arange(len(columns["index"])), _AGAIN)
    x = plan.data.images(columns["index"][chosen])
    keys = Stream.of(content_hashes(x), seed=plan.seed, device=network.device).keys
    return check_again(network, x, columns["y"][chosen], keys, columns["margin"][chosen], votes=plan.draws[1])


def _copies(content: Tensor) -> list[Finding]:
    """A warning where some images are there more than once, (N, 32) hashes: the interval takes all as independent."""
    n, different = len(content), len(torch.unique(content, dim=0))
    if n < FEWEST or n - different <= _COPIES * n:
        return []
    text = (
        f"{n - different} of {n} images are copies of others: the interval of robust accuracy takes all as independent "
        "and is too narrow"
    )
    return [Finding(text, fatal=False, advice="leave copies out")]


def _subjects(plan: Plan, columns: dict[str, Tensor], device: torch.device) -> Subjects:
    """Some of the images that stand: most of those whose record says that they are nearest to falling.

    Each counts for as many as it was chosen from: the nearest tenth, or the others.
    """
    standing = (columns["attacked"] & ~columns["success"]).nonzero()[:, 0]
    nearest = standing[columns["adversarial_margin"][standing].argsort(stable=True)]
    count = len(nearest) if len(nearest) <= _NEAR + _SPREAD else max(_NEAR, round(_SHARE * len(nearest)))
    near, others = nearest[:count], nearest[count:].sort().values
    if len(others):
        some, few = _spread(near, _NEAR), _spread(others, _SPREAD)
        chosen = torch.cat([some, few])
        weight = torch.cat(
            [torch.full((len(some),), len(near) / len(some)), torch.full((len(few),), len(others) / len(few))]
        )
    else:
        chosen, weight = near, torch.ones(len(near))
    index, y = columns["index"][chosen], columns["y"][chosen]
    x = plan.data.images(index) if len(index) else torch.empty((0, *plan.data.shape))
    keys = Stream.of(content_hashes(x), seed=plan.seed, device=device).keys
    eps = plan.threat.each(len(index)) if plan.eps is None else plan.eps[index]
    said = columns["prediction"].unsqueeze(0)
    targets = columns["target"][chosen] if plan.target not in (None, "all") else None
    witness = (said != y.unsqueeze(1) if targets is None else said == targets.unsqueeze(1)).any(1)
    return Subjects(
        x=x.to(device),
        y=y.to(device),
        targets=None if targets is None else targets.to(device),
        eps=eps.to(device),
        keys=keys,
        weight=weight.to(device),
        witness=witness.to(device),
    )


def _spread(index: Tensor, count: int) -> Tensor:
    """At most `count` of these, evenly."""
    return index[torch.linspace(0, len(index) - 1, min(count, len(index))).round().long()] if len(index) else index
