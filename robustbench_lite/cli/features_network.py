"""The network whose features `rbl features` uses, as its commands are told of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..data import Dataset
    from ..data_request import DataRequest
    from ..defense import Defense
    from ..models import LoadedModel, Normalization


def training_defenses(
    defense: list[str] | None,
    options: list[str] | None,
    way_out: str = "a network's own features are what is used here",
) -> tuple[Defense, ...]:
    """The defenses that a network is trained with. UserError for one that stands before a network."""
    from ..defense import InferenceDefense
    from ..errors import UserError
    from ..prepare import make_defenses

    made = make_defenses(defense or [], options or [])
    if standing := [d.name for d in made if isinstance(d, InferenceDefense)]:
        raise UserError(f"--defense: {standing[0]} trains nothing; {way_out}")
    return tuple(made)


def network_of(
    model: str,
    request: DataRequest,
    test: Dataset,
    *,
    weights: str | None,
    defenses: Sequence[Defense],
    epochs: int | None,
    device: str,
    normalize: Normalization | None = None,
) -> LoadedModel:
    """The network, trained where it must be, with a bar on the way."""
    from ..prepare import prepare_model
    from .terminal import note, training_bar

    with training_bar(f"training {model}") as bar:
        return prepare_model(
            model,
            request,
            test,
            weights=weights,
            defenses=defenses,
            recipe={} if epochs is None else {"epochs": epochs},
            device=device,
            progress=bar,
            note=note,
            normalize=normalize,
        )
