"""What reaches stdout and in which encoding: the answer alone under --json, and names in any script."""

from __future__ import annotations

import codecs
import json
import subprocess
import sys
from pathlib import Path

import pytest

from .harness import PROGRAM, Rbl, environment

LOUD = """
import atexit, os, subprocess, sys
from torch import nn

print("at import")
atexit.register(print, "at exit")


class Net(nn.Sequential):
    def forward(self, x):
        print("in forward", end="")
        os.write(1, b"raw")
        sys.__stdout__.write("past sys.stdout")
        return super().forward(x)


def make():
    print("in the factory")
    subprocess.run([sys.executable, "-c", "print('a child')"])
    return Net(nn.Flatten(), nn.Linear(64, 4))
"""
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def test_only_the_answer_reaches_stdout(folder: Path, tmp_path: Path) -> None:
    (folder / "loud.py").write_text(LOUD)
    words = ["evaluate", "--model", "loud.py:make", "--dataset", "npz:ok.npz", "--attack", "fgsm", "--json"]
    said = subprocess.run(
        [*PROGRAM, *words], cwd=folder, env=environment(tmp_path), capture_output=True, text=True, check=True
    )
    assert json.loads(said.stdout)["attack"] == "fgsm"
    for text in ("at import", "in the factory", "in forward", "raw", "past sys.stdout", "a child", "at exit"):
        assert text in said.stderr and text not in said.stdout


def test_in_one_process_too(folder: Path, evaluate: Rbl, monkeypatch: pytest.MonkeyPatch) -> None:
    import atexit

    monkeypatch.setattr(atexit, "register", lambda *_: None)
    (folder / "loud.py").write_text(LOUD.replace('os.write(1, b"raw")', "").replace("sys.__stdout__.write", "print"))
    assert evaluate("--model", "loud.py:make", "--attack", "fgsm", "--json").json["attack"] == "fgsm"


@pytest.mark.parametrize("encoding", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}, ASCII])
def test_any_encoding(encoding: dict[str, str], folder: Path, tmp_path: Path) -> None:
    place = folder / "größe ✓"
    place.mkdir()
    (place / "nëtz.py").write_text(
        "from torch import nn\n\nclass Nétz(nn.Sequential): pass\n\ndef mäke():\n"
        "    return Nétz(nn.Flatten(), nn.Linear(64, 4))\n",
        encoding="utf-8",
    )
    (place / "ok.npz").write_bytes((folder / "ok.npz").read_bytes())
    words = ["evaluate", "--model", "größe ✓/nëtz.py:mäke", "--dataset", "npz:größe ✓/ok.npz", "--attack", "fgsm"]
    words += ["--leaderboard", "größe ✓/lb"]
    for command in (words, ["leaderboard", "show", "--leaderboard", "größe ✓/lb"]):
        said = subprocess.run(
            [*PROGRAM, *command],
            cwd=folder,
            env={**environment(tmp_path), **encoding},
            capture_output=True,
            check=False,
        )
        assert said.returncode == 0, said.stderr.decode()
        said.stdout.decode(encoding["PYTHONIOENCODING"])
        assert b"fgsm" in said.stdout


SWEEP = 'datasets = ["npz:ok.npz"]\nmodels = ["nets.py:make"]\ndefenses = []\nattacks = ["fgsm"]\n'


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (codecs.BOM_UTF16_LE + SWEEP.encode("utf-16-le"), "s.toml: no TOML: it is UTF-16; save it as UTF-8"),
        (codecs.BOM_UTF16_BE + SWEEP.encode("utf-16-be"), "s.toml: no TOML: it is UTF-16; save it as UTF-8"),
        (b"# first\n# caf\xe9\n" + SWEEP.encode(), "s.toml: no TOML: line 2 is not UTF-8; save it as UTF-8"),
    ],
)
def test_a_sweep_in_another_encoding_is_one_line(raw: bytes, words: str, folder: Path, rbl: Rbl) -> None:
    (folder / "s.toml").write_bytes(raw)
    assert words in rbl("sweep", str(folder / "s.toml"), "--dry-run").error


def test_a_sweep_with_a_byte_order_mark_and_other_line_ends_is_read(tmp_path: Path) -> None:
    from robustbench_lite.sweep.reading import _text

    (tmp_path / "s.toml").write_bytes(codecs.BOM_UTF8 + SWEEP.replace("\n", "\r\n").encode())
    assert _text(tmp_path / "s.toml").replace("\r\n", "\n") == SWEEP
    assert sys.getdefaultencoding() == "utf-8"
