"""A run that is killed at any moment goes on, with the same words, to the same rows."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import robustbench_lite.checkpoint as checkpoint
from robustbench_lite.attacks.pgd import PGD
from robustbench_lite.checkpoint import Checkpoint
from robustbench_lite.data import from_arrays
from robustbench_lite.errors import UserError
from robustbench_lite.models import LoadedModel
from robustbench_lite.plan import Plan
from robustbench_lite.plan_run import run_plan
from robustbench_lite.result import Result
from robustbench_lite.running import Interrupted
from robustbench_lite.threat import Threat

from .nets import images, labels_of, mlp


def plan(**changes: Any) -> Plan:
    """Sixty images under an attack with restarts; the same in every process."""
    model, x = mlp(), images(60)
    whole = Plan(
        model=LoadedModel(
            module=model, name="mlp", sha256="a" * 64, parameters=1, preprocessing={}, weights="given", recipe=None
        ),
        data=from_arrays(x, labels_of(model, x), classes=4),
        index=torch.arange(60),
        attack=PGD(steps=6, restarts=2, momentum=0.5).resolve(Threat("linf", 0.08)),
        threat=Threat("linf", 0.08),
        batch_size=8,
        keep_images=True,
    )
    return dataclasses.replace(whole, **changes)


def equal(one: Result, other: Result) -> bool:
    assert one.adversarial is not None
    assert other.adversarial is not None
    return bool(one.run.table.equals(other.run.table)) and torch.equal(one.adversarial, other.adversarial)


@pytest.fixture(autouse=True)
def _store_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "_SHARE", 1e9)


@pytest.fixture(scope="module")
def undisturbed() -> Iterator[Result]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield run_plan(plan())
    torch.set_num_threads(threads)


def leftovers(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "runs").iterdir() if file.suffix != ".parquet")


def test_a_run_leaves_its_file_and_nothing_else(tmp_path: Path, undisturbed: Result) -> None:
    result = run_plan(plan(), leaderboard=tmp_path)
    assert equal(result, undisturbed)
    assert result.file is not None
    assert result.file.is_file()
    assert leftovers(tmp_path) == []


CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import robustbench_lite.checkpoint as checkpoint
checkpoint.EVERY, checkpoint._SHARE = 0.0, 1e9
from robustbench_lite.plan_run import run_plan
from tests.core.test_checkpoint import plan
run_plan(plan(), leaderboard=Path(sys.argv[2]), progress=lambda state: print(state.done, flush=True))
"""


def test_kill_nine_at_several_moments(tmp_path: Path, undisturbed: Result) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", CHILD, str(root), str(tmp_path)]
    reached = 0
    for lines in (4, 9):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        told = [int(child.stdout.readline()) for _ in range(lines)]
        os.kill(child.pid, signal.SIGKILL)
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        assert told[0] >= reached
        reached = told[-2]  # a line is printed before its state is stored
    assert 0 < reached < 60
    seen: list[int] = []
    result = run_plan(plan(), leaderboard=tmp_path, progress=lambda p: seen.append(p.resumed))
    assert seen[0] >= reached
    assert equal(result, undisturbed)
    assert leftovers(tmp_path) == []


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5, 9, 14])
def test_killed_before_or_after_any_file_is_written(
    nth: int, after: bool, tmp_path: Path, undisturbed: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    original = Checkpoint._write

    def write(self: Checkpoint, *arguments: Any) -> None:
        nonlocal written
        written += 1
        if written == nth and not after:
            raise Killed
        original(self, *arguments)
        if written == nth:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "_write", write)
        with pytest.raises(Killed):
            run_plan(plan(), leaderboard=tmp_path)
    assert equal(run_plan(plan(), leaderboard=tmp_path), undisturbed)
    assert leftovers(tmp_path) == []


def stop_after(count: int) -> Any:
    calls = iter(range(10**6))
    return lambda: next(calls) >= count


def test_stopping_keeps_what_is_done(tmp_path: Path, undisturbed: Result) -> None:
    done: list[int] = []
    for count in (3, 5, 2):
        with pytest.raises(Interrupted, match=r"stopped with \d+ of 60 samples done; they are kept"):
            run_plan(plan(), leaderboard=tmp_path, stop=stop_after(count), progress=lambda p: done.append(p.done))
    assert done == sorted(done)
    notes: list[str] = []
    result = run_plan(plan(), leaderboard=tmp_path, note=notes.append)
    assert any(f"{done[-1]} of 60 samples were done" in note for note in notes)
    assert equal(result, undisturbed)


