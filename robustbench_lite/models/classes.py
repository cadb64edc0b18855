"""The class list of a network's outputs, where its weights say it."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.class_list import is_numbered, match
from ..errors import RblError, UserError
from .build import find_source, pretrained_framing
from .weights import read_weights

if TYPE_CHECKING:
    from ..data_request import DataRequest

_IMAGENET = 1000


def aligned(request: DataRequest, models: Sequence[tuple[str, str | None]]) -> DataRequest:
    """The request with the class list and the resizing that the networks' weights ask for, where none is given.

    Args:
        request: The data set.
        models: The networks, each with its weights, as `load_model` takes them.

    Raises:
        UserError: For data that cannot be read, and for networks whose classes or images differ.
    """
    request = _framed(request, models)
    if request.classes is not None or all(weights is None for _, weights in models):
        return request
    classes = request.load().classes
    lists: dict[tuple[str, ...], str | None] = {}
    for spec, weights in models:
        if names := recorded_classes(spec, weights, classes):
            lists.setdefault(names, weights)
    if len(lists) > 1:
        raise UserError(
            f"--weights: {' and '.join(map(str, lists.values()))} have their classes in different orders; "
            "give networks of one order"
        )
    order = next(iter(lists), None)
    return request if order is None or order == classes else dataclasses.replace(request, classes=order, kept={})


def _framed(request: DataRequest, models: Sequence[tuple[str, str | None]]) -> DataRequest:
    """The request with the resizing and cropping of published weights; `--image-size` decides against them."""
    if request.image_size is not None:
        return request
    found = {spec: pretrained_framing(spec) for spec, weights in models if weights == "pretrained"}
    framings = {framing for framing in found.values() if framing is not None}
    if len(framings) > 1:
        raise UserError(
            f"--weights: {' and '.join(found)} were made for images of different sizes or crops; give --image-size"
        )
    return dataclasses.replace(request, framing=next(iter(framings)), kept={}) if framings else request


def recorded_classes(spec: str, weights: str | None, classes: Sequence[str]) -> tuple[str, ...] | None:
    """The class list of a network's outputs that names all classes of a data set; None where none is known.

    Lists are those in files that `rbl train` wrote, and for a library's published ImageNet weights the WordNet numbers
    and torchvision's class names.

    Args:
        spec: The model, as `load_model` takes it.
        weights: Its weights, as `load_model` takes them.
        classes: The classes of the data set.
    """
    if weights is None or is_numbered(classes):
        return None
    lists = _published(spec) if weights == "pretrained" else [_written(weights)]
    return next((names for names in lists if names and not isinstance(match(classes, names), str)), None)


def _written(weights: str) -> tuple[str, ...]:
    if not weights.endswith(".safetensors"):
        return ()
    try:
        names = read_weights(Path(weights).expanduser())[1].get("classes")
    except RblError:
        return ()  # what is wrong with the file is reported where it is loaded
    return tuple(names) if isinstance(names, list) else ()


def _published(spec: str) -> list[tuple[str, ...]]:
    family = find_source(spec).family
    if family is None or not hasattr(family, "preprocessing"):
        return []
    count = family.class_count(find_source(spec).architecture)
    return [_wordnet(), _words()] if count == _IMAGENET else []


def _wordnet() -> tuple[str, ...]:
    """ImageNet's WordNet numbers in the order of the classes, from timm's own list."""
    library = importlib.util.find_spec("timm")
    file = Path(library.origin).parent / "data/_info/imagenet_synsets.txt" if library and library.origin else None
    return tuple(file.read_text("utf-8").split()) if file is not None and file.is_file() else ()


def _words() -> tuple[str, ...]:
    from torchvision.models._meta import _IMAGENET_CATEGORIES

    return tuple(_IMAGENET_CATEGORIES)
