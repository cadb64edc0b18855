"""An evaluation from a model and images to a result: adapted to what the defenses state, checked, stored, resumable."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .attack import Attack
from .checkpoint import Checkpoint
from .checks import IMAGES, Finding, Stated, check_model, verdict
from .data.dataset import ArrayDataset, Dataset, shard_of
from .defense import Defense, InferenceDefense, wrap_all
from .engine import Engine
from .environment import environment_record
from .errors import RblError, UserError, unknown_name
from .network import PRECISIONS, Network, Noise, exact_float32, frozen
from .options import option_types
from .perturbation import make_attack
from .registry import source_hash
from .result import Result, finished_columns, make_table
from .streams import Stream, content_hashes
from .targets import check_target
from .threat import Threat

if TYPE_CHECKING:
    from .models import LoadedModel
    from .records.specification import Specification

DEFAULT_EPS = {"linf": 8 / 255, "l2": 0.5}
EOT_DRAWS = 8
VOTES = 16


class Interrupted(RblError):
    """The run was asked to stop; what was done is kept where there is a leaderboard folder."""


@dataclass(frozen=True)
class Progress:
    """How far a run is: samples done, of them still robust, and all; `resumed` were done by an earlier process."""

    done: int
    robust: int
    total: int
    resumed: int = 0


@dataclass(frozen=True)
class Plan:
    """Everything that decides a run.

    model: its module is the bare network; `defenses` stand before it in this order. index: positions in
    `data` of the whole run's samples, of which a shard takes a share. eps: (len(data),) one each, or None.
    eot, votes: draws averaged for a query and for a verdict; None: by what the defenses state.
    """

    model: LoadedModel
    data: Dataset
    index: Tensor
    attack: Attack
    threat: Threat
    attack_options: Mapping[str, Any] = field(default_factory=dict)
    defenses: Sequence[Defense] = ()
    defense_specs: Sequence[str] = ()
    target: str | int | None = None
    eps: Tensor | None = None
    seed: int = 0
    batch_size: int = 256
    device: str = "cpu"
    precision: str = "float32"
    deterministic: bool = False
    eot: int | None = None
    votes: int | None = None
    shard: tuple[int, int] | None = None
    stop_on_success: bool = True
    keep_images: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        for name in ("batch_size", "eot", "votes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be >= 1, got {value}")
        if not len(self.index):
            raise UserError("x: expected at least one image, got none")
        if len(self.data.classes) < 2:
            raise UserError(f"y: expected labels of at least 2 classes, got {len(self.data.classes)}")
        self.threat.check_shape(tuple(self.data.shape))
        check_target(self.target, self.data.classes)
        if self.target is not None and not self.attack.targeted:
            raise UserError(f"target: attack {self.attack.name} cannot aim at a class; leave it out")

    @property
    def inference(self) -> list[InferenceDefense]:
        """The defenses that stand before the network."""
        return [d for d in self.defenses if isinstance(d, InferenceDefense)]

    @property
    def stated(self) -> Stated:
        """What the defenses state together."""
        return Stated(
            randomized=any(d.randomized for d in self.inference),
            differentiable=all(d.differentiable for d in self.inference),
        )

    @property
    def draws(self) -> tuple[int, int]:
        """(eot, votes) with their defaults."""
        eot, votes = (EOT_DRAWS, VOTES) if self.stated.randomized else (1, 1)
        return self.eot or eot, self.votes or votes


class _Source:
    """The samples of a plan, read ahead in order and by index, and checked once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.order = shard_of(plan.index, plan.shard) if plan.shard else plan.index
        self._blocks: Iterator[tuple[Tensor, Tensor, Tensor]] | None = None
        self._next = -1

    def __len__(self) -> int:
        return len(self.order)

    def fetch(self, first: int, count: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if self._blocks is None or self._next != first:
            self._blocks = self.plan.data.blocks(self.order[first:], count)
        index, x, y = next(self._blocks)
        self._next = first + len(index)
        check_images(x, y, len(self.plan.data.classes))
        eps = self.plan.threat.each(len(index)) if self.plan.eps is None else self.plan.eps[index]
        return index, x, y, eps

    def images(self, index: Tensor) -> Tensor:
        return self.plan.data.images(index)


def check_images(x: Tensor, y: Tensor, classes: int) -> None:
    """Raise UserError for images that are no float (N, C, H, W) in [0, 1] and for labels outside the classes."""
    if x.ndim != 4 or not x.is_floating_point():
        raise UserError(f"x: expected float images (N, C, H, W), got {x.dtype} {tuple(x.shape)}")
    low, high = float(x.min()), float(x.max())
    if not (low >= 0 and high <= 1):
        what = "NaN or infinity" if not torch.isfinite(x).all() else f"values from {low:g} to {high:g}"
        raise UserError(f"x: expected pixels in [0, 1], got {what}; scale images before (uint8: divide by 255)")
    if int(y.min()) < 0 or int(y.max()) >= classes:
        bad = int(y.min()) if int(y.min()) < 0 else int(y.max())
        raise UserError(f"y: expected labels in 0..{classes - 1}, got {bad}")


def run_plan(
    plan: Plan,
    *,
    leaderboard: Path | None = None,
    resume: bool = True,
    progress: Callable[[Progress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    note: Callable[[str], None] | None = None,
) -> Result:
    """Carry a plan out; with `leaderboard` the run file is written there, and an unfinished run goes on.

    Raises UserError for what the caller can mend, Interrupted when `stop` says so.
    """
    started = datetime.datetime.now(datetime.UTC)
    module = wrap_all(plan.model.module, plan.inference).to(plan.device)
    devices = [torch.device(plan.device)] if torch.device(plan.device).type == "cuda" else []
    with exact_float32(), frozen(module), torch.random.fork_rng(devices), torch.no_grad():
        torch.manual_seed(plan.seed)
        eot, votes = plan.draws
        network = Network(
            module,
            n_classes=len(plan.data.classes),
            device=plan.device,
            precision=plan.precision,
            eot=eot,
            max_batch=max(plan.batch_size, 1),
        )
        source = _Source(plan)
        findings = _probe(plan, network, source)
        for finding in findings:
            if note:
                note(finding.text)
        if plan.deterministic:
            network.block = network.uniform_block(tuple(plan.data.shape), largest=min(32, plan.batch_size))
        checked = {"check_forwards": network.forward_rows, "check_backwards": network.backward_rows}
        engine = Engine(
            plan.attack,
            network,
            source,
            threat=plan.threat,
            target=check_target(plan.target, plan.data.classes),
            seed=plan.seed,
            batch_size=plan.batch_size,
            votes=votes,
            stop_on_success=plan.stop_on_success,
        )
        specification = _specification(plan, started, findings, checked)
        run = _Running(plan, engine, len(source), progress, stop)
        if leaderboard is None:
            columns, seconds = run.finish(None)
        else:
            folder = leaderboard / "runs" / f"{specification.run_id()}{_shard_name(plan)}.partial"
            checkpoint = Checkpoint(folder, _resume_key(plan, specification))
            with checkpoint.locked():
                if not resume:
                    checkpoint.clear()
                columns, seconds = run.finish(checkpoint, note)
                result = _result(plan, specification, columns, seconds, leaderboard)
                checkpoint.remove()
            return result
        return _result(plan, specification, columns, seconds, None)


class _Running:
    """One process's share of a run: the engine driven to its end, stored on the way."""

    def __init__(
        self,
        plan: Plan,
        engine: Engine,
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

    def finish(
        self, checkpoint: Checkpoint | None, note: Callable[[str], None] | None = None
    ) -> tuple[dict[str, Tensor], float]:
        """All columns, and the seconds spent by this process and those before it."""
        began, before = time.monotonic(), 0.0
        if checkpoint and (loaded := checkpoint.load(self.engine)):
            parts, before = loaded
            for part in parts:
                self._take(part)
            self.resumed = self.count
            if note:
                note(f"an unfinished run goes on: {self.count} of {self.total} samples were done")
        for entry, x in self.engine.run():
            if len(entry.y):
                columns = finished_columns(entry, x, keep_images=self.plan.keep_images)
                self._take(columns)
                if checkpoint:
                    checkpoint.add(columns)
            if self.progress:
                self.progress(Progress(self.count, self.robust, self.total, self.resumed))
            stopping = self.stop is not None and self.stop()
            if checkpoint and (stopping or checkpoint.due()):
                checkpoint.store(self.engine, before + time.monotonic() - began)
            if stopping and self.count < self.total:
                kept = "; they are kept, and the same command goes on" if checkpoint else ""
                raise Interrupted(f"stopped with {self.count} of {self.total} samples done{kept}")
        columns = {name: torch.cat([part[name] for part in self.done]) for name in self.done[0]}
        order = columns["index"].argsort()
        return {name: column[order] for name, column in columns.items()}, before + time.monotonic() - began

    def _take(self, columns: dict[str, Tensor]) -> None:
        self.done.append(columns)
        self.count += len(columns["y"])
        self.robust += int(((columns["prediction"] == columns["y"]) & ~columns["success"]).sum())


def _probe(plan: Plan, network: Network, source: _Source) -> list[Finding]:
    """Checks on the first images of the whole run, so that every shard says the same."""
    index = plan.index[:IMAGES]
    x, y = plan.data.images(index), plan.data.labels[index]
    check_images(x, y, len(plan.data.classes))
    return check_model(network, x, y, plan.stated)


def _shard_name(plan: Plan) -> str:
    return f".shard-{plan.shard[0]}-of-{plan.shard[1]}" if plan.shard else ""


def _resume_key(plan: Plan, specification: Specification) -> dict[str, Any]:
    """What must be equal for a stored engine to go on bit for bit."""
    return {
        "identity": specification.identity(),
        "version": specification.version,
        "batch_size": plan.batch_size,
        "device": plan.device,
        "stop_on_success": plan.stop_on_success,
        "keep_images": plan.keep_images,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def _specification(
    plan: Plan, started: datetime.datetime, findings: Sequence[Finding], checked: dict[str, int]
) -> Specification:
    from . import __version__
    from .records.specification import (
        AttackRecord,
        DatasetRecord,
        ModelRecord,
        Specification,
        ThreatRecord,
        TimesRecord,
    )

    attack, threat, (eot, votes) = plan.attack, plan.threat, plan.draws
    return Specification(
        version=__version__,
        status="shard" if plan.shard else "complete",
        model=ModelRecord(
            name=plan.model.name,
            sha256=plan.model.sha256,
            parameters=plan.model.parameters,
            weights=plan.model.weights,
            preprocessing=plan.model.preprocessing,
            recipe=plan.model.recipe,
        ),
        defenses=tuple(
            _defense_record(d, spec) for d, spec in zip(plan.defenses, _specs(plan), strict=True)
        ),
        dataset=DatasetRecord(
            name=plan.data.name,
            split=plan.data.split,
            fingerprint=plan.data.fingerprint,
            classes=len(plan.data.classes),
            shape=tuple(plan.data.shape),
            samples=len(plan.index),
        ),
        attack=AttackRecord(
            name=attack.name,
            options=dict(plan.attack_options),
            resolved={name: getattr(attack, name) for name in option_types(type(attack))},
            source_sha256=_foreign_hash(attack),
            access=attack.access,
        ),
        threat=ThreatRecord(norm=threat.norm, eps=threat.eps, low=threat.low, high=threat.high),
        target=None if plan.target is None else str(plan.target),
        seed=plan.seed,
        eot=eot,
        votes=votes,
        precision=plan.precision,
        deterministic=plan.deterministic,
        batch_size=plan.batch_size,
        shard=plan.shard,
        warnings=tuple(f.text for f in findings),
        verdict=verdict(list(findings)),
        device=_device_name(plan.device),
        environment=environment_record(),
        times=TimesRecord(started=started.isoformat(timespec="seconds").replace("+00:00", "Z"), seconds=0.0),
        calls=checked,
    )


def _specs(plan: Plan) -> Sequence[str]:
    return plan.defense_specs or [d.name for d in plan.defenses]


def _defense_record(defense: Defense, spec: str) -> Any:
    from .records.specification import DefenseRecord

    at_inference = isinstance(defense, InferenceDefense)
    return DefenseRecord(
        name=defense.name,
        spec=spec.rsplit("/", 1)[-1],
        options={name: getattr(defense, name) for name in option_types(type(defense))},
        source_sha256=_foreign_hash(defense),
        randomized=at_inference and defense.randomized,  # type: ignore[attr-defined]
        differentiable=not at_inference or defense.differentiable,  # type: ignore[attr-defined]
        kind="inference" if at_inference else "training",
    )


def _foreign_hash(thing: Attack | Defense) -> str | None:
    """The hash of a plug-in's source; what comes with the package is told by the package's version."""
    return None if type(thing).__module__.startswith("robustbench_lite.") else source_hash(type(thing))


def _device_name(device: str) -> str:
    kind = torch.device(device)
    return f"{device} ({torch.cuda.get_device_name(kind)})" if kind.type == "cuda" else device


def _result(
    plan: Plan, specification: Specification, columns: dict[str, Tensor], seconds: float, leaderboard: Path | None
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
    images = columns.get("adversarial")
    if leaderboard is None:
        return Result(run, images)
    file, settled = settle(leaderboard, run)
    return Result(run, images, file, settled)


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
    defenses: Sequence[Defense] = (),
    seed: int = 0,
    batch_size: int = 256,
    device: str | None = None,
    precision: str = "float32",
    deterministic: bool = False,
    eot: int | None = None,
    votes: int | None = None,
    stop_on_success: bool = True,
    name: str | None = None,
    leaderboard: str | Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Robust accuracy of `model` on images under one attack, with one row and the image of each sample.

    model: pixels (N, C, H, W) in [0, 1] to logits (N, K). x: (N, C, H, W) float32 in [0, 1]. y: (N,) int64.
    attack: a name, `FILE.py:NAME`, or an instance of Attack; attack_options: its fields.
    norm, eps: the threat, eps in pixels of [0, 1] (a number, a fraction as text, or (N,) one a sample);
    default 8/255 for linf and 0.5 for l2. target: None, random, next, least-likely, all or a class.
    device: default the model's own. precision: float32, bf16 or f16 for the search; proofs are in float32.
    leaderboard: folder that receives the run file; None writes nothing.

    The model's mode, its parameters, the inputs and the global random state are left as they were found.
    Raises UserError for arguments that do not fit, in one line that says what was expected.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    >>> r = evaluate(net, torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64), attack="fgsm", eps=0.5)
    >>> 0 <= r.robust_accuracy <= r.clean_accuracy <= 1
    True
    """
    from .models import LoadedModel
    from .models.identity import state_sha256

    if not isinstance(model, nn.Module):
        raise UserError(f"model: expected a torch.nn.Module, got {type(model).__name__}; put a function into a module")
    if model.training:
        warnings.warn("model is in training mode; it is evaluated in evaluation mode and then put back", stacklevel=2)
    classes = _count_classes(model, x)
    each = eps.detach().cpu().float() if isinstance(eps, Tensor) and eps.ndim else None
    data = _tensor_data(x, y, classes, each)
    threat = make_threat(norm, float(each.max()) if each is not None else eps)  # type: ignore[arg-type]
    plan = Plan(
        model=LoadedModel(
            module=model,
            name=name or type(model).__name__,
            sha256=state_sha256(model),
            parameters=sum(p.numel() for p in model.parameters()),
            preprocessing={},
            weights="given",
            recipe=None,
        ),
        data=data,
        index=torch.arange(len(data)),
        attack=make_attack(attack, attack_options, threat),
        attack_options=dict(attack_options or {}),
        threat=threat,
        defenses=tuple(defenses),
        target=target,
        eps=each,
        seed=seed,
        batch_size=batch_size,
        device=device or _device_of(model),
        precision=precision,
        deterministic=deterministic,
        eot=eot,
        votes=votes,
        stop_on_success=stop_on_success,
        keep_images=True,
    )
    result = run_plan(
        plan, leaderboard=None if leaderboard is None else Path(leaderboard), progress=progress
    )
    for text in result.warnings:
        warnings.warn(text, stacklevel=2)
    return result


def make_threat(norm: str, eps: float | str | None) -> Threat:
    """The threat of this norm; eps defaults to 8/255 for linf and 0.5 for l2."""
    if norm not in DEFAULT_EPS:
        raise unknown_name("norm", norm, DEFAULT_EPS)
    return Threat(norm, DEFAULT_EPS[norm] if eps is None else eps)  # type: ignore[arg-type]


def _count_classes(model: nn.Module, x: Tensor) -> int:
    if not isinstance(x, Tensor) or x.ndim != 4 or not len(x):
        raise UserError(f"x: expected at least one image (N, C, H, W), got {tuple(getattr(x, 'shape', ()))}")
    with frozen(model), torch.no_grad(), torch.random.fork_rng():
        first = x[:1].detach().to(_device_of(model), torch.float32)
        row = torch.zeros(1, dtype=torch.int64, device=first.device)
        return Network(model, device=first.device).logits(first, Noise(Stream(row), row)).shape[1]


def _tensor_data(x: Tensor, y: Tensor, classes: int, eps: Tensor | None) -> ArrayDataset:
    """The images and labels of a call as a data set."""
    if not isinstance(y, Tensor) or y.shape != (len(x),) or y.is_floating_point() or y.dtype == torch.bool:
        came = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise UserError(f"y: expected integer labels of shape ({len(x)},), got {came}")
    if eps is not None and (eps.shape != (len(x),) or not (eps >= 0).all()):
        raise UserError(f"eps: expected a number >= 0, or one for each of {len(x)} images, got {tuple(eps.shape)}")
    images, labels = x.detach().cpu(), y.detach().cpu().long()
    check_images(images, labels, classes)
    fingerprint = hashlib.sha256("".join(content_hashes(images)).encode() + labels.numpy().tobytes())
    fingerprint.update(b"" if eps is None else eps.numpy().tobytes())
    return ArrayDataset(
        name="tensors",
        split="given",
        classes=tuple(map(str, range(classes))),
        shape=(images.shape[1], images.shape[2], images.shape[3]),
        labels=labels,
        fingerprint=fingerprint.hexdigest(),
        array=images.float(),
    )


def _device_of(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    return "cpu" if parameter is None else str(parameter.device)