def test_stopping_without_a_folder_says_that_nothing_is_kept() -> None:
    with pytest.raises(Interrupted) as raised:
        run_plan(plan(), stop=stop_after(2))
    assert "kept" not in str(raised.value)


def test_the_seconds_of_all_processes_add_up(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_plan(plan(), leaderboard=tmp_path, stop=stop_after(6))
    folder = next((tmp_path / "runs").glob("*.partial"))
    before = float(checkpoint._read(folder / "engine.safetensors")[1]["seconds"])
    assert run_plan(plan(), leaderboard=tmp_path).run.specification.times.seconds >= round(before, 3) > 0


def test_resume_false_starts_anew(tmp_path: Path, undisturbed: Result) -> None:
    with pytest.raises(Interrupted):
        run_plan(plan(), leaderboard=tmp_path, stop=stop_after(9))
    seen: list[int] = []
    result = run_plan(plan(), leaderboard=tmp_path, resume=False, progress=lambda p: seen.append(p.resumed))
    assert set(seen) == {0}
    assert equal(result, undisturbed)


@pytest.mark.parametrize("name", ["engine.safetensors", "part-00000.safetensors"])
@pytest.mark.parametrize("harm", ["garbage", "truncated", "empty", "gone"])
def test_a_corrupt_store_starts_anew(name: str, harm: str, tmp_path: Path, undisturbed: Result) -> None:
    with pytest.raises(Interrupted):
        run_plan(plan(), leaderboard=tmp_path, stop=stop_after(9))
    file = next((tmp_path / "runs").glob("*.partial")) / name
    whole = file.read_bytes()
    file.unlink()
    if harm != "gone":
        file.write_bytes({"garbage": os.urandom(999), "truncated": whole[: len(whole) // 2], "empty": b""}[harm])
    seen: list[int] = []
    result = run_plan(plan(), leaderboard=tmp_path, progress=lambda p: seen.append(p.resumed))
    assert set(seen) == {0}
    assert equal(result, undisturbed)
    assert leftovers(tmp_path) == []


def test_another_way_of_computing_does_not_go_on_from_it(tmp_path: Path, undisturbed: Result) -> None:
    with pytest.raises(Interrupted):
        run_plan(plan(), leaderboard=tmp_path, stop=stop_after(9))
    seen: list[int] = []
    other = run_plan(plan(batch_size=16), leaderboard=tmp_path, progress=lambda p: seen.append(p.resumed))
    assert set(seen) == {0}
    assert torch.equal(other.success, undisturbed.success)


def test_two_ways_of_computing_are_never_mixed(
    tmp_path: Path, undisturbed: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is killed after its first part is written and before its engine is; then the first goes on."""
    with pytest.raises(Interrupted):
        run_plan(plan(), leaderboard=tmp_path, stop=stop_after(9))
    original = Checkpoint._write

    def write(self: Checkpoint, name: str, *rest: Any) -> None:
        original(self, name, *rest)
        if name.startswith("part-"):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "_write", write)
        # Stores are far apart, so the first of them has samples to keep.
        patch.setattr(Checkpoint, "due", lambda self: bool(self.unsaved))
        with pytest.raises(Killed):
            run_plan(plan(batch_size=16), leaderboard=tmp_path)
    assert equal(run_plan(plan(), leaderboard=tmp_path), undisturbed)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_plan(plan(), leaderboard=tmp_path, stop=stop_after(4))
    folder = next((tmp_path / "runs").glob("*.partial"))
    with (
        Checkpoint(folder, {}).locked(),
        pytest.raises(UserError, match="another process is at this run") as raised,
    ):
        run_plan(plan(), leaderboard=tmp_path)
    assert "\n" not in str(raised.value)
    assert run_plan(plan(), leaderboard=tmp_path).n == 60


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("in the way")
    with pytest.raises(UserError, match="--leaderboard: cannot write") as raised:
        run_plan(plan(), leaderboard=tmp_path)
    assert "\n" not in str(raised.value)
    assert (tmp_path / "runs").read_text() == "in the way"


def test_a_full_disk_is_one_line_and_keeps_what_was_stored(
    tmp_path: Path, undisturbed: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    count = 0

    def full(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count > 8:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        save_file(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(UserError, match="No space left on device") as raised:
            run_plan(plan(), leaderboard=tmp_path)
    assert "\n" not in str(raised.value)
    seen: list[int] = []
    result = run_plan(plan(), leaderboard=tmp_path, progress=lambda p: seen.append(p.resumed))
    assert seen[0] > 0
    assert equal(result, undisturbed)
    assert leftovers(tmp_path) == []
