"""Linear bounds of single numbers behind convolutions, traced back as the patches of the image that each one sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .bounds_affine import Convolution, Scale
from .bounds_ball import Interval, Region
from .bounds_bent import Bent
from .bounds_graph import Step


@dataclass(frozen=True)
class Patches:
    """Linear functions of an image-shaped result, each zero but for one patch.

    ways: (N, S, C, h, w). top, left: (N, S), where a patch begins; it may lie beyond the border, where all is zero.
    """

    ways: Tensor
    top: Tensor
    left: Tensor

    def index(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Where each place of a patch is in one channel, (N, S, h, w), and whether it is inside."""
        rows = self.top.unsqueeze(2) + torch.arange(self.ways.shape[3], device=self.ways.device)
        columns = self.left.unsqueeze(2) + torch.arange(self.ways.shape[4], device=self.ways.device)
        inside = ((rows >= 0) & (rows < shape[1])).unsqueeze(3) & ((columns >= 0) & (columns < shape[2])).unsqueeze(2)
        place = rows.clamp(0, shape[1] - 1).unsqueeze(3) * shape[2] + columns.clamp(0, shape[2] - 1).unsqueeze(2)
        return place, inside

    def dense(self, shape: tuple[int, ...]) -> Tensor:
        """The functions as a whole, (N, S, C, H, W)."""
        place, inside = self.index(shape)
        whole = self.ways.new_zeros((*self.ways.shape[:3], shape[1] * shape[2]))
        at = place.flatten(2).unsqueeze(2).expand(-1, -1, self.ways.shape[2], -1)
        ways = (self.ways * inside.unsqueeze(2)).flatten(3)
        return whole.scatter_add_(3, at, ways).reshape(*self.ways.shape[:3], *shape[1:])


class Seen:
    """Numbers of an image-shaped result (N, C, H, W) as patches see them: (N, S, C, h, w), zero beyond the border."""

    def __init__(self, patches: Patches, shape: tuple[int, ...]) -> None:
        place, inside = patches.index(shape)
        n, count, channels = patches.ways.shape[:3]
        # One row for the whole of a place, so that channels are read together; the last row is what lies beyond.
        outside = torch.full_like(place, shape[1] * shape[2])
        image = torch.arange(n, device=place.device).reshape(n, 1, 1, 1) * (shape[1] * shape[2] + 1)
        self.rows = (torch.where(inside, place, outside) + image).flatten()
        self.shape = (n, count, *patches.ways.shape[3:], channels)

    def of(self, values: Tensor) -> Tensor:
        """The numbers that every patch sees."""
        rows = F.pad(values.flatten(2).transpose(1, 2), (0, 0, 0, 1)).flatten(0, 1)
        return rows.index_select(0, self.rows).reshape(self.shape).permute(0, 1, 4, 2, 3)


def patched(
    steps: Sequence[Step], found: Sequence[Interval], place: int, index: Tensor, region: Region
) -> tuple[int, Tensor | None, Tensor]:
    """Both signs of the numbers at `index` (N, S) of the result of a convolution, as far back as patches go.

    Returns where they have come to; there the functions (N, 2 S, ...), or None where they are bounded already; and
    the constants (N, 2 S), or the bounds.
    """
    operation = steps[place].operation
    assert isinstance(operation, Convolution)
    patches, total = _first(operation, index, steps[place].shape)
    at = steps[place].given[0]
    while steps[at].operation is not None and _smaller(patches, steps[at].shape):
        step = steps[at]
        through = step.operation
        if isinstance(through, Bent):
            z = found[step.given[0]]
            lines = through.lines(z)
            seen = Seen(patches, step.shape)
            falls = patches.ways.clamp_max(0)
            grows = patches.ways - falls
            for part, line in ((grows, lines.low), (falls, lines.high)):
                if bool(line.any()):
                    total = total + (part * seen.of(line)).flatten(2).sum(2)
            ways = grows * seen.of(lines.low_slope) + falls * seen.of(lines.high_slope)
            patches = Patches(ways, patches.top, patches.left)
        elif isinstance(through, Scale):
            seen = Seen(patches, step.shape)
            whole = (len(index), *step.shape)
            total = total + (patches.ways * seen.of(through.shift.expand(whole))).flatten(2).sum(2)
            patches = Patches(patches.ways * seen.of(through.scale.expand(whole)), patches.top, patches.left)
        elif isinstance(through, Convolution) and through.groups == 1 and through.dilation == (1, 1):
            patches, constant = _through(through, patches, step.shape)
            total = total + constant
        else:
            break
        at = step.given[0]
    if steps[at].operation is None and region.norm == "linf":
        box, seen = region.box, Seen(patches, steps[at].shape)
        middle, reach = (box.lower + box.upper) / 2, (box.upper - box.lower) / 2
        total = total + (patches.ways * seen.of(middle)).flatten(2).sum(2)
        return at, None, total - (patches.ways.abs() * seen.of(reach)).flatten(2).sum(2)
    return at, patches.dense(steps[at].shape), total


def takes(step: Step) -> bool:
    """Whether the result of this step can be traced back in patches."""
    operation = step.operation
    return isinstance(operation, Convolution) and operation.groups == 1 and operation.dilation == (1, 1)


def _smaller(patches: Patches, shape: tuple[int, ...]) -> bool:
    """Whether a patch is still smaller than what it is a part of."""
    return patches.ways.shape[3] * patches.ways.shape[4] < shape[1] * shape[2]


def _first(operation: Convolution, index: Tensor, shape: tuple[int, ...]) -> tuple[Patches, Tensor]:
    """The weights of the numbers at `index`, and minus these."""
    channel, spot = index // (shape[1] * shape[2]), index % (shape[1] * shape[2])
    ways = operation.weight[channel]
    top = (spot // shape[2]) * operation.stride[0] - operation.padding[0]
    left = (spot % shape[2]) * operation.stride[1] - operation.padding[1]
    constant = ways.new_zeros(index.shape) if operation.bias is None else operation.bias[channel]
    both = Patches(torch.cat([ways, -ways], 1), torch.cat([top, top], 1), torch.cat([left, left], 1))
    return both, torch.cat([constant, -constant], 1)


def _through(operation: Convolution, patches: Patches, shape: tuple[int, ...]) -> tuple[Patches, Tensor]:
    """Patches of a convolution's result as patches of what it takes: one product with a matrix made of its weights."""
    n, count, channels, height, width = patches.ways.shape
    # What lies beyond the border of the result is no number of it.
    ways = patches.ways * patches.index(shape)[1].unsqueeze(2)
    size = channels * height * width
    units = torch.eye(size, dtype=ways.dtype, device=ways.device).reshape(size, channels, height, width)
    matrix = F.conv_transpose2d(units, operation.weight, None, operation.stride)
    traced = (ways.reshape(n * count, size) @ matrix.flatten(1)).reshape(n, count, *matrix.shape[1:])
    constant = ways.new_zeros((n, count))
    if operation.bias is not None:
        constant = ways.sum((3, 4)) @ operation.bias
    top = patches.top * operation.stride[0] - operation.padding[0]
    left = patches.left * operation.stride[1] - operation.padding[1]
    return Patches(traced, top, left), constant
