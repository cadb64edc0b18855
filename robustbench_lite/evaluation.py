"""An evaluation from a model and images to a result: adapted to what the defenses state, checked, stored, resumable."""

from __future__ import annotations

import dataclasses
import datetime
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .attack import Attack
from .battery import IMAGES as SECOND_LOOK
from .battery import Subjects, second_look
from .checkpoint import Checkpoint
from .checks import IMAGES, Finding, check_model, verdict
from .defense import Defense, wrap_all
from .engine import Engine, Entry
from .errors import RblError, UserError
from .fitting import FIT_ROWS, Fit, fit_attack
from .given import count_classes, device_of, given_data, given_fit_data, given_model, given_surrogate, rounded_down
from .models.identity import tensors_sha256
from .network import Network, Noise, exact_float32, frozen, placed, seed_torch
from .perturbation import make_attack
from .plan import (
    Plan,
    PlanSource,
    check_images,
    make_threat,
    resume_key,
    shard_suffix,
    specification_of,
    with_fit_data,
)
from .portfolio import Chain, Portfolio, engine_for
from .result import Result, finished_columns, make_table
from .rows import concat
from .streams import Stream, content_hashes
from .surrogate import networks_beside, surrogates_ready
from .targets import check_target

if TYPE_CHECKING:
    from .records.run import Run
    from .records.specification import Specification


class Interrupted(RblError):
    """The run was asked to stop; what was done is kept where there is a leaderboard folder."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: samples done, of them still robust, and all; `resumed` were done by an earlier process.

    under_way: what was done for samples that are not finished, in samples, were all to take every step.
    """

    done: int
    robust: int
    total: int
    resumed: int = 0
    under_way: float = 0.0


def run_plan(
    plan: Plan,
    *,
    leaderboard: Path | None = None,
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    note: Callable[[str], None] | None = None,
    warn: Callable[[str], None] | None = None,
    before_write: Callable[[Result], Run] | None = None,
) -> Result:
    """Carry a plan out; with `leaderboard` the run file is written there, and an unfinished run goes on.

    warn: told what the probes of the model found, before the attack. before_write: given the result, returns
    the run as it is to be written.
    Raises UserError for what the caller can mend, Interrupted when `stop` says so.
    """
    started = datetime.datetime.now(datetime.UTC)
    plan = with_fit_data(plan)
    module = wrap_all(plan.model.module, plan.inference)
    devices = [torch.device(plan.device)] if torch.device(plan.device).type == "cuda" else []
    with (
        torch.inference_mode(False),
        exact_float32(),
        placed(module, plan.device),
        frozen(module),
        torch.random.fork_rng(devices),
        torch.no_grad(),
        surrogates_ready(
            plan.attack,
            n_classes=len(plan.data.classes),
            shape=tuple(plan.data.shape),
            device=plan.device,
            max_batch=plan.batch_size,
        ),
    ):
        seed_torch(plan.seed, plan.device)
        eot, votes = plan.draws
        network = Network(
            module,
            n_classes=len(plan.data.classes),
            device=plan.device,
            precision=plan.precision,
            eot=eot,
            max_batch=max(plan.batch_size, 1),
        )
        source = PlanSource(plan)
        findings, answers = _probe(plan, network)
        for finding in findings:
            if warn:
                warn(finding.text)
        if plan.deterministic:
            for each in (network, *networks_beside(plan.attack)):
                each.block = each.uniform_block(tuple(plan.data.shape))
        checked = {"check_forwards": network.forward_rows, "check_backwards": network.backward_rows}
        specification = specification_of(plan, started, findings, checked)

        def run(checkpoint: Checkpoint | None) -> tuple[dict[str, Tensor], float, Specification, Fit | None]:
            fit = _fit(plan, network, checkpoint, note, stop)
            engine = engine_for(
                plan.attack,
                network,
                source,
                threat=plan.threat,
                target=check_target(plan.target, plan.data.classes),
                seed=plan.seed,
                batch_size=plan.batch_size,
                votes=votes,
                stop_on_success=plan.stop_on_success,
                max_queries=plan.max_queries,
                learned=None if fit is None else fit.learned,
            )
            columns, seconds = _Running(plan, engine, len(source), progress, stop).finish(checkpoint, note)
            judged = _judged(plan, network, specification, columns, findings, warn)
            if fit is None:
                return columns, seconds, judged, None
            calls = judged.calls | {"fit_forwards": fit.forwards, "fit_backwards": fit.backwards}
            return columns, seconds + fit.seconds, dataclasses.replace(judged, calls=calls), fit

        if leaderboard is None:
            columns, seconds, specification, fit = run(None)
        else:
            folder = leaderboard / "runs" / f"{specification.run_id()}{shard_suffix(plan)}.partial"
            checkpoint = Checkpoint(folder, resume_key(plan, specification, answers))
            with checkpoint.locked():
                if not resume:
                    checkpoint.clear()
                try:
                    columns, seconds, specification, fit = run(checkpoint)
                    result = _result(plan, specification, columns, seconds, fit, leaderboard, before_write)
                except BaseException:
                    if not any(folder.glob("*.safetensors")):  # nothing to go on with
                        checkpoint.remove()
                    raise
                checkpoint.remove()
            return result
        return _result(plan, specification, columns, seconds, fit)


