"""Rows of dataclasses of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lite.rows import concat, from_tensors, per_row, put, take, to_tensors
from robustbench_lite.threat import LinfBall, Threat


@dataclass(frozen=True)
class Inner:
    a: Tensor
    word: str


@dataclass(frozen=True)
class Outer:
    inner: Inner
    b: Tensor
    none: Tensor | None


def make(n: int, start: int = 0) -> Outer:
    numbers = torch.arange(start, start + n)
    return Outer(Inner(numbers.float().reshape(n, 1).expand(n, 3), "w"), numbers, None)


def same(one: Outer, other: Outer) -> bool:
    return torch.equal(one.inner.a, other.inner.a) and torch.equal(one.b, other.b) and one.none is other.none


def test_take_by_index_and_by_mask() -> None:
    rows = make(5)
    assert take(rows, torch.tensor([4, 0, 0])).b.tolist() == [4, 0, 0]
    assert take(rows, rows.b > 2).inner.a[:, 0].tolist() == [3, 4]
    assert take(rows, torch.empty(0, dtype=torch.int64)).inner.a.shape == (0, 3)


def test_concat_is_undone_by_take() -> None:
    a, b = make(3), make(2, 10)
    both = concat([a, b])
    assert same(take(both, torch.arange(3)), a)
    assert same(take(both, torch.arange(3, 5)), b)
    assert concat([a]) is a


def test_put_leaves_the_original_alone() -> None:
    rows = make(4)
    changed = put(rows, torch.tensor([3, 1]), make(2, 50))
    assert changed.b.tolist() == [0, 51, 2, 50]
    assert changed.inner.a[1, 0] == 51
    assert rows.b.tolist() == [0, 1, 2, 3]


def test_tensors_and_back() -> None:
    rows = make(3)
    stored = to_tensors(rows)
    assert set(stored) == {"inner.a", "b"}
    assert same(from_tensors(make(3, 90), stored), rows)


def test_a_ball_keeps_its_bounds() -> None:
    ball = Threat("linf", 0.1).around(torch.rand(4, 1, 2, 2))
    some = take(ball, torch.tensor([2, 1]))
    assert isinstance(some, LinfBall)
    assert isinstance(ball, LinfBall)
    assert torch.equal(some.lower, ball.lower[[2, 1]])
    assert (some.low, some.high) == (0.0, 1.0)


def test_per_row_broadcasts() -> None:
    like = torch.ones(2, 3, 4)
    assert torch.equal(like * per_row(torch.tensor([1.0, 2.0]), like), torch.stack([like[0], 2 * like[0]]))
    assert per_row(torch.ones(0), torch.ones(0, 3, 4)).shape == (0, 1, 1)
