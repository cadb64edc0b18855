"""One engine drives every attack: the active set, restarts, exact counts, and the proof of each success."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from .attack import Attack, Batch, State, ball_of
from .errors import UserError
from .losses import margin
from .network import Network, Noise
from .query import Query
from .registry import guard
from .rows import concat, from_tensors, per_row, put, take, to_tensors, with_fields
from .streams import Stream, content_hashes, hash_rows
from .targets import order_targets
from .threat import Ball, Threat

# The last part of a search in lower precision is done in float32: bf16 gradients alone find less.
_LOW_SHARE = 0.85
_PROVE_EVERY = 4

# Where a part of a portfolio begins: at the clean image (""), at the image of largest margin that earlier parts ended
# at, or at their nearest adversarial example, projected into the ball unless the part is a minimal attack.
Warm = Literal["", "margin", "nearest"]


class Source(Protocol):
    """Where samples come from: some order of them, and the images of any."""

    def __len__(self) -> int:
        """How many samples there are."""

    def fetch(self, first: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The next samples in order: index (n,), x (n, C, H, W), y (n,), eps (n,); n <= count."""

    def images(self, index: Tensor) -> Tensor:
        """The images of these indices, again."""


@dataclass(frozen=True)
class Entry:
    """What the engine knows of each sample; every field is a tensor with one row a sample.

    content: SHA-256 of the image as bytes (N, 32). key: of its stream of random numbers. targets: classes
    to aim at in turn (N, T). `adversarial` and what follows: the best image so far, and what verification
    said of it; proved: whether it had a pass of its own. missing: by how much it misses the goal, in logits.
    claim: an image that waits for its proof, claim_step: at which step it was seen, -1 for none;
    claim_distance: how far it is, where nearer is better. ends: in a portfolio the image nearest to the goal of
    those that earlier parts ended at; ends_missing: (N, 3) by how much the best of the parts of each kind in
    `SOURCES` missed the goal there (gradient ascents, searches without gradients, and parts that began at the nearest
    adversarial example), inf for none. nearest, nearest_distance: in a portfolio, the
    nearest adversarial example that its minimum-norm parts found beyond eps, and its distance (N,), inf for none. turn:
    of several attacks the last that was tried, -1 for none; turn_calls: (N, attacks, 2) int64, the forward and
    backward passes of each.
    """

    SOURCES: ClassVar[tuple[str, ...]] = ("gradient", "search", "nearest")

    index: Tensor
    y: Tensor
    eps: Tensor
    content: Tensor
    key: Tensor
    prediction: Tensor
    margin: Tensor
    targets: Tensor
    forwards: Tensor
    backwards: Tensor
    attempt: Tensor
    attacked: Tensor
    proved: Tensor
    success: Tensor
    success_step: Tensor
    success_attempt: Tensor
    adversarial: Tensor
    adversarial_prediction: Tensor
    adversarial_margin: Tensor
    missing: Tensor
    claim: Tensor
    claim_step: Tensor
    claim_distance: Tensor
    ends: Tensor | None = None
    ends_missing: Tensor | None = None
    nearest: Tensor | None = None
    nearest_distance: Tensor | None = None
    turn: Tensor | None = None
    turn_calls: Tensor | None = None

    @property
    def any_class(self) -> bool:
        """Whether classes are aimed at in turn; then any wrong one is a success (MultiTargeted, arXiv:1910.09338)."""
        return self.targets.shape[1] > 1

    @property
    def target(self) -> Tensor:
        """The class aimed at in the present attempt, (N,) int64; -1 for none."""
        count = self.targets.shape[1]
        if not count:
            return torch.full_like(self.y, -1)
        return self.targets.gather(1, (self.attempt % count).unsqueeze(1))[:, 0]


@dataclass(frozen=True)
class Active:
    """Samples under way: what the engine knows, what the attack is given, what it remembers."""

    entry: Entry
    batch: Batch
    state: State


