from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from robustbench_lite.errors import RecordError, UserError
from robustbench_lite.records import SCHEMA, Run, check_run, read_run, rows_sha256, seal, settle, write_run
from robustbench_lite.records.schema import METADATA_KEY
from robustbench_lite.records.shards import run_files

from .run_builder import make_run, make_shard, specification, tamper


def _column(field: pa.Field) -> st.SearchStrategy[Any]:
    values: dict[str, st.SearchStrategy[Any]] = {
        "int64": st.integers(-(2**63), 2**63 - 1),
        "double": st.floats(allow_nan=False),
        "bool": st.booleans(),
        "string": st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    }
    value = values[str(field.type)]
    return st.none() | value if field.nullable else value


rows = st.lists(st.fixed_dictionaries({field.name: _column(field) for field in SCHEMA}), max_size=6)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows)
def test_rows_and_back(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    run = seal(specification(), pa.Table.from_pylist(rows, schema=SCHEMA))
    again = read_run(write_run(tmp_path, run))
    assert again.specification == run.specification
    assert again.table.equals(run.table)
    assert rows_sha256(again.table) == run.specification.rows_sha256
    given = [{name: row[name] for name in SCHEMA.names} for row in rows]
    assert sorted(map(repr, again.table.to_pylist())) == sorted(map(repr, given))


def test_same_run_same_bytes(tmp_path: Path) -> None:
    one = write_run(tmp_path / "a", make_run()).read_bytes()
    assert write_run(tmp_path / "b", make_run()).read_bytes() == one
    run = make_run()
    chunks = pa.concat_tables([run.table.slice(20), run.table.slice(0, 20)])
    assert write_run(tmp_path / "c", seal(run.specification, chunks)).read_bytes() == one


def test_hash_sees_values_and_not_their_storage() -> None:
    table = make_run().table
    assert rows_sha256(pa.concat_tables([table.slice(7), table.slice(0, 7)])) == rows_sha256(table)
    assert rows_sha256(table.slice(1)) != rows_sha256(table)
    seen = {rows_sha256(table)}
    for field in SCHEMA:
        values = table[field.name].to_pylist()
        if str(field.type) == "bool":
            values[3] = not values[3]
        elif str(field.type) == "string":
            values[3] = "x" if values[3] != "x" else "y"
        else:
            values[3] = 99 if values[3] != 99 else 98
        position = table.schema.get_field_index(field.name)
        seen.add(rows_sha256(table.set_column(position, field, pa.array(values, field.type))))
    assert len(seen) == 1 + len(SCHEMA)


def test_null_and_zero_have_different_hashes() -> None:
    table = make_run().table
    position = table.schema.get_field_index("step")
    field = table.schema.field("step")
    zero, null = (table.set_column(position, field, pa.array([v] * 40, pa.int64())) for v in (0, None))
    assert rows_sha256(zero) != rows_sha256(null)


@pytest.mark.parametrize("stage", ["open", "write_table", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_broken_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, error: BaseException
) -> None:
    old = write_run(tmp_path, make_run())
    before = old.read_bytes()

    def half(table: pa.Table, file: Any, **_: Any) -> None:
        file.write(b"PAR1 half of it")
        raise error

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    if stage == "write_table":
        monkeypatch.setattr(pq, "write_table", half)
    elif stage == "open":
        monkeypatch.setattr("builtins.open", fail)
    else:
        monkeypatch.setattr(os, stage, fail)
    expected = UserError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        write_run(tmp_path, make_run(data_seed=1))
    monkeypatch.undo()
    if isinstance(error, OSError):
        assert "--leaderboard" in str(caught.value)
        assert "No space left" in str(caught.value)
    assert old.read_bytes() == before
    assert [p.name for p in old.parent.iterdir()] == [old.name]


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    old = write_run(tmp_path, make_run())
    new = write_run(tmp_path / "new", make_run(data_seed=1))
    before = old.read_bytes()
    code = (
        "import os, pathlib, sys\n"
        "from robustbench_lite.records import read_run, write_run\n"
        "os.replace = lambda *_: os._exit(9)\n"
        "write_run(pathlib.Path(sys.argv[1]), read_run(sys.argv[2]))\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path, new], check=False, timeout=60)
    assert killed.returncode == 9
    assert old.read_bytes() == before
    assert run_files(tmp_path) == [old], "what the killed process left is not taken for a run"
    assert settle(tmp_path, make_run()) == (old, "reproduced")


def test_what_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    run = make_run()
    wrong = Run(dataclasses.replace(run.specification, seed="0"), run.table)  # type: ignore[arg-type]
    with pytest.raises(RecordError, match="seed"):
        write_run(tmp_path, wrong)
    assert not list(tmp_path.iterdir())


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def _foreign() -> dict[str, bytes]:
    run = make_run()
    text = run.specification.to_json().encode()
    metadata = {METADATA_KEY: text}
    table = run.table.replace_schema_metadata(metadata)
    as_text = table.set_column(0, "index", run.table["index"].cast(pa.string()))
    return {
        "empty": b"",
        "text": b"not parquet at all",
        "foreign": _parquet(pa.table({"a": [1]})),
        "no metadata": _parquet(run.table),
        "bad metadata": _parquet(run.table.replace_schema_metadata({METADATA_KEY: b"\xff{"})),
        "newer": _parquet(run.table.replace_schema_metadata({METADATA_KEY: b'{"schema_version": 99}'})),
        "missing column": _parquet(table.drop_columns(["margin"])),
        "extra column": _parquet(table.append_column("extra", run.table["index"])),
        "numbers as text": _parquet(as_text.replace_schema_metadata(metadata)),
    }


@pytest.mark.parametrize("kind", sorted(_foreign()))
def test_what_is_no_run_is_named_and_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "odd.parquet"
    path.write_bytes(_foreign()[kind])
    with pytest.raises(RecordError) as caught:
        read_run(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == _foreign()[kind]
    assert ("newer" in str(caught.value)) == (kind == "newer")


def test_no_file_and_a_folder_are_record_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none.parquet", tmp_path):
        with pytest.raises(RecordError):
            read_run(path)


def test_truncated_and_flipped_bytes_never_pass(tmp_path: Path) -> None:
    path = write_run(tmp_path, make_run())
    sound = path.read_bytes()
    original = read_run(path)
    for size in range(0, len(sound), max(1, len(sound) // 60)):
        path.write_bytes(sound[:size])
        with pytest.raises(RecordError):
            read_run(path)
    for position in range(0, len(sound), max(1, len(sound) // 300)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 0x41]) + sound[position + 1 :])
        try:
            run = read_run(path)
        except RecordError:
            continue
        # A flip may hit what decides nothing (statistics, padding); it must not change what is read unseen.
        assert check_run(run) or run.table.equals(original.table)


def test_settle_writes_then_reproduces_then_differs(tmp_path: Path) -> None:
    first, status = settle(tmp_path, make_run())
    assert status == "written"
    before = first.read_bytes()
    later = dataclasses.replace(specification().times, seconds=7.0)
    assert settle(tmp_path, make_run(times=later)) == (first, "reproduced")
    other = tamper(make_run(), 0, margin=2.5)
    assert settle(tmp_path, other) == (first, "reproduced"), "a margin is no verdict"
    second, status = settle(tmp_path, make_run(data_seed=1))
    assert second.name == first.name.replace(".parquet", "-2.parquet")
    different, total = map(int, status.removeprefix("differs: ").removesuffix(" verdicts").split(" of "))
    assert 0 < different <= total == 40
    assert settle(tmp_path, make_run(data_seed=1)) == (second, "reproduced")
    third, _ = settle(tmp_path, make_run(data_seed=2))
    assert third.name == first.name.replace(".parquet", "-3.parquet")
    assert first.read_bytes() == before
    assert all(not check_run(read_run(path)) for path in (first, second, third))


def test_settle_counts_the_verdicts_that_differ(tmp_path: Path) -> None:
    run = make_run()
    settle(tmp_path, run)
    index = run.table["success"].to_pylist().index(True)
    label = run.table["label"][index].as_py()
    changed = tamper(run, index, success=False, adversarial_prediction=label, adversarial_margin=1.0)
    changed = tamper(changed, index, step=None, restart=None)
    assert settle(tmp_path, changed)[1] == "differs: 1 of 40 verdicts"


def test_settle_replaces_a_failed_run_and_leaves_a_corrupt_file(tmp_path: Path) -> None:
    failed, _ = settle(tmp_path, make_run(status="failed", positions=range(3)))
    assert settle(tmp_path, make_run()) == (failed, "written")
    assert read_run(failed).specification.status == "complete"
    failed.write_bytes(b"broken")
    second, status = settle(tmp_path, make_run())
    assert (second.name, status) == (failed.name.replace(".parquet", "-2.parquet"), "written")
    assert failed.read_bytes() == b"broken"


def test_a_shard_settles_under_its_own_name(tmp_path: Path) -> None:
    path, status = settle(tmp_path, make_shard(2, 3))
    assert status == "written"
    assert path.name == specification().run_id() + ".shard-2-of-3.parquet"
    assert check_run(read_run(path)) == []


@pytest.mark.parametrize("place", ["file", "below a file"])
def test_a_folder_that_cannot_be_is_the_users_to_mend(tmp_path: Path, place: str) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match="--leaderboard") as caught:
        write_run(tmp_path / "taken" / ("" if place == "file" else "deeper"), make_run())
    assert "\n" not in str(caught.value)
    assert (tmp_path / "taken").read_text() == "mine"
