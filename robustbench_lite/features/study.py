"""What decides a report: networks, constructions, the fresh networks' recipe, and the attack on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..data import balanced_subset
from ..data.dataset import Dataset
from ..data_request import DataRequest
from ..errors import UserError, unknown_name
from ..halves import part_of
from ..options import option_types
from ..perturbation import make_attack
from ..plan import make_threat
from .construction import Construction, make_construction

if TYPE_CHECKING:
    from ..defense import Defense
    from ..models import Normalization

# What a fresh network trains with where nothing else is said: a high learning rate learns nothing from D_rand.
RECIPE: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 0.001,
    "weight_decay": 0.01,
    "augment": "none",
    "epochs": 20,
}


def part(whole: Dataset, samples: int) -> Dataset:
    """A class-balanced part of `samples` images; the data set itself where it has no more."""
    if samples >= len(whole):
        return whole
    return part_of(whole, balanced_subset(whole.labels, samples), split=f"{whole.split}, {samples} of it")


@dataclass(frozen=True)
class Study:
    """All that decides a report.

    model: of the networks whose features are used and of the fresh ones. request: the data set. constructions: made
    with networks trained on the whole training set: `standard` and `robust` (by `defenses`), for `source_epochs`, and
    `early` (one epoch on `early_samples` images). samples: training images that are made into others; the data
    themselves are as many, errors those of all training images. recipe: of the fresh networks. seeds: how many of them
    for each data set; the first has seed + 1, so that none begins with the weights of a network whose features are
    used.
    normalize: put before every network (`load_model`).
    attack, norm, eps, attack_options: for robust accuracy, on `robust_samples` test images.
    """

    model: str
    request: DataRequest
    constructions: tuple[Construction, ...]
    defenses: tuple[Defense, ...]
    samples: int | None = None
    early_samples: int | None = None
    source_epochs: int | None = None
    seeds: int = 3
    seed: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)
    attack: str = "pgd"
    norm: str = "l2"
    eps: float | str | None = None
    attack_options: Mapping[str, Any] = field(default_factory=dict)
    robust_samples: int = 1000
    batch_size: int = 256
    device: str = "cpu"
    normalize: Normalization | None = None

    def __post_init__(self) -> None:
        for name in ("seeds", "robust_samples", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("samples", "early_samples", "source_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        threat = make_threat(self.norm, self.eps)
        make_attack(self.attack, self.attack_options, threat)


def constructions_of(kinds: Sequence[str], options: Mapping[str, str]) -> tuple[Construction, ...]:
    """The constructions of these names; an option goes to each that has it, `KIND.KEY` to the one named.

    Raises UserError for a name that is unknown or given twice, and for an option that none has.
    """
    if len(set(kinds)) < len(kinds):
        raise UserError(f"--kinds: expected different ones, got {', '.join(kinds)}")
    known = {kind: option_types(type(make_construction(kind))) for kind in kinds}
    given: dict[str, dict[str, str]] = {kind: {} for kind in kinds}
    for name, value in options.items():
        owner, dot, key = name.rpartition(".")
        if dot and owner not in known:
            raise unknown_name("--option", owner, kinds)
        takers = [kind for kind in kinds if key in known[kind] and owner in ("", kind)]
        if not takers:
            raise UserError(f"--option: none of {owner or ', '.join(kinds)} has the option {key!r}")
        for kind in takers:
            if dot or key not in given[kind]:  # what is said of one holds against what is said of all
                given[kind][key] = value
    return tuple(make_construction(kind, given[kind]) for kind in kinds)
