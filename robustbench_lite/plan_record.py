"""What the record of a plan says: the model, the data, the defenses and the attack, by name and by hash."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .attack import Attack
from .data.dataset import Dataset
from .defense import Defense, InferenceDefense
from .environment import environment_record
from .files import sha256_file
from .fitting import FitData
from .history import training_seconds
from .models.identity import layout_sha256
from .options import option_types
from .plan import Plan
from .portfolio import Part, Portfolio
from .registry import source_hash
from .surrogate import Transfer
from .targets import check_target
from .threat import Threat
from .worst_case import WorstCase

if TYPE_CHECKING:
    from .models import LoadedModel
    from .records.specification import (
        AttackOutcome,
        DatasetRecord,
        DefenseRecord,
        ModelRecord,
        Specification,
        TimesRecord,
    )


def resume_key(plan: Plan, specification: Specification, answers: str) -> dict[str, Any]:
    """What must be equal for a stored engine to go on bit for bit."""
    return {
        "identity": specification.identity(),
        "answers": answers,
        "version": specification.version,
        "batch_size": plan.batch_size,
        "device": plan.device,
        "stop_on_success": plan.stop_on_success,
        "keep_images": plan.keep_images,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }


def _resolved(attack: Attack, threat: Threat) -> dict[str, Any]:
    """Every option as it stands, and those of a portfolio's parts; of a transfer also what tells its surrogates."""
    if isinstance(attack, Transfer):
        surrogates = [surrogate.record() for surrogate in attack.surrogates]
        return {**_resolved(attack.inner, threat), "ensemble": attack.ensemble, "surrogates": surrogates}
    if isinstance(attack, WorstCase):
        return {"parts": [_part(each, threat) for each in attack.attacks]}
    options = {name: getattr(attack, name) for name in option_types(type(attack))}
    if isinstance(attack, Portfolio):
        parts = (Part.of(part) for part in attack.parts(threat))
        options["parts"] = [
            {"name": part.attack.name, **_resolved(part.attack.resolve(threat), threat)}
            | ({"hope": part.hope} if part.hope < 1 else {})
            | ({"max_distance": part.max_distance} if math.isfinite(part.max_distance) else {})
            | ({"warm": part.warm} if part.warm else {})
            for part in parts
        ]
    return options


def _part(attack: Attack, threat: Threat) -> dict[str, Any]:
    """One of several attacks, with the hash of its source where that is a plug-in's."""
    source = foreign_hash(attack.inner if isinstance(attack, Transfer) else attack)
    told = {"name": attack.name, **_resolved(attack.resolve(threat), threat)}
    return told if source is None else {**told, "source_sha256": source}


def _passed(attack: Attack, names: Iterable[str]) -> dict[str, Any]:
    """The options that the user gave, as they were understood, and the names of surrogates."""
    if isinstance(attack, WorstCase):
        own = zip(attack.labels, passed_each(attack), strict=True)
        return {f"{label}.{name}": value for label, options in own for name, value in options.items()}
    if not isinstance(attack, Transfer):
        return {name: getattr(attack, name) for name in names}
    options = {name: attack.option(name) for name in names}
    return {**options, "surrogate": " + ".join(surrogate.name for surrogate in attack.surrogates)}


def passed_each(attack: WorstCase) -> list[dict[str, Any]]:
    """The options that the user gave to each of several attacks."""
    named: list[list[str]] = [[] for _ in attack.attacks]
    for place, name in attack.given.values():
        named[place].append(name)
    return [_passed(each, names) for each, names in zip(attack.attacks, named, strict=True)]


def outcomes(attack: Attack, columns: Mapping[str, Tensor]) -> tuple[AttackOutcome, ...]:
    """What each of several attacks did in its turn; nothing for one attack."""
    from .records.specification import AttackOutcome

    if not isinstance(attack, WorstCase):
        return ()
    tried, calls, success = columns["turn"], columns["turn_calls"].sum(0), columns["success"]
    return tuple(
        AttackOutcome(
            name=label,
            options=options,
            images=int((tried >= place).sum()),
            successes=int((success & (tried == place)).sum()),
            forwards=int(calls[place, 0]),
            backwards=int(calls[place, 1]),
        )
        for place, (label, options) in enumerate(zip(attack.labels, passed_each(attack), strict=True))
    )


