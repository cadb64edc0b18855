"""From what the user says of a model to the network that is evaluated, and what a record says of it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..adapter import Adapted, adapt, initialised
from ..cache import cache_dir
from ..errors import RecordError, UserError
from ..history import History
from ..modes import evaluation_mode
from ..processes import main_process
from ..registry import source_hash
from .build import Source, build_source, find_source, shown
from .identity import layout_sha256, state_sha256
from .normalize import Normalization, Normalize, inner, preprocessing_of
from .seeding import seeded
from .weights import load_weights, read_weights, save_weights, split_weights

# Part of a cached network's key: raised when a recipe starts to mean another network;
# what differs by rounding is the same.
TRAINING_VERSION = 1


class Train(Protocol):
    """What trains a network, in place or another."""

    def __call__(self, module: nn.Module, *, checkpoint: Path, history: History) -> nn.Module:
        """The trained network; checkpoint: where a training under way may be kept; history: what was seen of it."""


@dataclass(frozen=True)
class LoadedModel:
    """A network ready to be attacked, and what its record says of it.

    module: pixels (N, C, H, W) in [0, 1] to logits (N, K), normalisation inside, in evaluation mode.
    name: as the user gave it, but of a file's path only the last part (`net.py:make`).
    sha256: of its parameters and buffers (`state_sha256`).
    preprocessing: what is done inside before the network proper: mean, std, input_size; {} if nothing.
    weights: "pretrained", the name of a file, "trained", or "factory".
    recipe: how it was trained, where that is known; history: what was seen of that, a row an epoch.
    source_sha256: of the file with a user's own factory; None for a network of a library.
    notes: what is done around a network that an evaluation cannot call as it is (`adapter.adapt`).
    """

    module: nn.Module
    name: str
    sha256: str
    parameters: int
    preprocessing: dict[str, Any]
    weights: str
    recipe: dict[str, Any] | None
    source_sha256: str | None = None
    history: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def load_model(
    spec: str,
    *,
    n_classes: int,
    shape: tuple[int, int, int],
    weights: str | None = None,
    train: Train | None = None,
    recipe: Mapping[str, Any] | None = None,
    retrain: bool = False,
    seed: int = 0,
    normalize: Normalization | None = None,
    binary: bool = False,
    images: Tensor | None = None,
) -> LoadedModel:
    """The network that `spec` names with the weights that `weights` names.

    weights: a file, "pretrained" (the library's own), or None: a factory's network is then taken as it
    is returned, any other is trained by `train` and kept in the cache, so that the next call with the
    same model and `recipe` trains nothing.
    train: trains a network and returns it (`training.train_model`).
    recipe: all that decides what `train` gives, as plain JSON values (`decided.describe`): the key of
    the cached network beside the model's name, and what its record says.
    retrain: train also what has weights already (a train-time defense of a factory's network).
    seed: of the initial weights.
    normalize: put before the network; not for one that has its normalisation inside, as published weights and files
    of a normalised network do.
    binary: a factory's network gives one number for each image, of class 1 against class 0. images: (N, *shape) in
    [0, 1], by which a factory's network is tried; None: random ones.

    Raises UserError for what the user can mend (an unknown name, weights that do not fit, a refused
    pickle, weights that cannot be had, nothing to train with); PluginError for a factory that raises.
    Warns where a cached network is corrupt: it is renamed to `*.corrupt-*` and trained again.
    """
    source = find_source(spec)
    if normalize is not None:
        normalize.check_channels(shape[0])
    module = build_source(source, n_classes=n_classes, shape=shape, pretrained=weights == "pretrained", seed=seed)
    notes: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()
    if source.is_factory:
        few = _noise(shape) if images is None else images
        with seeded(seed), source.importing():
            if initialised(module, few[:2]) and weights is None:
                taken = ("lazy layers got their shapes from the images, and random weights",)
    origin, known = weights or "factory", None
    rows: tuple[dict[str, Any], ...] = ()
    if weights is not None and weights != "pretrained":
        path, keys = split_weights(weights)
        tensors, said = read_weights(weights)
        module, left_out = _with_weights(module, tensors, said, source=weights)
        notes = (*said.get("notes", ()), *left_out)
        origin = ":".join([path.name, *keys])
        known, rows = said.get("recipe"), tuple(said.get("history") or ())
    if normalize is not None:
        module = _normalized(module, normalize, source)
    if source.is_factory:
        with seeded(seed), source.importing(), torch.inference_mode(False):
            ready = adapt(module, few, n_classes=n_classes, binary=binary, argument="--binary")
        module, taken = ready.module, (*taken, *ready.notes)
    elif binary:
        raise UserError(f"--binary: {source.qualified} has a logit for each class; leave it out")
    if retrain or (weights is None and not source.is_factory):
        if train is None:
            raise UserError(
                f"--weights: {spec} comes untrained; give a file, or 'pretrained' where its library has them"
            )
        described = {
            **(recipe or {}),
            **({"start": {"weights": origin, "sha256": state_sha256(module)}} if retrain else {}),
        }
        module, known, rows = _trained(
            source,
            module,
            train,
            {
                "recipe": described,
                "shape": [*shape],
                "classes": n_classes,
                "layout": layout_sha256(module),
                "source": source_hash(source.entry.load()) if source.entry is not None else None,
                **({} if normalize is None else {"preprocessing": preprocessing_of(module)}),
            },
        )
        origin = "trained"
    evaluation_mode(module)
    bare = module.network if isinstance(module, Adapted) else module
    return LoadedModel(
        module=module,
        name=shown(spec),
        sha256=state_sha256(bare),
        parameters=sum(p.numel() for p in module.parameters()),
        preprocessing=preprocessing_of(bare) | ({"adapted": [*taken]} if taken else {}),
        weights=origin,
        recipe=known,
        source_sha256=source_hash(source.entry.load()) if source.entry is not None else None,
        history=rows,
        notes=(*notes, *taken),
    )


def _noise(shape: tuple[int, int, int]) -> Tensor:
    """Random images (64, *shape), the same each time."""
    return torch.rand((64, *shape), generator=torch.Generator().manual_seed(0))


def load_written(file: str, *, n_classes: int, shape: tuple[int, int, int], argument: str = "--weights") -> LoadedModel:
    """The network in a file that `rbl train` wrote, which says what it is. UserError for another file."""
    model = read_weights(Path(file), argument=argument)[1].get("model")
    if not isinstance(model, str):
        raise UserError(f"{argument}: {file} does not say which network it is; give files that rbl train wrote")
    try:
        return load_model(model, n_classes=n_classes, shape=shape, weights=file)
    except UserError as error:
        error.args = (f"{argument}: {str(error).removeprefix('--weights: ').removeprefix('--model: ')}",)
        raise


def _with_weights(
    module: nn.Module, tensors: dict[str, Tensor], said: Mapping[str, Any], *, source: str
) -> tuple[nn.Module, tuple[str, ...]]:
    """The network with the weights of a file and the normalisation that the file says was before it; notes."""
    told = said.get("preprocessing") or {}
    if _has_normalization(tensors) and not isinstance(module, Normalize) and "mean" not in module.state_dict():
        # Written before files said so: the state of a Normalize, with the network's own under `model.`.
        told = {name: tensors.pop(name).reshape(-1).tolist() for name in ("mean", "std")}
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    notes = load_weights(module if _has_normalization(tensors) else inner(module), tensors, source=source)
    if not told:
        return module, tuple(notes)
    if isinstance(module, Normalize):
        if any(module.preprocessing[name] != told[name] for name in ("mean", "std")):
            raise UserError(f"--weights: {source} has mean {told['mean']} and std {told['std']}, the model has others")
        return module, tuple(notes)
    return Normalize(module, told["mean"], told["std"], input_size=told.get("input_size")), tuple(notes)


def _has_normalization(tensors: Mapping[str, Tensor]) -> bool:
    return {"mean", "std"} < set(tensors) and all(n in ("mean", "std") or n.startswith("model.") for n in tensors)


def _normalized(module: nn.Module, normalize: Normalization, source: Source) -> nn.Module:
    made = Normalize(module, normalize.mean, normalize.std)
    if not isinstance(module, Normalize):
        return made
    if all(made.preprocessing[name] == module.preprocessing[name] for name in ("mean", "std")):
        return module
    own = f"mean {module.preprocessing['mean']}, std {module.preprocessing['std']}"
    raise UserError(f"mean: {source.qualified} has its normalisation inside ({own}); leave --mean and --std out")


def cached_path(model: str, decided_by: Mapping[str, Any]) -> Path:
    """Where the cache keeps the network `model` that was trained as `decided_by` says."""
    said = json.dumps({"version": TRAINING_VERSION, "model": model, **decided_by}, sort_keys=True)
    return cache_dir() / "models" / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.safetensors"


def _trained(
    source: Source, module: nn.Module, train: Train, decided_by: Mapping[str, Any]
) -> tuple[nn.Module, dict[str, Any], tuple[dict[str, Any], ...]]:
    recipe: dict[str, Any] = dict(decided_by["recipe"])
    path = cached_path(source.qualified, decided_by)
    if path.exists():
        try:
            tensors, said = read_weights(path, argument="the cached network")
            return _with_weights(module, tensors, said, source=str(path))[0], recipe, tuple(said.get("history") or ())
        except (RecordError, UserError) as error:
            aside = path.with_name(f"{path.name}.corrupt-{secrets.token_hex(3)}")
            os.replace(path, aside)
            warnings.warn(f"{error}; it is kept as {aside.name}, and the network is trained again", stacklevel=3)
    layout = _layout(module)
    history = History()
    trained = train(module, checkpoint=path.with_suffix(".training"), history=history)
    # A defense may return another network, which the cache could not build again from the model's name.
    if main_process() and type(trained) is type(module) and _layout(trained) == layout:
        save_weights(trained, path, model=source.qualified, recipe=recipe, history=history.rows)
    return trained, recipe, tuple(history.rows)


def _layout(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
