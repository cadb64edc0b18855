"""What speaks for a normalisation that is not there: published weights in a file, a timm network from a factory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from .build import find_source
from .normalize import NAMED, Normalize


def missing_normalization(spec: str, weights: str | None, module: nn.Module) -> str | None:
    """A note where a network's weights are known to be for normalised images, and nothing normalises; else None.

    Args:
        spec: The model, as `load_model` takes it.
        weights: Its weights, as `load_model` takes them.
        module: The network as it was loaded.
    """
    if isinstance(module, Normalize):
        return None
    source = find_source(spec)
    if weights is not None and source.family is not None and source.family.name == "torchvision":
        file = Path(weights).name
        for published in source.family.published(source.architecture):
            if published.url.rsplit("/", 1)[-1] == file:
                transforms = published.transforms()
                return _note(f"{file} are published weights", transforms.mean, transforms.std)
    config = getattr(module, "pretrained_cfg", None) if type(module).__module__.startswith("timm.") else None
    if source.is_factory and isinstance(config, dict) and config.get("mean") and config.get("tag"):
        return _note(f"{source.qualified} is a network of timm", config["mean"], config["std"])
    return None


def _note(about: str, mean: Sequence[float], std: Sequence[float]) -> str:
    stated = (tuple(map(float, mean)), tuple(map(float, std)))
    name = next((name for name, values in NAMED.items() if values == stated), None)
    texts = [",".join(f"{value:g}" for value in values) for values in stated]
    given = f"--mean {name}" if name else f"--mean {texts[0]} --std {texts[1]}"
    return f"{about}, made for images normalised by mean {texts[0]}, std {texts[1]}; nothing normalises: give {given}"
