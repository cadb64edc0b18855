"""What the families made of another library share: its import, its downloads, and how both fail."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from ..errors import RblError, UserError

_REGISTERED = re.compile(r"^@register_model\b[^\n]*\n(?:@[^\n]*\n)*def (\w+)\(", re.MULTILINE)


def importing(module: str) -> ModuleType:
    """Import a library's module. Raises UserError in one line where the installation is broken."""
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise UserError(
            f"{module.split('.')[0]} cannot be imported ({_line(error)}); `rbl doctor` says what is broken"
        ) from error


@functools.cache
def registered(library: str) -> tuple[str, ...]:
    """The networks that the files in LIBRARY/models register, sorted; () where none is found there.

    Read from the source: that a name is unknown should not take the seconds that importing the library does.
    """
    spec = importlib.util.find_spec(library)
    folder = Path(spec.origin).parent / "models" if spec and spec.origin else None
    files = sorted(folder.glob("*.py")) if folder else []
    return tuple(sorted({name for file in files for name in _REGISTERED.findall(file.read_text("utf-8"))}))


def class_mismatch(model: str, known: int, n_classes: int) -> UserError:
    """The error for published weights that tell other classes apart than the data set's."""
    return UserError(
        f"--weights pretrained: the weights of {model} are for {known} classes, the data set has {n_classes}; "
        f"leave --weights out to train it, or name the {known} classes in order with --class-names FILE"
    )


@contextlib.contextmanager
def downloading(model: str, place: str) -> Iterator[None]:
    """Around a library's own loading of its weights: nothing on stdout, one line when it fails."""
    try:
        # The hub announces a download on stdout, which belongs to `--json`.
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except RblError:
        raise
    except Exception as error:
        raise UserError(
            f"--weights pretrained: the weights of {model} could not be had ({_line(error)}); check the network, "
            f"put the file into {place}, give your own with --weights FILE, or leave --weights out to train it"
        ) from error


@contextlib.contextmanager
def hub_within_reach() -> Iterator[None]:
    """Around a download from the Hugging Face hub: where it cannot be reached, ask only its local cache.

    The hub's client would try again for most of a minute before it looks there.
    """
    constants = importing("huggingface_hub.constants")
    before = getattr(constants, "HF_HUB_OFFLINE", True)
    if before or _reachable(constants.ENDPOINT):
        yield
        return
    constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before  # type: ignore[attr-defined]


def _reachable(address: str) -> bool:
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return True  # an answer all the same
    except OSError:
        return False
    return True


def _line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
