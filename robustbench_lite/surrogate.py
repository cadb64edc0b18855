"""Transfer: an attack on other networks, the surrogates, whose end is judged on the network under test."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from .attack import Access, Attack, Batch, State
from .errors import UserError
from .fitting import FIT_ROWS, FitQuery
from .foreign import ask
from .network import Network, Noise, frozen, placed
from .portfolio import Portfolio
from .query import Query
from .streams import Stream
from .threat import Ball, Threat
from .worst_case import WorstCase

if TYPE_CHECKING:
    from .models import LoadedModel

PREFIX = "transfer:"
Ensemble = Literal["logits", "loss"]


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A network that is attacked in place of the one under test; what a record says of it stands beside it.

    module: pixels (N, C, H, W) in [0, 1] to logits (N, K). sha256: of its weights; layout_sha256: of how it prints
    itself; source_sha256: of the file with a user's own network.
    """

    module: nn.Module
    name: str
    sha256: str
    layout_sha256: str
    source_sha256: str | None = None

    @classmethod
    def of(cls, model: LoadedModel) -> Self:
        """A network as it was loaded."""
        from .models.identity import layout_sha256

        return cls(model.module, model.name, model.sha256, layout_sha256(model.module), model.source_sha256)

    @classmethod
    def promised(cls, name: str) -> Self:
        """One that is not loaded yet, so that what is wrong with the rest is told before a training."""
        return cls(nn.Identity(), name, "", "")

    def record(self) -> dict[str, str | None]:
        """What tells it from others."""
        return {name: getattr(self, name) for name in ("name", "sha256", "layout_sha256", "source_sha256")}


class MeanLogits(nn.Module):
    """Several networks as one: the mean of their logits (Liu et al. 2017, arXiv:1611.02770, fused before the loss)."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K). Raises UserError where the members differ in K."""
        logits = [ask(member, x).float() for member in self.members]
        if len({tuple(each.shape) for each in logits}) > 1:
            counts = ", ".join(str(tuple(each.shape)) for each in logits)
            raise UserError(f"surrogates: expected logits of one shape from each, got {counts}")
        return torch.stack(logits).mean(0)


class MeanLoss(Network):
    """Several networks as one whose gradient is that of the mean of their losses; its logits are the mean logits."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__(MeanLogits(members))
        self.members = [Network(member) for member in members]

    def gradient(
        self, x: Tensor, noise: Noise, loss: Callable[..., Tensor], *rows: Tensor | None, low: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As Network.gradient, the mean over the networks."""
        gradients, logits = [], []
        for member in self.members:
            member.n_classes, member.device = self.n_classes, self.device
            member.block, member.max_batch = self.block, self.max_batch
            gradient, answer = member.gradient(x, noise, loss, *rows, low=low)
            gradients.append(gradient)
            logits.append(answer)
            self.n_classes = member.n_classes
        return torch.stack(gradients).mean(0), torch.stack(logits).mean(0)


@dataclass(frozen=True)
class TransferState(State):
    """`inner`: the state of the attack on the surrogates; passes: (N,) forward passes through them."""

    inner: State
    passes: Tensor


