from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from robustbench_lite.errors import UserError
from robustbench_lite.leaderboard import FILE, build, derive, merge, verify
from robustbench_lite.records import Run, ThreatRecord, check_run, read_run, settle, summarize, write_run

from ..records.run_builder import defense, make_run, make_shard, specification, tamper

RUNS: list[dict[str, Any]] = [
    {},
    {"defenses": (defense(),)},
    {"threat": ThreatRecord(norm="l2", eps=0.5), "target": "next", "data_seed": 3},
    {"seed": 1, "data_seed": 5},
    {"seed": 2, "status": "failed", "positions": range(9)},
]


@pytest.fixture
def board(tmp_path: Path) -> Path:
    folder = tmp_path / "board"
    for changes in RUNS:
        settle(folder, make_run(**changes))
    return folder


def test_build_has_one_typed_row_a_run(board: Path) -> None:
    frame, problems = build(board)
    assert problems == []
    assert verify(board) == []
    assert len(frame) == len(RUNS)
    stored = pq.read_table(board / FILE)
    for name in ("clean_accuracy", "robust_low", "eps", "seconds"):
        assert stored.schema.field(name).type == pa.float64()
    for name in ("n", "forwards", "backwards", "seed", "warnings"):
        assert stored.schema.field(name).type == pa.int64()
    pd.testing.assert_frame_equal(stored.to_pandas(), frame)
    assert set(frame.run_id) == {path.stem for path in (board / "runs").iterdir()}
    failed = frame[frame.status == "failed"]
    assert len(failed) == 1
    assert failed.clean_accuracy.isna().all()
    assert failed.robust_accuracy.isna().all()
    assert failed.robust_high.isna().all()


def test_the_same_runs_give_the_same_bytes_in_any_order(board: Path, tmp_path: Path) -> None:
    build(board)
    other = tmp_path / "other"
    for changes in reversed(RUNS):
        settle(other, make_run(**changes))
    build(other)
    first = (board / FILE).read_bytes()
    assert (other / FILE).read_bytes() == first
    build(board)
    assert (board / FILE).read_bytes() == first


QUERY = """
WITH counts AS (
  SELECT filename, count(*) AS n, count(*) FILTER (correct) AS clean,
         count(*) FILTER (correct AND NOT success) AS robust, count(*) FILTER (attacked) AS attacked,
         count(*) FILTER (success) AS won, sum(forwards)::BIGINT AS forwards, sum(backwards)::BIGINT AS backwards
  FROM read_parquet(?, filename = true) GROUP BY filename)
SELECT parse_filename(filename, true) AS run_id, n, clean / n AS clean_accuracy, robust / n AS robust_accuracy,
       won / attacked AS attack_success, forwards, backwards,
       (robust / n + z*z / (2*n) - z * sqrt(robust / n * (1 - robust / n) / n + z*z / (4*n*n))) / (1 + z*z / n) AS low,
       (robust / n + z*z / (2*n) + z * sqrt(robust / n * (1 - robust / n) / n + z*z / (4*n*n))) / (1 + z*z / n) AS high
FROM counts, (SELECT 1.959963984540054::DOUBLE AS z)
"""


def test_a_query_over_the_run_files_gives_the_same_numbers(board: Path) -> None:
    build(board)
    stored = pd.read_parquet(board / FILE).set_index("run_id")
    complete = stored[stored.status == "complete"]
    answer = duckdb.execute(QUERY, [str(board / "runs" / "*.parquet")]).fetchall()
    found = {row[0]: row[1:] for row in answer}
    assert found.keys() == set(stored.index)
    for run_id, row in complete.iterrows():
        n, clean, robust, won, forwards, backwards, low, high = found[run_id]
        assert (n, forwards, backwards) == (row.n, row.forwards, row.backwards)
        assert (clean, robust, won) == (row.clean_accuracy, row.robust_accuracy, row.attack_success)
        assert (low, high) == pytest.approx((row.robust_low, row.robust_high), abs=1e-12)