class Engine:
    """Runs one attack over a source of samples and yields them as they are finished.

    A sample leaves the active set as soon as an image of it is proved adversarial, and the next takes
    its place. A proof is a pass of its own in float32 over the final image, inside the ball and the box,
    with `votes` draws of a randomised network, the same draws for each image of a sample. Samples that
    the network gets wrong are not attacked. stop_on_success=False keeps every sample to its last step,
    as most libraries do.

    A minimal attack's samples take every step of every attempt; of what was seen at the goal the nearest is
    proved, and it is a success where it lies within the sample's eps. within=True lets a sample leave at the
    first that does, and keeps none that does not. max_queries: forward passes that a sample may cost, those of the
    clean image and of the proof included; it leaves when another would be one too many. warm: where the attack begins
    in a portfolio (`Warm`). tag: sets the random streams of this engine's attack apart from those
    of another. learned: what the attack's `fit` returned.
    """

    def __init__(
        self,
        attack: Attack,
        network: Network,
        source: Source,
        *,
        threat: Threat,
        target: str | int | None = None,
        seed: int = 0,
        batch_size: int = 256,
        votes: int = 1,
        stop_on_success: bool = True,
        max_queries: int | None = None,
        within: bool = False,
        warm: Warm = "",
        tag: str = "",
        learned: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.attack = attack
        self.network = network
        self.source = source
        self.threat = threat
        self.target = target
        self.seed = seed
        self.batch_size = batch_size
        self.votes = votes
        self.stop_on_success = stop_on_success and not (attack.minimal or attack.persists)
        self.max_queries = max_queries
        self.within = within and attack.minimal
        self.warm = warm
        self.learned = learned or {}
        self.tag = f"attack {attack.name}{tag}"
        self.cursor = 0
        self.waiting: Entry | None = None
        self.active: Active | None = None
        self._nobody: Entry | None = None

    def run(self) -> Iterator[tuple[Entry, Tensor]]:
        """Finished samples with their clean images after each step, possibly none.

        Between two of them the engine may be stored.
        """
        while True:
            yield from self._fill()
            if self.active is None:
                return
            yield self._advance()

    # -- samples coming in ---------------------------------------------------------------------

    def _fill(self) -> Iterator[tuple[Entry, Tensor]]:
        """Top the active set up once an eighth of its places are free, so that refills stay few and large."""
        count = 0 if self.active is None else len(self.active.entry.y)
        free = self.batch_size - count
        if count and free < max(1, self.batch_size // 8):
            return
        while free > (0 if self.waiting is None else len(self.waiting.y)) and self.cursor < len(self.source):
            done, correct = self._intake()
            self.waiting = correct if self.waiting is None else concat([self.waiting, correct])
            yield done, done.adversarial
        if self.waiting is None or not len(self.waiting.y) or not free:
            return
        places = torch.arange(len(self.waiting.y), device=self.network.device)
        fresh = take(self.waiting, places[:free])
        new = self._start(fresh, fresh.adversarial)
        self.waiting = take(self.waiting, places[free:])
        self.active = new if self.active is None else concat([self.active, new])

    def _intake(self) -> tuple[Entry, Entry]:
        """The clean pass over the next samples: those that are done with it, and those to attack."""
        index, x, y, eps = self.source.fetch(self.cursor, self.batch_size)
        self.cursor += len(index)
        content = content_hashes(x)
        device = self.network.device
        index, x, y, eps = index.to(device), x.to(device), y.to(device), eps.to(device)
        stream = Stream.of(content, seed=self.seed, device=device)
        zero = torch.zeros_like(y)
        noise = Noise(stream, zero)
        logits = self.network.logits(x, noise, draws=self.votes)
        prediction, clean_margin = logits.argmax(1), -margin(logits, y).double()
        targets = order_targets(self.target, self.network.unrejected(logits, y), y, stream)
        attacked = prediction == y
        if targets.shape[1]:
            attacked = attacked & (targets >= 0).any(1)
        entry = Entry(
            index=index,
            y=y,
            eps=eps,
            key=stream.keys,
            content=hash_rows(content).to(device),
            prediction=prediction,
            margin=clean_margin,
            targets=targets,
            forwards=zero + self.votes,
            backwards=zero.clone(),
            attempt=zero.clone(),
            attacked=attacked,
            proved=torch.zeros_like(attacked),
            success=torch.zeros_like(attacked),
            success_step=zero - 1,
            success_attempt=zero - 1,
            adversarial=x,
            adversarial_prediction=prediction,
            adversarial_margin=clean_margin,
            missing=torch.full_like(clean_margin, float("inf")),
            claim=x,
            claim_step=zero - 1,
            claim_distance=torch.full_like(clean_margin, float("inf")),
        )
        # A ball of size 0 holds nothing but the image, which has had its pass.
        tried = attacked if self.attack.minimal else attacked & (eps > 0)
        return take(entry, ~tried), take(entry, tried)

    def _start(self, entry: Entry, x: Tensor) -> Active:
        """Samples with clean images x at the beginning of their present attempt."""
        stream = Stream(entry.key).child(self.tag).child(entry.attempt)
        batch = Batch(
            ball=ball_of(self.attack, self.threat, x, entry.eps),
            y=entry.y,
            targets=entry.target if entry.targets.shape[1] else None,
            step=torch.zeros_like(entry.y),
            stream=stream,
            attempt=entry.attempt,
            ends=self._warm_start(entry, x),
            learned=self.learned,
        )
        query, handed = self._query(entry, batch), batch.handed()
        with self._blame(handed):
            state = self.attack.start(query, handed)
        self._check(state, batch)
        # What a start claims is proved at once, unless nearer may come.
        due = torch.full_like(entry.success, not self.attack.minimal)
        entry = self._settle(self._count(entry, query), batch, query, due)
        return Active(entry, batch, state)

    def _warm_start(self, entry: Entry, x: Tensor) -> Tensor | None:
        """Where a warm part begins, in its ball; None for one that begins at the clean images."""
        if self.warm != "nearest":
            return entry.ends if self.warm == "margin" else None
        if entry.nearest is None:
            return x
        return entry.nearest if self.attack.minimal else self.threat.around(x, entry.eps).project(entry.nearest)

    # -- one step -------------------------------------------------------------------------------

    def _advance(self) -> tuple[Entry, Tensor]:
        """One step of every active sample; what is finished with it is returned and leaves."""
        assert self.active is not None
        entry, batch, state = self.active.entry, self.active.batch, self.active.state
        query, handed = self._query(entry, batch), batch.handed()
        with self._blame(handed):
            if self.attack.length:
                state = self.attack.step(query, handed, state)
                self._check(state, batch)
                batch, handed = with_fields(batch, step=batch.step + 1), with_fields(handed, step=handed.step + 1)
            early = self.attack.finished(handed, state)
        over = batch.step >= self.attack.length
        if early is not None:
            over = over | early
        spent = self.spent(query.forwards)
        if self.max_queries is not None:
            over = over | spent
        entry = self._settle(self._count(entry, query), batch, query, over)
        if not (over | entry.success).any():
            self.active = Active(entry, batch, state)
            return self._none_of(entry), batch.ball.x[:0]
        judged = over
        if self.max_queries is not None:
            judged = over & (entry.forwards + self.votes <= self.max_queries)
        if self.stop_on_success:
            # A sample with a proof needs no judgement of its last candidate.
            entry = self._judge_last(entry, batch, state, judged & ~entry.success)
            leaving = entry.success | (over & self._last_attempt(entry))
        elif self.attack.minimal:
            # What is no nearer than the nearest needs none either.
            distance = batch.ball.distance(state.candidate.detach())
            nearer = (distance > 0) & (distance < entry.claim_distance * (1 - 1e-6))
            entry = self._judge_last(entry, batch, state, judged & nearer)
            leaving = (over & self._last_attempt(entry)) | self._near_enough(entry, batch)
        else:
            entry = self._judge_last(entry, batch, state, judged)
            leaving = over & (self._last_attempt(entry) | entry.success)
        leaving = leaving | spent
        active = Active(entry, batch, state)
        again = (over & ~leaving).nonzero()[:, 0]
        if len(again):
            part = take(entry, again)
            next_try = self._start(replace(part, attempt=part.attempt + 1), take(batch.ball.x, again))
            active = put(active, again, next_try)
        self.active = active
        if not leaving.any():
            return self._none_of(entry), batch.ball.x[:0]
        self.active = take(active, ~leaving) if not leaving.all() else None
        done, x = take(entry, leaving), take(batch.ball.x, leaving)
        if self.attack.minimal:
            done = self._within_eps(done, take(batch.ball, leaving))
        return done, x

    def _within_eps(self, entry: Entry, ball: Ball) -> Entry:
        """A minimal attack's samples with `success` as the threat has it.

        In a portfolio an image beyond eps is no result; it is kept as `Entry.nearest` for the parts that follow.
        """
        distance = ball.distance(entry.adversarial)
        success = entry.success & (distance <= entry.eps.double())
        if not self.within:
            return replace(entry, success=success)
        known = torch.full_like(distance, torch.inf) if entry.nearest_distance is None else entry.nearest_distance
        nearer = entry.success & ~success & (distance < known)
        return replace(
            entry,
            success=success,
            adversarial=torch.where(per_row(success, ball.x), entry.adversarial, ball.x),
            adversarial_prediction=torch.where(success, entry.adversarial_prediction, entry.prediction),
            adversarial_margin=torch.where(success, entry.adversarial_margin, entry.margin),
            nearest=torch.where(
                per_row(nearer, ball.x), entry.adversarial, ball.x if entry.nearest is None else entry.nearest
            ),
            nearest_distance=torch.where(nearer, distance, known),
        )

    def _near_enough(self, entry: Entry, batch: Batch) -> Tensor:
        """Samples that need look no further, (N,) bool: their proved image is within eps, and that is all we want."""
        if not self.within or not entry.success.any():
            return torch.zeros_like(entry.success)
        return entry.success & (batch.ball.distance(entry.adversarial) <= entry.eps.double())

    @property
    def under_way(self) -> float:
        """What was done for samples that are not finished, in samples, were all to take every step."""
        if self.active is None or not self.attack.length:
            return 0.0
        entry, length = self.active.entry, self.attack.length
        steps = int((self.active.batch.step + entry.attempt * length).sum())
        return steps / (length * self.attack.attempts * max(1, entry.targets.shape[1]))

    def _none_of(self, entry: Entry) -> Entry:
        if self._nobody is None:
            self._nobody = take(entry, entry.index[:0])
        return self._nobody

    def _judge_last(self, entry: Entry, batch: Batch, state: State, which: Tensor) -> Entry:
        if not which.any():
            return entry
        rows = which.nonzero()[:, 0]
        candidate = take(batch.ball, rows).project(state.candidate[rows].detach())
        return self._prove(entry, batch, rows, candidate, batch.step[rows])

    def _last_attempt(self, entry: Entry) -> Tensor:
        return entry.attempt + 1 >= self.attack.attempts * max(1, entry.targets.shape[1])

    # -- proof ----------------------------------------------------------------------------------

    def _settle(self, entry: Entry, batch: Batch, query: Query, over: Tensor) -> Entry:
        """Note what the query claims, and prove what is due.

        Claims come a few at a time, and a proof costs as much for one image as for many, so after the
        first steps they are proved at every fourth step of their sample: a rule that knows one sample
        only, so that counts do not depend on the batch.
        """
        rows, images = query.claims()
        if len(rows):
            claim = entry.claim.index_copy(0, rows, images)
            entry = replace(entry, claim=claim, claim_step=entry.claim_step.index_copy(0, rows, batch.step[rows]))
            if self.attack.minimal:
                entry = replace(entry, claim_distance=query.nearest)
        pending = entry.claim_step >= 0
        if not pending.any():
            return entry
        early = (batch.step <= _PROVE_EVERY) | (batch.step % _PROVE_EVERY == 0)
        due = over if self._claims_can_wait else over | early
        if self.within:
            due = due | (entry.claim_distance <= entry.eps.double())
        due = due & pending
        if not due.any():
            return entry
        at = due.nonzero()[:, 0]
        entry = self._prove(entry, batch, at, entry.claim.index_select(0, at), entry.claim_step[at])
        # What a proof refuted must not stand in the way of what is farther.
        far = torch.where(due & ~entry.success, float("inf"), entry.claim_distance)
        return replace(entry, claim_step=torch.where(due, -1, entry.claim_step), claim_distance=far)

    def _prove(self, entry: Entry, batch: Batch, rows: Tensor, images: Tensor, step: Tensor) -> Entry:
        """The separate float32 pass over `images`, seen at `step`, for the samples at `rows`; the best is kept."""
        part = take(entry, rows) if len(rows) < len(entry.y) else entry
        # The draws of a verdict are those of the clean pass: the same image gets the same verdict, and no attack
        # succeeds by being judged often.
        noise = Noise(Stream(part.key), torch.zeros_like(part.forwards))
        logits = self.network.logits(images, noise, draws=self.votes)
        targets = None if batch.targets is None or entry.any_class else batch.targets[rows]
        seen = self.network.unrejected(logits, part.y)
        success = self.network.fooled(logits, part.y, targets) & take(batch.ball, rows).contains(images)
        missing = -margin(seen, part.y, targets).double()
        better = (success & ~part.success) | ((success == part.success) & (missing < part.missing))
        first = success & ~part.success
        if self.attack.persists:
            better = better | success
        if self.attack.minimal:
            ball = take(batch.ball, rows)
            nearer = ball.distance(images) < ball.distance(part.adversarial)
            better = torch.where(success & part.success, nearer, better)
            first = better & success

        def choose(new: Tensor, old: Tensor, where: Tensor = better) -> Tensor:
            return torch.where(where.reshape(-1, *([1] * (old.ndim - 1))), new, old)

        changed = {
            "forwards": part.forwards + self.votes,
            "proved": torch.ones_like(success),
            "success": part.success | success,
            "success_step": choose(step, part.success_step, first),
            "success_attempt": choose(part.attempt, part.success_attempt, first),
            "adversarial": choose(images, part.adversarial),
            "adversarial_prediction": choose(logits.argmax(1), part.adversarial_prediction),
            "adversarial_margin": choose(-margin(logits, part.y).double(), part.adversarial_margin),
            "missing": choose(missing, part.missing),
        }
        if len(rows) < len(entry.y):
            changed = {name: getattr(entry, name).index_copy(0, rows, new) for name, new in changed.items()}
        return replace(entry, **changed)

    def spent(self, forwards: Tensor) -> Tensor:
        """Which samples have no pass left but that of a proof, (N,) bool."""
        if self.max_queries is None:
            return torch.zeros_like(forwards, dtype=torch.bool)
        return forwards + self.network.eot + self.votes > self.max_queries

    @property
    def _claims_can_wait(self) -> bool:
        """Whether nothing hangs on a proof before the end: nobody leaves for it, and float32 seldom refutes itself."""
        sure = self.votes == 1 and self.network.low_model is None
        return self.attack.minimal or (sure and not self.stop_on_success)

    # -- small parts ----------------------------------------------------------------------------

    def _query(self, entry: Entry, batch: Batch) -> Query:
        low = None
        if self.network.low_model is not None:
            low = batch.step < int(_LOW_SHARE * self.attack.length)
        return Query(
            self.network,
            batch,
            access=self.attack.access,
            asker=f"attack {self.attack.name}",
            noise=Stream(entry.key),
            forwards=entry.forwards,
            low=low,
            any_class=entry.any_class,
            proved=entry.success | (entry.claim_step >= 0),
            nearest=entry.claim_distance if self.attack.minimal else None,
            max_queries=None if self.max_queries is None else self.max_queries - self.votes,
        )

    @staticmethod
    def _count(entry: Entry, query: Query) -> Entry:
        return with_fields(entry, forwards=query.forwards, backwards=entry.backwards + query.backwards)

    def _blame(self, batch: Batch) -> _Blame:
        return _Blame(f"attack {self.attack.name}", batch)

    def _check(self, state: State, batch: Batch) -> None:
        candidate = getattr(state, "candidate", None)
        x = batch.ball.x
        if not isinstance(candidate, Tensor) or candidate.shape != x.shape or candidate.dtype != x.dtype:
            came = type(candidate).__name__
            if isinstance(candidate, Tensor):
                came = f"{candidate.dtype} {tuple(candidate.shape)}"
            raise UserError(
                f"attack {self.attack.name}: expected state.candidate of {x.dtype} {tuple(x.shape)}, got {came}"
            )
        for name, tensor in to_tensors(state).items():
            if tensor.shape[:1] != x.shape[:1]:
                raise UserError(
                    f"attack {self.attack.name}: expected state.{name} with one row for each of {len(x)} samples, "
                    f"got {tuple(tensor.shape)}"
                )

    # -- stored and restored ----------------------------------------------------------------------

    def snapshot(self) -> dict[str, Tensor]:
        """Everything needed to go on, as tensors; clean images are left out, the source has them."""
        stored = {"cursor": torch.tensor([self.cursor])}
        if self.waiting is not None and len(self.waiting.y):
            images = ("adversarial", "claim")  # of those who wait: still the clean ones
            stored |= {f"waiting.{k}": v for k, v in to_tensors(self.waiting).items() if k not in images}
        if self.active is not None:
            stored |= {f"active.{k}": v for k, v in to_tensors(self.active).items() if not k.startswith("batch.ball.")}
        # A file of tensors takes no two that share memory, as the fields of a state may.
        return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in stored.items()}

    def restore(self, stored: dict[str, Tensor]) -> None:
        """Go on where a snapshot was taken: the steps that follow are the same to the last bit."""
        device = self.network.device
        cursor, active = int(stored["cursor"][0]), None
        waiting = self.stored_entry(stored, "waiting.")
        entry = self.stored_entry(stored, "active.entry.")
        if entry is not None:
            # A start of the same samples gives the shape of the state; its numbers are then the stored ones. It asks
            # nothing of the network: these passes were made, and counted, before.
            limit, self.max_queries = self.max_queries, 0
            try:
                like = self._start(entry, self.source.images(entry.index.cpu()).to(device))
            finally:
                self.max_queries = limit
            kept = {k.removeprefix("active."): v for k, v in stored.items() if k.startswith("active.")}
            active = from_tensors(like, kept | to_tensors(like.batch.ball, "batch.ball"))
        self.cursor, self.waiting, self.active = cursor, waiting, active

    def stored_entry(self, stored: dict[str, Tensor], prefix: str) -> Entry | None:
        """The samples of a snapshot whose names begin with `prefix`; images that were not stored are the clean ones."""
        if f"{prefix}index" not in stored:
            return None
        fields = {k.removeprefix(prefix): v.to(self.network.device) for k, v in stored.items() if k.startswith(prefix)}
        if "adversarial" not in fields:
            fields["adversarial"] = fields["claim"] = self.source.images(fields["index"].cpu()).to(self.network.device)
        return Entry(**fields)


def most_proofs(attack: Attack) -> int:
    """How often one attempt can ask for a proof: where claims are refuted, as of a randomised network."""
    steps = attack.length
    # The start, the steps at which `_settle` proves, the last one, and its candidate.
    return 3 + (steps if attack.minimal else min(steps, _PROVE_EVERY + steps // _PROVE_EVERY))


class _Blame:
    """Within: an exception of the attack's own code becomes a PluginError that names it.

    An attack that writes into what it was given (the clean images, from which distances are taken) is told so.
    """

    def __init__(self, what: str, batch: Batch) -> None:
        self.what = what
        ball = batch.ball
        given = (ball.x, ball.eps, batch.y, batch.targets, batch.step, batch.stream.keys, *batch.learned.values())
        self.given = [tensor for tensor in given if tensor is not None]
        self.versions = self._versions()

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, UserError):
            raise guard(self.what, error) from error
        if error is None and self._versions() != self.versions:
            raise UserError(f"{self.what}: it changed its batch in place; expected it left as given, so clone it first")

    def _versions(self) -> list[int]:
        return [tensor._version for tensor in self.given]
