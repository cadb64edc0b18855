"""`rbl doctor`: what is broken is named in plain words."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from robustbench_lite import diagnosis
from robustbench_lite.diagnosis import Finding, build_of, explain_pair
from robustbench_lite.environment import installed_version

from .harness import PROGRAM, Rbl, environment

NMS = 'RuntimeError("operator torchvision::nms does not exist")'


def test_the_pair_that_does_not_fit_is_explained_in_plain_words() -> None:
    text = explain_pair("RuntimeError: operator torchvision::nms does not exist", "torch 2.9.0+cpu, torchvision 0.24.0")
    assert "a CPU build of one beside a CUDA build of the other" in text
    assert "torch 2.9.0+cpu, torchvision 0.24.0" in text and "operator torchvision::nms does not exist" in text
    assert "python -m pip install --force-reinstall torch torchvision" in text
    other = explain_pair("ModuleNotFoundError: No module named 'torchvision'", "torch 2.9.0, torchvision None")
    assert "CUDA" not in other and "No module named 'torchvision'" in other


def test_builds() -> None:
    assert [build_of(version) for version in ("2.9.0+cpu", "2.9.0+cu130", "2.9.0", None)] == [
        *("cpu", "cu130"),
        *("unknown", "unknown"),
    ]


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the slow parts."""
    monkeypatch.setattr(diagnosis, "_torch_pair", lambda: iter([Finding("torch with torchvision", "ok", "together")]))
    monkeypatch.setattr(diagnosis, "_data", lambda: iter([Finding("data mnist", "missing", "not here")]))


def test_what_works_and_what_is_missing_is_no_error(rbl: Rbl, light: None) -> None:
    said = rbl("doctor")
    assert (said.code, said.err) == (0, "")
    for part in ("python", "torch", "torchvision", "pyarrow", "device cpu", "cache folder", "data mnist"):
        assert part in said.out
    states = {f["what"]: f["state"] for f in json.loads(rbl("doctor", "--json").out)}
    assert states["torch"] == "ok" and states["data mnist"] == "missing"


def test_a_cache_that_cannot_be_written_is_broken(
    rbl: Rbl, light: None, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setenv("RBL_CACHE", str(folder / "nets.py" / "cache"))
    said = rbl("doctor")
    assert said.code == 2 and "set RBL_CACHE to one that can" in said.out
    assert said.last_line.endswith("parts are broken: cache folder")


def test_a_part_that_is_missing_or_too_old_is_broken(rbl: Rbl, light: None, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"timm": None, "pandas": "1.0"}
    monkeypatch.setattr(diagnosis, "installed_version", lambda name: versions.get(name, installed_version(name)))
    said = rbl("doctor")
    assert "not installed, >=" in said.out and "1.0 is installed, >=" in said.out
    assert said.last_line.startswith("2 of ")
    assert set(said.last_line.rpartition(": ")[2].split(", ")) == {"timm", "pandas"}


@pytest.mark.parametrize("name", ["torchvision", "torch"])
def test_a_broken_torch_or_torchvision_is_named_and_ends_nothing(name: str, tmp_path: Path) -> None:
    package = tmp_path / "first" / name
    package.mkdir(parents=True)
    error = NMS if name == "torchvision" else 'OSError("libcudart.so.13: cannot open shared object file")'
    (package / "__init__.py").write_text(f"raise {error}\n")
    ran = subprocess.run(
        [*PROGRAM, "doctor"],
        capture_output=True,
        text=True,
        env=environment(tmp_path / "cache", PYTHONPATH=str(tmp_path / "first"), COLUMNS="400"),
    )
    assert ran.returncode == 2, ran.stderr
    line = next(line for line in ran.stdout.splitlines() if "torch with torchvision" in line)
    assert line.startswith("broken")
    assert ("a CPU build of one beside a CUDA build of the other" in line) is (name == "torchvision")
    assert ("operator torchvision::nms does not exist" if name == "torchvision" else "libcudart.so.13") in line
    assert "Traceback" not in ran.stderr and ran.stderr.count("\n") == 1
    assert "torch with torchvision" in ran.stderr