def test_plain_pandas_over_the_run_files_gives_the_same_numbers(board: Path) -> None:
    build(board)
    stored = pd.read_parquet(board / FILE)
    rows = {path.stem: pd.read_parquet(path) for path in (board / "runs").glob("*.parquet")}
    for row in stored[stored.status == "complete"].itertuples():
        samples = rows[str(row.run_id)]
        assert row.n == len(samples)
        assert row.clean_accuracy == samples.correct.mean()
        assert row.robust_accuracy == (samples.correct & ~samples.success).mean()
        assert row.attack_success == samples.success.sum() / samples.attacked.sum()
        assert (row.forwards, row.backwards) == (samples.forwards.sum(), samples.backwards.sum())


@pytest.mark.parametrize("content", [b"", b"PAR1 cut", "foreign", "truncated"])
def test_files_that_are_no_runs_are_named_and_left_alone(board: Path, content: bytes | str) -> None:
    frame, _ = build(board)
    odd = board / "runs" / "odd.parquet"
    if content == "foreign":
        pq.write_table(pa.table({"x": [1]}), odd)
    elif content == "truncated":
        odd.write_bytes(next((board / "runs").glob("*.parquet")).read_bytes()[:-100])
    else:
        assert isinstance(content, bytes)
        odd.write_bytes(content)
    before = odd.read_bytes()
    again, problems = build(board)
    assert len(problems) == 1
    assert str(odd) in problems[0]
    assert "\n" not in problems[0]
    assert verify(board) == problems
    assert odd.read_bytes() == before
    pd.testing.assert_frame_equal(frame, again)


@pytest.mark.parametrize("foreign", [True, False])
def test_a_leaderboard_file_that_is_not_ours_is_left_alone(board: Path, foreign: bool) -> None:
    if foreign:
        pq.write_table(pa.table({"x": [1]}), board / FILE)
    else:
        (board / FILE).write_bytes(b"my own notes")
    before = (board / FILE).read_bytes()
    frame, problems = build(board)
    assert len(frame) == len(RUNS)
    assert any(FILE in line for line in problems)
    assert any(FILE in line for line in verify(board))
    assert (board / FILE).read_bytes() == before


def _rewrite(path: Path, run: Run) -> None:
    """Put a forged run where the honest one was."""
    forged = write_run(path.parent.parent / "forged", run)
    forged.replace(path)


def test_each_kind_of_tampering_with_a_run_is_found(board: Path) -> None:
    build(board)
    path = settle(board, make_run())[0]
    honest = path.read_bytes()
    run = make_run()
    won = run.table["success"].to_pylist().index(True)
    label = run.table["label"][won].as_py()
    spec = run.specification
    forgeries = {
        "flipped": tamper(run, won, success=False, step=None, restart=None),
        "flipped without hash": tamper(run, won, success=False, rehash=False),
        "beyond eps": tamper(run, won, distance_linf=0.5),
        "row removed": Run(spec, run.table.slice(1)),
        "sums": Run(dataclasses.replace(spec, calls={**spec.calls, "forwards": 1}), run.table),
        "weights": Run(dataclasses.replace(spec, model=dataclasses.replace(spec.model, sha256="f" * 64)), run.table),
        "eps": Run(dataclasses.replace(spec, threat=dataclasses.replace(spec.threat, eps=16 / 255)), run.table),
    }
    for kind, forged in forgeries.items():
        _rewrite(path, forged)
        assert any(str(path) in line for line in verify(board)), kind
        frame, problems = derive(board)
        assert path.stem not in set(frame.run_id), kind
        assert any(str(path) in line for line in problems), kind
    # A forger who makes all consistent still meets the stored leaderboard.
    whole = tamper(run, won, success=False, step=None, restart=None, adversarial_prediction=label)
    _rewrite(path, tamper(whole, won, adversarial_margin=1.0))
    assert [line for line in verify(board) if "robust_accuracy" in line or "attack_success" in line]
    path.write_bytes(honest)
    assert verify(board) == []


def test_tampering_with_the_leaderboard_is_found(board: Path) -> None:
    build(board)
    stored = pq.read_table(board / FILE)
    honest = (board / FILE).read_bytes()

    def change(column: str, value: Any) -> pa.Table:
        values = stored[column].to_pylist()
        values[0] = value
        field = stored.schema.field(column)
        return stored.set_column(stored.schema.get_field_index(column), field, pa.array(values, field.type))

    forgeries = {
        "robust_accuracy": change("robust_accuracy", 0.99),
        "model": change("model", "better"),
        "lacks": stored.slice(1),
        "order": stored.take([1, 0, *range(2, stored.num_rows)]),
        "columns": stored.drop_columns(["verdict"]),
    }
    for word, table in forgeries.items():
        pq.write_table(table.replace_schema_metadata(stored.schema.metadata), board / FILE)
        faults = verify(board)
        assert len(faults) == 1
        assert word in faults[0]
    (board / FILE).unlink()
    assert ["not there" in line for line in verify(board)] == [True]
    build(board)
    assert (board / FILE).read_bytes() == honest


