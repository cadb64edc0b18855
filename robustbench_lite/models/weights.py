"""Weights in files: read without running what they hold, fitted to a network, written with their hash."""

from __future__ import annotations

import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import RecordError, UserError, close_names
from ..files import write_whole
from .identity import tensors_sha256
from .normalize import inner, preprocessing_of

PICKLES = (".pt", ".pth", ".th", ".tar", ".ckpt", ".bin", ".pkl", ".pt2", ".ts", ".jit")
# In this order: the weights as trained come before their running average.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
AVERAGES = ("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "ema", "params_ema", "swa_state_dict")
FORMAT = "robustbench-lite weights 1"
_SAID = ("recipe", "history", "classes", "preprocessing")


def split_weights(text: Path | str) -> tuple[Path, list[str]]:
    """`FILE`, or `FILE:KEY` or `FILE:KEY:PREFIX.`, as a path and what follows it. A file of that very name comes first.

    >>> split_weights("net.pth:ema:module.")
    (PosixPath('net.pth'), ['ema', 'module.'])
    """
    whole, keys = str(text), list[str]()
    while ":" in whole and not Path(whole).expanduser().exists():
        head, _, key = whole.rpartition(":")
        if len(head) < 2:  # a drive
            break
        whole, keys = head, [key, *keys]
    return Path(whole).expanduser(), keys


def read_weights(path: Path | str, *, argument: str = "--weights") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors in a file by name, on the CPU, and what the file says of them (`model`, `recipe`, `notes`, ...).

    path: `.safetensors`, or what `torch.save` made of tensors: a state dict, one within a checkpoint (under one of
    `WRAPPERS`; a running average, one of `AVERAGES`, only where there is no other), or the first of a list of cascade
    stages. `FILE:KEY` takes what lies under a key, and `FILE:PREFIX.` the tensors whose names begin with the prefix,
    without it.

    Raises UserError, in one line that names the file, where it is missing, empty or corrupt, holds no
    state dict, or is a pickle that wants more than tensors: that would run code of whoever made it.
    Raises RecordError where the tensors are not those whose SHA-256 the file states.
    """
    path, keys = split_weights(path)
    if not path.is_file():
        found = f"{str(path)!r} is a folder" if path.is_dir() else f"no such file {str(path)!r}"
        raise UserError(f"{argument}: {found}; expected a .safetensors, .pt, .pth or .th file")
    if path.suffix not in (".safetensors", *PICKLES):
        raise UserError(f"{argument}: expected a .safetensors, .pt, .pth or .th file, got {str(path)!r}")
    if path.stat().st_size == 0:
        raise UserError(f"{argument}: {path} is empty; copy or download it again")
    if path.suffix == ".safetensors":
        tensors, said = _read_safetensors(path, argument)
        return (_state_in(tensors, path, argument, keys), said) if keys else (tensors, said)
    loaded = _unpickle(path, argument)
    notes = [] if keys else _choices(loaded, path, argument)
    return _state_in(loaded, path, argument, keys), {"notes": notes} if notes else {}


def written_files(text: str, *, argument: str) -> list[str]:
    """The files of weights that an option names, with commas between. Raises UserError for one that is not there."""
    files = [file.strip() for file in text.split(",") if file.strip()]
    for file in files:
        if not split_weights(file)[0].is_file():
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
        if _is_torchscript(path):
            raise UserError(
                f"{argument}: {path} is a TorchScript archive (torch.jit.save), a whole network and no state dict; "
                "load it in a file of yours: def make(): return torch.jit.load(...), and give --model FILE.py:make"
            ) from None
        if _is_exported(path):
            raise UserError(
                f"{argument}: {path} is an exported program (torch.export.save), a whole network and no state dict; "
                "load it in a file of yours: def make(): return torch.export.load(...).module(), and give "
                "--model FILE.py:make"
            ) from None
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


def _names_in(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return []


def _is_torchscript(path: Path) -> bool:
    return any(name.endswith("/constants.pkl") for name in _names_in(path))


def _is_exported(path: Path) -> bool:
    names = _names_in(path)
    return any(name.endswith("/archive_format") or "serialized_exported_program" in name for name in names)


def _state_in(loaded: object, path: Path, argument: str, keys: Sequence[str] = ()) -> dict[str, Tensor]:
    """The state dict in what a file holds: under `keys`, the last of which may be a prefix, or the usual wrappers."""
    if keys:
        return _state_in(_under(loaded, keys[0], path, argument), path, argument, keys[1:])
    if isinstance(loaded, list | tuple) and loaded and isinstance(loaded[0], Mapping):
        return _state_in(loaded[0], path, argument)
    if isinstance(loaded, Mapping):
        for wrapper in (*WRAPPERS, *AVERAGES):
            inner = loaded.get(wrapper)
            if isinstance(inner, Mapping) or (isinstance(inner, list | tuple) and inner):
                return _state_in(inner, path, argument)
        tensors = {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}
        # Beside the tensors of a state dict there may be extra states of modules, which are empty for most.
        if tensors and not any(isinstance(value, Mapping) and _tensors_below(value) for value in loaded.values()):
            return tensors
        inside = [str(key) for key, value in loaded.items() if isinstance(value, Mapping) and _tensors_below(value)]
        if len(inside) == 1 and not tensors:
            return _state_in(loaded[inside[0]], path, argument)
        if inside:
            raise UserError(
                f"{argument}: {path} holds tensors under {', '.join(inside[:5])}; say which: {path}:{inside[0]}"
            )
        held = ", ".join(map(str, list(loaded)[:5])) or "nothing"
    else:
        held = f"a {type(loaded).__name__}"
    raise UserError(f"{argument}: {path} holds no state dict, but {held}; known wrappers: {', '.join(WRAPPERS)}")


def _tensors_below(value: Mapping[Any, Any]) -> bool:
    # An optimizer's state has numbers for names.
    return any(isinstance(inner, Tensor) and isinstance(name, str) for name, inner in value.items())


def _under(loaded: object, key: str, path: Path, argument: str) -> object:
    if isinstance(loaded, Mapping):
        if key in loaded:
            return loaded[key]
        if key.endswith("."):
            inner = loaded
            if not any(str(name).startswith(key) for name in loaded):
                inner = _state_in(loaded, path, argument)
            if found := {str(n).removeprefix(key): v for n, v in inner.items() if str(n).startswith(key)}:
                return found
    known = [str(name) for name in loaded] if isinstance(loaded, Mapping) else []
    raise UserError(f"{argument}: {path} has no key {key!r}; {close_names(key, known[:20])}")


def _choices(loaded: object, path: Path, argument: str) -> list[str]:
    """What is to be said where a checkpoint holds weights and their running average: which was taken."""
    if not isinstance(loaded, Mapping):
        return []
    plain = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
    averages = [key for key in AVERAGES if isinstance(loaded.get(key), Mapping)]
    if not plain or not averages:
        return []
    return [
        f"{path.name} holds {plain[0]} and {averages[0]}: {plain[0]}, the weights without averaging, is taken; for the "
        f"average give {argument} {path.name}:{averages[0]}"
    ]


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> list[str]:
    """Put `tensors` into `module` in place, each by its name, and none missing.

    A prefix (`module.`, `model.`, `_orig_mod.`, `module.model.`) is taken off where the module's own names do without
    it; of several prefixes under which all of them fit none is taken. What a profiler (`total_ops`, `total_params`)
    or an average (`n_averaged`) counts beside the weights is left out, and so are tensors under other prefixes.

    Returns:
        A line for what is left out, where it is more than such counts.

    Raises:
        UserError: naming `source` and the first names or shapes that do not fit, and the nearest way out.
    """
    own = module.state_dict()
    state, notes = _fitting(dict(tensors), own, source)
    try:
        module.load_state_dict(state, strict=True)
    except RuntimeError as error:
        reason = _misfit(state, own) or _line(error)
        raise UserError(f"--weights: {source} does not fit the model: {reason}{_way_out(state, own)}") from None
    return notes


_NORMALISES = re.compile(r"(^|\.)(normali[sz]er?\b|new_mean|new_std|mu$|sigma$|mean$|std$)")
_COUNTS = ("total_ops", "total_params", "n_averaged")


def _fitting(tensors: dict[str, Tensor], own: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by the module's own names, and a line for others that are left out."""
    tensors = {n: t for n, t in tensors.items() if n in own or n.rpartition(".")[2] not in _COUNTS}
    if tensors.keys() == own.keys() or not own:
        return tensors, []
    prefixes = _prefixes(tensors, own)
    whole = [prefix for prefix in prefixes if _fits_all(_without(tensors, prefix), own)]
    if "" in whole:
        whole = [""]
    if len(whole) > 1 and not _same(tensors, whole, own):
        listed = " and ".join(map(repr, whole[:4]))
        raise UserError(
            f"--weights: {source} fits the model under the prefixes {listed}; say which: --weights-prefix {whole[0]}, "
            f"or {source}:{whole[0]}"
        )
    if not whole:
        best = max(prefixes, key=lambda p: len(_without(tensors, p).keys() & own.keys()), default="")
        return _without(tensors, best), []
    state = _without(tensors, whole[0])
    rest = [name for name in tensors if not name.startswith(whole[0])]
    kept = {name: tensor for name, tensor in state.items() if name in own}
    # Without a prefix further tensors of the same network would be layers that the model lacks.
    if not whole[0]:
        return state, []
    inside = len(state) - len(kept)
    if inside:
        return state, []
    return kept, [_left_out(rest, whole[0], source)] if rest else []


def _left_out(names: list[str], prefix: str, source: str) -> str:
    normalising = [name for name in names if _NORMALISES.search(name)]
    hint = "; among them is a normalisation of the images, which the network must do itself" if normalising else ""
    return f"{source}: tensors outside the prefix {prefix!r} are left out, {_first(normalising or names)}{hint}"


def _prefixes(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Prefixes under which one of the module's own names occurs, "" included where one occurs as it is."""
    first = next((name for name in own if own[name].ndim), next(iter(own)))
    found = [name.removesuffix(first) for name in tensors if name == first or name.endswith(f".{first}")]
    return sorted({*found}, key=lambda prefix: (len(prefix), prefix)) or [""]


def _without(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _optional(name: str) -> bool:
    return name.endswith("num_batches_tracked")


def _fits_all(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return all(_optional(n) or (n in state and state[n].shape == _size(t)) for n, t in own.items())


def _same(tensors: Mapping[str, Tensor], prefixes: Sequence[str], own: Mapping[str, Tensor]) -> bool:
    """Whether all prefixes hold the same numbers, as where a wrapper keeps a second name of its network."""
    states = [_without(tensors, prefix) for prefix in prefixes]
    return all(torch.equal(states[0][n], s[n]) for s in states[1:] for n in own if n in s and n in states[0])


def _misfit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    missing = [name for name in own if name not in state and not _optional(name)]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {_shape(state[name])}, the model wants {_shape(own[name])}"
        for name in own
        if name in state and state[name].shape != _size(own[name])
    ]
    parts = [(missing, "missing "), (unexpected, "unexpected "), (shapes, "")]
    return "; ".join(f"{label}{_first(names)}" for names, label in parts if names)


def _way_out(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What to do about weights that do not fit, where that can be told."""
    wrong = [n for n in own if n in state and state[n].shape != _size(own[n])]
    last = [n for n in wrong if own[n].ndim and state[n].ndim == own[n].ndim and state[n].shape[1:] == own[n].shape[1:]]
    if wrong and wrong == last and len({(state[n].shape[0], own[n].shape[0]) for n in wrong}) == 1:
        there, here = state[wrong[0]].shape[0], own[wrong[0]].shape[0]
        return f"; the weights are for {there} classes, the model has {here}: give the data set that they were made for"
    extra = {name.partition(".")[0] for name in state if name not in own}
    if extra and not wrong and all(name in state or _optional(name) for name in own):
        if extra <= {"mu", "sigma", "mean", "std", "normalize", "normalizer"}:
            return (
                "; these normalise the images: give the model a normalisation of these names (register_buffer), or put "
                "the numbers into it and remove them from the file"
            )
        return "; leave these out of the file, or give the model that has them"
    return ""


def _size(tensor: Tensor) -> torch.Size | None:
    return None if is_lazy(tensor) else tensor.shape


def _shape(tensor: Tensor) -> str:
    if is_lazy(tensor):
        return "of no shape yet"
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
