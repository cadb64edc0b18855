"""Normalisation as a part of the network, so that every model here takes pixels in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, unknown_name
from ..options import parse_number

# Means and standard deviations of training pixels in [0, 1], as torchvision, timm and training scripts use them.
NAMED: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "half": ((0.5,), (0.5,)),
}


@dataclass(frozen=True)
class Normalization:
    """The mean and standard deviation of each channel, or one of each for all channels.

    Raises:
        UserError: Where the numbers of values differ, a mean is outside [0, 1] or a std is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if not values or not all(math.isfinite(value) for value in values):
                raise UserError(f"{name} must be finite numbers, one or one for each channel, got {_text(values)}")
        if wrong := [value for value in self.mean if not 0 <= value <= 1]:
            scale = "; divide mean and std by 255" if max(wrong) > 2 else ""
            raise UserError(f"mean must be in [0, 1], as pixels are, got {_text(self.mean)}{scale}")
        if wrong := [value for value in self.std if not value > 0]:
            raise UserError(f"std must be > 0, got {_text(self.std)}")
        if max(self.std) > 2:
            raise UserError(f"std must be at most 2, in pixels of [0, 1], got {_text(self.std)}; divide it by 255")
        if len(self.mean) != len(self.std) and 1 not in (len(self.mean), len(self.std)):
            counts = f"{len(self.mean)} and {len(self.std)}"
            raise UserError(f"mean and std must have one value for each channel, got {counts} values")

    @classmethod
    def parse(cls, mean: str | None, std: str | None) -> Normalization | None:
        """What `--mean` and `--std` say: numbers with commas between, or a name for both; None where neither is given.

        >>> Normalization.parse("0.5", "0.25"), Normalization.parse("mnist", None)
        (Normalization(mean=(0.5,), std=(0.25,)), Normalization(mean=(0.1307,), std=(0.3081,)))
        """
        if mean is None and std is None:
            return None
        for name, text in (("mean", mean), ("std", std)):
            if text is not None:
                _values(name, text, 0)
        named = next((text for text in (mean, std) if text is not None and text.strip().lower() in NAMED), None)
        if named is None and (mean is None or std is None):
            missing = "--mean (0 for none)" if mean is None else "--std (1 for none)"
            raise UserError(f"{missing} must be given too, or a name for both: {', '.join(NAMED)}")
        return cls(_values("mean", mean or named or "", 0), _values("std", std or named or "", 1))

    def check_channels(self, channels: int) -> None:
        """Raise UserError unless images of so many channels can be normalised."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                count = "1 value" if channels == 1 else f"1 value or {channels}"
                raise UserError(f"{name} must have {count}, as the images have channels, got {len(values)}")


def _values(name: str, text: str, place: int) -> tuple[float, ...]:
    known = NAMED.get(text.strip().lower())
    if known is not None:
        return known[place]
    if text.strip()[:1].isalpha():
        raise unknown_name(name, text, NAMED)
    return tuple(parse_number(name, part) for part in text.split(","))


def _text(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "none"


class Normalize(nn.Module):
    """A network behind its normalisation: `model((x - mean) / std)`, from pixels in [0, 1].

    A grey image is repeated over the channels of `mean`. The record of a run names mean and std (`preprocessing`).

    Args:
        model: The network that takes normalised images.
        mean: One number for each channel, one for all, or the name of a data set: "imagenet", "clip", "cifar10",
            "cifar100", "mnist", "fashion-mnist", "half" (0.5).
        std: As `mean`; None: that of the name given as `mean`.
        input_size: Side of the images that the network was made for, for the record.

    Raises:
        UserError: For numbers that cannot be a mean or a standard deviation of pixels in [0, 1].

    Example:
        >>> net = Normalize(nn.Flatten(), mean=0.5, std=0.25)
        >>> net(torch.ones(1, 1, 1, 2))
        tensor([[2., 2.]])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: float | Sequence[float] | str,
        std: float | Sequence[float] | str | None = None,
        *,
        input_size: int | None = None,
    ) -> None:
        super().__init__()
        if std is None and not isinstance(mean, str):
            raise UserError("std must be given too, 1 for none; only a name, such as 'imagenet', says both")
        stated = Normalization(_given("mean", mean, 0), _given("std", mean if std is None else std, 1))
        self.model = model
        self.register_buffer("mean", torch.tensor(stated.mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(stated.std, dtype=torch.float32).view(1, -1, 1, 1))
        self.preprocessing: dict[str, Any] = {"mean": list(stated.mean), "std": list(stated.std)}
        if input_size is not None:
            self.preprocessing["input_size"] = int(input_size)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of pixels in [0, 1]."""
        channels = max(self.mean.shape[1], self.std.shape[1])
        if x.shape[1] == 1:
            x = x.expand(-1, channels, -1, -1)
        elif channels not in (1, x.shape[1]):
            raise UserError(
                f"mean and std must have 1 value or {x.shape[1]}, one for each channel of the images, got {channels}"
            )
        logits: Tensor = self.model((x - self.mean) / self.std)
        return logits


def _given(name: str, values: Any, place: int) -> tuple[float, ...]:
    if isinstance(values, str):
        return _values(name, values, place)
    if isinstance(values, Tensor):
        values = values.detach().reshape(-1).tolist()
    if not isinstance(values, Iterable):
        values = [values]
    return tuple(parse_number(name, value) for value in values)


def preprocessing_of(module: nn.Module) -> dict[str, Any]:
    """What a record says of the normalisation inside a network; {} for one without."""
    return dict(module.preprocessing) if isinstance(module, Normalize) else {}


def inner(module: nn.Module) -> nn.Module:
    """The network behind its normalisation; itself for one without."""
    return module.model if isinstance(module, Normalize) else module
