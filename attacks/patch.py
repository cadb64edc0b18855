"""What is stuck on an image: a patch learned for all images and put anywhere, or a sticker of a given outline."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch, State
from robustbench_lite.errors import UserError
from robustbench_lite.files import sha256_file
from robustbench_lite.filters import grid, sampled
from robustbench_lite.losses import get_loss
from robustbench_lite.query import Query


@dataclass(frozen=True)
class AdversarialPatch(Attack):
    """One patch for all images, wherever it is put (Brown et al. 2017, arXiv:1712.09665, eq. 1).

    It is learned by projected sign ascent of the mean loss over images and over places, scales and rotations drawn
    anew for each (expectation over transformation), and at evaluation put on each image as its own stream says.

    size: the share of the image's area that it covers, in (0, 1]. scale_min, scale_max: its width is multiplied by
    a number between them, > 0. rotation: the largest angle in degrees, in [0, 180]. shape: circle or square. The
    place is uniform over those where it lies inside the image; where there are none it is the middle. steps: of
    learning, >= 1. minibatch: images of a step, >= 1. step_size: in pixels of [0, 1], > 0, falling to 0 along a line.
    loss: ce, margin or dlr; clip: an image whose loss is above it pulls no more, > 0. restarts: places tried until
    one succeeds, >= 1.

    Learned: `patch` (C, P, P) in [0, 1], P the pixels of its width at `scale_max`. It costs steps * minibatch
    gradients; at evaluation an image costs none.
    Departures: the paper descends by a plain gradient, in whose length our losses differ; the ranges are our choice.
    """

    name: ClassVar[str] = "adversarial-patch"
    summary: ClassVar[str] = "one learned patch, put anywhere, scaled and turned"
    source: ClassVar[str] = "Brown et al. 2017, arXiv:1712.09665"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    own_limits: ClassVar[bool] = True
    one_target: ClassVar[bool] = True

    size: float = 0.1
    scale_min: float = 0.8
    scale_max: float = 1.2
    rotation: float = 22.5
    shape: Literal["circle", "square"] = "circle"
    steps: int = 300
    minibatch: int = 64
    step_size: float = 0.05
    loss: str = "ce"
    clip: float = 9.0
    restarts: int = 1

    def __post_init__(self) -> None:
        get_loss(self.loss)
        _check_share(self.size)
        if self.shape not in ("circle", "square"):
            raise UserError(f"shape must be circle or square, got {self.shape!r}")
        if not 0 < self.scale_min <= self.scale_max:
            raise UserError(
                f"scale_min must be > 0 and at most scale_max, got {self.scale_min:g} to {self.scale_max:g}"
            )
        if not 0 <= self.rotation <= 180:
            raise UserError(f"rotation must be in [0, 180] degrees, got {self.rotation:g}")
        for name in ("steps", "minibatch", "restarts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        for name in ("step_size", "clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name} must be > 0, got {getattr(self, name):g}")

    @property
    def length(self) -> int:
        """No step: the start is the image with the patch on it."""
        return 0

    @property
    def attempts(self) -> int:
        """Places tried."""
        return self.restarts

    def fit(self, query: Query, batch: Batch) -> dict[str, Tensor]:
        """The patch, grey at first."""
        x = batch.ball.x
        pixels = max(1, math.ceil(self._width(x) * self.scale_max))
        patch = x.new_full((x.shape[1], pixels, pixels), 0.5)

        def loss(logits: Tensor, y: Tensor, targets: Tensor | None) -> Tensor:
            return get_loss(self.loss)(logits, y, targets).clamp_max(self.clip)

        for step in range(self.steps):
            rows = batch.stream.child("order").uniform((), draw=step).argsort(stable=True)[: self.minibatch]
            where = batch.stream.child("place").uniform((4,), draw=step)[rows]
            with torch.enable_grad():
                patch.requires_grad_()
                shown = self.put(patch, x[rows], where)
            slope = query.gradient(shown.detach(), loss, rows=rows).gradient
            (slope,) = torch.autograd.grad(shown, patch, slope / slope.abs().amax().clamp_min(1e-30))
            patch = (patch.detach() + slope.sign() * self.step_size * (1 - step / self.steps)).clamp(0, 1)
        return {"patch": patch}

    def put(self, patch: Tensor, x: Tensor, where: Tensor) -> Tensor:
        """Images with the patch on them, as four numbers of [0, 1) for each say (N, 4): scale, angle, row, column."""
        scale, turn, row, column = where.double().reshape(-1, 4, 1, 1).unbind(1)
        width = self._width(x) * (self.scale_min + scale * (self.scale_max - self.scale_min))
        angle = (2 * turn - 1) * self.rotation * math.pi / 180
        sine, cosine = torch.sin(angle), torch.cos(angle)
        half = width / 2 * (1 if self.shape == "circle" else sine.abs() + cosine.abs())
        rows, columns = grid(x)
        down = rows - _middle(row, x.shape[2], half)
        across = columns - _middle(column, x.shape[3], half)
        u, v = (cosine * across + sine * down) / width, (cosine * down - sine * across) / width
        on = u * u + v * v <= 0.25 if self.shape == "circle" else torch.maximum(u.abs(), v.abs()) <= 0.5
        pixels = patch.shape[-1]
        each = patch.expand(len(x), -1, -1, -1)
        return torch.where(on.unsqueeze(1), sampled(each, (v + 0.5) * pixels - 0.5, (u + 0.5) * pixels - 0.5), x)

    def _width(self, x: Tensor) -> float:
        """The pixels of the patch's width at scale 1."""
        area = self.size * x.shape[2] * x.shape[3]
        return math.sqrt(area if self.shape == "square" else 4 * area / math.pi)

    def start(self, query: Query, batch: Batch) -> State:
        """The image with the patch where its stream says."""
        patch = batch.learned.get("patch")  # whoever has learned nothing has none to put
        if patch is None:
            return State(batch.ball.x.clone())
        return State(batch.ball.project(self.put(patch, batch.ball.x, batch.stream.child("place").uniform((4,)))))

    def step(self, query: Query, batch: Batch, state: State) -> State:
        """Nothing to do."""
        return state


