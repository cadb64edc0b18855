"""Attacks over attacks: parts in turn, each on the samples that those before it left standing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .attack import Attack, Batch, State
from .engine import Engine, Entry, Source, Warm, most_proofs
from .errors import UserError
from .network import Network
from .query import Query
from .rows import concat, per_row, take, to_tensors
from .threat import Threat

_UNKNOWN = 2.0  # `Part.max_distance` from which samples enter of which no adversarial example is known
_CLEAR, _AGREED = 1.12, 1.1  # of `_settled`: from this multiple of eps, and within this factor of each other
_COHORT = 4096  # images at most that wait for the next part, twice in memory


@dataclass(frozen=True)
class Part:
    """An attack of a portfolio, where it begins, and which surviving samples it is run on.

    Rules read one sample only, so that no verdict depends on another sample. A sample that a rule leaves out of one
    part may enter a later one. With a target, and before any part has told how near a sample came, all enter.

    Args:
        attack: The attack.
        hope: The largest margin that enters, as a share of the clean image's margin: the smallest that earlier parts
            of fixed eps reached; 1 for all. Two exceptions. Samples that parts without gradients brought nearer to the
            goal than parts with gradients enter whatever their margin: there the gradient misleads. An attack without
            gradients that begins at the clean image enters only where an earlier one came within twice that share.
        max_distance: The largest distance that enters, in units of eps, of the nearest adversarial example that earlier
            minimum-norm parts found; inf for all. With a finite one `hope` is not asked, and a part that begins anew
            enters only where that example is nearer than ascents promise (`_promised`): elsewhere these do better.
            Samples without such an example enter from 2 on.
        doubted: Whether only samples enter whose distance is in doubt: not those of which ascents and minimum-norm
            parts agree how far the nearest adversarial example is, and that it is clearly beyond eps (`_settled`).
        warm: Where an attack that draws no start of its own begins (`engine.Warm`, `Batch.origin`).
    """

    attack: Attack
    hope: float = 1.0
    max_distance: float = math.inf
    doubted: bool = False
    warm: Warm = ""

    @staticmethod
    def of(part: Attack | Part) -> Part:
        """A part as it is; an attack as one that is for all."""
        return part if isinstance(part, Part) else Part(part)

    @property
    def for_all(self) -> bool:
        """Whether every surviving sample enters."""
        return self.hope >= 1 and math.isinf(self.max_distance) and not self.doubted

    def enters(self, entry: Entry) -> Tensor:
        """Which surviving samples this part is run on, (N,) bool."""
        if self.for_all or entry.targets.shape[1]:
            return torch.ones_like(entry.attacked)
        promising = self._promising(entry)
        return promising & ~_settled(entry) if self.doubted else promising

    def _promising(self, entry: Entry) -> Tensor:
        """Whom `hope` or `max_distance` lets in, (N,) bool; settled samples among them."""
        if math.isfinite(self.max_distance):
            if entry.nearest_distance is None:
                return torch.zeros_like(entry.attacked)
            near = entry.nearest_distance <= self.max_distance * entry.eps.double()
            if self.warm:
                return near
            unknown = torch.isinf(entry.nearest_distance) & (self.max_distance >= _UNKNOWN)
            return (near & (entry.nearest_distance < _promised(entry))) | unknown
        if self.hope >= 1 or entry.ends_missing is None:
            return torch.ones_like(entry.attacked)
        without = entry.ends_missing[:, 1]
        near = entry.ends_missing.amin(1) <= self.hope * entry.margin
        if self.attack.access != "gradient" and not self.warm:
            near &= ~(without.isfinite() & (without > 2 * self.hope * entry.margin))
        return near | _misled(entry)


@dataclass(frozen=True)
class Portfolio(Attack):
    """Base of attacks that are made of others; `parts` says of which, and nothing else is written.

    Each part is run as it would be alone, with the same random numbers, on the samples that all parts before it
    left. A minimal part stops at the first image within eps.

    apart: each part is an attack by itself, as `WorstCase` has them. It begins at the clean image of every survivor,
    whatever the parts before it pruned, draws the random numbers that it would alone, and its passes are counted apart
    (`Entry.turn`, `Entry.turn_calls`). It may be a portfolio.
    """

    apart: ClassVar[bool] = False

    def parts(self, threat: Threat) -> tuple[Attack | Part, ...]:
        """The attacks in their order, at least one; a Part where it is not for all that are left."""
        raise NotImplementedError

    @property
    def length(self) -> int:
        """A portfolio takes no step of its own."""
        return 0

    def calls(self, threat: Threat) -> tuple[int, int] | None:
        """The sum over the parts: what an image costs that stands to the end and is never given up."""
        return self._summed(threat, hopeless=False)

    def least_calls(self, threat: Threat) -> tuple[int, int] | None:
        """The sum over the parts that are for all: what an image costs at least that stands and is given up at once.

        Without those parts that may end before their last step.
        """
        return self._summed(threat, hopeless=True)

    def costs(
        self, threat: Threat, *, eot: int = 1, votes: int = 1, turns: int = 1
    ) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """Forward and backward passes that an image costs which stands, at least and at most; None: not known.

        The clean pass and proofs are among them. eot, votes: draws of a randomised network for a query and for a
        verdict. turns: classes that are aimed at in turn.
        """
        least, most = self.least_calls(threat), self.calls(threat)
        if least is None or most is None:
            return None
        attacks = self._all(threat)
        # Each attempt ends in a proof; one that looks for the nearest may have nothing to prove.
        sure = sum(part.attempts for part in self._for_all(threat) if not part.minimal)
        proofs = sum(attack.attempts * most_proofs(attack) for attack in attacks)
        return (
            (votes + eot * least[0] + votes * sure, eot * least[1]),
            (votes + turns * (eot * most[0] + votes * proofs), turns * eot * most[1]),
        )

    def _all(self, threat: Threat) -> list[Attack]:
        """The attacks of all parts, those of a part that is a portfolio among them."""
        attacks = [part.attack.resolve(threat) for part in map(Part.of, self.parts(threat))]
        return [each for a in attacks for each in (a._all(threat) if isinstance(a, Portfolio) else [a])]

    def _for_all(self, threat: Threat) -> list[Attack]:
        """The attacks of the parts that every surviving sample enters."""
        attacks = [part.attack.resolve(threat) for part in map(Part.of, self.parts(threat)) if part.for_all]
        return [each for a in attacks for each in (a._for_all(threat) if isinstance(a, Portfolio) else [a])]

    def _summed(self, threat: Threat, *, hopeless: bool) -> tuple[int, int] | None:
        if hopeless:
            attacks = [attack for attack in self._for_all(threat) if not attack.ends_early]
        else:
            attacks = self._all(threat)
        every = [attack.calls(threat) for attack in attacks]
        known = [calls for calls in every if calls is not None]
        return (sum(f for f, _ in known), sum(b for _, b in known)) if len(known) == len(every) else None

    def start(self, query: Query, batch: Batch) -> State:
        """Refused: its parts are driven one by one."""
        raise UserError(f"attack {self.name}: a portfolio of attacks cannot stand here; give one of its parts")

    def step(self, query: Query, batch: Batch, state: State) -> State:
        """As start."""
        raise UserError(f"attack {self.name}: a portfolio of attacks cannot stand here; give one of its parts")


def engine_for(
    attack: Attack, network: Network, source: Source, *, threat: Threat, resolve: bool = True, **settings: Any
) -> Engine | Chain:
    """What drives this attack: an engine, or a chain of them; `settings` are those of Engine.

    resolve=False: samples have an eps of their own, so that parts leave open what depends on it, as an attack does
    that comes so.
    """
    if isinstance(attack, Portfolio):
        return Chain(attack, network, source, threat=threat, resolve=resolve, **settings)
    return Engine(attack, network, source, threat=threat, **settings)


class Link(NamedTuple):
    """A part of a chain.

    tag: sets its random numbers apart from those of an earlier part of the same name. turn: which of several attacks it
    belongs to, from 0. path: the prefix of what it learned.
    """

    part: Part
    tag: str = ""
    turn: int = 0
    path: str = ""


def links(attack: Portfolio, threat: Threat, *, resolve: bool = True, path: str = "") -> list[Link]:
    """The parts of a portfolio in their order, and in place of a portfolio among them its parts.

    resolve=False leaves defaults that depend on eps open.
    """
    found: list[Link] = []
    names: list[str] = []
    for number, part in enumerate(map(Part.of, attack.parts(threat))):
        here, turn = f"{path}{number}.", number if attack.apart else 0
        if isinstance(part.attack, Portfolio):
            inner = links(part.attack, threat, resolve=resolve, path=here)
            found += [link._replace(turn=turn) for link in inner]
            continue
        # A part that comes a second time gets random numbers of its own; the first has those it would have alone.
        again = 0 if attack.apart else names.count(part.attack.name)
        names.append(part.attack.name)
        made = replace(part, attack=part.attack.resolve(threat)) if resolve else part
        found.append(Link(made, f" again {again}" if again else "", turn, here))
    return found


class Chain:
    """Engines one after another over the samples, in cohorts small enough that those who wait fit into memory.

    The same interface as an engine: finished samples come out of `run`, and between two of them it may be stored.
    """

    def __init__(
        self,
        attack: Portfolio,
        network: Network,
        source: Source,
        *,
        threat: Threat,
        learned: Mapping[str, Tensor] | None = None,
        resolve: bool = True,
        **settings: Any,
    ) -> None:
        self.network = network
        self.source = source
        self.threat = threat
        self.settings = settings
        self.learned = learned or {}
        # Whole batches: a source reads them ahead.
        batch = int(settings.get("batch_size", 256))
        self.size = -(-max(1, min(_COHORT, len(source))) // batch) * batch
        self.parts = tuple(links(attack, threat, resolve=resolve))
        self.turns = 1 + self.parts[-1].turn if attack.apart else 0  # attacks whose passes are counted apart
        self.first = 0  # of the present cohort
        self.part = 0
        self.left: dict[int, list[Entry]] = {}  # who waits, by the part that is next for them
        self.engine = self._engine(None)

    def run(self) -> Iterator[tuple[Entry, Tensor]]:
        """Finished samples with their clean images after each step, possibly none."""
        while True:
            last = self.part + 1 == len(self.parts)
            for entry, x in self.engine.run():
                entry = self._counted(entry)
                if last or not len(entry.y):
                    yield _bare(entry), x
                    continue
                entry = _with_ends(entry, x, self.parts[self.part].part)
                goes = self._next(entry)
                for part in torch.unique(goes).tolist():
                    if part < len(self.parts):
                        fresh = _fresh(take(entry, goes == part), x[goes == part])
                        same = self.parts[part].turn == self.parts[self.part].turn
                        self.left.setdefault(part, []).append(fresh if same else _bare(fresh))
                over = goes == len(self.parts)
                yield _bare(take(entry, over)), x[over]
            if self.left:
                self.part = min(self.left)
                self.engine = self._engine(concat(self.left.pop(self.part)))
                continue
            self.first += len(self._cohort)
            if self.first >= len(self.source):
                return
            self.part = 0
            self.engine = self._engine(None)

    def _next(self, entry: Entry) -> Tensor:
        """Which part is next for each sample, (N,) int64; one past the last for who is finished."""
        goes = torch.full_like(entry.y, len(self.parts))
        # A ball of size 0 holds nothing but the image.
        standing = entry.attacked & ~entry.success & (entry.eps > 0) & ~self.engine.spent(entry.forwards)
        turn = self.parts[self.part].turn
        # Another attack knows nothing of what those before it found.
        last = next((n for n in range(self.part + 1, len(self.parts)) if self.parts[n].turn != turn), len(self.parts))
        if last < len(self.parts):
            goes = torch.where(standing, last, goes)
        for number in range(last - 1, self.part, -1):
            goes = torch.where(standing & self.parts[number].part.enters(entry), number, goes)
        return goes

    def _counted(self, entry: Entry) -> Entry:
        """With the passes of the present part added to those of its attack; as it is where none are counted apart."""
        if not self.turns:
            return entry
        turn, calls = entry.turn, entry.turn_calls
        if turn is None or calls is None:
            turn, calls = torch.full_like(entry.y, -1), entry.y.new_zeros((len(entry.y), self.turns, 2))
        present = self.parts[self.part].turn
        # What a sample cost before its first attack is its clean pass.
        known = calls.sum(1) + calls.new_tensor([self.engine.votes, 0])
        more = torch.stack([entry.forwards, entry.backwards], 1) - known
        calls = calls.index_add(1, turn.new_tensor([present]), more.unsqueeze(1))
        tried = entry.attacked & ((entry.eps > 0) | self.parts[self.part].part.attack.minimal)
        return replace(entry, turn=torch.where(tried, present, turn), turn_calls=calls)

    @property
    def under_way(self) -> float:
        """What was done for samples that are not finished: the present part's share of the whole."""
        waiting = 0 if self.engine.waiting is None else len(self.engine.waiting.y)
        active = 0 if self.engine.active is None else len(self.engine.active.entry.y)
        behind = sum(part * len(entry.y) for part, entries in self.left.items() for entry in entries)
        done = (waiting + active) * self.part + behind + self.engine.under_way
        return done / len(self.parts)

    @property
    def _cohort(self) -> _Slice:
        return _Slice(self.source, self.first, self.size)

    def _engine(self, waiting: Entry | None) -> Engine:
        part, tag, _, own = self.parts[self.part]
        cohort = self._cohort
        learned = {name.removeprefix(own): tensor for name, tensor in self.learned.items() if name.startswith(own)}
        given: dict[str, Any] = {"threat": self.threat, "within": True, "warm": part.warm, "tag": tag}
        given |= {"learned": learned, **self.settings}
        engine = Engine(part.attack, self.network, cohort, **given)
        if waiting is not None:
            engine.waiting, engine.cursor = waiting, len(cohort)
        return engine

    def snapshot(self) -> dict[str, Tensor]:
        """Everything needed to go on, as tensors."""
        stored = self.engine.snapshot() | {"chain": torch.tensor([self.first, self.part])}
        for part, entries in self.left.items():
            kept = to_tensors(concat(entries))
            # Their images are the clean ones, which the source has.
            names = [name for name in kept if name not in ("adversarial", "claim")]
            stored |= {f"left.{part}.{name}": kept[name].detach().cpu().clone().contiguous() for name in names}
        return stored

    def restore(self, stored: dict[str, Tensor]) -> None:
        """Go on where a snapshot was taken."""
        self.first, self.part = (int(n) for n in stored["chain"])
        self.engine = self._engine(None)
        waiting = ((part, self.engine.stored_entry(stored, f"left.{part}.")) for part in range(len(self.parts)))
        self.left = {part: [entry] for part, entry in waiting if entry is not None}
        self.engine.restore(stored)


