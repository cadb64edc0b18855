"""What a defense costs at inference: passes counted, times compared side by side."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.sweep import costs


class Twice(nn.Module):
    """Two networks of one kind, each asked about the image and its mirror."""

    def __init__(self) -> None:
        super().__init__()
        self.members = nn.ModuleList([net(), net()])

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([x, x.flip(3)])
        return torch.stack([member(both).view(2, len(x), -1).mean(0) for member in self.members]).mean(0)


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def test_passes_of_all_members_are_counted() -> None:
    x = torch.rand(6, 1, 4, 4)
    assert costs.counted(net(), net(), x) == 1
    assert costs.counted(Twice(), net(), x) == 4
    assert costs.counted(nn.Sequential(nn.Dropout(0.5), Twice()), net(), x) == 4


def test_the_ratio_is_that_of_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that each call moves by what it says to take: 3 ms against 1 ms, and now and then much more."""
    now, calls = [0.0], [0]

    def takes(milliseconds: float) -> None:
        calls[0] += 1
        now[0] += milliseconds / 1000 * (50 if calls[0] % 37 == 0 else 1)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    ratio = costs.timed(lambda: takes(3), lambda: takes(1), ready=lambda: None)
    assert ratio == pytest.approx(3, rel=0.01)


def test_networks_and_random_state_are_left_as_they_were() -> None:
    one, other = nn.Sequential(net(), nn.Dropout(0.5)).train(), net().train()
    before = torch.get_rng_state()
    ratio, passes = costs.forward_costs(one, other, torch.rand(4, 1, 4, 4))
    # The images were drawn before: only what came after is looked at.
    torch.set_rng_state(before)
    torch.rand(4, 1, 4, 4)
    expected = torch.get_rng_state()
    torch.set_rng_state(before)
    costs.forward_costs(one, other, torch.rand(4, 1, 4, 4))
    assert torch.equal(torch.get_rng_state(), expected)
    assert one.training and other.training and all(p.requires_grad for p in one.parameters())
    assert ratio > 0 and passes == 1
