"""Losses against their definitions and against autograd, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from robustbench_lite.errors import UserError
from robustbench_lite.losses import LOSSES, cross_entropy, dlr, get_loss, margin, reached

CLASSES = (2, 3, 4, 10)


def case(classes: int, *, seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, classes, generator=generator, dtype=torch.float64) * scale
    y = torch.randint(classes, (50,), generator=generator)
    targets = (y + 1 + torch.randint(classes - 1, (50,), generator=generator)) % classes
    return logits, y, targets


def gradient(value: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(value.sum(), logits)
    return found


@pytest.mark.parametrize("classes", CLASSES)
def test_cross_entropy_is_the_log_odds(classes: int) -> None:
    logits, y, targets = case(classes)
    p = logits.softmax(1)
    of_label, of_target = p[torch.arange(50), y], p[torch.arange(50), targets]
    assert cross_entropy(logits, y).numpy() == pytest.approx(((1 - of_label) / of_label).log().numpy(), rel=1e-9)
    assert cross_entropy(logits, y, targets).numpy() == pytest.approx(
        (of_target / (1 - of_target)).log().numpy(), rel=1e-9
    )


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("aimed", [False, True])
def test_cross_entropy_climbs_in_the_direction_of_the_usual_one(classes: int, aimed: bool) -> None:
    logits, y, targets = case(classes)
    logits.requires_grad_()
    ours = gradient(cross_entropy(logits, y, targets if aimed else None), logits)
    usual = functional.cross_entropy(logits, targets if aimed else y, reduction="none") * (-1 if aimed else 1)
    assert functional.cosine_similarity(ours, gradient(usual, logits)).min() > 1 - 1e-9


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("aimed", [False, True])
@pytest.mark.parametrize("loss", sorted(LOSSES))
def test_no_loss_goes_blind_at_large_logits(classes: int, aimed: bool, loss: str) -> None:
    logits = torch.zeros(1, classes)
    logits[0, 0] = 200.0
    logits[0, 1] = 0.5
    logits.requires_grad_()
    value = get_loss(loss)(logits, torch.tensor([0]), torch.tensor([1]) if aimed else None)
    found = gradient(value, logits)
    assert torch.isfinite(value).all()
    assert torch.isfinite(found).all()
    assert found.abs().max() > 1e-6


def test_the_usual_cross_entropy_would_be_blind_there() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    assert not gradient(functional.cross_entropy(logits, torch.tensor([0])), logits).any()


@pytest.mark.parametrize("classes", CLASSES)
def test_margin_is_positive_exactly_where_the_goal_is_reached(classes: int) -> None:
    logits, y, targets = case(classes)
    assert torch.equal(margin(logits, y) > 0, reached(logits, y))
    assert torch.equal(margin(logits, y, targets) > 0, reached(logits, y, targets))
    assert reached(logits, y).any()
    assert not reached(logits, y).all()


def by_hand(logits: list[float], y: int, target: int | None) -> float:
    """The formula of Croce and Hein with sorted lists; for 2 and 3 classes what the docstring says."""
    z = sorted(logits, reverse=True)
    if target is None:
        gain = max(v for i, v in enumerate(logits) if i != y) - logits[y]
        return gain / (z[0] - z[2]) if len(z) > 2 else gain
    gain = logits[target] - logits[y]
    if len(z) == 2:
        return gain
    return gain / (z[0] - ((z[1] + z[2]) / 2 if len(z) == 3 else (z[2] + z[3]) / 2))


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("aimed", [False, True])
def test_dlr_is_the_formula(classes: int, aimed: bool) -> None:
    logits, y, targets = case(classes)
    found = dlr(logits, y, targets if aimed else None)
    expected = [
        by_hand(row, label, target if aimed else None)
        for row, label, target in zip(logits.tolist(), y.tolist(), targets.tolist(), strict=True)
    ]
    assert found.numpy() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("classes", [3, 4, 10])
@pytest.mark.parametrize("aimed", [False, True])
def test_dlr_does_not_see_the_scale(classes: int, aimed: bool) -> None:
    logits, y, targets = case(classes)
    t = targets if aimed else None
    assert dlr(logits * 1000 + 7, y, t).numpy() == pytest.approx(dlr(logits, y, t).numpy(), rel=1e-6)


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("aimed", [False, True])
def test_no_loss_sees_a_shift_or_the_other_rows(loss: str, classes: int, aimed: bool) -> None:
    logits, y, targets = case(classes)
    f, t = get_loss(loss), targets if aimed else None
    whole = f(logits, y, t)
    assert whole.shape == (50,)
    assert f(logits + 12.5, y, t).numpy() == pytest.approx(whole.numpy(), rel=1e-9, abs=1e-9)
    assert torch.equal(f(logits[7:9], y[7:9], None if t is None else t[7:9]), whole[7:9])


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("classes", CLASSES)
def test_a_loss_grows_towards_its_goal(loss: str, classes: int) -> None:
    logits, y, targets = case(classes)
    rows = torch.arange(50)
    towards = logits.clone()
    towards[rows, targets] += 0.01
    f = get_loss(loss)
    # Past its goal the ratio of dlr may fall again, as the paper's does.
    short = margin(logits, y, targets) < 0 if loss != "dlr" else logits[rows, targets] < logits[rows, y]
    assert short.any()
    assert (f(towards, y, targets) > f(logits, y, targets))[short].all()
    away = logits.clone()
    away[rows, y] -= 0.01
    assert (f(away, y, None) >= f(logits, y, None)).all()


def test_gradients_are_those_of_finite_differences() -> None:
    logits, y, targets = case(5)
    logits.requires_grad_()
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64) * 1e-6
    for loss in LOSSES.values():
        for t in (None, targets):
            told = (gradient(loss(logits, y, t), logits) * direction).sum(1) * 2
            found = loss(logits + direction, y, t) - loss(logits - direction, y, t)
            assert found.detach().numpy() == pytest.approx(told.numpy(), rel=1e-4, abs=1e-11)


def test_dlr_moves_a_target_that_is_last_of_three() -> None:
    logits = torch.tensor([[5.0, 1.0, -3.0]], requires_grad=True)
    value = dlr(logits, torch.tensor([0]), torch.tensor([2]))
    assert gradient(value, logits)[0, 2] > 1e-3


def test_three_equal_logits_do_not_make_nan() -> None:
    logits = torch.zeros(1, 5, requires_grad=True)
    value = dlr(logits, torch.tensor([0]))
    assert torch.isfinite(value).all()
    assert torch.isfinite(gradient(value, logits)).all()


def test_unknown_loss() -> None:
    with pytest.raises(UserError, match="loss: unknown name 'dlrr'; did you mean dlr"):
        get_loss("dlrr")