@dataclass
class _Slice:
    """One cohort of a source."""

    source: Source
    first: int
    size: int

    def __len__(self) -> int:
        return min(self.size, len(self.source) - self.first)

    def fetch(self, first: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next samples of the cohort."""
        return self.source.fetch(self.first + first, count)

    def images(self, index: Tensor) -> Tensor:
        """The images of these indices."""
        return self.source.images(index)


def _promised(entry: Entry) -> Tensor:
    """The distance at which gradient ascents would reach the goal, were the margin to fall on linearly, (N,)."""
    if entry.ends_missing is None:
        return torch.full_like(entry.margin, torch.inf)
    fallen = (entry.margin - entry.ends_missing[:, 0]).clamp_min(0)
    return entry.eps.double() * entry.margin / fallen


def _settled(entry: Entry) -> Tensor:
    """Where two families agree how far the nearest adversarial example is, and that it is beyond eps, (N,) bool.

    The one found it, the other promises it. A network that masks its gradients does so for the ascents alone.
    """
    if entry.nearest_distance is None:
        return torch.zeros_like(entry.attacked)
    nearest, promised = entry.nearest_distance, _promised(entry)
    near, far = torch.minimum(nearest, promised), torch.maximum(nearest, promised)
    return (near > _CLEAR * entry.eps.double()) & (far < _AGREED * near)


def _misled(entry: Entry) -> Tensor:
    """Who came nearer to the goal without gradients than with them, (N,) bool."""
    assert entry.ends_missing is not None
    with_gradient, without, _ = entry.ends_missing.unbind(1)
    return (without < with_gradient) & with_gradient.isfinite()


def _bare(entry: Entry) -> Entry:
    """A sample that leaves the chain, without what only parts need to know."""
    return replace(entry, ends=None, ends_missing=None, nearest=None, nearest_distance=None)


def _with_ends(entry: Entry, x: Tensor, part: Part) -> Entry:
    """With what this part ended at, where that is nearer to the goal; a minimal one looks elsewhere."""
    known = entry.ends_missing
    if known is None:
        known = torch.full((len(entry.y), len(Entry.SOURCES)), torch.inf, dtype=torch.float64, device=entry.y.device)
    ends = entry.adversarial if entry.ends is None else entry.ends
    if not part.attack.minimal:
        better = entry.missing < known.amin(1)
        ends = torch.where(per_row(better, ends), entry.adversarial, ends)
        # A search that began where a gradient had led is no witness against it.
        source = "gradient" if part.warm or part.attack.access == "gradient" else "search"
        column = torch.full_like(entry.y, Entry.SOURCES.index("nearest" if part.warm == "nearest" else source))
        if part.warm == "margin":
            # What begins where a part from the nearest example ended goes on from there.
            column = torch.where(known[:, 2] < known[:, :2].amin(1), 2, column)
        lower = torch.minimum(known.gather(1, column.unsqueeze(1)), entry.missing.unsqueeze(1))
        known = known.scatter(1, column.unsqueeze(1), lower)
    if entry.nearest is None:
        entry = replace(entry, nearest=x, nearest_distance=torch.full_like(entry.missing, torch.inf))
    return replace(entry, ends=ends, ends_missing=known)


def _fresh(entry: Entry, x: Tensor) -> Entry:
    """Survivors as the next part shall find them: the clean image, no attempt taken; what they cost is kept."""
    zero = torch.zeros_like(entry.attempt)
    far = torch.full_like(entry.missing, float("inf"))
    return replace(
        entry,
        attempt=zero,
        success=torch.zeros_like(entry.success),
        success_step=zero - 1,
        success_attempt=zero - 1,
        proved=torch.zeros_like(entry.proved),
        adversarial=x,
        adversarial_prediction=entry.prediction,
        adversarial_margin=entry.margin,
        missing=far,
        claim=x,
        claim_step=zero - 1,
        claim_distance=far,
    )
