"""What has a name (attacks, defenses, model families, data sets, ...); only what was asked for is imported.

A name is looked up in three places: the built-ins (a class with a `name` in a file of the kind's
package, found by reading the source, so that adding one is adding its file), the entry-point group
`robustbench_lite.KIND` of installed distributions, and `FILE.py:NAME` or `package.module:NAME`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import PluginError, UserError, unknown_name
from .importing import home_of, load_file, working_folder

PACKAGES = {
    "attacks": "robustbench_lite.attacks",
    "defenses": "robustbench_lite.defenses",
    "models": "robustbench_lite.models.families",
    "datasets": "robustbench_lite.data.sources",
    "constructions": "robustbench_lite.features.constructions",
    "certifiers": "robustbench_lite.certifiers",
}


@dataclass(frozen=True)
class Entry:
    """One name of a kind, and where the thing behind it comes from."""

    kind: str
    name: str
    origin: str
    target: str

    def load(self) -> Any:
        """Import the thing. What its own code raises surfaces as the cause of a PluginError."""
        module, _, attribute = self.target.rpartition(":")
        return _attribute(_import(module), attribute, self.target)

    def importing(self) -> AbstractContextManager[None]:
        """Context manager: code of the thing finds the modules that lie beside it."""
        return home_of(self.target.rpartition(":")[0])


@functools.cache
def builtins(kind: str) -> dict[str, Entry]:
    """The built-ins of a kind by name, read from the source without importing it."""
    package = PACKAGES[kind]
    # By path: asking the import system would import the packages above, and torch with them.
    folder = Path(__file__).parent.joinpath(*package.split(".")[1:])
    found: dict[str, Entry] = {}
    for file in sorted(folder.glob("*.py")):
        for class_name, name in _named_classes(ast.parse(file.read_text("utf-8"))):
            assert name not in found, f"{kind}: {name} is defined twice"
            found[name] = Entry(kind, name, "built-in", f"{package}.{file.stem}:{class_name}")
    return found


def _named_classes(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if not isinstance(node, ast.ClassDef):
            continue
        for item in node.body:
            targets = [item.target] if isinstance(item, ast.AnnAssign) else getattr(item, "targets", [])
            value = getattr(item, "value", None)
            if (
                any(isinstance(t, ast.Name) and t.id == "name" for t in targets)
                and isinstance(value, ast.Constant)
                and isinstance(value.value, str)
            ):
                yield node.name, value.value


def installed(kind: str) -> dict[str, Entry]:
    """What installed distributions offer through the entry-point group of the kind."""
    found: dict[str, Entry] = {}
    for point in entry_points(group=f"robustbench_lite.{kind}"):
        found[point.name] = Entry(kind, point.name, _distribution(point), point.value)
    return found


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "entry point"


def names(kind: str) -> dict[str, Entry]:
    """Every name of a kind; a built-in is not hidden by an installed one of the same name."""
    return {**installed(kind), **builtins(kind)}


def find(kind: str, spec: str, *, argument: str | None = None) -> Entry:
    """The entry that `spec` names: a name, `FILE.py:NAME` or `package.module:NAME`.

    Raises UserError for an unknown name (with the close ones) or a file that is not there.
    """
    argument = argument or f"--{kind.rstrip('s')}"
    # Looking for what is installed reads the files of every distribution; a built-in does not wait for that.
    if spec in builtins(kind):
        return builtins(kind)[spec]
    known = names(kind)
    if spec in known:
        return known[spec]
    module, colon, attribute = spec.rpartition(":")
    if colon and module.endswith(".py"):
        path = Path(module).expanduser()
        if not path.is_file():
            raise UserError(f"{argument}: no such file {module!r}; expected FILE.py:NAME")
        if not attribute.isidentifier():
            raise UserError(f"{argument}: expected FILE.py:NAME, got {spec!r}")
        return Entry(kind, attribute, str(path), f"{path.resolve()}:{attribute}")
    if spec.endswith(".py"):
        raise UserError(f"{argument}: expected FILE.py:NAME, got {spec!r}; say which name in the file, {spec}:NAME")
    if colon and attribute.isidentifier() and _module_exists(module):
        return Entry(kind, attribute, module, spec)
    raise unknown_name(argument, spec, known)


def _module_exists(module: str) -> bool:
    if not all(part.isidentifier() for part in module.split(".")):
        return False
    if working_folder(module) is not None:
        return True
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def load(kind: str, spec: str, *, argument: str | None = None) -> Any:
    """Find and import what `spec` names."""
    return find(kind, spec, argument=argument).load()


def source_hash(thing: Any) -> str | None:
    """SHA-256 of the file that defines a class or function; None where there is no file."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    file = getattr(sys.modules.get(getattr(thing, "__module__", "")), "__file__", None)
    if file is None or not Path(file).is_file():
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def reason_of(error: BaseException) -> str:
    """What an exception says, in one line: the first, but of the interpreter of TorchScript the last."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return lines[-1] if lines[0].startswith("The following operation failed in the TorchScript") else lines[0]


def guard(what: str, error: Exception) -> PluginError:
    """The error for code from outside that raised: its own traceback, then our line."""
    own = "".join(traceback.format_exception(error)).rstrip()
    plugin = PluginError(f"{what} raised {type(error).__name__}: {reason_of(error)}")
    plugin.add_note(own)
    plugin.__cause__ = error
    return plugin


def _import(module: str) -> ModuleType:
    what = f"importing {Path(module).name if module.endswith('.py') else module}"
    try:
        if module.endswith(".py"):
            return _import_file(Path(module))
        with home_of(module):
            return importlib.import_module(module)
    except UserError:
        raise
    except SystemExit as error:
        raise ended(what, error) from error
    except Exception as error:
        if module.startswith("robustbench_lite."):
            raise
        raise guard(what, error) from error


def _import_file(path: Path) -> ModuleType:
    # The name must be the same in every process (workers unpickle by it) and never that of a real module.
    name = f"_rbl_plugin_{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    if name in sys.modules and getattr(sys.modules[name], "__rbl_hash__", None) == _file_hash(path):
        return sys.modules[name]
    loaded = load_file(path, name)
    loaded.__dict__["__rbl_hash__"] = _file_hash(path)
    return loaded


def ended(what: str, error: SystemExit) -> PluginError:
    """The error for code from outside that would have ended the program, such as a script's own main part."""
    plugin = PluginError(
        f"{what} ended the program (SystemExit: {error.code}); what a script does by itself belongs under "
        'if __name__ == "__main__"'
    )
    plugin.__cause__ = error
    return plugin


def _file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _attribute(module: ModuleType, attribute: str, target: str) -> Any:
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            public = [n for n, v in vars(value).items() if not n.startswith("_") and callable(v)]
            raise unknown_name(target, part, public)
        value = getattr(value, part)
    return value
