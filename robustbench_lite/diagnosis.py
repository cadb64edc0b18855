"""What is installed and whether it works together, in plain words."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import requires
from typing import Literal

from .cache import cache_dir
from .environment import installed_version

_MEND = "install both from one index: python -m pip install --force-reinstall torch torchvision"
_GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One part: `missing` can be lived without, `broken` cannot."""

    what: str
    state: Literal["ok", "missing", "broken"]
    detail: str


def diagnose() -> list[Finding]:
    """Every part that a command needs, each tried."""
    return [
        _python(),
        *_packages(),
        *_torch_pair(),
        *_devices(),
        _cache(),
        *_data(),
    ]


def _python() -> Finding:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return Finding("python", "ok" if sys.version_info >= (3, 11) else "broken", text)


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    for line in requires("robustbench-lite") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        have = installed_version(requirement.name)
        if have is None:
            yield Finding(requirement.name, "broken", f"not installed, {requirement.specifier} is needed")
        elif not requirement.specifier.contains(have, prereleases=True):
            yield Finding(requirement.name, "broken", f"{have} is installed, {requirement.specifier} is needed")
        else:
            yield Finding(requirement.name, "ok", have)


def build_of(version: str | None) -> str:
    """Which build a torch version names: `cpu`, `cu132`, ... or `unknown` where it does not say."""
    local = (version or "").partition("+")[2]
    return local or "unknown"


def _torch_pair() -> Iterator[Finding]:
    """torch and torchvision of different builds die at import; tried in a process of its own."""
    tried = import_error(
        "import torch, torchvision; from torchvision.ops import nms; torchvision.extension._assert_has_ops()"
    )
    versions = f"torch {installed_version('torch')}, torchvision {installed_version('torchvision')}"
    if tried is None:
        yield Finding("torch with torchvision", "ok", "they load together")
    else:
        yield Finding("torch with torchvision", "broken", explain_pair(tried, versions))


def import_error(code: str) -> str | None:
    """The last line of what Python says of this code in a fresh process; None where it runs."""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if ran.returncode == 0:
        return None
    lines = [line for line in ran.stderr.strip().splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {ran.returncode}"


def explain_pair(error: str, versions: str) -> str:
    """Plain words for an import of torchvision that failed."""
    if re.search(r"torchvision::nms|has ops|C\+\+ ops|_C\b|undefined symbol|CUDA", error):
        return (
            f"a CPU build of one beside a CUDA build of the other, or versions that do not belong together "
            f"({versions}): {error}; {_MEND}"
        )
    return f"{versions}: {error}; {_MEND}"


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except Exception as error:
        yield Finding("device", "broken", f"torch does not import: {error}")
        return
    yield Finding("device cpu", "ok", f"{torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "this torch has no CUDA"
        yield Finding("device cuda", "missing", f"no usable GPU ({built}); everything runs on the CPU")
        return
    for number in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(number)
        try:
            torch.zeros(1, device=f"cuda:{number}").add_(1).item()
            free, total = torch.cuda.mem_get_info(number)
            yield Finding(f"device cuda:{number}", "ok", f"{name}, {free / _GIB:.1f} of {total / _GIB:.1f} GiB free")
        except RuntimeError as error:
            yield Finding(f"device cuda:{number}", "broken", f"{name}: {str(error).splitlines()[0]}")


def _cache() -> Finding:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
        free = shutil.disk_usage(folder).free / _GIB
    except OSError as error:
        return Finding(
            "cache folder", "broken", f"{folder} cannot be written ({error.strerror}); set RBL_CACHE to one that can"
        )
    state: Literal["ok", "broken"] = "ok" if free > 0.5 else "broken"
    trained = len(list((folder / "models").glob("*.safetensors"))) if (folder / "models").is_dir() else 0
    return Finding("cache folder", state, f"{folder}, {trained} trained networks, {free:.0f} GiB free")


def _data() -> Iterator[Finding]:
    try:
        from .data import default_data_dir, load_dataset
    except Exception:  # without torch there are no data, and that torch is broken is said already
        return
    from .errors import UserError

    for name in ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "imagenet"):
        try:
            data = load_dataset(name)
        except UserError:
            yield Finding(f"data {name}", "missing", f"not in {default_data_dir()}; --data-dir or --download")
        except Exception as error:
            yield Finding(f"data {name}", "broken", f"{type(error).__name__}: {error}")
        else:
            yield Finding(f"data {name}", "ok", f"{len(data)} test images of {'x'.join(map(str, data.shape))}")
