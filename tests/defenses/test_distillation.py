"""distillation: large logits that hide the cross-entropy's gradient, and nothing that a margin would notice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import robustbench_lite as rbl
from robustbench_lite.defenses.distillation import Distillation
from robustbench_lite.errors import UserError
from robustbench_lite.history import History

from .steps import accuracy, batch, trained

HEAT: dict[str, Any] = {"epochs": 60, "lr": 0.02, "optimizer": "adam", "weight_decay": 0.0}


def test_the_student_learns_what_the_teacher_says() -> None:
    history = History()
    student = trained(Distillation(temperature=20.0), history=history, **HEAT)
    assert accuracy(student) > 0.9
    assert [row["stage"] for row in history.rows] == [1] * 60 + [2] * 60
    x, _ = batch(90)
    with torch.no_grad():
        large, usual = (m(x).std(1).mean() for m in (student, trained(**HEAT)))
    assert float(large) > 3 * float(usual)


def test_the_cross_entropy_saturates_and_a_margin_goes_through() -> None:
    x, y = batch(90)
    student = trained(Distillation(temperature=50.0), **HEAT)
    seen = x.clone().requires_grad_()
    softmax = torch.nn.functional.cross_entropy(student(seen), y, reduction="none")
    gradient = torch.autograd.grad(softmax.sum(), seen)[0].flatten(1).norm(dim=1)
    cooled = torch.nn.functional.cross_entropy(student(seen) / 50, y, reduction="none")
    restored = torch.autograd.grad(cooled.sum(), seen)[0].flatten(1).norm(dim=1)
    assert float((gradient < 1e-8).float().mean()) > 0.9
    assert float((restored < 1e-8).float().mean()) < 0.05
    found = rbl.evaluate(student, x, y, attack="cw", norm="l2", eps=2.0, attack_options={"steps": 60, "searches": 4})
    assert found.robust_accuracy < 0.05


def test_options_out_of_range() -> None:
    with pytest.raises(UserError, match=r"^temperature must be >= 1, got 0"):
        Distillation(temperature=0.5)
