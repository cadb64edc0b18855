"""A folder of a user's own, and the command line run in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from robustbench_lite.cli.main import main

from .harness import Outcome, Rbl, write_nets


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in: nets.py, ok.npz."""
    folder = tmp_path / "user"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    write_nets(folder)
    return folder


@pytest.fixture
def rbl(capsys: pytest.CaptureFixture[str]) -> Rbl:
    """`rbl ARGUMENTS`."""

    def run(*arguments: str | Path) -> Outcome:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return Outcome(code, said.out, said.err)

    return run


@pytest.fixture
def evaluate(rbl: Rbl) -> Rbl:
    """`rbl evaluate --model nets.py:make --dataset npz:ok.npz --leaderboard lb ARGUMENTS`, three steps unless said."""

    def run(*arguments: str | Path) -> Outcome:
        given = [str(argument) for argument in arguments]
        defaults = {"--model": "nets.py:make", "--dataset": "npz:ok.npz", "--leaderboard": "lb"}
        missing = [part for name, value in defaults.items() if name not in given for part in (name, value)]
        return rbl("evaluate", *missing, *given)

    return run
