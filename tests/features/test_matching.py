"""Descent towards features: a straight line where they are the pixels, nearer in any network, never out of the box."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from robustbench_lite.errors import UserError
from robustbench_lite.features.constructions.nonrobust import NonRobust
from robustbench_lite.features.matching import match
from robustbench_lite.network import Network
from robustbench_lite.streams import Stream

from .works import made_by, network, workshop


def identity() -> Network:
    """Images whose features are their pixels."""
    found = Network(nn.Flatten(), n_classes=16)
    found.probabilities = False
    return found


@settings(deadline=None, max_examples=12)
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 25), step_size=st.sampled_from([0.03, 0.1, 0.25]))
def test_where_features_are_pixels_the_way_is_straight(seed: int, steps: int, step_size: float) -> None:
    """From s to x the distance after k steps is | |s - x| - k step_size |: what is kept is the least of these."""
    # Far enough from the ends of the box that no step past x is cut.
    start, goal = 0.3 + 0.4 * torch.rand((2, 5, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    images, first, last = match(
        identity(), start, goal.flatten(1), steps=steps, step_size=step_size, stream=Stream(torch.arange(5))
    )
    way = (start - goal).double().flatten(1).norm(dim=1)
    torch.testing.assert_close(first, way, rtol=1e-5, atol=1e-6)
    # Past x the way goes back and forth over it: of the same two distances for ever.
    least = (way.unsqueeze(1) - step_size * torch.arange(steps + 1)).abs().min(1).values
    torch.testing.assert_close(last, least, rtol=0, atol=1e-4)
    torch.testing.assert_close((images - goal).double().flatten(1).norm(dim=1), last, rtol=0, atol=1e-5)
    assert images.min() >= 0 and images.max() <= 1


def test_a_goal_that_is_reached_stays_reached() -> None:
    x = torch.rand((4, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    images, first, last = match(identity(), x, x.flatten(1), steps=3, step_size=0.1, stream=Stream(torch.arange(4)))
    assert torch.equal(images, x)
    assert first.max() == last.max() == 0


def test_start_is_drawn_apart_from_image_and_label() -> None:
    """Of 60 images few start as themselves, and the label says nothing of where another one starts."""
    notes = made_by(NonRobust(steps=1)).notes
    places = notes["start_index"]
    assert int(places.min()) >= 0 and int(places.max()) < 60
    assert int((places == torch.arange(60)).sum()) <= 6
    assert len(set(places.tolist())) > 25
    other = made_by(NonRobust(steps=1), workshop(seed=1)).notes["start_index"]
    assert not torch.equal(other, places)


def test_the_goal_is_the_feature_before_the_last_layer() -> None:
    """What is told of distances is that of the images returned, in the network's own features."""
    shop = workshop()
    made = made_by(NonRobust(steps=60, step_size=0.05), shop)
    features = network()[:-1]
    with torch.no_grad():
        goal, found = features(shop.data.images(torch.arange(60))), features(made.images)
    told = made.notes["feature_distance"]
    torch.testing.assert_close((found - goal).double().norm(dim=1), told, rtol=1e-5, atol=1e-6)
    assert (told <= made.notes["start_feature_distance"]).all()
    assert told.mean() < 0.2 * made.notes["start_feature_distance"].mean()


@pytest.mark.parametrize(
    ("options", "words"), [({"steps": 0}, r"steps must be >= 1, got 0"), ({"step_size": 0.0}, r"step_size must be > 0")]
)
def test_options_out_of_range(options: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        NonRobust(**options)  # type: ignore[arg-type]
