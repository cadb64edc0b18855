"""Images that came from outside, as uint8 or float32 in [0, 1], or one line that says how to make them so."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CHANNELS = (1, 2, 3, 4)
# Float values this far outside [0, 1], or the type's own rounding where that is coarser, are clipped with a note.
TOLERANCE = 1e-4
OVERSHOOT = 0.1  # what interpolation may add; clipping that is left to the user
_INTO = "put the normalisation into the network: rbl.Normalize(model, mean, std), or --mean and --std"


def read_images(
    argument: str, images: Any, *, count: int | None = None, channels: Literal["first", "last"] = "first"
) -> tuple[Tensor, tuple[str, ...]]:
    """Images (N, C, H, W) as uint8 or float32 in [0, 1], on the CPU, and notes on how they were understood.

    Accepted besides: (N, H, W) grey images, (N, H, W, C) where that is the only reading, whole numbers 0..255 of any
    type, bool, and float values less than 1e-4 (or the type's rounding error) outside [0, 1], which are clipped.

    Args:
        argument: What errors call the images.
        images: A tensor or an array.
        count: How many labels there are, where that is known.
        channels: Where the channels are if both readings are possible.

    Raises:
        UserError: For images of another shape, type or range, with what to do.
    """
    x = as_tensor(argument, images)
    x, notes = _with_channels(argument, x, count, channels)
    if not x.numel():
        raise UserError(f"{argument} must hold at least one image, got {tuple(x.shape)}")
    if x.dtype == torch.bool:
        return x.float(), (*notes, "bool images read as 0 and 1")
    if x.dtype not in FLOATS:
        x, note = _bytes(argument, x)
        return x, (*notes, *note)
    rounding = max(TOLERANCE, torch.finfo(x.dtype).eps)
    x = x.to(torch.float32)
    low, high = (value.item() for value in x.aminmax())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{argument} must be in [0, 1], got NaN or infinity")
    if low < -rounding or high > 1 + rounding:
        raise UserError(
            f"{argument} must be in [0, 1], got values from {low:g} to {high:g}; {_advice(x, low, high, rounding)}"
        )
    if low < 0 or high > 1:
        # 9 digits tell every float32 from its neighbours, 1 included.
        return x.clamp(0, 1), (*notes, f"values from {low:.9g} to {high:.9g} clipped to [0, 1]")
    return x, notes


def as_tensor(argument: str, value: Any) -> Tensor:
    """Numbers as a tensor on the CPU. Raises UserError for what is not numbers."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    array = as_array(argument, value)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise UserError(f"{argument} must be numbers, got {array.dtype}")
    # torch knows neither foreign byte orders nor negative strides, and warns of arrays that are read-only.
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if min(array.strides, default=0) < 0 or not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array)


def as_array(argument: str, value: Any) -> Any:
    """An array of a list; a tensor or an array as it is. Raises UserError for a list of lists of several lengths."""
    try:
        return value if isinstance(value, Tensor) else np.asarray(value)
    except ValueError as error:
        raise UserError(f"{argument} must be an array of one shape ({str(error).splitlines()[0]})") from None


def type_name(tensor: Tensor) -> str:
    """`float32` for torch.float32."""
    return str(tensor.dtype).removeprefix("torch.")


def _with_channels(
    argument: str, x: Tensor, count: int | None, channels: Literal["first", "last"]
) -> tuple[Tensor, tuple[str, ...]]:
    shape = tuple(x.shape)
    if x.ndim in (3, 4) and count is not None and count == shape[-1] != shape[0] and count > max(CHANNELS):
        order = ", ".join(map(str, (x.ndim - 1, *([2] if x.ndim == 4 else []), 0, 1)))
        raise UserError(
            f"{argument} must be (N, C, H, W), got {shape} for {count} labels: the images come last; "
            f"give them first, as in np.transpose(x, ({order}))"
        )
    if x.ndim == 3 and (channels == "last" or count in (None, len(x))):
        # What a source states as its own form needs no note.
        return x.unsqueeze(1), () if channels == "last" else (f"{shape} read as grey images (N, H, W)",)
    if x.ndim == 3 and count == 1:
        raise UserError(f"{argument} must be (N, C, H, W), got {shape} for 1 label; a single image is x[None]")
    if x.ndim == 2 and x.shape[1] > 1 and (side := round(x.shape[1] ** 0.5)) ** 2 == x.shape[1]:
        raise UserError(f"{argument} must be (N, C, H, W), got {shape}; reshape flat images to (N, 1, {side}, {side})")
    if x.ndim != 4:
        raise UserError(f"{argument} must be (N, C, H, W), got {shape}")
    first, last = shape[1] in CHANNELS, shape[3] in CHANNELS
    if last and (channels == "last" or (not first and min(shape[1:3]) > max(CHANNELS))):
        note = () if channels == "last" else (f"{shape} read as (N, H, W, C)",)
        return x.permute(0, 3, 1, 2), note
    return x, (f"{shape} read as (N, C, H, W)",) if channels == "last" else ()


def _bytes(argument: str, x: Tensor) -> tuple[Tensor, tuple[str, ...]]:
    """Whole numbers as uint8, which is divided by 255 where pixels are asked for."""
    if x.dtype in (torch.uint16, torch.uint32, torch.uint64):
        x, name = x.to(torch.int64), type_name(x)  # torch finds no extremes of these
    else:
        name = type_name(x)
    low, high = int(x.min()), int(x.max())
    if low < 0 and x.dtype == torch.int8:
        raise UserError(
            f"{argument} must be uint8 in 0..255 or float in [0, 1], got int8 from {low} to {high}; "
            "were they uint8? Then x.view('uint8'), or, where 128 was subtracted, (x.astype(int) + 128)"
        )
    if low < 0 or high > 255:
        raise UserError(
            f"{argument} must be uint8 in 0..255 or float in [0, 1], got {name} from {low} to {high}; "
            "divide by the largest value that a pixel can have, as in x / 65535"
        )
    if high == 1:
        raise UserError(
            f"{argument} must be uint8 in 0..255 or float in [0, 1], got {name} from {low} to 1; "
            "is 1 white? Then make them float: x.astype('float32') or x.float()"
        )
    if x.dtype == torch.uint8:
        return x, ()
    return x.to(torch.uint8), (f"{name} images from {low} to {high} read as bytes, divided by 255",)


def _advice(x: Tensor, low: float, high: float, rounding: float) -> str:
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        return "what resizing overshoots is clipped with x.clamp(0, 1) or x.clip(0, 1)"
    if low >= -rounding:
        if high > 255:
            return "divide by the largest value that a pixel can have, 65535 for 16 bits"
        whole = high > 2 and bool((x == x.round()).all())
        return "divide by 255" if whole or high > 16 else "divide by the range"
    if low >= -1 - rounding and high <= 1 + rounding:
        return "give (x + 1) / 2, and " + _INTO.replace("mean, std)", "0.5, 0.5)").replace(
            "--mean and --std", "--mean 0.5 --std 0.5"
        )
    scale = ", in pixels of 255" if max(-low, high) > 20 else ""
    return f"they look standardised{scale}: give the images before that, x * std + mean, and {_INTO}"