def test_a_run_that_vanished_is_found(board: Path) -> None:
    build(board)
    settle(board, make_run())[0].unlink()
    assert ["not there" in line for line in verify(board)] == [True]


def test_a_copy_under_another_name_does_not_count_twice(board: Path) -> None:
    path = settle(board, make_run())[0]
    shutil.copy(path, path.with_name("best-run.parquet"))
    frame, problems = build(board)
    assert len(frame) == len(RUNS)
    assert any("best-run.parquet" in line for line in problems)


def test_three_folders_of_shards_make_the_whole(tmp_path: Path) -> None:
    whole = make_run()
    folders = [tmp_path / name for name in "abc"]
    for number, folder in enumerate(folders, 1):
        settle(folder, make_shard(number, 3, device=f"machine {number}"))
    first = merge(folders[0], folders[1])
    assert first.copied == [specification().run_id() + ".shard-2-of-3.parquet"]
    assert first.assembled == []
    assert len(first.frame) == 0
    assert ["incomplete" in line and "missing 3" in line for line in first.problems] == [True]
    assert ["incomplete" in line for line in verify(folders[0])] == [True]
    second = merge(folders[0], folders[2])
    assert second.problems == []
    assert [path.name for path in second.assembled] == [specification().run_id() + ".parquet"]
    made = read_run(second.assembled[0])
    assert made.table.equals(whole.table)
    assert made.specification.rows_sha256 == whole.specification.rows_sha256
    assert made.specification.calls == whole.specification.calls
    assert made.specification.times.seconds == 4.5
    assert made.specification.device == "machine 1 + machine 2 + machine 3"
    assert check_run(made) == []
    assert [p.name for p in (folders[0] / "runs").iterdir()] == [second.assembled[0].name]
    for name in ("clean_accuracy", "robust_accuracy", "robust_low", "forwards"):
        assert second.frame[name].item() == summarize(whole)[name]
    assert verify(folders[0]) == []
    again = merge(folders[0], folders[1])
    assert (again.copied, again.problems) == ([], [])


def test_shards_in_one_folder_are_put_together_by_build(tmp_path: Path) -> None:
    for number in (2, 1):
        settle(tmp_path, make_shard(number, 2))
    frame, problems = build(tmp_path)
    assert problems == []
    assert list(frame.status) == ["complete"]
    assert frame.n.item() == 40


def test_what_every_shard_learned_costs_the_whole_once(tmp_path: Path) -> None:
    calls = {"forwards": 0, "backwards": 0, "check_forwards": 0, "fit_forwards": 60, "fit_backwards": 50}
    shards = [make_shard(number, 3, calls=calls) for number in (1, 2, 3)]
    for shard in shards:
        settle(tmp_path, shard)
    build(tmp_path)
    whole = read_run(next((tmp_path / "runs").iterdir())).specification.calls
    assert (whole["fit_forwards"], whole["fit_backwards"]) == (60, 50)
    for name in ("forwards", "backwards", "check_forwards"):
        assert whole[name] == sum(shard.specification.calls[name] for shard in shards) > 0


def test_a_missing_shard_is_incomplete_and_never_robust(tmp_path: Path) -> None:
    settle(tmp_path, make_shard(1, 3))
    settle(tmp_path, make_shard(3, 3))
    frame, problems = build(tmp_path)
    assert len(frame) == 0
    assert problems == [f"{specification().run_id()}: incomplete, of 3 shards missing 2"]
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_a_failed_shard_makes_the_run_failed_until_it_is_mended(tmp_path: Path) -> None:
    settle(tmp_path, make_shard(1, 2))
    settle(tmp_path, make_shard(2, 2, status="failed", positions=range(1, 9, 2)))
    frame, problems = build(tmp_path)
    assert list(frame.status) == ["failed"]
    assert frame.robust_accuracy.isna().all()
    assert ["failed 2" in line for line in problems] == [True]
    settle(tmp_path, make_shard(2, 2))
    frame, problems = build(tmp_path)
    assert problems == []
    assert list(frame.status) == ["complete"]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_kill_while_shards_are_removed_is_mended(tmp_path: Path) -> None:
    shards = [settle(tmp_path, make_shard(number, 3))[0] for number in (1, 2, 3)]
    kept = shards[1].read_bytes()
    build(tmp_path)
    shards[1].write_bytes(kept)
    frame, problems = build(tmp_path)
    assert problems == []
    assert len(frame) == 1
    assert not shards[1].exists()


