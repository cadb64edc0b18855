"""From a template to a checked plug-in, the listing of what is there, and the answers to a stranger's mistakes."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

import pytest
import torch

import robustbench_lite as rbl
from robustbench_lite import registry, templates
from robustbench_lite.cli.main import main
from robustbench_lite.cli.plugins import attack_table_markdown, defense_table_markdown, readme_tables
from robustbench_lite.conformance import SHAPES, check_attack, check_defense, failed

NEW = [
    ("attack", ["attacks", "new"], []),
    ("defense_inference", ["defenses", "new"], []),
    ("defense_inference", ["defenses", "new"], ["--kind", "inference"]),
    ("defense_training", ["defenses", "new"], ["--kind", "training"]),
]


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.chdir(tmp_path)


# -- templates ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("template", "command", "options"), NEW)
def test_a_template_works_as_it_is(
    template: str, command: list[str], options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "spike_guard.py", *options]) == 0
    came = capsys.readouterr()
    assert came.out == "spike_guard.py\n"
    assert f"rbl {command[0]} check spike_guard.py:SpikeGuard" in came.err
    assert [path.name for path in tmp_path.iterdir()] == ["spike_guard.py"]
    assert main([command[0], "check", "spike_guard.py:SpikeGuard"]) == 0
    report = capsys.readouterr().out
    assert "spike-guard" in report
    assert "failed" not in report


@pytest.mark.parametrize("template", templates.TEMPLATES)
def test_a_template_is_valid_and_says_what_comes_next(template: str) -> None:
    text = templates.render(template, Path("some/where/two_words.py"))
    kind = "attacks" if template == "attack" else "defenses"
    ast.parse(text)
    assert "class TwoWords(rbl." in text
    assert 'name: ClassVar[str] = "two-words"' in text
    assert f"rbl {kind} check two_words.py:TwoWords" in text
    assert "two_words.py:TwoWords" in text.split("rbl evaluate")[1].splitlines()[0]
    assert not any(word in text for word in ("MyAttack", "MyDefense", "my_", "my-", "MyState"))
    assert max(map(len, text.splitlines())) <= 120


def test_templates_lie_inside_the_package() -> None:
    folder = Path(templates.__file__).parent
    assert folder.parent == Path(rbl.__file__).parent
    assert {path.name.removesuffix(".py.txt") for path in folder.glob("*.txt")} == set(templates.TEMPLATES)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my_defense.py", "MyDefense"),
        ("a-b.c.py", "ABC"),
        ("JPEG2.py", "JPEG2"),
        ("randomSmoothing.py", "RandomSmoothing"),
        ("attack.py", "Attack"),
    ],
)
def test_the_class_is_named_after_the_file(file: str, name: str) -> None:
    assert templates.class_name(Path(file)) == name


@pytest.mark.parametrize("file", ["attack.py", "state.py", "my_attack.py", "my_my_attack.py", "your_my-attack.py"])
def test_any_name_of_a_file_makes_a_working_attack(file: str, tmp_path: Path) -> None:
    name = templates.write_template(tmp_path / file, "attack")
    attack = registry.load("attacks", f"{tmp_path / file}:{name}")
    assert attack.__name__ == name
    assert not failed(check_attack(attack, shapes=SHAPES[:1]))


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("my_defense", "ends in .py"),
        ("my_defense.txt", "ends in .py"),
        ("2fast.py", "no class can be named"),
        ("none.py", "no class can be named"),
        ("__.py", "no class can be named"),
        ("no/such/folder/my_defense.py", "no such folder"),
        ("taken.py", "is there already"),
        ("dangling.py", "is there already"),
        ("folder.py", "is there already"),
    ],
)
@pytest.mark.parametrize("kind", ["attacks", "defenses"])
def test_new_refuses_in_one_line(
    kind: str, file: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("taken.py").write_text("mine", "utf-8")
    Path("dangling.py").symlink_to("nowhere.py")
    Path("folder.py").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main([kind, "new", file]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: FILE.py: ")
    assert error.count("\n") == 1
    assert words in error
    assert Path("taken.py").read_text("utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_disk_that_is_full_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["attacks", "new", "my_attack.py"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_written_defense_is_evaluated(tmp_path: Path) -> None:
    name = templates.write_template(tmp_path / "blur.py", "defense_inference")
    blur = registry.load("defenses", f"{tmp_path / 'blur.py'}:{name}")(strength=1.0)
    image = torch.zeros(1, 1, 5, 5)
    image[0, 0, 2, 2] = 0.9
    assert torch.allclose(blur.transform(image)[0, 0, 1:4, 1:4], torch.full((3, 3), 0.1))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(25, 2)).eval()
    x = torch.rand(6, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = net(blur.transform(x)).argmax(1)
    result = rbl.evaluate(net, x, y, defenses=[blur], eps=0.5, attack_options={"steps": 5})
    assert result.clean_accuracy == 1
    assert result.verdict == "reliable"


# -- check -------------------------------------------------------------------------------------------

LIAR = """
from __future__ import annotations
from dataclasses import dataclass
from typing import ClassVar
import robustbench_lite as rbl

