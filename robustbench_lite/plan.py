"""A run before it runs: everything that decides it, checked."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .attack import Attack
from .checks import Stated
from .data.dataset import Dataset, shard_of
from .defense import Defense, InferenceDefense, check_stack, wrap_all
from .errors import UserError, unknown_name
from .fitting import FIT_SAMPLES, FitData, check_fit_target, needs_fit
from .network import PRECISIONS, Network, usable_device
from .options import parse_number
from .portfolio import Portfolio
from .surrogate import PREFIX, Transfer
from .targets import check_target
from .threat import Threat
from .worst_case import WorstCase, attack_class, check_one_kind, common_norms

if TYPE_CHECKING:
    from .models import LoadedModel

DEFAULT_EPS = {"linf": 8 / 255, "l2": 0.5, "l1": 12.0, "l0": 24.0}
EOT_DRAWS = 8
VOTES = 16


def make_threat(
    norm: str | None, eps: float | str | None, attack: str | Attack | Sequence[str | Attack] | None = None
) -> Threat:
    """The threat of this norm, by default linf, or the first one of an attack that lacks it; eps by DEFAULT_EPS.

    For an attack with limits of its own it is the whole box, linf eps 1, and UserError is raised for another. Of
    several attacks all must have the norm.
    """
    several: Sequence[Any] = attack if isinstance(attack, list | tuple) else [attack]
    known = [made for each in several if hasattr(made := _known(each), "norms")]  # others: told by make_attack
    check_one_kind(known)
    if known and known[0].own_limits:
        if norm not in (None, "linf") or (eps is not None and parse_number("eps", eps) != 1):
            given = ", ".join(f"{key} {value}" for key, value in (("norm", norm), ("eps", eps)) if value is not None)
            name = " + ".join(made.name for made in known)
            raise UserError(
                f"norm, eps: attack {name} has limits of its own, which are its options; leave both out, got {given}"
            )
        return Threat("linf", 1.0)
    norm = norm or default_norm(*known)
    if norm not in DEFAULT_EPS:
        raise unknown_name("norm", str(norm), DEFAULT_EPS)
    return Threat(norm, DEFAULT_EPS[norm] if eps is None else eps)  # type: ignore[arg-type]


def default_norm(*attacks: str | Attack | type[Attack]) -> str:
    """linf, or the first norm that all of the attacks have where one of them lacks it."""
    known = [made for attack in attacks if hasattr(made := _known(attack), "norms")]
    norms = common_norms(known) if known else ()
    return "linf" if "linf" in norms or not norms else norms[0]


def _known(attack: str | Attack | type[Attack]) -> Any:
    """The class that a name stands for, of a transfer that of the attack inside; anything else as it is."""
    if not isinstance(attack, str):
        return attack
    if attack.rstrip(":") == PREFIX.rstrip(":"):
        raise UserError(f"attack: {attack} needs an attack to carry over: {PREFIX}pgd with --surrogate MODEL")
    return attack_class(attack.split(PREFIX)[-1])


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run.

    model: its module is the bare network; `defenses` stand before it in this order. index: positions in
    `data` of the whole run's samples, of which a shard takes a share. eps: (len(data),) one each, or None.
    eot, votes: draws averaged for a query and for a verdict; None: by what the defenses state.
    fit: the images that an attack with a `fit` learns from; None: some of those that are evaluated. learn_from: those
    that a defense with a `fit` learns from.
    """

    model: LoadedModel
    data: Dataset
    index: Tensor
    attack: Attack
    threat: Threat
    attack_options: Mapping[str, Any] = field(default_factory=dict)
    defenses: Sequence[Defense] = ()
    defense_specs: Sequence[str] = ()
    target: str | int | None = None
    eps: Tensor | None = None
    seed: int = 0
    batch_size: int = 256
    device: str = "cpu"
    precision: str = "float32"
    deterministic: bool = False
    eot: int | None = None
    votes: int | None = None
    shard: tuple[int, int] | None = None
    stop_on_success: bool = True
    keep_images: bool = False
    max_queries: int | None = None
    checks: bool = True
    fit: FitData | None = None
    learn_from: FitData | None = None

    def __post_init__(self) -> None:
        check_settings(**{name: getattr(self, name) for name in _SETTINGS})
        usable_device(self.device)
        for defense in self.defenses:
            if not isinstance(defense, Defense):
                raise UserError(f"defenses: expected instances of Defense, such as BitDepth(bits=4), got {defense!r}")
        check_stack(self.inference)
        check_queries(self.max_queries, self.attack, *self.draws)

    @property
    def inference(self) -> list[InferenceDefense]:
        """The defenses that stand before the network."""
        return [d for d in self.defenses if isinstance(d, InferenceDefense)]

    @property
    def rejects(self) -> bool:
        """Whether the defended network may turn an image away."""
        return any(d.rejects for d in self.inference)

    def network(self, module: nn.Module, *, precision: str = "float32", eot: int = 1) -> Network:
        """The defended network as an evaluation asks it."""
        return Network(
            module,
            n_classes=len(self.data.classes),
            device=self.device,
            precision=precision,
            eot=eot,
            max_batch=max(self.batch_size, 1),
            rejects=self.rejects,
            hard_votes=self.voters is not None,
        )

    def defended(self) -> nn.Module:
        """The network behind its defenses, which have learned what they learn."""
        given = None if self.learn_from is None else (self.learn_from.x, self.learn_from.y)
        return wrap_all(self.model.module, self.inference, given)

    @property
    def stated(self) -> Stated:
        """What the defenses state together."""
        return Stated(
            randomized=any(d.randomized for d in self.inference),
            differentiable=all(d.differentiable for d in self.inference),
        )

    @property
    def order(self) -> Tensor:
        """The samples of this run, or of its shard, in order."""
        return shard_of(self.index, self.shard) if self.shard else self.index

    @property
    def draws(self) -> tuple[int, int]:
        """(eot, votes) with their defaults."""
        eot, votes = (EOT_DRAWS, VOTES) if self.stated.randomized else (1, 1)
        if self.stated.randomized and self.attack.eot is not None:
            eot = self.attack.eot
        return self.eot or eot, self.votes or self.voters or votes

    @property
    def voters(self) -> int | None:
        """How many draws vote on a class, by what the defenses state; None: none does."""
        return max((d.votes for d in self.inference if d.votes is not None), default=None)


