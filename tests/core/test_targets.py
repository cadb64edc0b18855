"""Which class an attack aims at."""

from __future__ import annotations

import pytest
import torch

from robustbench_lite.errors import UserError
from robustbench_lite.streams import Stream
from robustbench_lite.targets import check_target, order_targets

CLASSES = ("cat", "dog", "7", "bird")


@pytest.mark.parametrize(
    ("given", "meant"),
    [(None, None), ("all", "all"), ("least-likely", "least-likely"), ("dog", 1), (2, 2), ("3", 3), ("0", 0)],
)
def test_targets_as_given(given: str | int | None, meant: str | int | None) -> None:
    assert check_target(given, CLASSES) == meant


@pytest.mark.parametrize("bad", ["4", -1, "-1", 7, "--1", "²", "bard", "", 1.5, "next "])
def test_bad_targets_are_one_line_that_names_the_argument(bad: str | int) -> None:
    with pytest.raises(UserError, match=r"^target must be") as raised:
        check_target(bad, CLASSES)
    assert "\n" not in str(raised.value)


def test_a_misspelt_class_lists_the_close_one() -> None:
    with pytest.raises(UserError, match="did you mean bird"):
        check_target("brid", CLASSES)


@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("target", ["random", "next", "least-likely", "all"])
def test_a_target_is_a_class_and_never_the_label(target: str, classes: int) -> None:
    logits = torch.randn(300, classes, generator=torch.Generator().manual_seed(0))
    logits[:20] = 0  # ties
    y = torch.arange(300) % classes
    found = order_targets(target, logits, y, Stream(torch.arange(300)))
    assert found.shape == (300, classes - 1 if target == "all" else 1)
    assert (found >= 0).all()
    assert (found < classes).all()
    assert (found != y.unsqueeze(1)).all()
    if target == "all":
        assert torch.equal(
            found.sort(1).values, torch.stack([torch.arange(classes)[torch.arange(classes) != k] for k in y])
        )
        ordered = logits.gather(1, found)
        assert (ordered.diff(dim=1) <= 0).all()
    if target == "next":
        assert torch.equal(found[:, 0], (y + 1) % classes)
    if target == "least-likely":
        others = logits.scatter(1, y.unsqueeze(1), float("inf"))
        assert torch.equal(others.gather(1, found)[:, 0], others.amin(1))
    if target == "random" and classes == 10:
        assert torch.bincount((found[:, 0] - y) % 10, minlength=10)[1:].min() > 10


def test_a_class_is_no_target_for_its_own_samples() -> None:
    y = torch.tensor([0, 2, 1])
    assert order_targets(2, torch.zeros(3, 3), y, Stream(y)).tolist() == [[2], [-1], [2]]
    assert order_targets(None, torch.zeros(3, 3), y, Stream(y)).shape == (3, 0)


def test_a_random_target_belongs_to_the_sample() -> None:
    logits, y, stream = torch.zeros(50, 10), torch.arange(50) % 10, Stream(torch.arange(50))
    whole = order_targets("random", logits, y, stream)
    index = torch.tensor([31, 4])
    assert torch.equal(order_targets("random", logits[index], y[index], Stream(stream.keys[index])), whole[index])
