"""What attacks that see labels alone share: a wrong image to begin from, the boundary on a line, its normal."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from robustbench_lite.attack import Batch
from robustbench_lite.query import Query
from robustbench_lite.rows import per_row, take
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Ball

# Sides of the grids of random colours that a start is drawn from, beside one colour for each pixel.
_GRIDS = (1, 2, 3, 4, 5, 7, 10, 14)
_PLAIN = 16
_CHUNK = 512  # images made at a time: what stays in a processor's cache


def at_goal(query: Query, batch: Batch, x: Tensor, rows: Tensor) -> Tensor:
    """Which images (M, C, H, W) the network takes for what it should not, or for the target, (M,) bool."""
    labels = query.labels(x, rows=rows)
    return labels != batch.y[rows] if batch.targets is None else labels == batch.targets[rows]


def find_start(
    query: Query, batch: Batch, tries: int, *, known: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """An image at the goal for each sample, and whether one was found, (N,) bool; where not, the clean image.

    Without a target the first 16 tries are uniform noise. The others are grids of 1 to 14 by 14 cells of random
    colours, or noise, half of them of black and white alone, half blended with the image. Tries of a sample are asked
    1, 1, 2, 4, ... and at most 64 at a time, each a query, `tries` in all; the first that is at the goal is taken.
    known: what an earlier search returned; only samples without an image are asked about.
    """

    def noise(ball: Ball, stream: Stream, draw: Tensor) -> Tensor:
        return _noise(ball, stream.child("start"), draw, batch.targets)

    return first_at_goal(query, batch, tries, noise, known=known)


def first_at_goal(
    query: Query,
    batch: Batch,
    tries: int,
    make: Callable[[Ball, Stream, Tensor], Tensor],
    *,
    known: tuple[Tensor, Tensor] | None = None,
    growing: bool = True,
) -> tuple[Tensor, Tensor]:
    """The first image at the goal of `tries` a sample, and whether there is one, (N,) bool; where not, the clean image.

    make(ball, stream, draw): image number `draw` (M,) of each row. Asked 1, 1, 2, 4, ... at a time, or where not
    `growing` 64 at once, each a query. known: as for `find_start`.
    """
    none = torch.zeros_like(batch.y, dtype=torch.bool)
    image, found = (batch.ball.x.clone(), none) if known is None else (known[0].clone(), known[1].clone())
    done = 0
    while done < tries and not found.all():
        left = (~found).nonzero()[:, 0]
        count = min(max(1, done) if growing else 64, 64, tries - done)
        # In parts, so that no more than a few thousand images are made at a time.
        for part in torch.split(left, max(1, 2048 // count)):
            rows = part.repeat_interleave(count)
            draw = done + torch.arange(count, device=rows.device).repeat(len(part))
            noise = make(take(batch.ball, rows), Stream(batch.stream.keys[rows]), draw)
            hit = at_goal(query, batch, noise, rows).reshape(-1, count)
            first = hit.int().argmax(1) + torch.arange(len(part), device=rows.device) * count
            hit_any = hit.any(1)
            image[part[hit_any]] = noise[first[hit_any]]
            found[part[hit_any]] = True
        done += count
    return image, found


def _noise(ball: Ball, stream: Stream, draw: Tensor, targets: Tensor | None) -> Tensor:
    """One random image each."""
    height, width = ball.x.shape[2:]
    colours = stream.uniform(ball.x.shape[1:], draw)
    kind = stream.child("kind").uniform((4,), draw)
    plain = draw < (_PLAIN if targets is None else 0)
    sides = torch.tensor([*_GRIDS, max(height, width)], device=draw.device)
    side = torch.where(plain, sides[-1], sides[(kind[:, 0] * len(sides)).long()]).unsqueeze(1)
    down, across = (
        torch.where(side < length, place * side // length, place)
        for length in (height, width)
        for place in [torch.arange(length, device=draw.device)]
    )
    colours = colours.gather(2, down[:, None, :, None].expand_as(colours))
    colours = colours.gather(3, across[:, None, None, :].expand_as(colours))
    stark = ~plain & (kind[:, 1] < 0.5)
    colours = torch.where(per_row(stark, colours), (colours < 0.5).float(), colours) * (ball.high - ball.low) + ball.low
    share = torch.where(~plain & (kind[:, 2] < 0.5), 0.3 + 0.7 * kind[:, 3], 1.0)
    return (ball.x + (colours - ball.x) * per_row(share, colours)).clamp_(ball.low, ball.high)


def between(ball: Ball, image: Tensor, share: Tensor) -> Tensor:
    """What lies at `share` (N,) of the way from x to the image: on the line, or in linf the image cut to the ball."""
    delta = image - ball.x
    if ball.norm == "linf":
        reach = per_row(share * delta.flatten(1).abs().amax(1), delta)
        return torch.clamp(delta, -reach, reach).add_(ball.x)
    return delta.mul_(per_row(share, delta)).add_(ball.x)


def to_boundary(query: Query, batch: Batch, image: Tensor, rows: Tensor, rounds: int) -> Tensor:
    """The last image at the goal of a bisection between the clean images and `image` (M, C, H, W), which is at it.

    rows: (M,) of the batch, each once; `rounds` queries a row, after which the share of the way is known to 2^-rounds.
    """
    ball, best = take(batch.ball, rows), image
    low, high = torch.zeros_like(ball.eps), torch.ones_like(ball.eps)
    for _ in range(rounds):
        middle = (low + high) / 2
        asked = between(ball, image, middle)
        hit = at_goal(query, batch, asked, rows)
        best = torch.where(per_row(hit, asked), asked, best)
        low, high = torch.where(hit, low, middle), torch.where(hit, middle, high)
    return best


def estimated_normal(
    query: Query,
    batch: Batch,
    image: Tensor,
    rows: Tensor,
    *,
    counts: Tensor,
    offsets: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Offsets from images (M, C, H, W) weighted by their labels, less the mean label, summed: no length of its own.

    counts: (M,) queries of each; offsets(which, draw): the offset of draw `draw` (K,) of image `which` (K,). What
    counts is what was asked, after the box has cut it. Chen et al. 2020, arXiv:1904.02144, equation 16.
    """
    normal = torch.zeros_like(image)
    for part in _chunks(counts):
        count = counts[part]
        which = torch.arange(part.start, part.stop, device=rows.device).repeat_interleave(count)
        draw = torch.arange(len(which), device=rows.device) - (count.cumsum(0) - count).repeat_interleave(count)
        here = image[which]
        asked = offsets(which, draw).add_(here).clamp_(batch.ball.low, batch.ball.high)
        sign = at_goal(query, batch, asked, rows[which]).double() * 2 - 1
        own = which - part.start
        mean = torch.zeros_like(count, dtype=torch.float64).index_add_(0, own, sign) / count
        weight = sign - torch.where(mean.abs() == 1, 0.0, mean)[own]
        offset = asked.sub_(here).double().mul_(per_row(weight, asked))
        normal[part] = torch.zeros_like(image[part], dtype=torch.float64).index_add_(0, own, offset).float()
    return normal