def check_settings(
    *,
    data: Dataset,
    index: Tensor,
    attack: Attack,
    threat: Threat,
    target: str | int | None,
    seed: int,
    batch_size: int,
    precision: str,
    eot: int | None,
    votes: int | None,
    shard: tuple[int, int] | None,
    max_queries: int | None,
) -> None:
    """Raise UserError for what of a plan is wrong whatever the model is, so that it is told before a training."""
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    for name, value in (("batch_size", batch_size), ("eot", eot), ("votes", votes), ("max_queries", max_queries)):
        if value is not None and _whole(name, value) < 1:
            raise UserError(f"{name} must be >= 1, got {value}")
    check_queries(max_queries, attack, eot or 1, votes or 1)
    if not 0 <= _whole("seed", seed) < 2**63:
        raise UserError(f"seed must be in 0..{2**63 - 1}, got {seed}")
    if not len(index):
        raise UserError("x: expected at least one image, got none")
    if shard is not None and shard[1] > len(index):
        raise UserError(f"shard must be I/N with N at most {len(index)}, the images of the run, got N = {shard[1]}")
    if len(data.classes) < 2:
        raise UserError(f"y: expected labels of at least 2 classes, got {len(data.classes)}")
    threat.check_shape(tuple(data.shape))
    check_target(target, data.classes)
    attacks = attack.attacks if isinstance(attack, WorstCase) else (attack,)
    if target is not None and not attack.targeted:
        cannot = ", ".join(each.name for each in attacks if not each.targeted)
        raise UserError(f"target: attack {cannot} cannot aim at a class; leave it out")
    for each in attacks:
        check_fit_target(each, check_target(target, data.classes))


