"""What is done to images as pictures: moved, blurred, resampled, packed; batches in, batches out, no image mixed."""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from torch import Tensor


def mirrored(place: Tensor, size: int) -> Tensor:
    """Integer places on a line of `size` pixels, those beyond its ends mirrored there (the last pixel twice)."""
    folded = place % (2 * size)
    return torch.minimum(folded, 2 * size - 1 - folded)


def smoothed(x: Tensor, sigma: Tensor | float) -> Tensor:
    """Gaussian blur of images (N, C, H, W), sigma in pixels, one or (N,); mirrored at the edges."""
    each = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).expand(len(x))
    rows, columns = (_smoothing(each, size).unsqueeze(1) for size in x.shape[-2:])
    return (rows @ x.double() @ columns.transpose(2, 3)).to(x.dtype)


def _smoothing(sigma: Tensor, size: int) -> Tensor:
    """Matrices (N, size, size) that blur a line mirrored at its ends, rows of sum 1."""
    place = torch.arange(size, device=sigma.device).double()
    here, sharp = place.unsqueeze(1), 2 * sigma.reshape(-1, 1, 1).square().clamp_min(1e-12)
    # Each pixel is seen again and again in the mirrors at both ends, as far as eight sigma.
    images = 1 + math.ceil(8 * float(sigma.max()) / (2 * size)) if len(sigma) else 0
    weight = torch.zeros((len(sigma), size, size), dtype=torch.float64, device=sigma.device)
    for turn in range(-images, images + 1):
        for there in (2 * size * turn + place, 2 * size * turn - 1 - place):
            weight += torch.exp(-(here - there).square() / sharp)
    return weight / weight.sum(2, keepdim=True)


def sampled(x: Tensor, rows: Tensor, columns: Tensor, *, outside: str = "border") -> Tensor:
    """Images at fractional places: pixel centres are whole numbers, rows and columns (N, H, W) float64.

    Bilinear. outside: "zeros" is black, "border" repeats the last pixel, "reflection" mirrors.
    """
    height, width = x.shape[-2:]
    places = torch.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=3)
    found = torch.nn.functional.grid_sample(
        x.double(), places, mode="bilinear", padding_mode=outside, align_corners=False
    )
    return found.clamp_(0, 1).to(x.dtype)


def grid(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of every pixel, (1, H, 1) and (1, 1, W) float64."""
    height, width = x.shape[-2:]
    rows = torch.arange(height, device=x.device).double().reshape(1, -1, 1)
    return rows, torch.arange(width, device=x.device).double().reshape(1, 1, -1)


def moved(x: Tensor, degrees: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Images turned about their middle, anticlockwise, then shifted by shares of their sides, (N,) each; else black."""
    height, width = x.shape[-2:]
    rows, columns = grid(x)
    angle = (degrees.double() * math.pi / 180).reshape(-1, 1, 1)
    v = rows - (height - 1) / 2 - down.double().reshape(-1, 1, 1) * height
    u = columns - (width - 1) / 2 - across.double().reshape(-1, 1, 1) * width
    cos, sin = torch.cos(angle), torch.sin(angle)
    return sampled(x, sin * u + cos * v + (height - 1) / 2, cos * u - sin * v + (width - 1) / 2, outside="zeros")


def jpeg(x: Tensor, quality: int) -> Tensor:
    """Images packed as JPEG and unpacked; one or three channels together, of others each by itself."""
    from PIL import Image

    levels = (x.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8)
    if x.shape[1] not in (1, 3):
        return torch.cat([jpeg(channel, quality) for channel in torch.split(x, 1, 1)], 1)

    def packed(
        image: np.ndarray[tuple[int, ...], np.dtype[np.uint8]],
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=quality)
        return np.asarray(Image.open(buffer))

    if x.shape[1] == 1:
        unpacked = np.stack([packed(image) for image in levels[:, 0].numpy()])[:, None]
    else:
        unpacked = np.stack([packed(image) for image in levels.permute(0, 2, 3, 1).numpy()]).transpose(0, 3, 1, 2)
    return torch.from_numpy(unpacked.astype(np.float32) / 255).to(x)
