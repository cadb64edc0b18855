"""`rbl verify`: a run's saved images held against the network once more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from .harness import Rbl

QUICK = ("--eps", "0.02", "--steps", "3")


@pytest.fixture
def run_id(evaluate: Rbl) -> str:
    """A run in lb with its images in out.npz."""
    return str(evaluate(*QUICK, "--save-examples", "out.npz", "--json").json["run_id"])


@pytest.fixture
def verify(rbl: Rbl) -> Rbl:
    """`rbl verify ARGUMENTS --leaderboard lb`."""
    return lambda *arguments: rbl("verify", *arguments, "--leaderboard", "lb")


def test_a_true_run_is_confirmed_by_id_and_by_path(run_id: str, verify: Rbl) -> None:
    for run in (run_id, f"lb/runs/{run_id}.parquet"):
        said = verify(run, "--model", "nets.py:make", "--examples", "out.npz")
        assert (said.code, said.err) == (0, "")
        assert "all confirmed" in said.out and "24 of 24" in said.out


def test_another_network_is_found_out(run_id: str, verify: Rbl) -> None:
    Path("other.py").write_text("from nets import make as own\n\n\ndef make():\n    return own(scale=-3.0)\n")
    said = verify(run_id, "--model", "other.py:make")
    assert said.code == 2 and "is refuted" in said.last_line


def test_images_that_were_changed_are_found_out(run_id: str, verify: Rbl) -> None:
    arrays = dict(np.load("out.npz"))
    arrays["adversarial"] = arrays["images"]
    np.savez("out.npz", **arrays)
    said = verify(run_id, "--model", "nets.py:make")
    assert said.code == 2 and "refuted" in said.out and "is refuted" in said.last_line


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("nothing --model nets.py:make", "RUN: no run 'nothing' among the 1 in 'lb/runs'; rbl leaderboard show"),
        ("RUNX --model nets.py:make", "did you mean nets.py_make-none-npz_ok.npz-pgd-linf-0.02"),
        ("nowhere.parquet --model nets.py:make", "RUN: no such run file 'nowhere.parquet'"),
        ("nets.py --model nets.py:make", "nets.py: corrupt, truncated or no Parquet file"),
        ("RUN --model nets.py:mak", "--model nets.py: unknown name 'mak'; did you mean make?"),
        ("RUN --model nets.py:make --examples nowhere.npz", "--examples: no such file 'nowhere.npz'"),
        ("RUN --model nets.py:make --examples ok.npz", "ok.npz"),
        ("RUN --model nets.py:make --examples nets.py", "nets.py: no .npz file"),
        ("RUN --model nets.py:make --defense bitdepth", "--defense: unknown name 'bitdepth'; did you mean bit-depth?"),
        ("RUN --model nets.py:make --batch-size 0", "--batch-size must be >= 1, got 0"),
        ("RUN --model nets.py:make --device gpu", "--device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_a_mistake_is_one_line(arguments: str, told: str, run_id: str, verify: Rbl) -> None:
    assert told in verify(*arguments.replace("RUN", run_id).split()).error


def test_a_run_without_images_says_so(evaluate: Rbl, verify: Rbl) -> None:
    run = evaluate(*QUICK, "--json").json["run_id"]
    assert "--examples: the run names no file of examples" in verify(run, "--model", "nets.py:make").error
