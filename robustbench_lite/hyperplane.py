"""The nearest point of a hyperplane within the box, exactly, for many points at once (linf, l2, l1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import unknown_name

_FAR = 1e30
_NONE = 1e-10  # of the largest weight: what gains no more stays, or a plane out of reach would move all for nothing
_FEW = 64  # pixels looked at first in l1: a step moves few


def to_hyperplane(norm: str, x: Tensor, normal: Tensor, gain: Tensor, *, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The shortest change d in a norm with x + d in [low, high] and normal . d = gain, shaped as x.

    x, normal: (N, ...); gain: (N,), of either sign. Where the box does not reach the hyperplane, d goes as near to it
    as the box lets it; where the normal is 0, or at most 1e-10 of its largest, d is 0. No operation mixes rows. These
    are the projections of Croce and Hein 2020 (arXiv:1907.02044, section 2), found another way: in linf and l2 what
    is gained is a concave function of one number, linear in pieces, and Newton's method from the left ends at the root
    after a few looks at the pixels, without sorting them; in l1 pixels of the largest normal move first, each as far as
    the box lets it.

    >>> to_hyperplane("linf", torch.tensor([[0.875, 0.5]]), torch.tensor([[1.0, 1.0]]), torch.tensor([0.5]))
    tensor([[0.1250, 0.3750]])
    """
    if norm not in _SIZES:
        raise unknown_name("norm", norm, _SIZES)
    flat, w = x.flatten(1), normal.flatten(1)
    # Every pixel goes the way that gains: by a weight of at most 1, as far as there is room.
    weight = w.abs()
    most = weight.amax(1, keepdim=True).clamp_min(1e-38)
    weight = weight / most
    # Products with a sign are as exact as a choice, and several times as fast.
    way = (weight - _NONE).clamp_min_(0).sign_().mul_(w.sign()).mul_(gain.sign().to(w.dtype).unsqueeze(1))
    room = (way.clamp_min(0) * (high - flat) - way.clamp_max(0) * (flat - low)).clamp_min_(0)
    size = _SIZES[norm](weight, room, gain.double().abs() / most[:, 0].double())
    return size.mul_(way).reshape(x.shape)


def _linf(weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    return torch.minimum(room, _root(weight, room, weight * room, need).float().unsqueeze(1))


def _l2(weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    until = room / weight.clamp_min(1e-30)
    return torch.minimum(room, weight * _root(weight.square(), until, weight * room, need).float().unsqueeze(1))


def _l1(weight: Tensor, room: Tensor, need: Tensor) -> Tensor:
    size, rows, count = torch.zeros_like(weight), torch.arange(len(weight), device=weight.device), _FEW
    while len(rows):
        count = min(count, weight.shape[1])
        part, space = weight[rows], room[rows]
        largest, order = part.topk(count, dim=1)
        space = space.gather(1, order)
        gained = largest.double() * space
        left = need[rows].unsqueeze(1) - (gained.cumsum(1) - gained)
        moved = torch.minimum(left.clamp_min(0) / largest.double().clamp_min(1e-30), space.double())
        size[rows] = torch.zeros_like(part).scatter_(1, order, moved.float())
        if count == weight.shape[1]:
            break
        rows, count = rows[left[:, -1] > gained[:, -1]], 8 * count
    return size


_SIZES = {"linf": _linf, "l2": _l2, "l1": _l1}


def _root(slope: Tensor, until: Tensor, full: Tensor, need: Tensor) -> Tensor:
    """The least t >= 0 with sum(slope * min(t, until)) = need, (N,) float64; very large where there is none.

    slope, until: (N, D), what each pixel gains and where it stops; full: their product.
    """
    whole = full.sum(1, dtype=torch.float64)
    found = torch.where(need < whole, torch.zeros_like(need), _FAR)
    rows = (need < whole).nonzero()[:, 0]
    if len(rows) < len(need):
        slope, until, full, need, whole = (part[rows] for part in (slope, until, full, need, whole))
    moving = torch.full_like(need, torch.inf)
    while len(rows):
        # The tangent lies above the function, so that no step goes past the root; pixels only stop.
        free = (until - found[rows].float().unsqueeze(1)).sign_().clamp_min_(0)
        now = (slope * free).sum(1, dtype=torch.float64)
        stopped = whole - (full * free).sum(1, dtype=torch.float64)
        going = (now < moving) & (now > 0)
        found[rows] = torch.where(going, ((need - stopped) / now.clamp_min(1e-300)).clamp_min(0), found[rows])
        moving = now
        kept = going.nonzero()[:, 0]
        if 2 * len(kept) <= len(rows):
            rows, slope, until, full = rows[kept], slope[kept], until[kept], full[kept]
            need, whole, moving = need[kept], whole[kept], moving[kept]
    return found