@dataclass(frozen=True)
class Liar(rbl.InferenceDefense):
    name: ClassVar[str] = "liar"
    summary: ClassVar[str] = "rounds, and says that it is differentiable"
    source: ClassVar[str] = "a test"
    levels: int = 15

    def transform(self, x):
        return (x * self.levels).round() / self.levels
"""


def test_check_tells_what_failed(capsys: pytest.CaptureFixture[str]) -> None:
    Path("liar.py").write_text(LIAR, "utf-8")
    assert main(["defenses", "check", "liar.py:Liar", "--option", "levels=7"]) == 2
    came = capsys.readouterr()
    assert came.err == "error: liar.py:Liar: 2 of 11 checks failed: gradient, evaluation\n"
    (line,) = [line for line in came.out.splitlines() if line.split()[:2] == ["failed", "gradient"]]
    assert "it states differentiable = True, but through transform the gradient is zero" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attacks", "check", "pdg"], "SPEC: unknown name 'pdg'; did you mean pgd?"),
        (["attacks", "check", "nowhere.py:Mine"], "SPEC: no such file 'nowhere.py'"),
        (["attacks", "check", "pgd", "-o", "step=3"], "did you mean steps"),
        (["attacks", "check", "pgd", "-o", "steps=0"], "steps must be >= 1, got 0"),
        (["attacks", "check", "pgd", "-o", "steps"], "--option must be KEY=VALUE, got 'steps'"),
        (["attacks", "check", "pgd", "--shape", "3,32"], "--shape must be C,H,W such as 3,32,32, got '3,32'"),
        (["defenses", "check", "bit-depth", "--shape", "3,0,4"], "--shape must be C,H,W"),
        (["defenses", "check", "liar.py:Lair"], "'Lair'; did you mean Liar?"),
    ],
)
def test_check_answers_a_mistake_in_one_line(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("liar.py").write_text(LIAR, "utf-8")
    assert main(arguments) == 2
    came = capsys.readouterr()
    assert words in came.err
    assert came.err.count("\n") == 1
    assert came.out == ""


def test_check_with_one_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["defenses", "check", "bit-depth", "--shape", "1x28x28"]) == 0
    assert "on images of 1x28x28\n" in "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines()) + "\n"


def test_a_file_that_raises_shows_its_own_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RBL_DEBUG", "1")
    Path("broken.py").write_text("def helper():\n    return 1 / 0\n\nhelper()\n", "utf-8")
    assert main(["defenses", "check", "broken.py:Mine"]) == 2
    error = capsys.readouterr().err
    assert 'broken.py", line 2, in helper' in error
    assert error.splitlines()[-1] == "error: importing broken.py raised ZeroDivisionError: division by zero"


def test_a_check_of_the_wrong_kind_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    Path("liar.py").write_text(LIAR, "utf-8")
    assert main(["attacks", "check", "liar.py:Liar"]) == 2
    assert "Liar is no subclass of robustbench_lite.Attack" in capsys.readouterr().out


# -- plugins -----------------------------------------------------------------------------------------


def _distribution(folder: Path, name: str, version: str, entry_points: str) -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    (info / "entry_points.txt").write_text(entry_points, "utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed distributions: one that works, and several that do not."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "rbl_test_good.py").write_text(LIAR.replace("liar", "good"), "utf-8")
    (folder / "rbl_test_raises.py").write_text("raise RuntimeError('no licence\\nfor this')\n", "utf-8")
    (folder / "rbl_test_exits.py").write_text("import sys\nsys.exit('goodbye')\n", "utf-8")
    _distribution(folder, "rbl-good", "1.2", "[robustbench_lite.defenses]\ngood = rbl_test_good:Liar\n")
    _distribution(
        folder,
        "rbl-bad",
        "0.3",
        "[robustbench_lite.defenses]\n"
        "raises = rbl_test_raises:Mine\n"
        "exits = rbl_test_exits:Mine\n"
        "missing = rbl_test_good:Nowhere\n"
        "number = rbl_test_good:__name__\n"
        "bit-depth = rbl_test_good:Liar\n",
    )
    monkeypatch.syspath_prepend(str(folder))
    return folder


def _listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, object]]:
    assert main(["plugins", *arguments, "--format", "json"]) == 0
    records: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return records


def test_everything_is_listed_with_its_origin_and_source(capsys: pytest.CaptureFixture[str]) -> None:
    records = _listed(capsys)
    for kind in ("attacks", "defenses", "models", "datasets", "certifiers"):
        names = {record["name"] for record in records if record["kind"] == kind and record["origin"] == "built-in"}
        assert names == set(registry.builtins(kind))
    assert all(r["summary"] and r["source"] and not r["broken"] for r in records if r["origin"] == "built-in")
    pgd = next(record for record in records if record["name"] == "pgd")
    assert pgd["access"] == "gradient"
    assert pgd["norms"] == ["linf", "l2", "l1", "l0"]
    assert pgd["targeted"] is True
    rounding = next(record for record in records if record["name"] == "bit-depth")
    assert (rounding["stage"], rounding["differentiable"], rounding["randomised"]) == ("inference", False, False)


def test_a_broken_plug_in_hides_no_other(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = {(r["name"], r["origin"]): r for r in _listed(capsys, "defenses")}
    assert {name for name, origin in records if origin == "built-in"} == set(registry.builtins("defenses"))
    assert records["good", "rbl-good 1.2"]["broken"] is None
    broken = {name: record["broken"] for (name, origin), record in records.items() if origin == "rbl-bad 0.3"}
    assert broken == {
        "raises": "importing rbl_test_raises raised RuntimeError: no licence",
        "exits": "importing rbl_test_exits ended the program (SystemExit: goodbye); what a script does by itself "
        'belongs under if __name__ == "__main__"',
        "missing": broken["missing"],
        "number": "it is no subclass of robustbench_lite.InferenceDefense or robustbench_lite.TrainingDefense",
        "bit-depth": "the built-in bit-depth has the same name and is taken instead",
    }
    assert "unknown name 'Nowhere'" in str(broken["missing"])
    assert "rbl_test_raises" not in sys.modules


@pytest.mark.parametrize("form", ["rich", "markdown"])
def test_a_broken_plug_in_is_shown_with_its_reason(form: str, site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "defenses", "--format", form]) == 0
    came = capsys.readouterr()
    assert "broken: importing rbl_test_raises raised RuntimeError: no licence" in came.out
    assert "rbl-good 1.2" in came.out
    assert "adversarial-training" in came.out
    assert "warning: defenses: raises of rbl-bad 0.3 is broken" in came.err


def test_one_kind_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert {record["kind"] for record in _listed(capsys, "models")} == {"models"}
    assert main(["plugins", "model"]) == 2
    assert "kind must be one of attacks, defenses, models, datasets, certifiers, got 'model'" in capsys.readouterr().err


def test_an_installed_defense_is_checked_by_its_name(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["defenses", "check", "good"]) == 2
    assert "gradient" in capsys.readouterr().err


def test_the_tables_of_the_readme() -> None:
    for table, kind in ((attack_table_markdown(), "attacks"), (defense_table_markdown(), "defenses")):
        head, rule, *rows = table.splitlines()
        assert len({line.replace("\\|", "").count("|") for line in (head, rule, *rows)}) == 1
        assert [row.split("`")[1] for row in rows] == sorted(registry.builtins(kind))
        assert "origin" not in head
        assert table in readme_tables()
    assert "| gradient | linf, l2, l1, l0 | yes | Madry et al. 2018, arXiv:1706.06083 |" in attack_table_markdown()


def test_the_conformance_of_a_class_is_what_the_command_says(capsys: pytest.CaptureFixture[str]) -> None:
    checks = check_defense(registry.load("defenses", "random-noise"))
    assert main(["defenses", "check", "random-noise"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in shown if line.strip()] == ["ok"] * len(checks)
