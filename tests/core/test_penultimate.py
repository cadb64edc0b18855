"""The layer before the last linear one is found in any network that has one, and refused in one line elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustbench_lite.errors import UserError
from robustbench_lite.models import build_model
from robustbench_lite.models.normalize import Normalize
from robustbench_lite.penultimate import OneFeature, Penultimate, last_linear

X = torch.rand((3, 1, 16, 16), generator=torch.Generator().manual_seed(0))


class Declared(nn.Module):
    """Its layers are declared in another order than they are called in."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 4)
        self.body = nn.Linear(256, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)).relu())  # type: ignore[no-any-return]


class Residual(nn.Module):
    """A sum around a convolution, the mean over places, dropout, the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.fc(self.drop((x + self.second(x)).mean((2, 3))))  # type: ignore[no-any-return]


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x.flatten(1)).relu())  # type: ignore[no-any-return]


class Positions(nn.Module):
    """A linear layer at every place, then the mean: no one row of features an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1, 2)).mean(1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "make",
    [
        lambda: build_model("small-cnn", n_classes=4, shape=(1, 16, 16)),
        lambda: build_model("mlp", n_classes=4, shape=(1, 16, 16)),
        lambda: Normalize(build_model("mlp", n_classes=4, shape=(1, 16, 16)), [0.5], [0.2]),
        Residual,
        Declared,
    ],
    ids=["small-cnn", "mlp", "normalised", "residual", "declared in another order"],
)
def test_the_last_layer_of_the_features_is_the_network(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    features = Penultimate(model, X[:1])
    with torch.no_grad():
        found = features(X)
        assert found.shape == (3, features.n_features)
        assert torch.equal(features.layer(found), model(X))
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == hooks


def test_a_network_that_ends_in_a_softmax_has_features_too() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 6), nn.ReLU(), nn.Linear(6, 4), nn.Softmax(1))
    assert last_linear(model, X) is model[3]


def test_its_mode_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 4), (norm := nn.BatchNorm1d(4)), nn.Linear(4, 4)).train()
    assert norm.running_mean is not None
    mean = norm.running_mean.clone()
    last_linear(model, X)
    assert model.training and norm.training
    assert torch.equal(norm.running_mean, mean)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Conv2d(1, 4, 16), nn.Flatten()), r"has no linear layer, so no penultimate one"),
        (Positions(), r"takes \(3, 16, 16\) for 3 images, expected a row each"),
        (Twice(), r"is called more than once"),
        (
            nn.Sequential(
                nn.Flatten(), nn.Linear(256, 8), nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2), nn.Flatten()
            ),
            r"gives 8 numbers, the network 4",
        ),
    ],
    ids=["convolutions alone", "a row a place", "called twice", "something after it"],
)
def test_what_has_none_is_refused_in_one_line(model: nn.Module, words: str) -> None:
    with pytest.raises(UserError, match=r"^--model: .*" + words) as caught:
        Penultimate(model, X)
    assert "\n" not in str(caught.value)


def test_one_feature_as_two_logits() -> None:
    features = Penultimate(Declared().eval(), X)
    logits = OneFeature(features, 2)(X)
    assert torch.equal(logits[:, 0], features(X)[:, 2])
    assert torch.equal(logits[:, 1], -logits[:, 0])
