"""The search of a second look that asks for no gradient: squares at random places."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .rows import take
from .streams import Stream
from .subjects import Scene, Subjects
from .threat import Ball

PROPOSALS = 8
SHORT, LONG = 12, 64  # rounds of all, and of those that may still fall
HOPE = 0.5  # of the clean margin: whoever is not below it after the first rounds is given up
QUERIES = LONG * PROPOSALS


def search(scene: Scene, at: Tensor | None, value: Tensor | None) -> Tensor:
    """Which images squares bring to the goal that were not there before, (n,) bool.

    Begins at images `at` of margin `value` (n,), or without them at stripes (after Andriushchenko et al. 2020,
    arXiv:1912.00049, with several proposals a round). After the first rounds only the half nearest to the goal go on,
    and of these only whoever has lost some of the clean margin: for each, some hundreds of queries in all.
    """
    hope = HOPE * scene.value(scene.left.x)
    if at is None or value is None:
        at = _stripes(scene)
        value = scene.value(at)
        there = torch.zeros_like(value, dtype=torch.bool)
    else:
        there = value > 0
    best = value.clone()
    going = torch.arange(len(best), device=best.device)
    for step in range(LONG):
        going = going[best[going] <= 0]
        if step == SHORT:
            going = going[best[going].argsort(descending=True, stable=True)[: (len(best) + 1) // 2]]
            going = going[best[going] >= hope[going]]
        if not len(going):
            break
        some = take(scene.left, going)
        x = _proposed(scene, some, at[going], step)
        many, _ = some.copies(PROPOSALS)
        top = scene.value(x, many).reshape(-1, PROPOSALS).max(1)
        first = torch.arange(len(going), device=going.device) * PROPOSALS
        better = top.values > best[going]
        at = at.index_copy(0, going, torch.where(_rows(better), x[first + top.indices], at[going]))
        best = best.index_copy(0, going, torch.maximum(best[going], top.values))
    return (best > 0) & ~there


def _proposed(scene: Scene, some: Subjects, at: Tensor, step: int) -> Tensor:
    """Each image `PROPOSALS` times, with a square of its own moved up or down in each channel."""
    many, stream = some.copies(PROPOSALS)
    channels, height, width = at.shape[1:]
    share = max(0.1 * 0.96**step, 1.0 / (height * width))
    side = max(1, round((height * width * share) ** 0.5))
    drawn = stream.child("battery search").uniform((2 + channels,), draw=torch.full_like(many.keys, step))
    square = _square(drawn[:, :2], side, height, width)
    signs = torch.where(drawn[:, 2:] < 0.5, 1.0, -1.0)[:, :, None, None]
    ball = scene.threat.around(many.x, many.eps)
    moved = at.repeat_interleave(PROPOSALS, 0) + square * signs * _rows(_reach(ball, channels * side * side))
    return ball.project(moved)


def _reach(ball: Ball, count: int) -> Tensor:
    """How far each of `count` numbers is moved, (n,): to the ball's bound in linf, by half of its size in l2 and l1."""
    if ball.norm == "linf":
        return 2 * ball.eps
    if ball.norm == "l0":
        return torch.full_like(ball.eps, ball.high - ball.low)
    return 0.5 * ball.eps / (math.sqrt(count) if ball.norm == "l2" else count)


def _stripes(scene: Scene) -> Tensor:
    channels, _, width = scene.left.x.shape[1:]
    up = Stream(scene.left.keys).child("battery stripes").uniform((channels, 1, width)) < 0.5
    return scene.ball.scaled(torch.where(up, 1.0, -1.0).expand(scene.left.x.shape).contiguous())


def _square(drawn: Tensor, side: int, height: int, width: int) -> Tensor:
    """A square at a place that `drawn` (n, 2) in [0, 1) picks, (n, 1, H, W) bool."""

    def span(where: Tensor, length: int) -> Tensor:
        first = torch.floor(where.double() * (length - min(side, length) + 1)).long().unsqueeze(1)
        place = torch.arange(length, device=where.device) - first
        return (place >= 0) & (place < side)

    return (span(drawn[:, 0], height).unsqueeze(2) & span(drawn[:, 1], width).unsqueeze(1)).unsqueeze(1)


def _rows(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)
