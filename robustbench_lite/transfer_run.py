"""The matrix of who fools whom, computed: each network's adversarial images made once and judged on every network."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .attack import Attack, Batch, ball_of
from .checks import IMAGES, Stated, check_model
from .errors import UserError
from .fitting import FIT_SAMPLES, FitData, fit_attack, needs_fit
from .losses import reached
from .network import Network, Noise, exact_float32, seed_torch
from .perturbation import make_attack
from .plan import check_images
from .query import Query
from .registry import guard
from .running import Interrupted
from .streams import Stream, content_hashes
from .surrogate import Surrogate, Transfer, surrogates_ready
from .threat import Ball
from .transfer_plan import NOISE, TransferPlan, specification_of
from .transfer_rows import Block, Found

if TYPE_CHECKING:
    import pandas as pd


def run_rows(
    plan: TransferPlan,
    *,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    warn: Callable[[str], None] | None = None,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of a plan's matrix, and the record of what they are.

    progress: told how many images more are attacked, of len(index) for each network. stop: asked at every step. warn:
    told what the probes of the networks found, before the attacks.
    Raises UserError for what the caller can mend, Interrupted when `stop` says so.
    """
    attacks = {name: plan.carried(Surrogate.of(model)) for name, model in plan.models.items()}
    devices = [torch.device(plan.device)] if torch.device(plan.device).type == "cuda" else []
    with (
        torch.inference_mode(False),
        exact_float32(),
        torch.random.fork_rng(devices),
        torch.no_grad(),
        contextlib.ExitStack() as stack,
    ):
        for attack in attacks.values():
            ready = surrogates_ready(
                attack,
                n_classes=len(plan.data.classes),
                shape=tuple(plan.data.shape),
                device=plan.device,
                max_batch=plan.batch_size,
            )
            stack.enter_context(ready)
        seed_torch(plan.seed, plan.device)
        running = _Running(plan, attacks, progress, stop)
        findings = running.findings()
        for text in findings:
            if warn:
                warn(text)
        return running.table(), specification_of(plan, attacks, findings)


