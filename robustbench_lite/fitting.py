"""What an attack learns before its samples are attacked one by one: from which images, at what cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .attack import Attack, Batch, ball_of
from .errors import RblError, UserError
from .models.identity import tensors_sha256
from .network import Network
from .portfolio import Part, Portfolio
from .query import Query
from .registry import guard
from .streams import Stream, content_hashes
from .threat import Threat

FIT_SAMPLES = 512
FIT_ROWS = 64  # images of one pass while fitting, at any batch size of the run: it must not change what is learned


@dataclass(frozen=True)
class FitData:
    """Images to learn from: x (N, C, H, W) in [0, 1], y (N,) int64; origin: where they are from, for the record."""

    x: Tensor = field(repr=False)
    y: Tensor = field(repr=False)
    origin: str = "given"

    def __post_init__(self) -> None:
        if self.x.ndim != 4 or not len(self.x) or self.y.shape != (len(self.x),):
            raise UserError(
                "fit_data: expected at least one image (N, C, H, W) and a label for each, "
                f"got {tuple(self.x.shape)} and {tuple(self.y.shape)}"
            )

    @property
    def record(self) -> dict[str, Any]:
        """What a run's record says of it."""
        sha256 = tensors_sha256({"x": self.x.float(), "y": self.y.long()})
        return {"images": len(self.x), "origin": self.origin, "sha256": sha256}


@dataclass(frozen=True)
class Fit:
    """What was learned, as named tensors, and the passes and the time that it took."""

    learned: Mapping[str, Tensor]
    forwards: int = 0
    backwards: int = 0
    seconds: float = 0.0


class FitQuery(Query):
    """A query that calls `asked` before each question, so that a long fit can be stopped."""

    asked: Callable[[], None] | None = None

    def _ask(self, ask: Any, x: Tensor, rows: Tensor | None, *per_row: Tensor | None) -> list[Tensor]:
        if self.asked is not None:
            self.asked()
        return super()._ask(ask, x, rows, *per_row)


def needs_fit(attack: Attack, threat: Threat) -> bool:
    """Whether the attack, or a part of it, has something to learn."""
    if isinstance(attack, Portfolio):
        return any(needs_fit(Part.of(part).attack, threat) for part in attack.parts(threat))
    return attack.learns


def fit_attack(
    attack: Attack,
    network: Network,
    data: FitData,
    *,
    threat: Threat,
    target: str | int | None = None,
    seed: int = 0,
    asked: Callable[[], None] | None = None,
) -> Fit:
    """Let the attack learn; of a portfolio each part, whose tensors are then named `PART.NAME`, counted from 0.

    target: as `check_target` returns it; the attack is told of one that is a class. Random numbers belong to the
    images, and to the seed.
    Raises UserError for a target that the attack cannot learn for, and for what is no dictionary of tensors.
    """
    if isinstance(attack, Portfolio):
        parts = [Part.of(part).attack.resolve(threat) for part in attack.parts(threat)]
        fits = [
            fit_attack(part, network, data, threat=threat, target=target, seed=seed, asked=asked)
            if needs_fit(part, threat)
            else Fit({})
            for part in parts
        ]
        return Fit(
            {f"{k}.{name}": tensor for k, fit in enumerate(fits) for name, tensor in fit.learned.items()},
            forwards=sum(fit.forwards for fit in fits),
            backwards=sum(fit.backwards for fit in fits),
            seconds=sum(fit.seconds for fit in fits),
        )
    check_fit_target(attack, target)
    began, device = time.monotonic(), network.device
    x, y = data.x.to(device), data.y.to(device)
    zero = torch.zeros_like(y)
    stream = Stream.of(content_hashes(data.x), seed=seed, device=device)
    aim = torch.full_like(y, target) if isinstance(target, int) else None
    batch = Batch(ball_of(attack, threat, x), y, aim, zero, stream.child(f"attack {attack.name} fit"), zero)
    query = FitQuery(
        network,
        batch,
        access=attack.access,
        asker=f"attack {attack.name}",
        noise=stream,
        forwards=zero,
        low=torch.zeros_like(y, dtype=torch.bool),
        watch=False,
    )
    query.asked = asked
    try:
        learned = attack.fit(query, batch.handed())
    except RblError:
        raise
    except Exception as error:
        raise guard(f"attack {attack.name}: fit", error) from error
    _check(attack, learned)
    kept = {name: tensor.detach().clone().contiguous() for name, tensor in learned.items()}
    return Fit(kept, int(query.forwards.sum()), int(query.backwards.sum()), time.monotonic() - began)


def check_fit_target(attack: Attack, target: str | int | None) -> None:
    """Raise UserError where what is learned hangs on the class aimed at, and the target is not one class."""
    if attack.one_target and isinstance(target, str):
        raise UserError(
            f"target: attack {attack.name} learns once for all images, so it aims at one class; give a class, "
            f"got {target!r}"
        )


def _check(attack: Attack, learned: object) -> None:
    if not isinstance(learned, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in learned.items()
    ):
        raise UserError(f"attack {attack.name}: fit must return a dictionary of tensors by name, got {learned!r:.80}")
