"""Names: built-ins found without importing, entry points, files, and what a mistake is answered with."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_lite import registry
from robustbench_lite.errors import PluginError, UserError

SOURCE = """
class Thing:
    name = "thing"
    value = {value!r}
"""


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


# -- built-ins ---------------------------------------------------------------------------------------


def _modules_after(code: str) -> set[str]:
    program = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_builtins_are_found_without_importing_them() -> None:
    loaded = _modules_after(
        "from robustbench_lite import registry\n"
        "assert {'pgd', 'fgsm'} <= set(registry.builtins('attacks'))\n"
        "assert 'bit-depth' in registry.names('defenses')\n"
        "assert registry.find('attacks', 'pgd').origin == 'built-in'"
    )
    assert not {"torch", "numpy", "pandas"} & loaded
    assert not {name for name in loaded if name.startswith(("robustbench_lite.attacks", "robustbench_lite.defenses"))}


@pytest.mark.parametrize("kind", sorted(registry.PACKAGES))
def test_the_modules_of_a_kind_are_not_imported_to_list_it(kind: str) -> None:
    loaded = _modules_after(f"from robustbench_lite import registry\nassert registry.builtins({kind!r})")
    own = {entry.target.split(":")[0] for entry in registry.builtins(kind).values()}
    assert own
    assert not own & loaded
    assert not {"torchvision", "timm", "pandas", "sklearn"} & loaded


@pytest.mark.parametrize("kind", sorted(registry.PACKAGES))
def test_every_builtin_is_what_its_name_says(kind: str) -> None:
    for name, entry in registry.builtins(kind).items():
        thing = entry.load()
        assert thing.name == name
        assert thing.summary
        assert thing.source


def test_only_what_was_asked_for_is_imported() -> None:
    loaded = _modules_after("from robustbench_lite import registry\nregistry.load('attacks', 'fgsm')")
    assert "robustbench_lite.attacks.fgsm" in loaded
    assert "robustbench_lite.attacks.pgd" not in loaded


def test_an_own_folder_of_the_same_name_does_not_stand_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write(tmp_path / "attacks" / "__init__.py", "raise ImportError('the wrong attacks')")
    _write(tmp_path / "defenses" / "__init__.py", "raise ImportError('the wrong defenses')")
    code = (
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "from robustbench_lite import registry\n"
        "registry.load('attacks', 'pgd'); registry.load('defenses', 'bit-depth')"
    )
    loaded = _modules_after(code)
    assert "attacks" not in loaded
    assert "defenses" not in loaded


# -- names that nothing answers to -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pdg", "--attack: unknown name 'pdg'; did you mean pgd?"),
        ("qqqq", ", fgsm, "),
        ("", "unknown name ''"),
        ("nowhere.py:Mine", "no such file 'nowhere.py'; expected FILE.py:NAME"),
        ("nowhere.py", "say which name in the file, nowhere.py:NAME"),
        ("no.such.module:Mine", "unknown name"),
        ("robustbench_lite.errors:not a name", "unknown name"),
        ("robustbench_lite.errors:UserEror", "did you mean UserError"),
    ],
)
def test_an_unknown_name_lists_the_close_ones(spec: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        registry.load("attacks", spec)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_argument_is_named_as_it_was_asked() -> None:
    with pytest.raises(UserError, match=r"^SPEC: unknown name"):
        registry.find("attacks", "pdg", argument="SPEC")


# -- FILE.py:NAME and package.module:NAME ------------------------------------------------------------


def test_a_name_in_a_file(tmp_path: Path) -> None:
    file = _write(tmp_path / "mine.py", SOURCE.format(value=1))
    entry = registry.find("attacks", f"{file}:Thing")
    assert entry.origin == str(file)
    assert entry.load().value == 1
    assert entry.load() is entry.load()


def test_a_relative_file_and_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path / "rbl_test_beside.py", "NUMBER = 7")
    _write(tmp_path / "mine.py", "from rbl_test_beside import NUMBER\n" + SOURCE.format(value=0))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    module = sys.modules[registry.load("attacks", "mine.py:Thing").__module__]
    assert module.NUMBER == 7
    assert sys.path == before
    sys.modules.pop("rbl_test_beside")


def test_two_files_of_the_same_name_do_not_mix(tmp_path: Path) -> None:
    one = _write(tmp_path / "one" / "mine.py", SOURCE.format(value=1))
    two = _write(tmp_path / "two" / "mine.py", SOURCE.format(value=2))
    first = registry.load("attacks", f"{one}:Thing")
    second = registry.load("attacks", f"{two}:Thing")
    assert (first.value, second.value) == (1, 2)
    assert first.__module__ != second.__module__
    assert registry.load("attacks", f"{one}:Thing").value == 1
    assert registry.source_hash(first) != registry.source_hash(second)


def test_a_file_named_as_a_real_module_does_not_hide_it(tmp_path: Path) -> None:
    file = _write(tmp_path / "json.py", SOURCE.format(value=3))
    assert registry.load("attacks", f"{file}:Thing").value == 3
    assert json.loads("1") == 1
    assert sys.modules["json"] is json


def test_an_instance_of_a_file_survives_pickling(tmp_path: Path) -> None:
    file = _write(tmp_path / "mine.py", SOURCE.format(value=4))
    thing = registry.load("attacks", f"{file}:Thing")()
    assert pickle.loads(pickle.dumps(thing)).value == 4


def test_a_file_that_was_changed_is_read_again(tmp_path: Path) -> None:
    file = _write(tmp_path / "mine.py", SOURCE.format(value=1))
    before = registry.load("attacks", f"{file}:Thing")
    _write(file, SOURCE.format(value="another"))
    assert registry.load("attacks", f"{file}:Thing").value == "another"
    assert before.value == 1


def test_a_name_that_the_file_does_not_have(tmp_path: Path) -> None:
    file = _write(tmp_path / "mine.py", SOURCE.format(value=1))
    with pytest.raises(UserError, match="did you mean Thing"):
        registry.load("attacks", f"{file}:Thin")
    with pytest.raises(UserError, match=r"expected FILE.py:NAME"):
        registry.load("attacks", f"{file}:1x")


def test_a_name_in_a_module() -> None:
    assert registry.load("attacks", "robustbench_lite.attacks.pgd:PGD") is registry.load("attacks", "pgd")


# -- a plug-in that raises ---------------------------------------------------------------------------


def test_a_file_that_raises_keeps_its_own_traceback(tmp_path: Path) -> None:
    file = _write(tmp_path / "mine.py", "def deep():\n    raise KeyError('table')\n\ndeep()\n")
    with pytest.raises(PluginError) as caught:
        registry.load("attacks", f"{file}:Thing")
    assert str(caught.value) == "importing mine.py raised KeyError: 'table'"
    assert isinstance(caught.value.__cause__, KeyError)
    (note,) = caught.value.__notes__
    assert f'"{file}", line 2, in deep' in note
    assert not [name for name in sys.modules if name.startswith("_rbl_plugin_mine") and _is(name, file)]
    _write(file, SOURCE.format(value="mended"))
    assert registry.load("attacks", f"{file}:Thing").value == "mended"


def _is(name: str, file: Path) -> bool:
    return getattr(sys.modules[name], "__file__", None) == str(file)


def test_a_syntax_error_is_the_plug_ins(tmp_path: Path) -> None:
    file = _write(tmp_path / "mine.py", "class Thing(:\n")
    with pytest.raises(PluginError, match=r"importing mine.py raised SyntaxError"):
        registry.load("attacks", f"{file}:Thing")


def test_a_user_error_of_a_plug_in_stays_one(tmp_path: Path) -> None:
    file = _write(
        tmp_path / "mine.py", "from robustbench_lite.errors import UserError\nraise UserError('sigma must be > 0')\n"
    )
    with pytest.raises(UserError, match=r"^sigma must be > 0$") as caught:
        registry.load("attacks", f"{file}:Thing")
    assert not isinstance(caught.value, PluginError)


# -- entry points ------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site"
    _write(folder / "rbl_test_entry.py", SOURCE.format(value="installed"))
    _write(folder / "rbl_test_entry_raises.py", "raise OSError('no such device')")
    info = folder / "rbl_test_entry-2.1.dist-info"
    _write(info / "METADATA", "Metadata-Version: 2.1\nName: rbl-test-entry\nVersion: 2.1\n")
    points = "thing = rbl_test_entry:Thing\nbroken = rbl_test_entry_raises:Thing\npgd = rbl_test_entry:Thing\n"
    _write(info / "entry_points.txt", f"[robustbench_lite.attacks]\n{points}")
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_an_installed_name_is_found_and_says_where_it_came_from(site: Path) -> None:
    entry = registry.find("attacks", "thing")
    assert entry.origin == "rbl-test-entry 2.1"
    assert entry.load().value == "installed"
    assert "thing" in registry.names("attacks")
    assert "thing" not in registry.names("defenses")
    with pytest.raises(UserError, match="did you mean thing"):
        registry.find("attacks", "thnig")


def test_an_installed_name_does_not_hide_a_builtin(site: Path) -> None:
    assert registry.find("attacks", "pgd").origin == "built-in"


def test_an_installed_name_that_raises_is_named_when_it_is_asked_for(site: Path) -> None:
    assert registry.load("attacks", "thing").value == "installed"
    with pytest.raises(PluginError, match="importing rbl_test_entry_raises raised OSError: no such device") as caught:
        registry.load("attacks", "broken")
    assert "rbl_test_entry_raises.py" in caught.value.__notes__[0]


def test_source_hash_is_that_of_the_file(tmp_path: Path) -> None:
    import hashlib

    file = _write(tmp_path / "mine.py", SOURCE.format(value=9))
    thing = registry.load("attacks", f"{file}:Thing")
    assert registry.source_hash(thing) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert registry.source_hash(len) is None
