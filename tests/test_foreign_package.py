"""Defenses of a package that somebody else wrote: installed, listed, trained, evaluated, on the board."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_lite.records import read_run
from robustbench_lite.sweep.table import is_adaptive

from .test_packaging import build, fresh_environment, run

PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "calm-defenses"
version = "1.4"
dependencies = ["robustbench-lite"]

[project.entry-points."robustbench_lite.defenses"]
calm = "calm_defenses:Calm"
shrink = "calm_defenses:Shrink"

[tool.hatch.build.targets.wheel]
packages = ["calm_defenses"]
"""

CODE = '''"""Two defenses of somebody else."""

from dataclasses import dataclass

import robustbench_lite as rbl


@dataclass(frozen=True)
class Calm(rbl.TrainingDefense):
    """Keeps logits small."""

    name, summary, source = "calm", "keeps logits small", "Somebody 2026"
    weight: float = 0.01

    def loss(self, network, x, y, inner, trainer):
        return inner(network, x, y) + self.weight * network(x).square().mean()


@dataclass(frozen=True)
class Shrink(rbl.InferenceDefense):
    """Takes contrast out."""

    name, summary, source = "shrink", "takes contrast out", "Somebody 2026"
    adaptive, adaptive_options = "pgd", {"steps": 20}
    share: float = 0.8

    def transform(self, x):
        return 0.5 + self.share * (x - 0.5)
'''


@pytest.fixture(scope="module")
def rbl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command of a fresh environment with robustbench-lite and that package in it."""
    folder = tmp_path_factory.mktemp("foreign")
    package = folder / "package" / "calm_defenses"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(CODE, "utf-8")
    (package.parent / "pyproject.toml").write_text(PROJECT, "utf-8")
    python = fresh_environment(folder / "env")
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"),
        *("--no-build-isolation", "--force-reinstall", build("wheel", folder / "dist"), package.parent),
        cwd=folder,
    )
    return python.parent / "rbl"


def test_listed_trained_evaluated_and_on_the_board(rbl: Path, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        environment = {**os.environ, "RBL_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONPATH", None)
        ran = subprocess.run([rbl, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    listed = {entry["name"]: entry for entry in json.loads(said("plugins", "defenses", "--format", "json"))}
    facts = ("origin", "stage", "adaptive")
    assert [listed["calm"][fact] for fact in facts] == ["calm-defenses 1.4", "training", "auto"]
    assert [listed["shrink"][fact] for fact in facts] == ["calm-defenses 1.4", "inference", "pgd steps=20"]
    assert listed["trades"]["origin"] == "built-in"

    calm = ("--model", "mlp", "--defense", "calm", "--defense-option", "weight=0.5")
    trained = json.loads(said("train", *calm, "--epochs", "1", "--out", "calm.safetensors", "--json"))

    given = ("--weights", "calm.safetensors", "--defense", "shrink", "--samples", "20", "--eps", "0.1")
    said("evaluate", *calm, *given, "--attack", "pgd", "--steps", "20")
    (row,) = json.loads(said("leaderboard", "show", "--format", "json"))
    assert (row["defense"], row["defense_options"]) == ("calm + shrink", "calm.weight=0.5")
    assert (row["model_sha256"], row["status"], row["n"]) == (trained["sha256"], "complete", 20)

    # The record says what the package is: a changed one makes other runs.
    (run_file,) = (tmp_path / "results" / "runs").glob("*.parquet")
    recorded = read_run(run_file)
    source = hashlib.sha256(CODE.encode()).hexdigest()
    assert [defense.source_sha256 for defense in recorded.specification.defenses] == [source, source]
    assert is_adaptive(recorded.specification)
