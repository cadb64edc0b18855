"""Runs for tests: random images and perturbations, and the rows that an honest evaluator would write of them."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from robustbench_lite.records import (
    SCHEMA,
    AttackRecord,
    DatasetRecord,
    DefenseRecord,
    EnvironmentRecord,
    ModelRecord,
    Run,
    Specification,
    ThreatRecord,
    TimesRecord,
    seal,
    shard_positions,
)

CLASSES, SHAPE = 5, (1, 4, 4)


def specification(**changes: Any) -> Specification:
    """A complete run of an undefended network on 40 digits."""
    whole = Specification(
        version="0.1.0",
        status="complete",
        model=ModelRecord(name="small-cnn", sha256="a" * 64, parameters=1234, weights="w.safetensors"),
        dataset=DatasetRecord(
            name="digits", split="test", fingerprint="b" * 64, classes=CLASSES, shape=SHAPE, samples=40
        ),
        attack=AttackRecord(name="pgd", options={"steps": 5}, resolved={"steps": 5, "loss": "ce"}, access="gradient"),
        threat=ThreatRecord(norm="linf", eps=8 / 255),
        seed=0,
        batch_size=16,
        verdict="ok",
        device="cpu",
        environment=EnvironmentRecord(python="3.11", torch="2.9", numpy="2.0", platform="linux", threads=1),
        times=TimesRecord(started="2026-01-02T03:04:05+00:00", seconds=1.5),
        calls={"forwards": 0, "backwards": 0, "check_forwards": 80},
    )
    return dataclasses.replace(whole, **changes)


def defense(name: str = "bit-depth", **changes: Any) -> DefenseRecord:
    record = DefenseRecord(name=name, spec=name, randomized=False, differentiable=False, kind="inference")
    return dataclasses.replace(record, **changes)


def make_run(*, data_seed: int = 0, positions: range | None = None, **changes: Any) -> Run:
    """A sound run; `changes` are fields of its specification, `data_seed` decides what came out."""
    spec = specification(**changes)
    if positions is None:
        count = spec.dataset.samples
        positions = shard_positions(count, spec.shard) if spec.shard else range(count)
    rows = [_row(spec, position, data_seed) for position in positions]
    calls = {**spec.calls, "check_forwards": 2 * len(rows)}
    for name in ("forwards", "backwards"):
        calls[name] = sum(row[name] for row in rows)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    return seal(dataclasses.replace(spec, calls=calls), table)


def make_shard(number: int, count: int, **changes: Any) -> Run:
    return make_run(**{"status": "shard", "shard": (number, count), **changes})


def _row(spec: Specification, index: int, data_seed: int) -> dict[str, Any]:
    # Each row from its own stream, so that a shard has the rows of the whole.
    random = np.random.default_rng([data_seed, index])
    classes, shape, eps = spec.dataset.classes, spec.dataset.shape, spec.threat.eps
    image = random.random(shape, dtype=np.float32)
    label = index % classes
    prediction = label if random.random() < 0.8 else (label + 1) % classes
    correct = prediction == label
    success = bool(correct and random.random() < 0.5)
    other = (label + int(random.integers(1, classes))) % classes
    change = random.uniform(-1, 1, shape)
    change *= eps * random.uniform(0.5, 1) / _distances(change)[spec.threat.norm]
    adversarial = (image + change).astype(np.float32)
    distances = _distances(change)
    return {
        "index": index,
        "content_hash": hashlib.sha256(image.tobytes()).hexdigest(),
        "label": label,
        "target": other if spec.target is not None and correct else None,
        "correct": correct,
        "attacked": correct,
        "success": success,
        "prediction": prediction,
        "adversarial_prediction": other if success else prediction,
        "margin": random.uniform(0.1, 3) * (1 if correct else -1),
        "adversarial_margin": random.uniform(0.1, 3) * (1 if correct and not success else -1),
        **{f"distance_{norm}": distances[norm] if correct else None for norm in ("linf", "l2", "l1", "l0")},
        "eps": eps,
        "forwards": int(random.integers(1, 9)) if correct else 1,
        "backwards": int(random.integers(1, 9)) if correct else 0,
        "step": int(random.integers(0, 5)) if success else None,
        "restart": 0 if success else None,
        "seed": spec.seed,
        "verified": correct,
        "adversarial_hash": hashlib.sha256(adversarial.tobytes()).hexdigest() if correct else None,
    }


def _distances(change: np.ndarray[Any, Any]) -> dict[str, Any]:
    size = np.abs(change)
    return {
        "linf": float(size.max()),
        "l2": float(np.sqrt((size**2).sum())),
        "l1": float(size.sum()),
        "l0": int((size > 0).sum()),
    }


def tamper(run: Run, row_number: int, *, rehash: bool = True, **values: Any) -> Run:
    """The run with some values of one row changed, and hash and calls made to fit unless told not to."""
    rows = run.table.to_pylist()
    rows[row_number].update(values)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    if not rehash:
        return Run(run.specification, table)
    calls = {**run.specification.calls, **{n: sum(row[n] for row in rows) for n in ("forwards", "backwards")}}
    return seal(dataclasses.replace(run.specification, calls=calls), table)
