"""Wheel and sdist hold the whole package: installed in a fresh environment away from the clone, they run."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    ran = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def build(kind: str, to: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", to, cwd=ROOT)
    (built,) = to.iterdir()
    return built


def fresh_environment(folder: Path) -> Path:
    """An environment that has this one's dependencies and not its robustbench-lite."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    own = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    # Folders named in a .pth file are not searched for .pth files of their own: the editable install stays out.
    beside = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    paths = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *beside])
    (Path(own) / "dependencies.pth").write_text("".join(f"{p}\n" for p in paths))
    return python


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installs_and_runs_away_from_the_clone(kind: str, tmp_path: Path) -> None:
    built = build(kind, tmp_path / "dist")
    python = fresh_environment(tmp_path / "env")
    away = tmp_path / "away"
    # What a user's own repository is likely to hold.
    for name in ("attacks", "defenses"):
        (away / name).mkdir(parents=True)
        (away / name / "__init__.py").write_text("mine = True\n")
    run(
        *(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"),
        *("--no-build-isolation", "--force-reinstall", built),
        cwd=away,
    )
    where = run(python, "-c", "import robustbench_lite; print(robustbench_lite.__file__)", cwd=away)
    assert str(tmp_path / "env") in where
    listed = run(python.parent / "rbl", "plugins", "--format", "json", cwd=away)
    for name in ("pgd", "fgsm", "noise", "bit-depth", "adversarial-training", "digits", "small-cnn"):
        assert f'"{name}"' in listed
    code = "import attacks, robustbench_lite.attacks as ours; print(attacks.mine, ours.__name__)"
    assert run(python, "-c", code, cwd=away).split() == ["True", "robustbench_lite.attacks"]


def test_no_file_is_left_out_or_shipped_twice(tmp_path: Path) -> None:
    tracked = {
        path.relative_to(ROOT).as_posix()
        for top in ("attacks", "defenses", "gan_defenses")
        for path in (ROOT / top).rglob("*.py")
    }
    with zipfile.ZipFile(build("wheel", tmp_path / "wheel")) as wheel:
        names = [n for n in wheel.namelist() if ".dist-info/" not in n]
    assert len(names) == len(set(names))
    assert all(n.startswith("robustbench_lite/") for n in names), "nothing but the one import name at the top"
    assert {f"robustbench_lite/{t}" for t in tracked} <= set(names)
    assert "robustbench_lite/py.typed" in names
    with tarfile.open(build("sdist", tmp_path / "sdist")) as sdist:
        inside = {n.partition("/")[2] for n in sdist.getnames()}
    assert tracked <= inside | {n.removeprefix("robustbench_lite/") for n in inside}


def test_requirements_name_no_host_and_have_hashes() -> None:
    for name in ("requirements.txt", "requirements-bench.txt"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        pinned = [line for line in text.splitlines() if line[:1].isalnum()]
        assert len(pinned) > 30
        assert all("==" in line and line.endswith("\\") for line in pinned), "every package is pinned and hashed"


def test_the_clone_is_not_on_the_path() -> None:
    """An editable install must not offer the clone's attacks/ as a top-level package."""
    code = "import importlib.util as u; print(u.find_spec('attacks'), u.find_spec('defenses'))"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    ran = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, cwd="/", env=environment
    )
    assert ran.stdout.split() == ["None", "None"]