def check_queries(max_queries: int | None, attack: Attack, eot: int, votes: int) -> None:
    """Raise UserError for a limit of queries under which the attack could not ask once, so that nothing is attacked.

    eot, votes: draws of a randomised network for a query and for a verdict.
    """
    if max_queries is None:
        return
    # Noise and what attacks other networks or learned before hand over a candidate without a query.
    asks = not isinstance(attack, Transfer) and (
        isinstance(attack, Portfolio) or attack.length > (1 if attack.learns else 0)
    )
    least = 2 * votes + (eot if asks else 0)
    if max_queries < least:
        raise UserError(
            f"max_queries must be >= {least}, got {max_queries}: the clean image and the verification take {votes} "
            f"each{f', and one query of the attack {eot}' if asks else ''}"
        )


def _whole(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise UserError(f"{name} must be a whole number, got {value!r}")
    return value


_SETTINGS = tuple(inspect.signature(check_settings).parameters)


class PlanSource:
    """The samples of a plan, read ahead in order and by index, and checked once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.order = plan.order
        self._blocks: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None
        self._next = -1

    def __len__(self) -> int:
        return len(self.order)

    def fetch(self, first: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next samples in order, checked: index, x, y, eps."""
        if self._blocks is None or self._next != first:
            self._blocks = self.plan.data.blocks(self.order[first:], count)
        index, x, y = next(self._blocks)
        self._next = first + len(index)
        check_images(x, y, len(self.plan.data.classes))
        eps = self.plan.threat.each(len(index)) if self.plan.eps is None else self.plan.eps[index]
        return index, x, y, eps

    def images(self, index: Tensor) -> Tensor:
        """The images of these indices, again."""
        return self.plan.data.images(index)


def with_fit_data(plan: Plan) -> Plan:
    """The plan with images to learn from where its attack needs any, checked, and with none where it does not.

    Where none are given they are some of the whole run's own, the same in every shard.
    """
    if not needs_fit(plan.attack, plan.threat):
        return dataclasses.replace(plan, fit=None)
    fit, classes = plan.fit, len(plan.data.classes)
    if fit is None:
        count = len(plan.index)
        chosen = plan.index[torch.linspace(0, count - 1, min(FIT_SAMPLES, count)).long()]
        fit = FitData(plan.data.images(chosen), plan.data.labels[chosen], "the evaluated images")
    if tuple(fit.x.shape[1:]) != tuple(plan.data.shape):
        raise UserError(f"fit_data: expected images of shape {tuple(plan.data.shape)}, got {tuple(fit.x.shape[1:])}")
    check_images(fit.x, fit.y, classes)
    return dataclasses.replace(plan, fit=fit)


def check_images(x: Tensor, y: Tensor, classes: int) -> None:
    """Raise UserError for images that are no float (N, C, H, W) in [0, 1] and for labels outside the classes."""
    if x.ndim != 4 or not x.is_floating_point():
        raise UserError(f"x: expected float images (N, C, H, W), got {x.dtype} {tuple(x.shape)}")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        what = "NaN or infinity" if not torch.isfinite(x).all() else f"values from {low:g} to {high:g}"
        raise UserError(f"x: expected pixels in [0, 1], got {what}; scale images before (uint8: divide by 255)")
    if int(y.min()) < 0 or int(y.max()) >= classes:
        bad = int(y.min()) if int(y.min()) < 0 else int(y.max())
        raise UserError(f"y: expected labels in 0..{classes - 1}, got {bad}")


def shard_suffix(plan: Plan) -> str:
    """What a shard adds to the run's name."""
    return f".shard-{plan.shard[0]}-of-{plan.shard[1]}" if plan.shard else ""
