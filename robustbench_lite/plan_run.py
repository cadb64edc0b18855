"""A plan carried out: the network made ready, what the attack learns, the run, and the record that is written."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .assessment import judged, probe
from .checkpoint import Checkpoint
from .fitting import FIT_ROWS, Fit, fit_attack
from .network import Network, exact_float32, frozen, placed, seed_torch
from .plan import Plan, PlanSource, shard_suffix, with_fit_data
from .plan_record import outcomes, resume_key, specification_of
from .plausibility import of_settings
from .portfolio import engine_for
from .result import Result, make_table
from .running import Interrupted, Progress, Running
from .surrogate import networks_beside, surrogates_ready
from .targets import check_target

if TYPE_CHECKING:
    from .records.run import Run
    from .records.specification import Specification


def run_plan(
    plan: Plan,
    *,
    leaderboard: Path | str | None = None,
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
    module = plan.defended()
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
        network = plan.network(module, precision=plan.precision, eot=eot)
        source = PlanSource(plan)
        checked, answers = probe(plan, network)
        checked.findings += list(of_settings(plan, checked.findings))
        for finding in checked.findings:
            if warn:
                warn(finding.text)
        if plan.deterministic:
            for each in (network, *networks_beside(plan.attack)):
                each.block = each.uniform_block(tuple(plan.data.shape))
        passes = {"check_forwards": network.forward_rows, "check_backwards": network.backward_rows}
        specification = specification_of(plan, started, passes)

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
                resolve=plan.eps is None,
            )
            columns, seconds = Running(plan, engine, len(source), progress, stop).finish(checkpoint, note)
            assessed = judged(plan, network, specification, columns, checked, warn)
            if fit is None:
                return columns, seconds, assessed, None
            calls = assessed.calls | {"fit_forwards": fit.forwards, "fit_backwards": fit.backwards}
            return columns, seconds + fit.seconds, dataclasses.replace(assessed, calls=calls), fit

        if leaderboard is None:
            columns, seconds, specification, fit = run(None)
        else:
            leaderboard = Path(leaderboard)
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
        rejects=network.rejects,
    )
    target = check_target(plan.target, plan.data.classes)
    fit = fit_attack(plan.attack, own, plan.fit, threat=plan.threat, target=target, seed=plan.seed, asked=asked)
    if checkpoint:
        checkpoint.store_fit(fit)
    return fit


def _result(
    plan: Plan,
    specification: Specification,
    columns: dict[str, Tensor],
    seconds: float,
    fit: Fit | None,
    leaderboard: Path | None = None,
    before_write: Callable[[Result], Run] | None = None,
) -> Result:
    from .records.contradiction import refute_with_folder
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
        by_attack=outcomes(plan.attack, columns),
    )
    run = seal(specification, table)
    images, confidence = columns.get("adversarial"), columns.get("confidence")
    learned = {} if fit is None else {name: tensor.cpu() for name, tensor in fit.learned.items()}
    if leaderboard is None:
        return Result(run, images, confidence=confidence, learned=learned)
    if before_write is not None:
        run = before_write(Result(run, images, learned=learned))
    file, settled = settle(leaderboard, run)
    refute_with_folder(leaderboard, run=dataclasses.replace(run, path=file))
    return Result(run, images, file, settled, confidence, learned)
