"""How the program's threads wait: long where cores are free, shortly where others work, never against the user."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from robustbench_lite.cli import speed


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four cores on which nobody said how threads wait."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(speed, "_BETWEEN", 0.0)
    monkeypatch.setattr(speed, "keep_memory", lambda: None)
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        # Set, then removed: whatever a test sets itself is undone too.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def looks(monkeypatch: pytest.MonkeyPatch, running: Sequence[int | None]) -> None:
    """What the system says, look after look."""
    said = iter(running)
    monkeypatch.setattr(speed, "_running", lambda: next(said))


@pytest.mark.parametrize(
    ("running", "threads", "free"),
    [
        ((1, 1, 1, 1, 1), "", True),
        ((2, 2, 2, 2, 2), "", False),
        ((1, 5, 1, 5, 1), "", True),  # a moment's work of others
        ((2, 1, 2, 1, 2), "", False),
        ((3, 3, 3, 3, 3), "2", True),
        ((4, 4, 4, 4, 4), "2", False),
        ((None,), "", False),
    ],
)
def test_cores_are_free(
    running: Sequence[int | None], threads: str, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    looks(monkeypatch, running)
    assert speed.cores_are_free() is free


@pytest.mark.parametrize(("running", "longer"), [(1, True), (3, False)])
def test_threads_wait_longer_on_a_free_machine(running: int, longer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    looks(monkeypatch, [running] * 5)
    speed.prepare_process()
    assert (int(os.environ["GOMP_SPINCOUNT"]) > 2_000) is longer


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "active")])
def test_what_the_user_says_holds(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    looks(monkeypatch, [])
    speed.prepare_process()
    assert os.environ[name] == value
    assert ("GOMP_SPINCOUNT" in os.environ) is (name == "GOMP_SPINCOUNT")


def test_what_the_system_says(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    assert speed._running(stat) is None
    stat.write_text("cpu 1 2 3\nprocs_running 5\nprocs_blocked 0\n")
    assert speed._running(stat) == 5
    stat.write_text("cpu 1 2 3\n")
    assert speed._running(stat) is None
