"""An encoded image made into a uint8 tensor of one size."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

GREY = ("1", "L", "LA", "La", "I", "F")


class ImageFiles(Protocol):
    """Encoded images by number; goes to worker processes, so it must pickle."""

    def open(self, i: int) -> BinaryIO:
        """The i-th encoded image. Raises OSError where it cannot be read."""

    def where(self, i: int) -> str:
        """What to call the i-th image in an error."""


@dataclass(frozen=True)
class Fit:
    """What every image is brought to: scaled to cover shape / crop, then centre-cropped to (C, H, W).

    `crop` is the share of the scaled image's shorter side that is kept: 1, or 0.875 as ImageNet is
    evaluated (256 scaled, 224 kept). An image of the right size is left as it is when crop is 1.
    `squash` scales both sides to the same, whatever the image's form.
    """

    shape: tuple[int, int, int]
    crop: float = 1.0
    interpolation: str = "bilinear"
    squash: bool = False

    @classmethod
    def of(cls, framing: Framing, channels: int) -> Fit:
        """What a network's configuration asks for."""
        shape = (channels, framing.size, framing.size)
        return cls(shape, framing.size / framing.resize, framing.interpolation, framing.squash)


@dataclass(frozen=True)
class Framing:
    """The resizing and cropping that a network was made for.

    resize: the shorter side (of `squash`: both sides) is brought to this. size: of the square in the middle that is
    kept. interpolation: as Pillow names it, in lower case.
    """

    size: int
    resize: int
    interpolation: str = "bilinear"
    squash: bool = False

    def __str__(self) -> str:
        """In words, as in `resized to 256 (bilinear), the middle 224x224 kept`."""
        both = "x".join([str(self.resize)] * (2 if self.squash else 1))
        return f"resized to {both} ({self.interpolation}), the middle {self.size}x{self.size} kept"


class Header(NamedTuple):
    """What an image's header says."""

    colour: bool
    height: int
    width: int


def look(files: ImageFiles, i: int) -> Header:
    """The i-th image's header. Raises UserError where it is no image."""
    from PIL import Image

    try:
        with files.open(i) as file, Image.open(file) as image:
            return Header(not _grey(image), image.height, image.width)
    except Exception as error:
        raise _no_image(files, i, error) from error


def is_image(path: Path) -> bool:
    """Whether Pillow knows the format of a file, whatever its name."""
    from PIL import Image

    try:
        with Image.open(path):
            return True
    except Exception:
        return False


def count_animated(files: ImageFiles, places: Iterable[int]) -> int:
    """How many of the images at these places have several frames; what cannot be read counts as one."""
    from PIL import Image

    count = 0
    for i in places:
        try:
            with files.open(i) as file, Image.open(file) as image:
                count += bool(getattr(image, "is_animated", False))
        except Exception:
            continue
    return count


def decode(files: ImageFiles, i: int, fit: Fit) -> Tensor:
    """The i-th image as uint8 (C, H, W). Raises UserError that names it where it cannot be decoded."""
    from PIL import Image

    try:
        with files.open(i) as file, Image.open(file) as image:
            array = np.array(_fitted(_converted(image, fit.shape[0]), fit))
    except UserError:
        raise
    except Exception as error:
        # Decoders raise whatever a broken file drives them to: OSError, SyntaxError, struct.error, ...
        raise _no_image(files, i, error) from error
    tensor = torch.from_numpy(array)
    return tensor.unsqueeze(0) if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()


def choose_fit(files: ImageFiles, count: int, *, image_size: int | None, framing: Framing | None = None) -> Fit:
    """The shape for images of any size: `image_size` square, or what `framing` asks for, or the size of the first.

    Three channels if any image is in colour, else one. `framing` leaves alone images of which the first has its size.
    """
    first = look(files, 0)
    colour = first.colour or any(look(files, i).colour for i in range(1, count))
    if framing is not None and image_size is None and (first.height, first.width) != (framing.size,) * 2:
        return Fit.of(framing, 3 if colour else 1)
    height, width = (first.height, first.width) if image_size is None else (image_size, image_size)
    return Fit((3 if colour else 1, height, width))


def framing_used(fit: Fit, framing: Framing | None) -> Framing | None:
    """The framing, where images are brought to size by it."""
    return framing if framing is not None and Fit.of(framing, fit.shape[0]) == fit else None


def _no_image(files: ImageFiles, i: int, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    reason = (str(error).splitlines() or [""])[0]
    if type(error).__name__ == "UnidentifiedImageError":
        reason = "no image format knows it"
    return UserError(f"--dataset: {files.where(i)} cannot be decoded as an image ({reason}); mend or remove it")


def _grey(image: Image) -> bool:
    return image.mode in GREY or image.mode.startswith("I;16")


def _converted(image: Image, channels: int) -> Image:
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # Pillow would cut 16-bit values off at 255.
        wide = np.asarray(image).astype(np.int64).clip(0, 65535)
        image = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB" if channels == 3 else "L")


def _fitted(image: Image, fit: Fit) -> Image:
    from PIL import Image

    _, height, width = fit.shape
    if fit.crop == 1 and image.size == (width, height):
        return image
    scales = [width / image.width / fit.crop, height / image.height / fit.crop]
    if not fit.squash:
        scales = [max(scales)] * 2
    # A side is cut to whole pixels, not rounded, as torchvision.transforms.Resize does.
    scaled = max(width, _whole(image.width * scales[0])), max(height, _whole(image.height * scales[1]))
    image = image.resize(scaled, Image.Resampling[fit.interpolation.upper()])
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def _whole(side: float) -> int:
    return math.floor(side + 1e-6)
