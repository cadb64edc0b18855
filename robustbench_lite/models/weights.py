"""Weights in files: read without running what they hold, fitted to a network, written with their hash."""

from __future__ import annotations

import json
import pickletools
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import RecordError, UserError
from ..files import write_whole
from .identity import tensors_sha256
from .normalize import inner, preprocessing_of

PICKLES = (".pt", ".pth", ".th", ".tar", ".ckpt", ".bin")
# In this order: the weights as trained come before their running average.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "state_dict_ema", "model_ema", "ema")
PREFIXES = ("module.", "model.", "_orig_mod.")
FORMAT = "robustbench-lite weights 1"
_SAID = ("recipe", "history", "classes", "preprocessing")


def read_weights(path: Path | str, *, argument: str = "--weights") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in a file by name, on the CPU, and what the file says of them (`model`, `recipe`, ...).

    `.safetensors`, or what `torch.save` made of tensors: a state dict, one within a checkpoint (under
    `state_dict`, `model_state_dict`, `model`, `net`; a running average, `ema`, only where there is no
    other), or the first of a list of cascade stages.

    Raises UserError, in one line that names the file, where it is missing, empty or corrupt, holds no
    state dict, or is a pickle that wants more than tensors: that would run code of whoever made it.
    Raises RecordError where the tensors are not those whose SHA-256 the file states.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        found = f"{str(path)!r} is a folder" if path.is_dir() else f"no such file {str(path)!r}"
        raise UserError(f"{argument}: {found}; expected a .safetensors, .pt, .pth or .th file")
    if path.suffix not in (".safetensors", *PICKLES):
        raise UserError(f"{argument}: expected a .safetensors, .pt, .pth or .th file, got {str(path)!r}")
    if path.stat().st_size == 0:
        raise UserError(f"{argument}: {path} is empty; copy or download it again")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, argument)
    return _state_in(_unpickle(path, argument), path, argument), {}


def written_files(text: str, *, argument: str) -> list[str]:
    """The files of weights that an option names, with commas between. Raises UserError for one that is not there."""
    files = [file.strip() for file in text.split(",") if file.strip()]
    for file in files:
        if not Path(file).expanduser().is_file():
            raise UserError(f"{argument}: no such file {file!r}; give files that rbl train wrote, with commas between")
    return files


def _read_safetensors(path: Path, argument: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            said = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{argument}: {path} is no safetensors file or is corrupt ({_line(error)}); copy it again"
        ) from None
    if said.get("format") != FORMAT:
        return tensors, {}
    found = tensors_sha256(tensors)
    if said.get("sha256") != found:
        raise RecordError(
            f"{argument}: {path} is corrupt: its tensors hash to {found[:12]}, it states {said.get('sha256', '')[:12]}"
        )
    try:
        told = {name: json.loads(said.get(name, "null")) for name in _SAID}
    except json.JSONDecodeError:
        raise RecordError(f"{argument}: {path} is corrupt: the recipe in it cannot be read") from None
    return tensors, {"model": said.get("model"), **told}


def _unpickle(path: Path, argument: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol, which an error below names
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the bytes make the reader stumble over
        wanted = _wanted(path, str(error))
        if wanted is None:
            raise UserError(
                f"{argument}: {path} is no file that torch.save wrote, or is corrupt; copy or download it again"
            ) from None
        raise UserError(
            f"{argument}: {path} is refused: it wants {wanted}, more than tensors, and loading it would run "
            f"code of its maker; save a state dict: torch.save(model.state_dict(), ...)"
        ) from None
    return loaded


def _wanted(path: Path, message: str) -> str | None:
    """The first thing beyond tensors that a pickle would import, without importing it."""
    named = re.search(r"GLOBAL (\S+)", message) or re.search(r"[Uu]nsupported class (\S+)", message)
    if named:
        return named.group(1)
    strings: list[str] = []
    try:
        with path.open("rb") as file:
            for opcode, value, _ in pickletools.genops(file):
                if opcode.name == "GLOBAL":
                    return str(value).replace(" ", ".")
                if opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                    return ".".join(strings[-2:])
                if isinstance(value, str):
                    strings.append(value)
    except Exception:
        return None
    return None


def _state_in(loaded: object, path: Path, argument: str) -> dict[str, Tensor]:
    if isinstance(loaded, list | tuple) and loaded and isinstance(loaded[0], Mapping):
        return _state_in(loaded[0], path, argument)
    if isinstance(loaded, Mapping):
        for wrapper in WRAPPERS:
            inner = loaded.get(wrapper)
            if isinstance(inner, Mapping) or (isinstance(inner, list | tuple) and inner):
                return _state_in(inner, path, argument)
        if loaded and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
            return dict(loaded)
        held = ", ".join(map(str, list(loaded)[:5])) or "nothing"
    else:
        held = f"a {type(loaded).__name__}"
    raise UserError(f"{argument}: {path} holds no state dict, but {held}; known wrappers: {', '.join(WRAPPERS)}")


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Put `tensors` into `module` in place, each by its name, every one of them used and none missing.

    A prefix that all names share (`module.`, `model.`, `_orig_mod.`) is taken off where the module's own
    names do without it. Raises UserError naming `source` and the first names or shapes that do not fit.
    """
    own = module.state_dict()
    state = _fitting(dict(tensors), own)
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise UserError(f"--weights: {source} does not fit the model: {_misfit(state, own) or _line(error)}") from None


def _fitting(tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    candidates = [tensors]
    while True:
        last = candidates[-1]
        prefix = next((p for p in PREFIXES if last and all(name.startswith(p) for name in last)), None)
        if prefix is None:
            break
        candidates.append({name.removeprefix(prefix): tensor for name, tensor in last.items()})
    return max(candidates, key=lambda c: len(c.keys() & own.keys()))


def _misfit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {_shape(state[name])}, the model wants {_shape(own[name])}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    parts = [(missing, "missing "), (unexpected, "unexpected "), (shapes, "")]
    return "; ".join(f"{label}{_first(names)}" for names, label in parts if names)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a number"


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def save_weights(
    module: nn.Module,
    path: Path | str,
    *,
    model: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    classes: Sequence[str] = (),
) -> str:
    """Write the state of `module` as safetensors, with its recipe, history and SHA-256, whole or not at all.

    classes: the names of its outputs, in order. Of a `Normalize` the network behind it is written, and what it
    normalises by is said beside it.
    Returns the SHA-256, which `read_weights` checks. Raises UserError where the file cannot be written.
    """
    from safetensors.torch import save_file

    # Each its own memory: safetensors refuses tensors that share it.
    state = inner(module).state_dict()
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    sha256 = tensors_sha256(tensors)
    said = {"format": FORMAT, "sha256": sha256, "recipe": json.dumps(recipe, sort_keys=True)}
    if history:
        said["history"] = json.dumps(list(history))
    if preprocessing := preprocessing_of(module):
        said["preprocessing"] = json.dumps(preprocessing)
    if classes:
        said["classes"] = json.dumps(list(classes))
    if model is not None:
        said["model"] = model
    write_whole(Path(path), _disk_errors(lambda temporary: save_file(tensors, temporary, metadata=said)))
    return sha256


def _disk_errors(write: Callable[[Path], object]) -> Callable[[Path], object]:
    from safetensors import SafetensorError

    def wrapped(path: Path) -> None:
        try:
            write(path)
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(str(error)) from error

    return wrapped


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