def _chunks(counts: Tensor) -> Iterator[slice]:
    """Neighbouring samples whose counts add up to no more than a chunk, or one sample."""
    numbers: list[int] = counts.tolist()
    first, total = 0, 0
    for i, count in enumerate(numbers):
        if total and total + count > _CHUNK:
            yield slice(first, i)
            first, total = i, 0
        total += count
    yield slice(first, len(numbers))


def random_directions(stream: Stream, shape: torch.Size, draw: int | Tensor, *, norm: str = "l2") -> Tensor:
    """Independent components, nearly normal, in linf nearly uniform on [-1, 1], (N, *shape).

    Each is one of 4096 equally likely levels, two of each random number's 24 bits: several times as fast as exact.
    """
    count = shape.numel()
    bits = (stream.uniform(((count + 1) // 2,), draw) * 2.0**24).int()
    which = torch.cat([bits >> 12, bits & 4095], 1)[:, :count]
    return _levels(norm, bits.device).index_select(0, which.flatten()).reshape(-1, *shape)


@functools.lru_cache(maxsize=8)
def _levels(norm: str, device: torch.device) -> Tensor:
    """Values that cut a normal distribution of variance 1/2 into 4096 equal parts; in linf a uniform one on [-1, 1]."""
    middle = (torch.arange(4096).double() + 0.5) / 2048 - 1
    values = middle if norm == "linf" else torch.erfinv(middle)
    return values.float().to(device)
