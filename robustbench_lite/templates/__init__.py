"""Files to start a plug-in from, and how one is written out under a name of its own."""

from __future__ import annotations

import keyword
import os
import re
from importlib.resources import files
from pathlib import Path

from ..errors import UserError

TEMPLATES = ("attack", "defense_inference", "defense_training")


def class_name(file: Path) -> str:
    """The class that a file of this name holds: `my_defense.py` -> `MyDefense`.

    Raises UserError for a name that is no .py or makes no name of a class.
    """
    if file.suffix != ".py":
        raise UserError(f"FILE.py: expected a name that ends in .py, got {str(file)!r}")
    parts = [part for part in re.split(r"[^0-9A-Za-z]+", file.stem) if part]
    name = "".join(part[0].upper() + part[1:] for part in parts)
    if not name.isidentifier() or keyword.iskeyword(name):
        raise UserError(
            f"FILE.py: no class can be named after {file.name!r}; expected letters and digits, a letter first, "
            "such as my_defense.py"
        )
    return name


def render(template: str, file: Path) -> str:
    """The text of a template (`attack`, `defense_inference`, `defense_training`) for a file of this name."""
    name = class_name(file)
    text = (files(__package__) / f"{template}.py.txt").read_text("utf-8")
    kind = template.split("_")[0]
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower()
    words = {
        f"my_{kind}.py": file.name,
        f"my-{kind}": plain,
        f"My{kind.capitalize()}": name,
        "MyState": f"{name}State",
    }
    # In one pass: a file's own name may hold a word that is replaced.
    return re.sub("|".join(map(re.escape, words)), lambda found: words[found[0]], text)


def write_template(file: Path, template: str) -> str:
    """Write a template to a new file; the name of its class.

    Raises UserError where the file is there already, its folder is not, or its name does not do.
    """
    file = file.expanduser()
    text, name = render(template, file), class_name(file)
    if not file.parent.is_dir():
        raise UserError(f"FILE.py: no such folder {str(file.parent)!r}; make it first")
    if os.path.lexists(file):
        raise UserError(f"FILE.py: {str(file)!r} is there already and is left as it is; give another name")
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except OSError as error:
        raise UserError(f"FILE.py: cannot write {str(file)!r}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return name
