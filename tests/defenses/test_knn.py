"""knn: the vote against scikit-learn's, its soft stand-in by hand, and networks without features."""

from __future__ import annotations

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

import robustbench_lite as rbl
from robustbench_lite.defenses.knn import KNN
from robustbench_lite.errors import UserError


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.Tanh(), nn.Linear(12, 3))
    return layers.eval().requires_grad_(False)


def _images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 5, 9])
def test_the_vote_is_that_of_a_library(k: int) -> None:
    network, known, x = _network(), _images(150, 0), _images(70, 1)
    y = network(known).argmax(1)
    voted = KNN(k=k, samples=150).fit(network, known, y)(x)
    peer = KNeighborsClassifier(n_neighbors=k, metric="cosine", algorithm="brute")
    peer.fit(network[:3](known).numpy(), y.numpy())
    shares = torch.from_numpy(peer.predict_proba(network[:3](x).numpy()))
    clear = shares.topk(2, dim=1).values.diff(dim=1).abs()[:, 0] > 0
    assert int(clear.sum()) > 50
    assert torch.equal(voted.argmax(1)[clear], shares.argmax(1)[clear])


def test_the_gradient_is_that_of_the_soft_vote() -> None:
    network, known = _network(), _images(40, 0)
    y = torch.arange(40) % 3
    voted = KNN(k=5, samples=40, temperature=0.1).fit(network, known, y)
    x = _images(4, 1).requires_grad_()
    gradient = torch.autograd.grad(voted(x)[:, 1].sum(), x)[0]
    own, theirs = network[:3](x), network[:3](known)
    cosine = torch.nn.functional.cosine_similarity(own.unsqueeze(1), theirs.unsqueeze(0), dim=2)
    weight = (cosine / 0.1).softmax(1)
    expected = torch.autograd.grad(weight[:, y == 1].sum(1).log().sum(), x)[0]
    assert torch.allclose(gradient, expected, atol=1e-5)


def test_an_attack_that_follows_the_soft_vote_gets_through() -> None:
    network, known, x = _network(), _images(300, 0), _images(40, 1)
    labels = network(known).argmax(1)
    defense = KNN(k=5, samples=300)
    y = defense.fit(network, known, labels)(x).argmax(1)
    given = {"eps": 0.2, "defenses": [defense], "fit_data": (known, labels), "checks": False}
    aware = rbl.evaluate(network, x, y, **given)  # type: ignore[arg-type]
    noise = rbl.evaluate(network, x, y, attack="noise", **given)  # type: ignore[arg-type]
    assert aware.clean_accuracy == 1 and aware.robust_accuracy < 0.7 * noise.robust_accuracy


def test_what_cannot_be() -> None:
    for options, told in (
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"k": 10, "samples": 5}, "samples must be at least k = 10, got 5"),
        ({"temperature": 0.0}, "temperature must be > 0, got 0"),
    ):
        with pytest.raises(UserError, match=told):
            KNN(**options)
    with pytest.raises(UserError, match=r"no linear layer"):
        KNN(k=1).fit(nn.Flatten(), _images(20, 0), torch.zeros(20).long())
    with pytest.raises(UserError, match=r"^k of knn must be at most the training images that there are, 3, got 10"):
        KNN().fit(_network(), _images(3, 0), torch.zeros(3).long())