class _Running:
    """The networks, ready, and what is found of them block by block."""

    def __init__(
        self,
        plan: TransferPlan,
        attacks: Mapping[str, Transfer],
        progress: Callable[[int], None] | None,
        stop: Callable[[], bool] | None,
    ) -> None:
        self.plan = plan
        self.networks = {name: attack.network for name, attack in attacks.items()}
        self.attacks: dict[str, Attack] = {**attacks, NOISE: make_attack(NOISE, None, plan.threat)}
        self.progress = progress
        self.stop = stop
        self.done, self.told = 0.0, 0
        if plan.deterministic:
            for network in self.networks.values():
                network.block = network.uniform_block(tuple(plan.data.shape))

    def findings(self) -> list[str]:
        """What the probes say of each network."""
        index = self._spread(IMAGES)
        x, y = self.plan.data.images(index), self.plan.data.labels[index]
        check_images(x, y, len(self.plan.data.classes))
        return [
            f"{name}: {finding.text}"
            for name, network in self.networks.items()
            for finding in check_model(network, x, y, Stated()).findings
        ]

    def table(self) -> pd.DataFrame:
        """The rows of all cells, surrogate by surrogate and network by network, in order of index."""
        import pandas as pd

        learned = {name: self._learned(name) for name in self.attacks}
        parts: dict[tuple[str, str], list[pd.DataFrame]] = {
            (surrogate, target): [] for surrogate in self.attacks for target in self.networks
        }
        for index, x, y in self.plan.data.blocks(self.plan.index, self.plan.batch_size):
            check_images(x, y, len(self.plan.data.classes))
            block = Block.of(index, x, y, self.plan, self.networks)
            for surrogate in self.attacks:
                done = self.done + (len(y) if surrogate != NOISE else 0)
                for target, found in self._judged(surrogate, block, learned[surrogate]).items():
                    parts[surrogate, target].append(block.frame(surrogate, target, found))
                self._tell(done - self.done)
        return pd.concat([part for cell in parts.values() for part in cell], ignore_index=True)

    def _spread(self, count: int) -> Tensor:
        index = self.plan.index
        return index[torch.linspace(0, len(index) - 1, min(count, len(index))).long()]

    def _learned(self, name: str) -> Mapping[str, Tensor]:
        attack, plan = self.attacks[name], self.plan
        if not needs_fit(attack, plan.threat):
            return {}
        fit = plan.fit
        if fit is None:
            index = self._spread(FIT_SAMPLES)
            fit = FitData(plan.data.images(index), plan.data.labels[index], "the evaluated images")
        made = fit_attack(
            attack, self.networks[name], fit, threat=plan.threat, seed=plan.seed, asked=lambda: self._tell(0)
        )
        return made.learned

    def _judged(self, surrogate: str, block: Block, learned: Mapping[str, Tensor]) -> dict[str, Found]:
        """What each network makes of one surrogate's images; of several restarts the first that fools is kept."""
        mine = block.right(surrogate)
        every = {target: Found.of(mine & block.right(target)) for target in self.networks}
        rows = mine.nonzero()[:, 0]
        for number, (ball, images) in enumerate(self._ends(surrogate, block, rows, learned)):
            inside, distance, hashes = ball.contains(images), ball.distance(images), content_hashes(images)
            for target, network in self.networks.items():
                found = every[target]
                left = (found.correct & ~found.success)[rows].nonzero()[:, 0]
                at = rows[left]
                logits = network.logits(images[left], Noise(Stream(block.keys[at]), torch.zeros_like(at)))
                found.success[at] = reached(logits, block.y[at], None) & inside[left]
                found.prediction[at] = logits.argmax(1)
                found.restart[at] = number
                found.distance[at] = distance[left]
                for place, row in zip(at.tolist(), left.tolist(), strict=True):
                    found.hashes[place] = hashes[row]
        return every

    def _ends(
        self, name: str, block: Block, rows: Tensor, learned: Mapping[str, Tensor]
    ) -> Iterator[tuple[Ball, Tensor]]:
        """Where each restart ends, with the random numbers that the engine would give it; all steps are taken."""
        attack, x, y = self.attacks[name], block.x[rows], block.y[rows]
        network = self.networks.get(name, next(iter(self.networks.values())))  # the noise asks none
        stream = Stream(block.keys[rows]).child(f"attack {attack.name}")
        share = 0.0 if name == NOISE else len(rows) / (attack.attempts * max(1, attack.length))
        for number in range(attack.attempts if len(rows) else 0):
            attempt, zero = torch.full_like(y, number), torch.zeros_like(y)
            own = stream.child(attempt)
            batch = Batch(ball_of(attack, self.plan.threat, x), y, None, zero, own, attempt, learned=learned)
            with _blamed(attack):
                state = attack.start(_query(attack, network, batch), batch.handed())
            for step in range(attack.length):
                batch = replace(batch, step=torch.full_like(y, step))
                with _blamed(attack):
                    state = attack.step(_query(attack, network, batch), batch.handed(), state)
                self._tell(share)
            yield batch.ball, batch.ball.project(state.candidate.detach())

    def _tell(self, more: float) -> None:
        """So many images more are done; of parts, whole ones are told."""
        if self.stop is not None and self.stop():
            raise Interrupted("stopped before the matrix was whole; nothing is kept")
        self.done += more
        whole = round(self.done) - self.told
        if self.progress and whole > 0:
            self.progress(whole)
            self.told += whole


def _query(attack: Attack, network: Network, batch: Batch) -> Query:
    return Query(
        network,
        batch,
        access=attack.access,
        asker=f"attack {attack.name}",
        noise=batch.stream,
        forwards=torch.zeros_like(batch.y),
        low=torch.zeros_like(batch.y, dtype=torch.bool),
        watch=False,
    )


@contextlib.contextmanager
def _blamed(attack: Attack) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise guard(f"attack {attack.name}", error) from error