class _Running:
    """One process's share of a run: the engine driven to its end, stored on the way."""

    def __init__(
        self,
        plan: Plan,
        engine: Engine | Chain,
        total: int,
        progress: Callable[[Progress], None] | None,
        stop: Callable[[], bool] | None,
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.total = total
        self.progress = progress
        self.stop = stop
        self.done: list[dict[str, Tensor]] = []
        self.robust = 0
        self.count = 0
        self.resumed = 0
        self.waiting: list[tuple[Entry, Tensor]] = []
        self.waiting_rows = 0

    def finish(
        self, checkpoint: Checkpoint | None, note: Callable[[str], None] | None = None
    ) -> tuple[dict[str, Tensor], float]:
        """All columns, and the seconds spent by this process and those before it."""
        began, before = time.monotonic(), 0.0
        if checkpoint and (loaded := checkpoint.load(self.engine)):
            parts, before = loaded
            for part in parts:
                self._take(part)
                self._count(part["y"], part["prediction"], part["success"])
            self.resumed = self.count
            if note:
                note(f"an unfinished run goes on: {self.count} of {self.total} samples were done")
        elif checkpoint and checkpoint.exists and note:
            note("an unfinished run is there, computed in another way (batch size, threads, versions): it starts anew")
        for entry, x in self.engine.run():
            if len(entry.y):
                self._wait(entry, x)
            if self.waiting_rows >= self.plan.batch_size:
                self._settle(checkpoint)
            if self.progress:
                self.progress(Progress(self.count, self.robust, self.total, self.resumed, self.engine.under_way))
            stopping = self.stop is not None and self.stop()
            if checkpoint and (stopping or checkpoint.due()):
                self._settle(checkpoint)
                checkpoint.store(self.engine, before + time.monotonic() - began)
            if stopping and self.count < self.total:
                kept = "; they are kept, and the same command goes on" if checkpoint else ""
                raise Interrupted(f"stopped with {self.count} of {self.total} samples done{kept}")
        self._settle(checkpoint)
        columns = {name: torch.cat([part[name] for part in self.done]) for name in self.done[0]}
        order = columns["index"].argsort()
        return {name: column[order] for name, column in columns.items()}, before + time.monotonic() - began

    def _take(self, columns: dict[str, Tensor]) -> None:
        self.done.append(columns)

    def _wait(self, entry: Entry, x: Tensor) -> None:
        """Finished samples, whose columns are made with those of others: they come a few at a time."""
        self.waiting.append((entry, x))
        self.waiting_rows += len(entry.y)
        self._count(entry.y, entry.prediction, entry.success)

    def _settle(self, checkpoint: Checkpoint | None) -> None:
        """Make the columns of what waits."""
        if not self.waiting:
            return
        entries, images = zip(*self.waiting, strict=True)
        entry = concat(entries)
        columns = finished_columns(entry, torch.cat(images), keep_images=self.plan.keep_images)
        if self.plan.attack.persists:
            noise = Noise(Stream(entry.key), torch.zeros_like(entry.y))
            logits = self.engine.network.logits(entry.adversarial, noise, draws=self.plan.draws[1])
            columns["confidence"] = logits.softmax(1).gather(1, entry.adversarial_prediction[:, None])[:, 0].cpu()
        self.waiting, self.waiting_rows = [], 0
        self._take(columns)
        if checkpoint:
            checkpoint.add(columns)

    def _count(self, y: Tensor, prediction: Tensor, success: Tensor) -> None:
        self.count += len(y)
        self.robust += int(((prediction == y) & ~success).sum())


def _probe(plan: Plan, network: Network) -> tuple[list[Finding], str]:
    """Checks on some images of the whole run, so that every shard says the same."""
    # Spread over the samples: a data set may come class by class.
    index = plan.index[torch.linspace(0, len(plan.index) - 1, min(IMAGES, len(plan.index))).long()]
    x, y = plan.data.images(index), plan.data.labels[index]
    check_images(x, y, len(plan.data.classes))
    zero = torch.zeros(len(x), dtype=torch.int64, device=network.device)
    logits = network.logits(x.to(network.device), Noise(Stream(zero), zero), draws=1)
    # Two networks of one name and the same weights may still compute differently; a stored run is only gone on with
    # where the answers are the same to the last bit.
    return check_model(network, x, y, plan.stated), tensors_sha256({"logits": logits})


def _fit(
    plan: Plan,
    network: Network,
    checkpoint: Checkpoint | None,
    note: Callable[[str], None] | None,
    stop: Callable[[], bool] | None,
) -> Fit | None:
    """What the attack learns, in this process or in an earlier one of the same run; None where it learns nothing."""
    if plan.fit is None:
        return None
    stored = checkpoint.load_fit() if checkpoint else None
    if stored is not None:
        if note:
            note(f"an unfinished run goes on: what {plan.attack.name} learned was kept")
        learned = {name: tensor.to(network.device) for name, tensor in stored.learned.items()}
        return dataclasses.replace(stored, learned=learned)
    if note:
        note(f"{plan.attack.name} learns from {len(plan.fit.x)} images ({plan.fit.origin}), once")

    def asked() -> None:
        if stop is not None and stop():
            raise Interrupted("stopped before the first sample, while the attack was learning; nothing is kept")

    # In float32, and in passes of one size: what is learned depends neither on the batch size nor on the precision.
    own = Network(
        network.model,
        n_classes=network.n_classes,
        device=network.device,
        eot=network.eot,
        block=network.block,
        max_batch=FIT_ROWS,
    )
    target = check_target(plan.target, plan.data.classes)
    fit = fit_attack(plan.attack, own, plan.fit, threat=plan.threat, target=target, seed=plan.seed, asked=asked)
    if checkpoint:
        checkpoint.store_fit(fit)
    return fit


def _judged(
    plan: Plan,
    network: Network,
    specification: Specification,
    columns: dict[str, Tensor],
    findings: list[Finding],
    warn: Callable[[str], None] | None,
) -> Specification:
    """The record with what a second look at the images finds, and what it cost."""
    if not plan.checks or plan.target is not None:
        return specification
    before = network.forward_rows, network.backward_rows
    robust = columns["attacked"] & ~columns["success"]
    left, standing = _subjects(plan, columns["index"][robust], network.device), float(robust.double().mean())
    iterative = plan.attack.access == "gradient" and (isinstance(plan.attack, Portfolio) or plan.attack.length > 1)
    iterative = iterative and not plan.attack.own_limits  # whatever the whole box holds, it was not its to find
    found = second_look(network, plan.threat, left, standing=standing, votes=plan.draws[1], iterative=iterative)
    for finding in found:
        if warn:
            warn(finding.text)
    every = [*findings, *found]
    calls = {
        "check_forwards": specification.calls["check_forwards"] + network.forward_rows - before[0],
        "check_backwards": specification.calls["check_backwards"] + network.backward_rows - before[1],
    }
    return dataclasses.replace(
        specification, warnings=tuple(f.text for f in every), verdict=verdict(every), calls=specification.calls | calls
    )


def _subjects(plan: Plan, index: Tensor, device: torch.device) -> Subjects:
    """Some of the samples at these places of the plan, spread over all."""
    chosen = index[torch.linspace(0, len(index) - 1, min(SECOND_LOOK, len(index))).long()] if len(index) else index
    x = plan.data.images(chosen) if len(chosen) else torch.empty((0, *plan.data.shape))
    keys = Stream.of(content_hashes(x), seed=plan.seed, device=device).keys
    eps = plan.threat.each(len(chosen)) if plan.eps is None else plan.eps[chosen]
    return Subjects(x.to(device), plan.data.labels[chosen].to(device), eps.to(device), keys)


def _result(
    plan: Plan,
    specification: Specification,
    columns: dict[str, Tensor],
    seconds: float,
    fit: Fit | None,
    leaderboard: Path | None = None,
    before_write: Callable[[Result], Run] | None = None,
) -> Result:
    from .records.run import seal, settle

    table = make_table(
        columns,
        seed=plan.seed,
        targeted=plan.target is not None,
        eps=plan.threat.eps if plan.eps is None else None,
    )
    specification = dataclasses.replace(
        specification,
        times=dataclasses.replace(specification.times, seconds=round(seconds, 3)),
        calls={
            "forwards": int(columns["forwards"].sum()),
            "backwards": int(columns["backwards"].sum()),
            **specification.calls,
        },
    )
    run = seal(specification, table)
    images, confidence = columns.get("adversarial"), columns.get("confidence")
    learned = {} if fit is None else {name: tensor.cpu() for name, tensor in fit.learned.items()}
    if leaderboard is None:
        return Result(run, images, confidence=confidence, learned=learned)
    if before_write is not None:
        run = before_write(Result(run, images, learned=learned))
    file, settled = settle(leaderboard, run)
    return Result(run, images, file, settled, confidence, learned)


def evaluate(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attack: str | Attack = "pgd",
    norm: str = "linf",
    eps: float | Tensor | str | None = None,
    target: str | int | None = None,
    attack_options: Mapping[str, Any] | None = None,
    surrogates: Sequence[nn.Module | str] = (),
    defenses: Sequence[Defense] = (),
    seed: int = 0,
    batch_size: int = 256,
    device: str | None = None,
    precision: str = "float32",
    deterministic: bool = False,
    eot: int | None = None,
    votes: int | None = None,
    stop_on_success: bool = True,
    max_queries: int | None = None,
    checks: bool = True,
    fit_data: tuple[Tensor, Tensor] | None = None,
    name: str | None = None,
    leaderboard: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Robust accuracy of `model` on images under one attack, with one row and the image of each sample.

    model: pixels (N, C, H, W) in [0, 1] to logits (N, K). x: (N, C, H, W) float32 in [0, 1]. y: (N,) int64.
    attack: a name, `FILE.py:NAME`, or an instance of Attack; attack_options: its fields. `transfer:NAME` carries it
    out on `surrogates`, networks or `MODEL[=WEIGHTS]` by name, and judges where it ends on `model`.
    norm, eps: the threat, eps in pixels of [0, 1] (a number, a fraction as text, or (N,) one a sample);
    default 8/255 for linf and 0.5 for l2. target: None, random, next, least-likely, all or a class.
    device: default the model's own. precision: float32, bf16 or f16 for the search; proofs are in float32.
    max_queries: forward passes that a sample may cost; what is seen later counts for nothing.
    checks: after the run small attacks of other kinds look at up to 16 images that were left standing, and may make
    the verdict `unreliable`; False leaves them out.
    fit_data: images and labels, as x and y, that an attack learns from which learns (uap, ...); they should be others
    than x. None: x itself, up to 512 of them, and the record says so.
    leaderboard: folder that receives the run file; None writes nothing.

    A minimal attack (deepfool, ...) yields the nearest adversarial image; `success` says whether it is within eps.

    The model's mode, its parameters, the inputs and the global random state are left as they were found.
    Raises UserError for arguments that do not fit, in one line that says what was expected.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> r = evaluate(net, torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64), attack="fgsm", eps=0.5)
    >>> 0 <= r.robust_accuracy <= r.clean_accuracy <= 1
    True
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model: expected a torch.nn.Module, got {type(model).__name__}; put a function into a module")
    if model.training:
        warnings.warn("model is in training mode; it is evaluated in evaluation mode and then put back", stacklevel=2)
    classes = count_classes(model, x)
    each = rounded_down(eps) if isinstance(eps, Tensor) and eps.ndim else None
    data = given_data(x, y, classes, each)
    threat = make_threat(norm, float(each.max()) if each is not None else eps, attack)  # type: ignore[arg-type]
    plan = Plan(
        model=given_model(model, name),
        data=data,
        index=torch.arange(len(data)),
        attack=make_attack(
            attack,
            attack_options,
            threat,
            resolve=each is None,
            surrogates=[given_surrogate(given, data) for given in surrogates],
        ),
        attack_options=dict(attack_options or {}),
        threat=threat,
        defenses=tuple(defenses),
        target=target,
        eps=each,
        seed=seed,
        batch_size=batch_size,
        device=device or device_of(model),
        precision=precision,
        deterministic=deterministic,
        eot=eot,
        votes=votes,
        stop_on_success=stop_on_success,
        max_queries=max_queries,
        checks=checks,
        fit=None if fit_data is None else given_fit_data(*fit_data),
        keep_images=True,
    )
    result = run_plan(plan, leaderboard=None if leaderboard is None else Path(leaderboard), progress=progress)
    for text in result.warnings:
        warnings.warn(text, stacklevel=2)
    return result