def specification_of(plan: Plan, started: datetime.datetime, passes: dict[str, int]) -> Specification:
    """The record of the plan, as far as it is known before the run; passes: of the model checks."""
    from . import __version__
    from .records.specification import AttackRecord, CostsRecord, Specification, ThreatRecord

    attack, threat, (eot, votes) = plan.attack, plan.threat, plan.draws
    return Specification(
        version=__version__,
        status="shard" if plan.shard else "complete",
        model=model_record(plan.model),
        defenses=defense_records(plan.defenses, plan.defense_specs, plan.learn_from),
        dataset=dataset_record(plan.data, len(plan.index)),
        attack=AttackRecord(
            name=attack.name,
            options=_passed(attack, plan.attack_options),
            resolved=_resolved(attack, threat) | ({} if plan.fit is None else {"fit": plan.fit.record}),
            source_sha256=foreign_hash(attack.inner if isinstance(attack, Transfer) else attack),
            access=attack.access,
            minimal=attack.minimal,
            own_limits=attack.own_limits,
        ),
        threat=ThreatRecord(norm=threat.norm, eps=threat.eps, low=threat.low, high=threat.high),
        target=None if plan.target is None else str(check_target(plan.target, plan.data.classes)),
        seed=plan.seed,
        eot=eot,
        votes=votes,
        precision=plan.precision,
        deterministic=plan.deterministic,
        max_queries=plan.max_queries,
        batch_size=plan.batch_size,
        shard=plan.shard,
        device=device_name(plan.device),
        environment=environment_record(),
        times=begun(started),
        calls=passes,
        costs=CostsRecord(training_seconds=training_seconds(plan.model.history)),
    )


def model_record(model: LoadedModel) -> ModelRecord:
    """What a record says of the network."""
    from .records.specification import ModelRecord

    return ModelRecord(
        name=model.name,
        sha256=model.sha256,
        parameters=model.parameters,
        weights=model.weights,
        preprocessing=model.preprocessing,
        recipe=model.recipe,
        source_sha256=model.source_sha256,
        layout_sha256=layout_sha256(model.module),
    )


def dataset_record(data: Dataset, samples: int) -> DatasetRecord:
    """What a record says of the data set, of which it has so many samples."""
    from .records.specification import DatasetRecord

    return DatasetRecord(
        name=data.name,
        split=data.split,
        fingerprint=data.fingerprint,
        classes=len(data.classes),
        shape=tuple(data.shape),
        samples=samples,
        class_names=tuple(data.classes),
        framing=None if data.reading.framing is None else dataclasses.asdict(data.reading.framing),
    )


def begun(started: datetime.datetime) -> TimesRecord:
    """What a record says of its times at the beginning; `started` in UTC."""
    from .records.specification import TimesRecord

    return TimesRecord(started=started.isoformat(timespec="seconds").replace("+00:00", "Z"), seconds=0.0)


def defense_records(
    defenses: Sequence[Defense], specs: Sequence[str], learn_from: FitData | None = None
) -> tuple[DefenseRecord, ...]:
    """What a record says of the defenses; specs: as the user named them. learn_from: what some learned from."""
    named = specs or [d.name for d in defenses]
    return tuple(_defense_record(d, spec, learn_from) for d, spec in zip(defenses, named, strict=True))


def _defense_record(defense: Defense, spec: str, learn_from: FitData | None) -> DefenseRecord:
    from .records.specification import DefenseRecord

    at_inference = isinstance(defense, InferenceDefense)
    learns = isinstance(defense, InferenceDefense) and defense.fit_samples > 0
    resolved = {name: getattr(defense, name) for name in option_types(type(defense))}
    return DefenseRecord(
        name=defense.name,
        spec=spec.rsplit("/", 1)[-1],
        options={name: value for name, value in resolved.items() if value != _default(defense, name)},
        resolved=resolved,
        source_sha256=foreign_hash(defense),
        randomized=at_inference and defense.randomized,  # type: ignore[attr-defined]
        differentiable=not at_inference or defense.differentiable,  # type: ignore[attr-defined]
        kind="inference" if at_inference else "training",
        rejects=at_inference and defense.rejects,  # type: ignore[attr-defined]
        fit=(learn_from.record | _named_files(resolved)) if learns and learn_from is not None else None,
        adaptive={"attack": defense.adaptive, "options": dict(defense.adaptive_options)},
    )


def _named_files(options: Mapping[str, Any]) -> dict[str, Any]:
    """The SHA-256 of the files that options name, in order, where there are any: what they hold decides, not a name."""
    said = [part.strip() for value in options.values() if isinstance(value, str) for part in value.split(",")]
    files = [Path(part).expanduser() for part in said if Path(part).suffix and Path(part).expanduser().is_file()]
    return {"files": [sha256_file(file) for file in files]} if files else {}


def _default(thing: Defense, option: str) -> Any:
    return next((f.default for f in dataclasses.fields(thing) if f.name == option), dataclasses.MISSING)


def foreign_hash(thing: Any) -> str | None:
    """The hash of a plug-in's source; what comes with the package is told by the package's version."""
    return None if type(thing).__module__.startswith("robustbench_lite.") else source_hash(type(thing))


def device_name(device: str) -> str:
    """What a record says of the device."""
    kind = torch.device(device)
    return f"{device} ({torch.cuda.get_device_name(kind)})" if kind.type == "cuda" else device
