"""Stored verdicts: which checks ran, older records in today's words, and the checks of parts and of repeated runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from robustbench_lite.leaderboard import build, derive, reasons, verify
from robustbench_lite.records import AttackRecord, ChecksRecord, Run, read_run, seal, settle, summarize, write_run
from robustbench_lite.records.shards import assemble
from robustbench_lite.records.verdict import has_checks, verdict_of

from .run_builder import defense, make_run, make_shard, specification

ON = ChecksRecord(asked=True, before=("output", "gradient"), after=("more steps", "black box"), images=24)
OFF = ChecksRecord(asked=False, before=("output", "gradient"))


def run(checks: ChecksRecord | None, verdict: str, **changes: Any) -> Run:
    return make_run(checks=checks, verdict=verdict, **changes)


def old(forwards: int, *, backwards: int = 16, queries: int | None = None, **changes: Any) -> Run:
    """A run as schema version 4 wrote it; queries: what each surviving image cost beside its clean pass and proof."""
    made = make_run(**{"schema_version": 4, "verdict": "reliable", **changes})
    table = made.table
    if queries is not None:
        rows = table.to_pylist()
        for row in rows:
            if row["attacked"]:
                row["forwards"], row["backwards"] = 2 + queries, queries
        table = table.from_pylist(rows, schema=table.schema)
    calls = {name: int(sum(table[name].to_pylist())) for name in ("forwards", "backwards")}
    calls |= {"check_forwards": forwards, "check_backwards": backwards}
    return seal(dataclasses.replace(made.specification, calls=calls), table)


NOISE = AttackRecord(name="noise", access="label")
FGSM = AttackRecord(name="fgsm", access="gradient")
MOVED = AttackRecord(name="transfer:pgd", access="label")
SQUARE = AttackRecord(name="square", access="score")
OWN = AttackRecord(name="spatial", access="label", own_limits=True)
NOISY = (defense("random-noise", randomized=True),)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (old(500), "reliable"),
        (old(145), "unchecked"),
        (old(145, verdict="unreliable: more steps"), "unreliable: more steps"),
        (old(145, verdict=""), ""),
        (old(145, schema_version=3), "unchecked"),
        (old(1000, backwards=500, queries=80, eot=8, defenses=NOISY), "reliable"),
        (old(1000, backwards=128, queries=80, eot=8, defenses=NOISY), "unchecked"),
        (old(500, attack=NOISE, queries=0), "upper bound: no search"),
        (old(500, attack=FGSM, queries=1), "upper bound: a single step"),
        (old(500, attack=MOVED), "upper bound: a transfer attack"),
        (old(500, attack=OWN), "upper bound: a custom threat model"),
        (old(900, attack=SQUARE, queries=50), "upper bound: checked by a search without gradients alone"),
        (old(145, schema_version=5, checks=ON), "reliable"),
    ],
)
def test_an_older_record_is_read_in_todays_words(given: Run, word: str) -> None:
    assert verdict_of(given) == word
    assert summarize(given)["verdict"] == word
    assert given.specification.verdict in ("", "reliable", "unreliable: more steps"), "the record is as it was"


def test_an_older_run_at_chance_is_read_as_invalid() -> None:
    made = old(500)
    rows = made.table.to_pylist()
    for row in rows:
        row |= {"prediction": (row["label"] + 1) % 5, "correct": False, "attacked": False, "success": False}
    wrong = seal(made.specification, made.table.from_pylist(rows, schema=made.table.schema))
    assert verdict_of(wrong).startswith("invalid: clean accuracy is below chance")


def test_a_leaderboard_of_the_words_of_its_day_is_still_sound(tmp_path: Path) -> None:
    """Its numbers follow from the rows, and `build` gives it today's words."""
    import pyarrow.parquet as pq

    write_run(tmp_path, old(500, attack=NOISE, queries=0))
    build(tmp_path)
    board = pq.read_table(tmp_path / "leaderboard.parquet")
    at = board.schema.get_field_index("verdict")
    pq.write_table(board.set_column(at, board.schema.field(at), [["reliable"]]), tmp_path / "leaderboard.parquet")
    assert verify(tmp_path) == []
    pq.write_table(board.set_column(at, board.schema.field(at), [["good"]]), tmp_path / "leaderboard.parquet")
    assert len(verify(tmp_path)) == 1
    (told,) = reasons(derive(tmp_path)[0])
    assert told.startswith("upper bound: the attack does not search")


@pytest.mark.parametrize("order", ["off on", "on off", "off off on", "on off on"])
def test_settling_keeps_the_checks(order: str, tmp_path: Path) -> None:
    each = {"off": run(OFF, "unchecked"), "on": run(ON, "unreliable: more steps", warnings=("more steps: 3 of 24",))}
    for word in order.split():
        path, _ = settle(tmp_path, each[word])
    stored = read_run(path).specification
    assert (stored.verdict, stored.checks, stored.warnings) == (
        *("unreliable: more steps", ON),
        ("more steps: 3 of 24",),
    )
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert verify(tmp_path) == [] or build(tmp_path)


def test_saved_examples_do_not_cost_the_checks(tmp_path: Path) -> None:
    from robustbench_lite.records import ExamplesRecord

    saved = ExamplesRecord(file="e.npz", sha256="d" * 64)
    settle(tmp_path, run(ON, "reliable"))
    path, _ = settle(tmp_path, run(OFF, "unchecked", examples=saved))
    stored = read_run(path).specification
    assert (stored.verdict, stored.checks, stored.examples) == ("reliable", ON, saved)


def test_an_older_run_without_checks_is_completed(tmp_path: Path) -> None:
    before = old(60)
    assert not has_checks(before)
    settle(tmp_path, before)
    path, status = settle(tmp_path, run(ON, "reliable"))
    assert status == "checked"
    stored = read_run(path)
    assert (verdict_of(stored), stored.specification.checks) == ("reliable", ON)
    assert stored.table.equals(before.table)


def test_a_whole_is_checked_where_all_its_shards_are(tmp_path: Path) -> None:
    def shards(*checks: ChecksRecord) -> Any:
        for number, each in enumerate(checks, start=1):
            verdict = "reliable" if each.asked else "unchecked"
            write_run(tmp_path, make_shard(number, 2, checks=each, verdict=verdict))
        assemble(tmp_path)
        (path,) = (tmp_path / "runs").glob("*.parquet")
        return read_run(path).specification

    assert shards(ON, OFF).verdict == "unchecked"
    assert shards(OFF, OFF).verdict == "unchecked"
    whole = shards(ON, ON)
    assert whole.verdict == "reliable" and whole.checks == dataclasses.replace(ON, images=48)
    assert shards(OFF, OFF).verdict == "reliable"


def test_records_of_version_4_are_read() -> None:
    import json

    from robustbench_lite.records import Specification

    raw = json.loads(specification().to_json())
    del raw["checks"], raw["next_step"]
    read = Specification.from_json(json.dumps({**raw, "schema_version": 4}))
    assert read.checks is None and read.next_step == ""
    assert read.run_id() == specification().run_id()