@dataclass(frozen=True)
class Transfer(Attack):
    """Another attack carried out on surrogates; its last candidate is judged on the network under test.

    Black-box attack through a substitute (Papernot et al. 2016, arXiv:1605.07277). Of the network under test it asks
    nothing but the verdict: one pass a restart, the engine's proof. Restarts of the inner attack are tried until one
    fools the network under test, so with several the attacker learns that many verdicts.

    inner: any attack of fixed eps. surrogates: at least one, in evaluation mode while the attack runs. ensemble: of
    several, "logits" ascends the loss of the mean logits, "loss" the mean of the losses (`ce` as log-odds, so that a
    surrogate that is fooled already pulls on); what else the inner attack asks (labels, logits) is answered by the
    mean logits.

    Every sample takes every step: an image that has just crossed the surrogate's boundary seldom crosses another.
    `finished` of the inner attack is for the same reason not asked. A minimal attack is refused, as it ends at that
    boundary, and a portfolio too: give one of its parts. Passes through surrogates are counted nowhere in the
    record: `forwards` are passes of the network under test. A surrogate that is random is asked one draw at a time.
    """

    name: ClassVar[str] = "transfer"
    summary: ClassVar[str] = "another attack, carried out on surrogates"
    source: ClassVar[str] = "Papernot et al. 2016, arXiv:1605.07277"
    access: ClassVar[Access] = "label"

    inner: Attack
    surrogates: tuple[Surrogate, ...]
    ensemble: Ensemble = "logits"
    network: Network = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        inner = self.inner
        if isinstance(inner, Transfer):
            raise UserError(f"attack {PREFIX}{inner.name}: a transfer of a transfer is one; give {inner.name}")
        name = f"{PREFIX}{inner.name}"
        if isinstance(inner, Portfolio):
            raise UserError(f"attack {name}: {inner.name} is a portfolio of attacks; give one of its parts")
        if inner.minimal:
            raise UserError(
                f"attack {name}: {inner.name} is minimal and ends at the surrogate's boundary, whence nothing "
                f"transfers; give an attack of fixed eps, such as {PREFIX}pgd"
            )
        if not self.surrogates:
            raise UserError(f"attack {name}: expected at least one surrogate, got none; give --surrogate MODEL")
        if self.ensemble not in ("logits", "loss"):
            raise UserError(f"ensemble must be one of logits, loss, got {self.ensemble!r}")
        modules = [surrogate.module for surrogate in self.surrogates]
        if len(modules) == 1:
            network = Network(modules[0])
        else:
            network = Network(MeanLogits(modules)) if self.ensemble == "logits" else MeanLoss(modules)
        # What the class says of an attack is here said by the one inside.
        said = {key: getattr(inner, key) for key in ("norms", "targeted", "own_limits", "persists", "one_target")}
        for key, value in {**said, "name": name, "network": network}.items():
            object.__setattr__(self, key, value)

    @property
    def length(self) -> int:
        """As the inner attack."""
        return self.inner.length

    @property
    def attempts(self) -> int:
        """As the inner attack."""
        return self.inner.attempts

    def ball(self, threat: Threat, x: Tensor, eps: Tensor | None = None) -> Ball:
        """As the inner attack."""
        return self.inner.ball(threat, x, eps)

    def resolve(self, threat: Threat) -> Self:
        """With the inner attack resolved; itself where it is, so that its networks stay as they were made ready."""
        inner = self.inner.resolve(threat)
        return self if inner == self.inner else replace(self, inner=inner)

    @property
    def learns(self) -> bool:
        """As the inner attack."""
        return self.inner.learns

    def fit(self, query: Query, batch: Batch) -> dict[str, Tensor]:
        """What the inner attack learns from the surrogates; it can be stopped as one that learns from the network."""
        network = copy.copy(self.network)
        network.max_batch = FIT_ROWS
        own = self._query(network, batch, torch.zeros_like(batch.y), FitQuery)
        if isinstance(own, FitQuery) and isinstance(query, FitQuery):
            own.asked = query.asked
        return self.inner.fit(own, batch)

    def start(self, query: Query, batch: Batch) -> TransferState:
        """The inner attack's start on the surrogates."""
        return self._moved(batch, torch.zeros_like(batch.y), lambda own: self.inner.start(own, batch))

    def step(self, query: Query, batch: Batch, state: TransferState) -> TransferState:  # type: ignore[override]
        """One step of the inner attack on the surrogates."""
        return self._moved(batch, state.passes, lambda own: self.inner.step(own, batch, state.inner))

    def _moved(self, batch: Batch, passes: Tensor, move: Callable[[Query], State]) -> TransferState:
        own = self._query(self.network, batch, passes)
        inner = move(own)
        return TransferState(inner.candidate, inner, own.forwards)

    def _query(self, network: Network, batch: Batch, passes: Tensor, kind: type[Query] = Query) -> Query:
        return kind(
            network,
            batch,
            access=self.inner.access,
            asker=f"attack {self.name}",
            noise=batch.stream.child("surrogate"),
            forwards=passes,
            low=torch.zeros_like(batch.y, dtype=torch.bool),
            watch=False,
        )

    def option(self, name: str) -> Any:
        """The value of an option as the user knows it: its own, or the inner attack's."""
        return self.ensemble if name == "ensemble" else getattr(self.inner, name)


def networks_beside(attack: Attack) -> tuple[Network, ...]:
    """The networks that an attack asks beside the one under test."""
    return tuple(transfer.network for transfer in transfers(attack))


def transfers(attack: Attack) -> tuple[Transfer, ...]:
    """The attack where it is a transfer; of several attacks, those that are."""
    several = attack.attacks if isinstance(attack, WorstCase) else (attack,)
    return tuple(each for each in several if isinstance(each, Transfer))


@contextlib.contextmanager
def surrogates_ready(
    attack: Attack, *, n_classes: int, shape: tuple[int, ...], device: torch.device | str, max_batch: int
) -> Iterator[None]:
    """Within: the surrogates of a transfer attack are on the device and frozen; then as they were found.

    Raises UserError for a surrogate with another number of classes, PluginError for one that raises.
    """
    with contextlib.ExitStack() as stack:
        for surrogate in dict.fromkeys(each for transfer in transfers(attack) for each in transfer.surrogates):
            stack.enter_context(placed(surrogate.module, device))
            stack.enter_context(frozen(surrogate.module))
            _check_classes(surrogate, n_classes, torch.zeros((1, *shape), device=device))
        for network in networks_beside(attack):
            network.n_classes, network.device = n_classes, torch.device(device)
            network.block, network.max_batch = None, max_batch
        yield


def _check_classes(surrogate: Surrogate, n_classes: int, x: Tensor) -> None:
    row = torch.zeros(1, dtype=torch.int64, device=x.device)
    count = Network(surrogate.module).logits(x, Noise(Stream(row), row)).shape[1]
    if count != n_classes:
        raise UserError(
            f"surrogate {surrogate.name}: expected {n_classes} logits as the data have classes, got {count}"
        )
