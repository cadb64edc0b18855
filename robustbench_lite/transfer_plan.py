"""A matrix of who fools whom before it is computed: everything that decides it, and what its record will say."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .attack import Attack
from .data.dataset import Dataset
from .environment import environment_record
from .errors import UserError
from .fitting import FitData
from .options import option_types
from .perturbation import make_attack
from .plan import check_settings
from .surrogate import PREFIX, Surrogate, Transfer
from .threat import Threat

if TYPE_CHECKING:
    from .models import LoadedModel

NOISE = "noise"


@dataclass(frozen=True)
class TransferPlan:
    """Everything that decides a matrix.

    models: the networks by name. index: positions in `data` of the images. fit: as in a Plan.
    """

    models: Mapping[str, LoadedModel]
    data: Dataset
    index: Tensor
    attack: str | Attack
    threat: Threat
    attack_options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch_size: int = 256
    device: str = "cpu"
    deterministic: bool = False
    fit: FitData | None = None

    def __post_init__(self) -> None:
        check_names(self.models)
        check_settings(
            data=self.data,
            index=self.index,
            attack=self.carried(Surrogate.promised("")),
            threat=self.threat,
            target=None,
            seed=self.seed,
            batch_size=self.batch_size,
            precision="float32",
            eot=None,
            votes=None,
            shard=None,
            max_queries=None,
        )

    def carried(self, surrogate: Surrogate) -> Transfer:
        """The attack, carried out on a surrogate."""
        return carried(self.attack, self.attack_options, self.threat, surrogate)


def check_names(models: Mapping[str, object]) -> None:
    """Raise UserError unless there is a model, each has a name, and none is called as the control is."""
    if not isinstance(models, Mapping) or not models:
        raise UserError(f"models: expected at least one network by name, got {models!r:.80}")
    for name in models:
        if not isinstance(name, str) or not name or name == NOISE:
            raise UserError(f"models: expected names other than {NOISE!r}, which is the control's, got {name!r}")


def carried(spec: str | Attack, options: Mapping[str, Any] | None, threat: Threat, surrogate: Surrogate) -> Transfer:
    """The attack that `spec` names, as `make_attack` makes it, carried out on a surrogate.

    Raises UserError for what `Transfer` refuses, and for an attack with limits of its own, which no noise equals.
    """
    if isinstance(spec, str):
        name = spec if spec.startswith(PREFIX) else f"{PREFIX}{spec}"
        made = make_attack(name, options, threat, surrogates=[surrogate])
    else:
        made = Transfer(make_attack(spec, options, threat), (surrogate,))
    assert isinstance(made, Transfer)
    if made.own_limits:
        raise UserError(
            f"attack {made.inner.name}: it has limits of its own, so no noise of the same size can stand beside it; "
            "give an attack within a norm, such as pgd"
        )
    return made


def specification_of(plan: TransferPlan, attacks: Mapping[str, Transfer], findings: list[str]) -> dict[str, Any]:
    """What was computed on what, as plain JSON."""
    from . import __version__

    inner = next(iter(attacks.values())).inner
    models = [
        {
            **attacks[name].surrogates[0].record(),
            "name": name,
            "model": model.name,
            "parameters": model.parameters,
            "weights": model.weights,
            "recipe": model.recipe,
        }
        for name, model in plan.models.items()
    ]
    return {
        "version": __version__,
        "models": models,
        "dataset": {
            "name": plan.data.name,
            "split": plan.data.split,
            "fingerprint": plan.data.fingerprint,
            "classes": len(plan.data.classes),
            "shape": list(plan.data.shape),
            "samples": len(plan.index),
        },
        "attack": {
            "name": inner.name,
            "options": {name: getattr(inner, name) for name in plan.attack_options if hasattr(inner, name)},
            "resolved": {name: getattr(inner, name) for name in option_types(type(inner))},
            **({} if plan.fit is None else {"fit": plan.fit.record}),
        },
        "threat": {name: getattr(plan.threat, name) for name in ("norm", "eps", "low", "high")},
        "seed": plan.seed,
        "deterministic": plan.deterministic,
        "batch_size": plan.batch_size,
        "device": plan.device,
        "environment": dataclasses.asdict(environment_record()),
        "warnings": findings,
    }
