"""A run that is stopped, killed or refused in the middle loses nothing, and ends with the same rows."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from robustbench_lite import checkpoint

from .harness import PROGRAM, Rbl, environment, listing, rows

SLOW = ("--model", "nets.py:slow", "--eps", "0.02", "--steps", "12", "--batch-size", "4")


@contextlib.contextmanager
def _stopped_after(calls: int, monkeypatch: pytest.MonkeyPatch, signal_number: int) -> Any:
    """Ctrl-C comes while the network is asked for the n-th time."""
    real, count = torch.nn.Module.__call__, [0]

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        if type(self).__name__ == "Slow":
            count[0] += 1
            if count[0] == calls:
                os.kill(os.getpid(), signal_number)
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Module, "__call__", call)
        yield


def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def test_an_interrupt_keeps_what_is_done_and_the_same_command_goes_on(
    evaluate: Rbl, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quick(monkeypatch)
    whole = evaluate(*SLOW, "--leaderboard", "whole", "--json").json
    handler = signal.getsignal(signal.SIGINT)
    with _stopped_after(25, monkeypatch, signal.SIGINT):
        said = evaluate(*SLOW, "--json")
    assert (said.code, said.out) == (130, "")
    assert "stopping after this step" in said.err
    last = said.err.splitlines()[-1]
    assert last.startswith("stopped with ") and last.endswith("they are kept, and the same command goes on")
    done = int(last.split()[2])
    assert 0 < done < 24
    assert signal.getsignal(signal.SIGINT) is handler
    assert not list(Path("lb/runs").glob("*.parquet"))
    again = evaluate(*SLOW, "--json")
    assert again.remarks == f"an unfinished run goes on: {done} of 24 samples were done\n"
    assert again.json["forwards"] == whole["forwards"]
    assert rows(again.json["run_file"]) == rows(whole["run_file"])
    assert listing(Path("lb")) == {"leaderboard.parquet", f"runs/{whole['run_id']}.parquet"}


def test_no_resume_starts_anew(evaluate: Rbl, monkeypatch: pytest.MonkeyPatch) -> None:
    _quick(monkeypatch)
    with _stopped_after(25, monkeypatch, signal.SIGINT):
        assert evaluate(*SLOW).code == 130
    said = evaluate(*SLOW, "--no-resume", "--json")
    assert said.remarks == "" and said.json["n"] == 24
    assert not list(Path("lb/runs").glob("*.partial"))


def test_an_interrupt_of_a_training_is_130_and_keeps_no_half_network(
    rbl: Rbl, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from robustbench_lite import training

    def interrupted(*arguments: object, **options: object) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setenv("RBL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(training.Trainer, "_step", interrupted)
    # Where the tests were started in the background the signal is ignored, and nothing would come.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        said = rbl("train", "--model", "mlp", "--out", "net.safetensors")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (said.code, said.out, said.err.splitlines()[-1]) == (130, "", "stopped")
    assert not Path("net.safetensors").exists() and listing(tmp_path / "cache") == set()


def test_a_run_that_another_process_is_at_is_refused(evaluate: Rbl, folder: Path) -> None:
    run_id = evaluate("--steps", "3", "--json", "--leaderboard", "other").json["run_id"]
    partial = folder / "lb" / "runs" / f"{run_id}.partial"
    partial.mkdir(parents=True)
    with (partial / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process is at this run" in evaluate("--steps", "3").error
    assert evaluate("--steps", "3").code == 0


def test_a_full_disk_in_the_middle_keeps_what_was_stored(
    evaluate: Rbl, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _quick(monkeypatch)
    whole = evaluate(*SLOW, "--leaderboard", "whole", "--json").json
    monkeypatch.setattr(checkpoint, "EVERY", 0.0)
    monkeypatch.setattr(checkpoint, "_SHARE", 1e9)
    written = [0]

    def save(*arguments: Any, **options: Any) -> None:
        written[0] += 1
        if written[0] > 20:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save_file(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save)
        assert "No space left on device" in evaluate(*SLOW).error
    assert not any(".tmp" in name for name in listing(folder / "lb"))
    again = evaluate(*SLOW, "--json")
    assert "an unfinished run goes on" in again.err
    assert rows(again.json["run_file"]) == rows(whole["run_file"])


def _start(folder: Path, cache: Path) -> subprocess.Popen[str]:
    command = [*PROGRAM, "evaluate", "--dataset", "npz:ok.npz", "--leaderboard", "lb", *SLOW, "--json"]
    return subprocess.Popen(
        command, cwd=folder, env=environment(cache), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_process_that_is_interrupted_exits_130(folder: Path, tmp_path: Path) -> None:
    with _start(folder, tmp_path) as process:
        deadline = time.monotonic() + 60
        while not list(folder.glob("lb/runs/*.partial")) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "stopped with" in err and "Traceback" not in err
    assert list(folder.glob("lb/runs/*.partial/engine.safetensors"))


def test_a_process_that_is_killed_twice_ends_with_the_same_rows(
    folder: Path, tmp_path: Path, evaluate: Rbl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once before anything is stored, once after; the pace of storing is set for it by a file that python reads."""
    (folder / "sitecustomize.py").write_text(
        "import robustbench_lite.checkpoint as c\nc.EVERY, c._SHARE = 0.1, 1e9\n", "utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))
    for file in ("", "engine.safetensors"):
        with _start(folder, tmp_path) as process:
            deadline = time.monotonic() + 60
            while not list(folder.glob(f"lb/runs/*.partial/{file}")) and time.monotonic() < deadline:
                time.sleep(0.02)
            time.sleep(0.1)
            process.kill()
            process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert not list(folder.glob("lb/runs/*.parquet"))
    with _start(folder, tmp_path) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "an unfinished run goes on" in err
    again = json.loads(out)
    _quick(monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole = evaluate(*SLOW, "--leaderboard", "whole", "--json").json
    torch.set_num_threads(threads)
    assert rows(folder / again["run_file"]) == rows(whole["run_file"])
    assert listing(folder / "lb") == {"leaderboard.parquet", f"runs/{again['run_id']}.parquet"}