def _middle(where: Tensor, side: int, half: Tensor) -> Tensor:
    """Where the patch's middle is along a side, so that `half` its width fits on either hand where it can."""
    room = (side - 2 * half).clamp_min(0)
    return (side - 1 - room) / 2 + where * room


REGIONS = ("centre", "top", "bottom", "left", "right", "top-left", "top-right", "bottom-left", "bottom-right", "frame")


@dataclass(frozen=True)
class Sticker(Attack):
    """Anything inside a given outline, nothing outside it (Eykholt et al. 2018, arXiv:1707.08945, eq. 3).

    Projected sign ascent of a loss, for each image by itself, on the pixels that a mask leaves to the attack.

    mask: centre, top, bottom, left, right, top-left, top-right, bottom-left, bottom-right or frame, which is then a
    part of the image's area `size`, in (0, 1]; or a file: FILE.png is open where it is brighter than half, FILE.npy
    (an array (H, W)) where it is above 0.5. mask_sha256: of the file, filled in for the record; another is refused.
    steps: >= 1. step_size: in pixels of [0, 1], > 0. random_start: begin with noise inside the outline, else with the
    image. restarts: starts tried until one succeeds. loss: ce, margin or dlr.
    Departure: no physical transformations and no term for the printer; every pixel may have any value.
    """

    name: ClassVar[str] = "sticker"
    summary: ClassVar[str] = "any pixels inside a given mask"
    source: ClassVar[str] = "Eykholt et al. 2018, arXiv:1707.08945"
    norms: ClassVar[tuple[str, ...]] = ("linf",)
    own_limits: ClassVar[bool] = True

    mask: str = "centre"
    size: float = 0.05
    steps: int = 100
    step_size: float = 0.05
    restarts: int = 1
    random_start: bool = True
    loss: str = "ce"
    mask_sha256: str = ""
    given: Tensor | None = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        get_loss(self.loss)
        _check_share(self.size)
        for name in ("steps", "restarts"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.step_size > 0:
            raise UserError(f"step_size must be > 0, got {self.step_size:g}")
        if self.restarts > 1 and not self.random_start:
            raise UserError(f"restarts must be 1 without a random start, got {self.restarts}: all would be the same")
        if self.mask not in REGIONS:
            found, sha256 = _read_mask(Path(self.mask))
            if self.mask_sha256 not in ("", sha256):
                raise UserError(f"mask_sha256: {self.mask} is another file, expected {self.mask_sha256}, got {sha256}")
            object.__setattr__(self, "given", found)
            object.__setattr__(self, "mask_sha256", sha256)
        elif self.mask_sha256:
            raise UserError(f"mask_sha256: expected none for the region {self.mask!r}, got {self.mask_sha256!r}")

    @property
    def length(self) -> int:
        """One gradient a step."""
        return self.steps

    @property
    def attempts(self) -> int:
        """The restarts."""
        return self.restarts

    def outline(self, x: Tensor) -> Tensor:
        """Where images like these are open to the attack, (H, W) bool."""
        height, width = x.shape[2:]
        if self.given is None:
            return region(self.mask, self.size, height, width).to(x.device)
        if tuple(self.given.shape) != (height, width):
            raise UserError(
                f"mask: expected {height} x {width} pixels as the images have, "
                f"got {self.given.shape[0]} x {self.given.shape[1]} in {self.mask}"
            )
        return self.given.to(x.device)

    def start(self, query: Query, batch: Batch) -> State:
        """Noise inside the outline, or the image."""
        x = batch.ball.x
        within = self.outline(x)
        return State(torch.where(within, batch.stream.uniform(x.shape[1:]), x) if self.random_start else x.clone())

    def step(self, query: Query, batch: Batch, state: State) -> State:
        """One step along the signs of the slope, inside the outline."""
        slope = query.gradient(state.candidate, get_loss(self.loss)).gradient
        within = self.outline(batch.ball.x)
        return State(batch.ball.project(state.candidate + slope.sign_() * within * self.step_size))


def region(name: str, size: float, height: int, width: int) -> Tensor:
    """A part of an image by name, about `size` of its area and at least one pixel, (H, W) bool."""
    found = torch.zeros((height, width), dtype=torch.bool)
    if name == "frame":
        share = (1 - math.sqrt(1 - size)) / 2
        rows, columns = _part(share, height), _part(share, width)
        found[:] = True
        found[rows : height - rows, columns : width - columns] = False
        return found
    down = 1.0 if name in ("left", "right") else size if name in ("top", "bottom") else math.sqrt(size)
    across = size / down
    rows, columns = _part(down, height), _part(across, width)
    top = 0 if "top" in name else height - rows if "bottom" in name else (height - rows) // 2
    left = 0 if "left" in name else width - columns if "right" in name else (width - columns) // 2
    found[top : top + rows, left : left + columns] = True
    return found


def _part(share: float, side: int) -> int:
    return max(1, round(share * side))


def _check_share(size: float) -> None:
    if not 0 < size <= 1:
        raise UserError(f"size must be in (0, 1], a share of the image's area, got {size:g}")


def _read_mask(path: Path) -> tuple[Tensor, str]:
    """What a file leaves open, (H, W) bool, and its hash."""
    if path.suffix.lower() not in (".png", ".npy"):
        raise UserError(f"mask: expected one of {', '.join(REGIONS)}, or a file .png or .npy, got {str(path)!r}")
    try:
        sha256 = sha256_file(path)
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            from PIL import Image

            with Image.open(path) as image:
                array = np.asarray(image.convert("L")) / 255
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"mask: cannot read {path}: {str(error).splitlines()[0][:120]}") from error
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise UserError(f"mask: expected numbers (H, W) in {path}, got {array.dtype} {array.shape}")
    found = torch.from_numpy(array > 0.5)
    if not found.any():
        raise UserError(f"mask: {path} leaves no pixel open to the attack; it must be above half somewhere")
    return found, sha256
