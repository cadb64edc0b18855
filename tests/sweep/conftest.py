"""A folder of a user's own with sweeps in it, and the command line run in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from robustbench_lite.cli.main import main

from ..cli.harness import Outcome, Rbl

SMALL = """
datasets = ["digits"]
samples = 20
seeds = [0, 1]
models = ["mlp"]
threats = ["linf 0.1"]
attacks = ["fgsm", { name = "pgd", options = { steps = 3 } }, "adaptive"]
defenses = ["none", { use = ["bit-depth"], options = { bits = 3 } }, "label-smoothing"]

[recipe]
epochs = 1
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in: small.toml."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "small.toml").write_text(SMALL, "utf-8")
    return tmp_path


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
def stated(folder: Path) -> Callable[..., Path]:
    """A TOML file with some of the small one's lines in other words."""

    def write(old: str = "", new: str = "") -> Path:
        assert old in SMALL
        path = folder / "changed.toml"
        path.write_text(SMALL.replace(old, new, 1), "utf-8")
        return path

    return write
