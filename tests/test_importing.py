"""Imports of a user's files: at import, in a factory, in forward; from a package, and of one name twice."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from robustbench_lite import registry
from robustbench_lite.errors import PluginError, UserError
from robustbench_lite.models import LoadedModel, load_model

NET = """from torch import nn


class Small(nn.Sequential):
    bias = {bias}

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(16, 2))

    def forward(self, x):
        return super().forward(x) * 0 + self.bias
"""


@pytest.fixture(autouse=True)
def _modules_as_found() -> Iterator[None]:
    found, path, hooks = dict(sys.modules), [*sys.path], [*sys.meta_path]
    yield
    assert [one for one in sys.path if not one.endswith("/site")] == path
    assert sys.meta_path == hooks
    for name in set(sys.modules) - set(found):
        if name.partition(".")[0] in ("models", "utils", "rbl_pkg", "torchvision_like"):
            del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(spec: str | Path) -> LoadedModel:
    return load_model(str(spec), n_classes=2, shape=(1, 4, 4))


def answer(loaded: LoadedModel) -> float:
    with torch.no_grad():
        return float(loaded.module(torch.rand(2, 1, 4, 4))[0, 0])


def project(folder: Path, bias: float, file: str = "net.py") -> Path:
    write(folder / "models" / "__init__.py", "")
    write(folder / "models" / "small.py", "from utils import BIAS\n" + NET.format(bias="BIAS"))
    write(folder / "utils.py", f"BIAS = {bias}\n")
    return write(folder / file, "def make():\n    from models.small import Small\n    return Small()\n")


def test_an_import_inside_a_factory(tmp_path: Path) -> None:
    assert answer(load(f"{project(tmp_path, 3.0)}:make")) == 3


def test_two_folders_with_modules_of_one_name(tmp_path: Path) -> None:
    one, two = project(tmp_path / "one", 1.0), project(tmp_path / "two", 2.0)
    assert [answer(load(f"{file}:make")) for file in (one, two, one)] == [1, 2, 1]


def test_imports_in_forward_stay_those_of_their_folder(tmp_path: Path) -> None:
    text = NET.format(bias=0).replace(
        "        return super",
        "        from utils import BIAS as late\n        import importlib\n        return late + super",
    )
    loaded = []
    for number, name in enumerate(("one", "two"), start=1):
        write(tmp_path / name / "utils.py", f"BIAS = {number}\n")
        loaded.append(load(f"{write(tmp_path / name / 'net.py', text)}:Small"))
    assert [answer(model) for model in (*loaded, *loaded)] == [1, 2, 1, 2]


def test_an_installed_module_of_the_same_name_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "site" / "utils.py", "BIAS = 7\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    utils = importlib.import_module("utils")
    assert answer(load(f"{project(tmp_path / 'mine', 4.0)}:make")) == 4
    assert sys.modules["utils"] is utils and utils.BIAS == 7


@pytest.mark.parametrize("init", [True, False])
def test_relative_imports(init: bool, tmp_path: Path) -> None:
    folder = tmp_path / "rbl_pkg" / "nets"
    for package in (folder.parent, folder) if init else ():
        write(package / "__init__.py", "")
    write(folder.parent / "numbers_.py", "BIAS = 5\n")
    write(folder / "parts.py", "from ..numbers_ import BIAS\n" + NET.format(bias="BIAS"))
    file = write(
        folder / "net.py", "from .parts import Small\nfrom .. import numbers_\n\ndef make():\n    return Small()\n"
    )
    assert answer(load(f"{file}:make")) == 5


def test_a_module_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(tmp_path, 6.0)
    monkeypatch.chdir(tmp_path)
    assert answer(load("models.small:Small")) == 6
    write(tmp_path / "torchvision_like" / "nets.py", "import utils\n" + NET.format(bias="utils.BIAS"))
    with pytest.raises(UserError, match="unknown name"):
        load("torchvision_like.nothing:Small")
    assert answer(load("torchvision_like.nets:Small")) == 6


def test_our_own_modules_and_python_s_are_not_hidden(tmp_path: Path) -> None:
    for name in ("json", "robustbench_lite", "random"):
        write(tmp_path / f"{name}.py", "raise RuntimeError('not this one')\n")
    text = "import json\nimport random\nimport robustbench_lite\nfrom torch import nn\nassert json.dumps(1) == '1'\n"
    file = write(tmp_path / "net.py", text + NET.format(bias=1))
    assert answer(load(f"{file}:Small")) == 1


def test_a_parser_of_arguments_at_import_sees_none(tmp_path: Path) -> None:
    text = "import argparse\np = argparse.ArgumentParser()\np.add_argument('--depth', type=int, default=9)\n"
    text += "args = p.parse_args()\n"
    file = write(tmp_path / "net.py", text + NET.format(bias="args.depth"))
    before = [*sys.argv]
    assert answer(load(f"{file}:Small")) == 9
    assert sys.argv == before
    file = write(tmp_path / "other.py", text.replace("default=9", "required=True") + NET.format(bias=1))
    with pytest.raises(PluginError, match=r"ended the program .*if __name__"):
        load(f"{file}:Small")


def test_a_main_part_is_not_run(tmp_path: Path) -> None:
    file = write(tmp_path / "net.py", NET.format(bias=2) + "\n\nif __name__ == '__main__':\n    raise SystemExit(1)\n")
    assert answer(load(f"{file}:Small")) == 2


def test_the_hash_of_a_partial_is_that_of_its_function(tmp_path: Path) -> None:
    text = "import functools\n" + NET.format(bias=2) + "\n\nmake = functools.partial(Small)\n"
    file = write(tmp_path / "net.py", text)
    assert load(f"{file}:make").source_sha256 == load(f"{file}:Small").source_sha256


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ndef make(:\n", "SyntaxError: invalid syntax (net.py, line 2)"),
        ("import nothing_like_this\n", "No module named 'nothing_like_this'"),
        ("from .nothing import x\n", "nothing"),
    ],
)
def test_a_file_that_does_not_import_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        registry.load("models", f"{write(tmp_path / 'net.py', text)}:make")
    assert words in str(caught.value) and "\n" not in str(caught.value)
