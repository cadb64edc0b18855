"""Import of a user's files: as a script beside them would, and apart from modules of the same name elsewhere."""

from __future__ import annotations

import ast
import builtins
import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_OURS = "robustbench_lite"


class Folder:
    """The modules that lie in one folder, which its files import by name, at import or later.

    Two folders may hold modules of one name (`models`, `utils`), and an installed package may have that name too. So
    each folder keeps its own modules, which are in `sys.modules` while its code imports. An import statement anywhere
    in its files comes here, as each module that is loaded from the folder has an `__import__` of its own.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._modules: dict[str, ModuleType] = {}
        self._inside = False
        self.builtins = {**vars(builtins), "__import__": self._import}

    @contextlib.contextmanager
    def importing(self) -> Iterator[None]:
        """Context manager: names of modules in the folder mean these, and the folder is first on the path."""
        if self._inside:
            yield
            return
        hidden = {name: module for name, module in list(sys.modules.items()) if self._hides(name, module)}
        for name in hidden:
            del sys.modules[name]
        sys.modules.update(self._modules)
        sys.path.insert(0, str(self.path))
        sys.meta_path.insert(0, self)
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
            sys.meta_path.remove(self)
            with contextlib.suppress(ValueError):
                sys.path.remove(str(self.path))
            self._modules = {
                name: module for name, module in list(sys.modules.items()) if self._lies_here(name, module)
            }
            # Where nothing else has a name it stays, so that pickle and importlib find it.
            taken = {_top(name) for name in hidden}
            for name in self._modules:
                if _top(name) in taken:
                    del sys.modules[name]
            sys.modules.update(hidden)

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        """The spec of a module in the folder, whose import statements come back here; None for any other."""
        del target
        if not self._has(_top(name)):
            return None
        spec = PathFinder.find_spec(name, [str(self.path)] if path is None else path)
        if spec is None or not isinstance(spec.loader, SourceFileLoader) or not self._contains(spec.origin):
            return None
        spec.loader = _Loader(name, spec.loader.path, self)
        return spec

    def _import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> ModuleType:
        known = level == 0 and (not self._has(_top(name)) or self._loaded(name))
        with contextlib.nullcontext() if known and not fromlist else self.importing():
            return builtins.__import__(name, globals, locals, fromlist, level)

    def _loaded(self, name: str) -> bool:
        return name in self._modules and sys.modules.get(name) is self._modules[name]

    def _has(self, top: str) -> bool:
        """Whether the folder's code means a module in it by this name. What Python itself has is not hidden."""
        if top in sys.stdlib_module_names or top in (_OURS, "__main__"):
            return False
        return (self.path / f"{top}.py").is_file() or (self.path / top).is_dir()

    def _hides(self, name: str, module: ModuleType) -> bool:
        top = _top(name)
        if not self._has(top) or self._lies_here(name, module):
            return False
        regular = (self.path / f"{top}.py").is_file() or (self.path / top / "__init__.py").is_file()
        # A folder without __init__.py yields to an installed module, but not to one of another user's folder.
        return regular or any(top in map(_top, folder._modules) for folder in _FOLDERS.values())

    def _lies_here(self, name: str, module: ModuleType) -> bool:
        if not self._has(_top(name)):
            return False
        file = getattr(module, "__file__", None)
        places = [file] if file else list(getattr(module, "__path__", []))
        return any(self._contains(place) for place in places)

    def _contains(self, place: str | None) -> bool:
        # What is installed in a folder below is not the folder's own.
        if place is None or not Path(place).is_relative_to(self.path):
            return False
        return "site-packages" not in Path(place).relative_to(self.path).parts


class _Loader(SourceFileLoader):
    """Loads a module with the folder's `__import__`, which functions take on when they are defined."""

    def __init__(self, name: str, path: str, folder: Folder) -> None:
        super().__init__(name, path)
        self.folder = folder

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = self.folder.builtins
        super().exec_module(module)


_FOLDERS: dict[Path, Folder] = {}


def folder_of(path: Path) -> Folder:
    """The one `Folder` of a path."""
    return _FOLDERS.setdefault(path.resolve(), Folder(path.resolve()))


def home_of(module: str) -> contextlib.AbstractContextManager[None]:
    """Context manager: the imports of what is loaded from a file, or from a module of the working folder, work."""
    if module.endswith(".py"):
        return folder_of(_member(Path(module))[1]).importing()
    folder = working_folder(module)
    return contextlib.nullcontext() if folder is None else folder.importing()


def working_folder(module: str) -> Folder | None:
    """The working folder, where a module of this dotted name lies in it; None where it does not."""
    parts = module.split(".")
    if parts[0] == _OURS or not all(part.isidentifier() for part in parts):
        return None
    target = Path.cwd().joinpath(*parts)
    found = target.with_suffix(".py").is_file() or (target / "__init__.py").is_file()
    return folder_of(Path.cwd()) if found else None


def load_file(path: Path, name: str) -> ModuleType:
    """Import a file under this name; what it imports is looked for beside it first.

    A file with relative imports is a member of the package that it lies in, and imports as one. `sys.argv` is the file
    alone meanwhile, so that a parser of arguments at the top of a script meets none of this program's.
    """
    package, root = _member(path)
    whole = f"{package}.{name}" if package else name
    folder = folder_of(root)
    spec = importlib.util.spec_from_file_location(whole, path, loader=_Loader(whole, str(path), folder))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = sys.modules[whole] = module
    arguments, sys.argv = sys.argv, [str(path)]
    try:
        with folder.importing():
            if package:
                importlib.import_module(package)
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        sys.modules.pop(whole, None)
        raise
    finally:
        sys.argv = arguments
    return module


def _member(path: Path) -> tuple[str, Path]:
    """The dotted name of the package that a file with relative imports belongs to, and the folder that holds it.

    Of any other file "" and its own folder.
    """
    folder = path.parent
    deepest = _deepest_relative(path)
    if not deepest:
        return "", folder
    parts: list[str] = []
    while folder.name.isidentifier() and ((folder / "__init__.py").is_file() or len(parts) < deepest):
        parts.insert(0, folder.name)
        folder = folder.parent
    return ".".join(parts), folder if parts else path.parent


def _deepest_relative(path: Path) -> int:
    """The most dots of a relative import in the file; 0 where it has none or cannot be parsed."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return 0  # the import itself will tell
    return max((node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)), default=0)


def _top(name: str) -> str:
    return name.partition(".")[0]
