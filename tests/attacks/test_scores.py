"""What attacks that see scores share: the estimate is the papers' sum, losses of many images, Adam, checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_lite.attack import Attack, Batch
from robustbench_lite.attacks.scores import EstimatedAscent, above_zero, adam, at_least, fraction, scores_of_each
from robustbench_lite.errors import UserError
from robustbench_lite.losses import margin
from robustbench_lite.streams import Stream
from robustbench_lite.threat import Threat


class Linear:
    """Answers a query with a fixed linear network of three classes, and keeps whom it was asked about."""

    def __init__(self) -> None:
        self.weight = torch.randn((3 * 6 * 5, 3), generator=torch.Generator().manual_seed(0))
        self.asked: list[Tensor] = []

    def logits(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        self.asked.append(torch.arange(len(x)) if rows is None else rows)
        return x.flatten(1) @ self.weight

    def labels(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return self.logits(x, rows).argmax(1)


def batch_of(count: int, *, targets: Tensor | None = None) -> Batch:
    x = torch.rand((count, 3, 6, 5), generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    zero = torch.zeros(count, dtype=torch.int64)
    return Batch(Threat("linf", 0.1).around(x), zero, targets, zero, Stream(torch.arange(count)), zero)


@pytest.mark.parametrize("target", [None, 2])
def test_the_estimate_is_the_papers_sum_and_one_image_at_a_time_agrees(target: int | None) -> None:
    network: Any = Linear()
    targets = None if target is None else torch.full((3,), target)
    batch = batch_of(3, targets=targets)
    x = batch.ball.x
    ways = torch.randn((7, *x.shape), generator=torch.Generator().manual_seed(2))
    attack = EstimatedAscent(samples=14, loss="margin")
    slope, loss = attack.estimate(network, batch, x, direction=lambda draw: ways[int(draw[0])], reach=0.01)
    assert torch.cat(network.asked).bincount().tolist() == [15] * 3  # the point itself too
    for row in range(3):
        total, losses = torch.zeros_like(x[row]), []
        for way in ways[:, row]:
            above, below = (
                margin(
                    network.logits((x[row] + sign * 0.01 * way)[None]),
                    batch.y[:1],
                    None if targets is None else targets[:1],
                )[0]
                for sign in (1, -1)
            )
            total += way * (above - below) / (2 * 0.01 * 7)
            losses += [above, below]
        assert torch.allclose(slope[row], total, atol=1e-3)
        assert torch.allclose(loss[row], torch.stack(losses).mean(), atol=1e-5)


def test_the_estimate_points_along_the_gradient() -> None:
    network: Any = Linear()
    batch = batch_of(4, targets=torch.full((4,), 1))
    network.weight[:, 2] = -9.0  # so that the target's rival is the label
    stream, x = batch.stream.child("directions"), batch.ball.x
    attack = EstimatedAscent(samples=4000, loss="margin")
    slope, _ = attack.estimate(network, batch, x, direction=lambda draw: stream.normal(x.shape[1:], draw), reach=0.01)
    gradient = (network.weight[:, 1] - network.weight[:, 0]).expand(4, -1)
    assert (torch.cosine_similarity(slope.flatten(1), gradient) > 0.95).all()


@pytest.mark.parametrize("each", [1, 7, 900])
def test_losses_of_many_images_come_back_at_their_places_whatever_the_parts(each: int) -> None:
    network: Any = Linear()
    targets = torch.tensor([1, 2, 1, 2, 1])
    batch = batch_of(5, targets=targets)
    images = torch.rand((5, each, 3, 6, 5), generator=torch.Generator().manual_seed(3))
    found = scores_of_each(network, batch, lambda rows, numbers: images[rows, numbers], each=each, loss="margin")
    assert found.shape == (5, each)
    assert max(map(len, network.asked)) <= 2048
    assert torch.cat(network.asked).bincount().tolist() == [each] * 5
    for row in range(5):
        alone = margin(network.logits(images[row]), batch.y[[row] * each], targets[[row] * each])
        assert torch.allclose(found[row], alone, atol=1e-5)


def test_it_is_adam_of_torch() -> None:
    slopes = torch.randn((6, 4, 3), generator=torch.Generator().manual_seed(4))
    theirs = torch.zeros((4, 3), requires_grad=True)
    optimiser = torch.optim.Adam([theirs], lr=0.02, maximize=True)
    ours, mean, square = torch.zeros((4, 3)), torch.zeros((4, 3)), torch.zeros((4, 3))
    for i, slope in enumerate(slopes):
        theirs.grad = slope.clone()
        optimiser.step()
        mean, square, way = adam(mean, square, slope, count=torch.tensor(i + 1), rate=0.02)
        ours = ours + way
        assert torch.allclose(ours, theirs.detach(), atol=1e-5)


@dataclass(frozen=True)
class Options(Attack):
    """Fields to be checked."""

    whole: int | None = None
    real: float | None = None
    share: float = 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"whole": 1}, "^whole must be >= 2, got 1$"),
        ({"real": 0.0}, "^real must be > 0, got 0$"),
        ({"real": float("nan")}, "^real must be > 0, got nan$"),
        ({"share": 0.0}, r"^share must be in \(0, 1\], got 0$"),
        ({"share": 1.01}, r"^share must be in \(0, 1\], got 1\.01$"),
        ({"share": float("nan")}, r"^share must be in \(0, 1\], got nan$"),
    ],
)
def test_checks_name_what_they_refuse_and_let_none_pass(options: dict[str, Any], message: str) -> None:
    def check(attack: Options) -> None:
        at_least(attack, whole=2)
        above_zero(attack, "real")
        fraction(attack, "share")

    check(Options())
    check(Options(whole=2, real=1e-9, share=1.0))
    with pytest.raises(UserError, match=message):
        check(Options(**options))
