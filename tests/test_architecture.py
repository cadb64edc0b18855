"""Imports point one way, the folders have one identity, and the command line starts light."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "robustbench_lite"
PLUGINS = ("attacks", "defenses", "gan_defenses")
# What the engine is made of, from the bottom up.
BOTTOM = ("errors", "options", "rows", "streams", "threat", "losses", "network", "query")
MIDDLE = ("attack", "defense", "targets", "engine", "checks", "checkpoint", "result", "perturbation")


def imports(file: Path, *, at_top: bool = False) -> Iterator[str]:
    """The modules of this package that a file imports, without those for the type checker alone."""
    package = ".".join(file.relative_to(ROOT).with_suffix("").parts[:-1])
    if file.parent.name in PLUGINS:
        package = f"robustbench_lite.{file.parent.name}"
    tree = ast.parse(file.read_text("utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in tree.body if at_top else ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def reaches(file: Path, *parts: str) -> list[str]:
    """What a file imports of these parts of the package."""
    prefixes = tuple(f"robustbench_lite.{part}" for part in parts)
    return [name for name in imports(file) if any(name == p or name.startswith(f"{p}.") for p in prefixes)]


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*.py"))


OWN = [file for file in files(PACKAGE) if not any(part in PLUGINS for part in file.relative_to(PACKAGE).parts)]


def test_there_is_something_to_look_at() -> None:
    assert len(OWN) > 30
    for name in (*BOTTOM, *MIDDLE):
        assert (PACKAGE / f"{name}.py").is_file(), name
    assert "robustbench_lite.threat" in set(imports(ROOT / "attacks" / "pgd.py"))


@pytest.mark.parametrize("file", OWN, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_engine_knows_no_attack_and_no_defense(file: Path) -> None:
    assert reaches(file, *PLUGINS) == []


@pytest.mark.parametrize("name", BOTTOM)
def test_the_bottom_does_not_look_up(name: str) -> None:
    above = ("engine", "evaluation", "plan_run", "plan", "prepare", "checks", "checkpoint", "result", "training", "cli")
    assert reaches(PACKAGE / f"{name}.py", *above) == []


@pytest.mark.parametrize("name", MIDDLE)
def test_the_engine_does_not_look_up(name: str) -> None:
    assert reaches(PACKAGE / f"{name}.py", "evaluation", "plan_run", "plan", "prepare", "cli", "leaderboard") == []


def test_nothing_but_the_command_line_imports_the_command_line() -> None:
    others = [file for file in OWN if "cli" not in file.relative_to(PACKAGE).parts]
    assert {str(file): found for file in others if (found := reaches(file, "cli"))} == {}


@pytest.mark.parametrize("folder", PLUGINS)
def test_plugins_import_the_contracts_alone(folder: str) -> None:
    for file in files(ROOT / folder):
        assert reaches(file, "cli", "evaluation", "plan", "prepare", "leaderboard", "records") == [], file
        if folder == "defenses":
            assert reaches(file, "attacks") == [], file


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("folder", PLUGINS)
def test_a_folder_has_one_identity(folder: str) -> None:
    done = python(f"import {folder}", PYTHONPATH=str(ROOT))
    assert done.returncode == 1
    assert f"ImportError: import robustbench_lite.{folder}" in done.stderr
    assert python(f"import robustbench_lite.{folder}").returncode == 0


HEAVY = ("torch", "timm", "torchvision", "pandas", "pyarrow", "numpy", "sklearn", "scipy", "matplotlib", "safetensors")


@pytest.mark.parametrize("module", ["robustbench_lite", "robustbench_lite.cli.main"])
def test_starting_up_imports_nothing_heavy(module: str) -> None:
    done = python(f"import sys, {module}; print(*sorted(set(sys.modules) & set({HEAVY!r})))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from robustbench_lite.cli.main import run\n"
        "sys.argv = ['rbl', '--help']\n"
        "try:\n    run()\n"
        "except SystemExit as end:\n    assert not end.code, end.code\n"
        f"print('heavy:', *sorted(set(sys.modules) & set({HEAVY!r})))"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().splitlines()[-1].strip() == "heavy:"


def test_importing_the_attacks_imports_no_other_heavy_library() -> None:
    code = f"import sys, robustbench_lite.attacks.pgd; print(*sorted(set(sys.modules) & set({HEAVY[1:5]!r})))"
    assert python(code).stdout.split() == []
