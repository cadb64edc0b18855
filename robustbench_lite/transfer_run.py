"""The matrix of who fools whom, computed: each network's adversarial images made once and judged on every network."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from .attack import Attack, Batch
from .checks import IMAGES, Stated, check_model
from .data.dataset import Dataset
from .environment import environment_record
from .errors import UserError
from .evaluation import Interrupted
from .fitting import FIT_SAMPLES, FitData, fit_attack, needs_fit
from .losses import reached
from .network import Network, Noise, exact_float32, seed_torch
from .options import option_types
from .perturbation import make_attack
from .plan import check_images, check_settings
from .query import Query
from .registry import guard
from .streams import Stream, content_hashes
from .surrogate import PREFIX, Surrogate, Transfer, surrogates_ready
from .threat import Ball, Threat

if TYPE_CHECKING:
    import pandas as pd

    from .models import LoadedModel

NOISE = "noise"
# The table, in order; the last four are null where an image does not count.
COLUMNS = {
    "surrogate": "string",
    "target": "string",
    "index": "int64",
    "content_hash": "string",
    "label": "int64",
    "surrogate_prediction": "Int64",
    "target_prediction": "int64",
    "correct": "bool",
    "success": "bool",
    "adversarial_prediction": "Int64",
    "restart": "Int64",
    "distance": "float64",
    "adversarial_hash": "string",
}


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
        return running.table(), _specification(plan, attacks, findings)


@dataclass
class _Found:
    """What one network makes of one surrogate's images, over a block; -1 and NaN where an image does not count."""

    correct: Tensor
    success: Tensor
    prediction: Tensor
    restart: Tensor
    distance: Tensor
    hashes: list[str | None]

    @classmethod
    def of(cls, correct: Tensor) -> Self:
        none = torch.full(correct.shape, -1, device=correct.device)
        far = torch.full(correct.shape, float("nan"), dtype=torch.float64, device=correct.device)
        return cls(correct, torch.zeros_like(correct), none, none.clone(), far, [None] * len(correct))


@dataclass(frozen=True)
class _Block:
    """Some images on the device, and what each network says of them as they are."""

    index: Tensor
    x: Tensor
    y: Tensor
    keys: Tensor
    hashes: list[str]
    predictions: Mapping[str, Tensor]

    @classmethod
    def of(cls, index: Tensor, x: Tensor, y: Tensor, plan: TransferPlan, networks: Mapping[str, Network]) -> Self:
        hashes = content_hashes(x)
        stream = Stream.of(hashes, seed=plan.seed, device=plan.device)
        x, y = x.to(plan.device), y.to(plan.device)
        noise = Noise(stream, torch.zeros_like(y))
        said = {name: network.logits(x, noise).argmax(1) for name, network in networks.items()}
        return cls(index, x, y, stream.keys, hashes, said)

    def right(self, name: str) -> Tensor:
        """Which images a network gets right, (N,) bool; of the noise, which is none, all."""
        return torch.ones_like(self.y, dtype=torch.bool) if name == NOISE else self.predictions[name] == self.y

    def frame(self, surrogate: str, target: str, found: _Found) -> pd.DataFrame:
        """The rows of one cell."""
        import pandas as pd

        def given(values: Tensor) -> Any:
            numbers = pd.Series(values.cpu().numpy(), dtype="Int64")
            return numbers.where(numbers >= 0)

        none = torch.full_like(self.y, -1)
        columns: dict[str, Any] = {
            "surrogate": surrogate,
            "target": target,
            "index": self.index.numpy(),
            "content_hash": self.hashes,
            "label": self.y.cpu().numpy(),
            "surrogate_prediction": given(self.predictions.get(surrogate, none)),
            "target_prediction": self.predictions[target].cpu().numpy(),
            "correct": found.correct.cpu().numpy(),
            "success": found.success.cpu().numpy(),
            "adversarial_prediction": given(found.prediction),
            "restart": given(found.restart),
            "distance": found.distance.cpu().numpy(),
            "adversarial_hash": found.hashes,
        }
        return pd.DataFrame(columns).astype(COLUMNS)


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
            for finding in check_model(network, x, y, Stated())
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
            block = _Block.of(index, x, y, self.plan, self.networks)
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
        return fit_attack(attack, self.networks[name], fit, threat=plan.threat, seed=plan.seed).learned

    def _judged(self, surrogate: str, block: _Block, learned: Mapping[str, Tensor]) -> dict[str, _Found]:
        """What each network makes of one surrogate's images; of several restarts the first that fools is kept."""
        mine = block.right(surrogate)
        every = {target: _Found.of(mine & block.right(target)) for target in self.networks}
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
        self, name: str, block: _Block, rows: Tensor, learned: Mapping[str, Tensor]
    ) -> Iterator[tuple[Ball, Tensor]]:
        """Where each restart ends, with the random numbers that the engine would give it; all steps are taken."""
        attack, x, y = self.attacks[name], block.x[rows], block.y[rows]
        network = self.networks.get(name, next(iter(self.networks.values())))  # the noise asks none
        stream = Stream(block.keys[rows]).child(f"attack {attack.name}")
        share = 0.0 if name == NOISE else len(rows) / (attack.attempts * max(1, attack.length))
        for number in range(attack.attempts if len(rows) else 0):
            attempt, zero = torch.full_like(y, number), torch.zeros_like(y)
            own = stream.child(attempt)
            batch = Batch(attack.ball(self.plan.threat, x), y, None, zero, own, attempt, learned=learned)
            with _blamed(attack):
                state = attack.start(_query(attack, network, batch), batch)
            for step in range(attack.length):
                batch = replace(batch, step=torch.full_like(y, step))
                with _blamed(attack):
                    state = attack.step(_query(attack, network, batch), batch, state)
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


def _specification(plan: TransferPlan, attacks: Mapping[str, Transfer], findings: list[str]) -> dict[str, Any]:
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
