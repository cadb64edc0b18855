from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from robustbench_lite.records import Run, ThreatRecord, check_run, read_run, seal, shard_positions, write_run

from .run_builder import make_run, make_shard, tamper


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("target", [None, "next"])
def test_sound_runs_have_no_faults(norm: str, target: str | None) -> None:
    assert check_run(make_run(threat=ThreatRecord(norm=norm, eps=0.3), target=target)) == []
    assert check_run(make_shard(2, 3, target=target)) == []
    assert check_run(make_run(status="failed", positions=range(5))) == []
    assert check_run(make_run(status="failed", positions=range(0))) == []


def _rows(run: Run, **wanted: bool) -> int:
    table = run.table.to_pylist()
    return next(i for i, row in enumerate(table) if all(row[k] == v for k, v in wanted.items()))


WON, HELD, MISSED = (
    {"success": True},
    {"correct": True, "success": False},
    {"correct": False},
)


@pytest.mark.parametrize(
    ("where", "changes", "fault"),
    [
        (WON, {"success": False, "step": None, "restart": None}, "no success although"),
        (HELD, {"success": True}, "success without misclassification"),
        (MISSED, {"success": True}, "success of a misclassified sample"),
        (WON, {"attacked": False}, "success without attack"),
        (WON, {"verified": False}, "not verified"),
        (WON, {"distance_linf": 9 / 255}, "beyond eps in linf"),
        (WON, {"distance_linf": None}, "beyond eps in linf"),
        (WON, {"distance_linf": float("nan")}, "beyond eps in linf"),
        (WON, {"distance_linf": 9 / 255, "eps": 9 / 255}, "eps is not within"),
        (WON, {"eps": float("nan")}, "eps is not within"),
        (HELD, {"distance_l2": 5.0}, "contradict each other"),
        (HELD, {"distance_l0": 17}, "more components"),
        (HELD, {"distance_l1": float("inf")}, "not finite"),
        (HELD, {"distance_l2": None}, "distance_l2 is missing"),
        (MISSED, {"distance_l2": 0.0}, "although not attacked"),
        (MISSED, {"attacked": True}, "attacked although misclassified"),
        (MISSED, {"correct": True}, "correct does not follow"),
        (HELD, {"correct": False}, "correct does not follow"),
        (HELD, {"margin": -1.0}, "margin contradicts"),
        (HELD, {"margin": float("nan")}, "margin is not a number"),
        (HELD, {"adversarial_margin": -1.0}, "adversarial_margin contradicts"),
        (MISSED, {"adversarial_prediction": 3, "prediction": 2, "label": 1}, "differs although not attacked"),
        (HELD, {"label": 7, "prediction": 7}, "outside the 5 classes"),
        (HELD, {"index": 39}, "index is not unique"),
        (HELD, {"index": -1}, "index is negative"),
        (HELD, {"forwards": -1}, "forwards is negative"),
        (HELD, {"seed": 4}, "seed is not that of the run"),
        (HELD, {"step": 1}, "step of a success that is none"),
        (WON, {"step": -1}, "step is negative"),
        (HELD, {"target": 1}, "target in an untargeted run"),
        (HELD, {"content_hash": "abc"}, "no SHA-256"),
        (HELD, {"adversarial_hash": None}, "adversarial_hash is missing"),
    ],
)
def test_each_tampered_row_is_found(where: dict[str, bool], changes: dict[str, Any], fault: str) -> None:
    run = make_run()
    faults = check_run(tamper(run, _rows(run, **where), **changes))
    assert any(fault in line for line in faults), faults


def test_success_at_eps_is_inside_and_just_above_is_not() -> None:
    run = make_run()
    i = _rows(run, success=True)
    distances: dict[str, Any] = {"distance_l2": 8 / 255, "distance_l1": 8 / 255, "distance_l0": 1}
    assert check_run(tamper(run, i, distance_linf=8 / 255, **distances)) == []
    assert check_run(tamper(run, i, distance_linf=8 / 255 * (1 + 1e-7), **distances))


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"adversarial_prediction": None}, "success without reaching the target"),
        ({"target": None}, "attacked without a target"),
        ({"target": "label"}, "target is the label"),
    ],
)
def test_targets_are_checked(changes: dict[str, Any], fault: str) -> None:
    run = make_run(target="next")
    i = _rows(run, success=True)
    row = run.table.to_pylist()[i]
    if changes.get("target") == "label":
        changes = {"target": row["label"]}
    if "adversarial_prediction" in changes:
        changes = {"adversarial_prediction": next(c for c in range(5) if c not in (row["label"], row["target"]))}
    faults = check_run(tamper(run, i, **changes))
    assert any(fault in line for line in faults), faults


def test_a_vote_may_go_against_the_margin() -> None:
    run = make_run(votes=5)
    assert check_run(tamper(run, _rows(run, **HELD), margin=-0.1)) == []


def test_rows_that_are_not_those_hashed_are_found() -> None:
    run = make_run()
    faults = check_run(tamper(run, 0, margin=run.table["margin"][0].as_py() * 1.01, rehash=False))
    assert faults == ["the rows are not those that were hashed (rows_sha256)"]


def test_a_removed_row_is_found() -> None:
    run = make_run()
    short = run.table.slice(1)
    calls = {n: sum(short[n].to_pylist()) for n in ("forwards", "backwards")}
    faults = check_run(seal(dataclasses.replace(run.specification, calls=calls), short))
    assert faults == ["39 rows where 40 samples were to be evaluated"]
    assert any("rows where" in line for line in check_run(make_shard(1, 3, positions=range(13))))


def test_sums_that_are_off_are_found() -> None:
    run = make_run()
    for name in ("forwards", "backwards"):
        calls = {**run.specification.calls, name: run.specification.calls[name] + 1}
        faults = check_run(Run(dataclasses.replace(run.specification, calls=calls), run.table))
        assert len(faults) == 1
        assert f"calls.{name}" in faults[0]


def test_times_are_checked() -> None:
    run = make_run()
    for times in ({"started": "yesterday"}, {"started": "2026-01-01T00:00:00"}, {"seconds": -1.0}):
        changed = dataclasses.replace(run.specification.times, **times)
        assert check_run(Run(dataclasses.replace(run.specification, times=changed), run.table))


def test_other_weights_or_another_name_are_found(tmp_path: Path) -> None:
    run = make_run()
    path = write_run(tmp_path, run)
    model = dataclasses.replace(run.specification.model, sha256="f" * 64)
    forged = write_run(tmp_path / "forged", Run(dataclasses.replace(run.specification, model=model), run.table))
    forged.replace(path)
    assert any("name" in line for line in check_run(read_run(path)))
    assert check_run(read_run(write_run(tmp_path, run, suffix="-2"))) == []
    renamed = path.with_name("best.parquet")
    write_run(tmp_path, run).rename(renamed)
    assert any("name" in line for line in check_run(read_run(renamed)))


def test_shards_share_the_samples() -> None:
    for samples in (0, 1, 10, 41):
        for count in (1, 3, 7):
            parts = [shard_positions(samples, (i, count)) for i in range(1, count + 1)]
            assert sorted(p for part in parts for p in part) == list(range(samples))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
