"""Networks and images in memory, as a caller gives them, made into what a run takes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from .adapter import Ready, adapt
from .data import Dataset, from_arrays
from .data.dataset import as_pixels
from .data.labels import read_labels
from .data.pixels import as_array, read_images
from .defense import Defense, InferenceDefense
from .errors import UserError
from .fitting import FitData
from .network import Network, Noise, frozen
from .registry import source_hash
from .streams import Stream
from .surrogate import Surrogate

if TYPE_CHECKING:
    from .models import LoadedModel


_IMAGES = 64  # by which a network is tried


def given_model(
    model: nn.Module,
    name: str | None = None,
    *,
    x: Tensor | None = None,
    defenses: Sequence[Defense] = (),
    n_classes: int | None = None,
    binary: bool = False,
    argument: str = "model",
) -> LoadedModel:
    """A network of the caller's as what a run takes.

    x: images (N, C, H, W) by which it is tried, and defenses before it; None: it is taken as it is. n_classes: how
    many logits it has; None: not known. binary: it is a binary head. argument: how the caller names it in an error.

    Raises UserError for what is no network, for no images, and for a network that cannot be evaluated.
    """
    from .models import LoadedModel
    from .models.identity import state_sha256
    from .models.normalize import preprocessing_of

    if not isinstance(model, nn.Module):
        raise UserError(
            f"{argument}: expected a torch.nn.Module, got {type(model).__name__}; put a function into a module"
        )
    ready = Ready(model)
    if x is not None:
        with _asking(model) as device:
            ready = adapt(model, _as_seen(x, defenses).to(device), n_classes=n_classes, binary=binary)
    return LoadedModel(
        module=ready.module,
        name=name or type(model).__name__,
        sha256=state_sha256(model),
        parameters=sum(p.numel() for p in model.parameters()),
        preprocessing=preprocessing_of(model) | ({"adapted": [*ready.notes]} if ready.notes else {}),
        weights="given",
        recipe=None,
        source_sha256=_own_source(model),
        notes=ready.notes,
    )


def given_surrogate(given: nn.Module | str, data: Dataset) -> Surrogate:
    """A network, or `MODEL[=WEIGHTS]`, as what a transfer attacks. UserError for anything else."""
    from .models import load_model

    if isinstance(given, nn.Module):
        few = data.images(torch.arange(min(2, len(data))))
        return Surrogate.of(given_model(given, x=few, n_classes=len(data.classes), argument="surrogates"))
    if not isinstance(given, str):
        raise UserError(f"surrogates: expected networks or names, got {type(given).__name__}")
    spec, _, weights = given.partition("=")
    return Surrogate.of(load_model(spec, n_classes=len(data.classes), shape=data.shape, weights=weights or None))


def given_inputs(
    model: nn.Module,
    x: Any,
    y: Any,
    defenses: Sequence[Defense] = (),
    eps: Tensor | None = None,
    *,
    name: str | None = None,
    binary: bool = False,
) -> tuple[LoadedModel, Dataset]:
    """The network of a call, and its images and labels as a data set of as many classes as the network has logits.

    What had to be understood (`read_images`, `read_labels`, `adapter.adapt`) is issued as a warning. UserError for
    what cannot be.
    """
    if not isinstance(x, Tensor | np.ndarray):
        raise UserError(f"x: expected a torch.Tensor, got {type(x).__name__}; torch.as_tensor makes one")
    y = as_array("y", y)
    count = len(y) if y.ndim else 1
    images, notes = read_images("x", _own(x), count=count)
    given = given_model(model, name, x=images, defenses=defenses, binary=binary)
    data = given_data(images, _own(y), count_classes(given.module, images, defenses), eps)
    every = (f"model: {note}" for note in given.notes), (f"x: {note}" for note in notes)
    for note in (*every[0], *every[1], *(f"y: {note}" for note in data.reading.notes)):
        warnings.warn(note, stacklevel=3)
    return given, data


def _own(values: Any) -> Any:
    """An array in memory of its own; anything else as it is."""
    return np.array(values) if isinstance(values, np.ndarray) else values


def count_classes(model: nn.Module, x: Tensor, defenses: Sequence[Defense] = ()) -> int:
    """How many logits the network has for the first image, as it sees it. UserError where x is no image at all."""
    with _asking(model) as device, frozen(model):
        first = _as_seen(x[:1] if isinstance(x, Tensor) and x.ndim == 4 else x, defenses).to(device)
        row = torch.zeros(1, dtype=torch.int64, device=device)
        return Network(model, device=device).logits(first, Noise(Stream(row), row)).shape[1]


@contextlib.contextmanager
def _asking(model: nn.Module) -> Iterator[torch.device]:
    """Context manager: no gradients, and the random state is left as it was found; the device of the network."""
    device = torch.device(device_of(model))
    devices = [device] if device.type == "cuda" else []
    with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
        yield device


def _as_seen(x: Tensor, defenses: Sequence[Defense]) -> Tensor:
    """The first images, as a network behind the defenses sees them. UserError where x is no image at all."""
    if not isinstance(x, Tensor):
        raise UserError(f"x: expected a torch.Tensor, got {type(x).__name__}; torch.as_tensor makes one")
    if x.ndim != 4 or not len(x):
        raise UserError(f"x: expected at least one image (N, C, H, W), got {tuple(x.shape)}")
    seen = as_pixels(x[:_IMAGES])
    for defense in defenses:
        shape = (seen.shape[1], seen.shape[2], seen.shape[3])
        if isinstance(defense, InferenceDefense) and defense.seen_shape(shape) != shape:
            seen = defense.transform(seen.clone())
    return seen


def rounded_down(eps: Tensor) -> Tensor:
    """In float32, never larger than asked."""
    given = eps.detach().cpu()
    each = given.float()
    return torch.where(each.double() > given.double(), torch.nextafter(each, torch.zeros_like(each)), each)


def given_data(x: Tensor, y: Tensor, classes: int, eps: Tensor | None) -> Dataset:
    """The images and labels of a call as a data set; eps of its own for each image is part of its content."""
    if eps is not None and (eps.shape != (len(x),) or not (eps >= 0).all()):
        raise UserError(f"eps: expected a number >= 0, or one for each of {len(x)} images, got {tuple(eps.shape)}")
    data = from_arrays(x, y, name="tensors", split="given", classes=classes, arguments=("x", "y"))
    if eps is None:
        return data
    fingerprint = hashlib.sha256(data.fingerprint.encode() + eps.numpy().tobytes()).hexdigest()
    return dataclasses.replace(data, fingerprint=fingerprint)


def given_fit_data(x: Tensor, y: Tensor) -> FitData:
    """Images (N, C, H, W) and labels (N,) that an attack learns from. UserError where they are no tensors."""
    if not isinstance(x, Tensor) or not isinstance(y, Tensor):
        raise UserError(f"fit_data: expected two tensors (x, y), got {type(x).__name__} and {type(y).__name__}")
    images = read_images("fit_data: x", x, count=len(y))[0]
    return FitData(as_pixels(images), read_labels("fit_data: y", y, count=len(images), classes=None)[0])


def _own_source(model: nn.Module) -> str | None:
    """The hash of the file with the caller's own network class; a library's is told by its version."""
    library = type(model).__module__.partition(".")[0] in ("torch", "torchvision", "timm")
    return None if library else source_hash(type(model))


def device_of(model: nn.Module) -> str:
    """Where its parameters are; the CPU where it has none."""
    parameter = next(model.parameters(), None)
    return "cpu" if parameter is None else str(parameter.device)
