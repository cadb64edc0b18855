"""The 15 common corruptions at 5 severities (Hendrycks and Dietterich 2019, arXiv:1903.12261), image by image.

Each is a function (x, severity, stream) -> x of images (N, C, H, W) in [0, 1], a severity in 1..5 and each image's own
random numbers. Strengths are those of the authors' CIFAR-10 version; lengths are in pixels of an image of side 32 and
grow with the shorter side. Departures: written anew for tensors, not rounded to 256 levels (but for JPEG); frost is
made of random ridges, where the authors lay photographs of frost on the image; motion is along straight lines with the
weights of half a Gaussian, as the authors' tool does, in another rounding of places to pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .filters import grid, jpeg, mirrored, sampled, smoothed
from .streams import Stream

Corruption = Callable[[Tensor, int, Stream], Tensor]
SEVERITIES = (1, 2, 3, 4, 5)
_GREY = (0.299, 0.587, 0.114)


def _scale(x: Tensor) -> float:
    return min(x.shape[-2:]) / 32


def _between(stream: Stream, low: float, high: float, tag: str = "") -> Tensor:
    """One uniform number an image, (N,) float64."""
    return low + (high - low) * (stream.child(tag) if tag else stream).uniform((1,))[:, 0].double()


# -- noise -----------------------------------------------------------------------------------------------


def gaussian_noise(x: Tensor, severity: int, stream: Stream) -> Tensor:
    """Normal noise, as of a sensor in the dark."""
    return (x + (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1] * stream.normal(x.shape[1:])).clamp(0, 1)


def shot_noise(x: Tensor, severity: int, stream: Stream) -> Tensor:
    """Poisson noise: so many photons are counted where the pixel is 1."""
    photons = (500, 250, 100, 75, 50)[severity - 1]
    # Between the steps of its numbers, so that neither 0 nor 1 is asked for.
    chance = stream.uniform(x.shape[1:]).double() + 2.0**-25
    return (poisson(x.double() * photons, chance) / photons).clamp(0, 1).to(x.dtype)


def poisson(rate: Tensor, chance: Tensor) -> Tensor:
    """The least count whose cumulated probability is at least `chance` in (0, 1); both float64 of one shape."""
    z = torch.special.ndtri(chance)
    known = rate.clamp_min(1e-9)
    # Close already (Cornish and Fisher 1938); then one up or down until it is exact.
    count = (known + known.sqrt() * z + (z.square() - 1) / 6).round().clamp_min(0)
    flat, wanted, rates = count.flatten(), chance.flatten(), known.flatten()
    left = torch.arange(flat.numel(), device=rate.device)
    while len(left):
        k, u, r = flat[left], wanted[left], rates[left]
        up = torch.special.gammaincc(k + 1, r) < u
        down = (k > 0) & (torch.special.gammaincc(k.clamp_min(1e-9), r) >= u)
        flat[left] = k + up.double() - down.double()
        left = left[up | down]
    return torch.where(rate > 0, flat.reshape(rate.shape), 0.0)


def impulse_noise(x: Tensor, severity: int, stream: Stream) -> Tensor:
    """A share of the numbers put to black or white."""
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    drawn = stream.uniform(x.shape[1:])
    return torch.where(drawn < share / 2, 0.0, torch.where(drawn > 1 - share / 2, 1.0, x))


# -- blur ------------------------------------------------------------------------------------------------


def defocus_blur(x: Tensor, severity: int, _: Stream) -> Tensor:
    """The mean over a disk, its edge smoothed."""
    radius, soft = ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[severity - 1]
    radius, soft = radius * _scale(x), soft * min(_scale(x), 1.0)
    reach = math.ceil(radius + 3 * soft)
    place = torch.arange(-reach, reach + 1, device=x.device).double()
    disk = (place.square().unsqueeze(0) + place.square().unsqueeze(1) <= radius**2).double()
    gauss = torch.exp(-(place.unsqueeze(0) - place.unsqueeze(1)).square() / (2 * soft**2))
    gauss = gauss / gauss.sum(0)
    kernel = gauss @ disk @ gauss.T
    return _filtered(x, kernel / kernel.sum())


def _filtered(x: Tensor, kernel: Tensor) -> Tensor:
    """Every channel under one odd kernel, mirrored at the edges."""
    reach = len(kernel) // 2
    height, width = x.shape[-2:]
    rows = mirrored(torch.arange(-reach, height + reach, device=x.device), height)
    columns = mirrored(torch.arange(-reach, width + reach, device=x.device), width)
    wide = x.double()[:, :, rows][:, :, :, columns].flatten(0, 1).unsqueeze(1)
    found = torch.nn.functional.conv2d(wide, kernel[None, None])
    return found.reshape(x.shape).clamp(0, 1).to(x.dtype)


def glass_blur(x: Tensor, severity: int, stream: Stream) -> Tensor:
    """Blurred, neighbouring pixels exchanged at random, blurred again."""
    sigma, rounds = ((0.05, 1), (0.25, 1), (0.4, 1), (0.25, 2), (0.4, 2))[severity - 1]
    scale = _scale(x)
    reach = max(1, round(scale))
    height, width = x.shape[-2:]
    drawn = stream.uniform((rounds, 2, height, width)).double()
    offset = (drawn * 2 * reach).long().clamp_max(2 * reach - 1).sub(reach).cpu().numpy()
    place = np.tile(np.arange(height * width), (len(x), 1))
    every = np.arange(len(x))
    for turn in range(rounds):
        for row in range(height - reach - 1, reach - 1, -1):
            for column in range(width - reach - 1, reach - 1, -1):
                here = row * width + column
                there = here + offset[:, turn, 0, row, column] * width + offset[:, turn, 1, row, column]
                mine = place[:, here].copy()
                place[:, here] = place[every, there]
                place[every, there] = mine
    blurred = smoothed(x, sigma * scale).flatten(2)
    index = torch.from_numpy(place).to(x.device).unsqueeze(1).expand(-1, x.shape[1], -1)
    return smoothed(blurred.gather(2, index).reshape(x.shape), sigma * scale).clamp(0, 1)


def motion_blur(x: Tensor, severity: int, stream: Stream) -> Tensor:
    """Drawn out along a line in a direction of -45 to 45 degrees."""
    radius, sigma = ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))[severity - 1]
    return _drawn_out(x, radius * _scale(x), sigma * _scale(x), _between(stream, -45, 45))


def _drawn_out(x: Tensor, radius: float, sigma: float, degrees: Tensor) -> Tensor:
    """The weighted mean of pixels along a line from each, in directions (N,): half a Gaussian."""
    count = 2 * math.ceil(radius) + 1
    weight = torch.exp(-torch.arange(count).double().square() / (2 * sigma**2))
    weight = weight / weight.sum()
    rows, columns = grid(x)
    angle = (degrees * math.pi / 180).reshape(-1, 1, 1)
    total = torch.zeros_like(x, dtype=torch.float64)
    for step, share in enumerate(weight.tolist()):
        if share > 1e-9:
            down, across = (step * torch.sin(angle)).round(), (step * torch.cos(angle)).round()
            shape = (len(x), rows.shape[1], columns.shape[2])
            total += share * sampled(x, (rows + down).expand(shape), (columns + across).expand(shape)).double()
    return total.clamp(0, 1).to(x.dtype)


def zoom_blur(x: Tensor, severity: int, _: Stream) -> Tensor:
    """The mean of the image and of itself seen nearer and nearer, up to 6 to 26 %."""
    zooms = [1 + 0.01 * turn for turn in range(1 + 5 * severity)]
    total = x.double()
    for zoom in zooms:
        total = total + _zoomed(x, zoom).double()
    return (total / (len(zooms) + 1)).clamp(0, 1).to(x.dtype)


def _zoomed(x: Tensor, zoom: float) -> Tensor:
    height, width = x.shape[-2:]
    rows, columns = grid(x)
    rows = (rows - (height - 1) / 2) / zoom + (height - 1) / 2
    columns = (columns - (width - 1) / 2) / zoom + (width - 1) / 2
    return sampled(x, *(p.expand(len(x), height, width) for p in (rows, columns)))


# -- weather ---------------------------------------------------------------------------------------------


def snow(x: Tensor, severity: int, stream: Stream) -> Tensor:
    """Flakes drawn out by their fall, and the light of a snowy day."""
    mean, spread, zoom, least, radius, sigma, clear = (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    )[severity - 1]
    flakes = (mean + spread * stream.normal((1, *x.shape[-2:]))).clamp(0, 1)
    flakes = _zoomed(flakes, zoom * _scale(x) if _scale(x) > 1 else zoom)
    flakes = torch.where(flakes < least, 0.0, flakes)
    flakes = _drawn_out(flakes, radius * _scale(x), sigma * _scale(x), _between(stream, -135, -45, "fall"))
    if x.shape[1] == 3:
        grey = (x * x.new_tensor(_GREY).reshape(1, 3, 1, 1)).sum(1, keepdim=True)
    else:
        grey = x.mean(1, keepdim=True)
    light = clear * x + (1 - clear) * torch.maximum(x, grey * 1.5 + 0.5)
    return (light + flakes + flakes.rot90(2, (2, 3))).clamp(0, 1)


def frost(x: Tensor, severity: int, stream: Stream) -> Tensor:
    """Ice on the pane: bright ridges over the darkened image."""
    kept, ice = ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45))[severity - 1]
    ridges = torch.zeros((len(x), *x.shape[-2:]), dtype=torch.float64, device=x.device)
    for octave, share in enumerate((0.5, 0.3, 0.2)):
        field = _plasma(x, 2.0 if octave == 0 else 1.6, stream.child(f"ridges {octave}"))
        ridges = ridges + share * (1 - (2 * field - 1).abs()) ** 2
    ridges = 0.25 + 0.75 * ridges / ridges.amax((1, 2), keepdim=True).clamp_min(1e-12)
    tint = x.new_tensor((0.85, 0.93, 1.0)) if x.shape[1] == 3 else x.new_ones(x.shape[1])
    return (kept * x + ice * (ridges.unsqueeze(1) * tint.reshape(1, -1, 1, 1)).to(x.dtype)).clamp(0, 1)


def fog(x: Tensor, severity: int, stream: Stream) -> Tensor:
    """Clouds of a plasma fractal added, and the whole made as bright as it was."""
    thick, decay = ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))[severity - 1]
    brightest = x.double().amax((1, 2, 3), keepdim=True)
    cloud = _plasma(x, decay, stream).unsqueeze(1)
    return ((x.double() + thick * cloud) * brightest / (brightest + thick)).clamp(0, 1).to(x.dtype)


def _plasma(x: Tensor, decay: float, stream: Stream) -> Tensor:
    """Heights in [0, 1] by the diamond-square algorithm (Fournier, Fussell and Carpenter 1982), (N, H, W) float64.

    Each halving divides the amplitude of the random part by the square of `decay`.
    """
    size = 1 << max(5, math.ceil(math.log2(max(x.shape[-2:]))))
    heights = torch.zeros((len(x), size, size), dtype=torch.float64, device=x.device)
    step, amplitude = size, 1.0
    while step >= 2:
        half = step // 2

        def drawn(tag: str, amplitude: float = amplitude, step: int = step) -> Tensor:
            numbers = stream.child(f"{tag} {step}").uniform((size // step, size // step)).double()
            return amplitude * (2 * numbers - 1)

        corners = heights[:, ::step, ::step]
        around = corners + corners.roll(-1, 1)
        middle = (around + around.roll(-1, 2)) / 4 + drawn("middle")
        heights[:, half::step, half::step] = middle
        above = corners + corners.roll(-1, 2) + middle + middle.roll(1, 1)
        heights[:, ::step, half::step] = above / 4 + drawn("above")
        beside = corners + corners.roll(-1, 1) + middle + middle.roll(1, 2)
        heights[:, half::step, ::step] = beside / 4 + drawn("beside")
        step, amplitude = half, amplitude / decay**2
    heights = heights - heights.amin((1, 2), keepdim=True)
    heights = heights / heights.amax((1, 2), keepdim=True).clamp_min(1e-12)
    return heights[:, : x.shape[-2], : x.shape[-1]]


def brightness(x: Tensor, severity: int, _: Stream) -> Tensor:
    """The value of hue, saturation and value raised; of images without colour every number."""
    more = (0.05, 0.1, 0.15, 0.2, 0.3)[severity - 1]
    if x.shape[1] != 3:
        return (x + more).clamp(0, 1)
    value = x.amax(1, keepdim=True)
    brighter = (value + more).clamp_max(1)
    return torch.where(value > 0, x * (brighter / value.clamp_min(1e-12)), brighter).clamp(0, 1)


# -- digital ---------------------------------------------------------------------------------------------


def contrast(x: Tensor, severity: int, _: Stream) -> Tensor:
    """Each channel drawn towards its mean."""
    kept = (0.75, 0.5, 0.4, 0.3, 0.15)[severity - 1]
    mean = x.double().mean((2, 3), keepdim=True)
    return ((x.double() - mean) * kept + mean).clamp(0, 1).to(x.dtype)


def elastic_transform(x: Tensor, severity: int, stream: Stream) -> Tensor:
    """A random affine map, then a smooth random field of displacements."""
    field, smooth, corner = (
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    )[severity - 1]
    height, width = x.shape[-2:]
    side = min(height, width)
    middle = torch.tensor([width // 2, height // 2], dtype=torch.float64, device=x.device)
    third = side // 3
    corners = middle + third * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]], device=x.device).double()
    drawn = stream.child("corners").uniform((3, 2)).double()
    after = corners + (2 * drawn - 1) * corner * side
    # The map that takes the moved corners back: three points tell it.
    ones = torch.ones((len(x), 3, 1), dtype=torch.float64, device=x.device)
    back = torch.linalg.solve(torch.cat([after, ones], 2), corners.expand(len(x), 3, 2))
    rows, columns = grid(x)
    there = [
        columns * back[:, 0, k, None, None] + rows * back[:, 1, k, None, None] + back[:, 2, k, None, None]
        for k in (1, 0)
    ]
    turned = sampled(x, there[0], there[1], outside="reflection")
    if not field:
        return turned
    push = smoothed(2 * stream.child("field").uniform((2, height, width)).double() - 1, smooth * side) * field * side
    return sampled(turned, rows + push[:, 0], columns + push[:, 1], outside="reflection")


def pixelate(x: Tensor, severity: int, _: Stream) -> Tensor:
    """Made smaller by the mean over boxes, and larger again by the nearest."""
    share = (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1]
    rows, columns = (_boxed(size, max(1, int(size * share))).to(x.device) for size in x.shape[-2:])
    return (rows @ x.double() @ columns.T).clamp(0, 1).to(x.dtype)


def _boxed(size: int, fewer: int) -> Tensor:
    """The matrix (size, size) that goes by way of `fewer` boxes."""
    edge = torch.arange(fewer + 1).double() * size / fewer
    pixel = torch.arange(size).double()
    overlap = torch.minimum(edge[1:, None], pixel + 1) - torch.maximum(edge[:-1, None], pixel)
    down = overlap.clamp_min(0)
    nearest = ((pixel + 0.5) * fewer / size).long()
    return (down / down.sum(1, keepdim=True))[nearest]


def jpeg_compression(x: Tensor, severity: int, _: Stream) -> Tensor:
    """Packed as JPEG."""
    return jpeg(x, (80, 65, 58, 50, 40)[severity - 1])


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian-noise": gaussian_noise,
    "shot-noise": shot_noise,
    "impulse-noise": impulse_noise,
    "defocus-blur": defocus_blur,
    "glass-blur": glass_blur,
    "motion-blur": motion_blur,
    "zoom-blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic-transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg-compression": jpeg_compression,
}


def corrupted(x: Tensor, kind: str, severity: int, stream: Stream) -> Tensor:
    """Images under one corruption, by random numbers that belong to it and to the severity."""
    return CORRUPTIONS[kind](x, severity, stream.child(f"{kind} {severity}")).clamp(0, 1)