def test_a_corrupt_shard_is_named_and_the_others_kept(tmp_path: Path) -> None:
    shards = [settle(tmp_path, make_shard(number, 2))[0] for number in (1, 2)]
    shards[0].write_bytes(b"broken")
    frame, problems = build(tmp_path)
    assert len(frame) == 0
    assert any(str(shards[0]) in line for line in problems)
    assert any("missing 1" in line for line in problems)
    assert all(path.exists() for path in shards)
    assert {*verify(tmp_path)} == {*problems}


def test_shards_of_other_results_do_not_replace_the_whole(tmp_path: Path) -> None:
    whole = settle(tmp_path, make_run())[0]
    before = whole.read_bytes()
    for number in (1, 2):
        settle(tmp_path, make_shard(number, 2, data_seed=8))
    frame, problems = build(tmp_path)
    assert problems == []
    assert list(frame.run_id) == [whole.stem, f"{whole.stem}-2"]
    assert whole.read_bytes() == before


def test_merge_copies_what_is_lacking_byte_for_byte(board: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    merged = merge(new, board)
    assert merged.problems == []
    assert len(merged.copied) == len(RUNS)
    for path in (board / "runs").iterdir():
        assert (new / "runs" / path.name).read_bytes() == path.read_bytes()
    assert verify(new) == []
    assert merge(new, board).copied == []


def test_merge_names_a_run_with_other_content(board: Path, tmp_path: Path) -> None:
    ours = settle(board, make_run())[0]
    before = ours.read_bytes()
    other = tmp_path / "other"
    settle(other, make_run(data_seed=7))
    merged = merge(board, other)
    assert merged.copied == []
    assert len(merged.problems) == 1
    assert ours.name in merged.problems[0]
    assert "of 40 verdicts" in merged.problems[0]
    assert ours.read_bytes() == before


def test_merge_takes_a_repeat_for_the_same_run_and_mends_a_failed_one(board: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    settle(other, make_run(times=dataclasses.replace(specification().times, seconds=99.0)))
    settle(other, make_run(seed=2))
    merged = merge(board, other)
    assert merged.problems == []
    assert merged.copied == [specification(seed=2).run_id() + ".parquet"]
    assert set(merged.frame.status) == {"complete"}
    back = merge(other, board)
    assert back.problems == []
    assert set(back.frame.status) == {"complete"}


def test_merge_does_not_take_what_proves_nothing(tmp_path: Path) -> None:
    other = tmp_path / "other"
    run = make_run()
    write_run(other, tamper(run, run.table["success"].to_pylist().index(True), distance_linf=0.5))
    (other / "runs" / "odd.parquet").write_bytes(b"odd")
    merged = merge(tmp_path / "board", other)
    assert merged.copied == []
    assert len(merged.problems) == 2
    assert len(merged.frame) == 0


def test_folders_that_cannot_be_are_the_users_to_mend(board: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for call in (build, derive, verify):
        for path in (file, tmp_path / "none"):
            with pytest.raises(UserError, match="--leaderboard"):
                call(path)
    with pytest.raises(UserError, match="--leaderboard"):
        merge(file, board)
    with pytest.raises(UserError, match="--leaderboard"):
        merge(file / "deeper", board)
    for other in (file, tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="OTHER"):
            merge(board, other)
    with pytest.raises(UserError, match="another folder"):
        merge(board, board)
    assert file.read_text() == "mine"
    assert not (tmp_path / "none").exists()


def test_a_full_disk_leaves_the_old_leaderboard(board: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(board)
    before = (board / FILE).read_bytes()
    settle(board, make_run(seed=9))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"--leaderboard .*No space left"):
        build(board)
    monkeypatch.undo()
    assert (board / FILE).read_bytes() == before
    assert sorted(p.name for p in board.iterdir()) == [FILE, "runs"]
