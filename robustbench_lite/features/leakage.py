"""How much of what a constructed data set teaches may come from robust features that leaked into it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..data.dataset import Dataset
from ..errors import UserError
from ..network import Network, Noise, exact_float32
from ..streams import Stream
from .construction import Workshop

BLOCK = 1024
ITERATIONS = 200


def features_of(network: Network, data: Dataset) -> Tensor:
    """The features (N, F) float32 of all images of a data set, on the CPU; network: images to features."""
    found = []
    with exact_float32():
        for index, x, _ in data.blocks(torch.arange(len(data)), BLOCK):
            place = index.to(network.device)
            found.append(network.logits(x.to(network.device), Noise(Stream(place), torch.zeros_like(place))).cpu())
    return torch.cat(found)


def leakage(workshop: Workshop, data: Dataset, test: Dataset) -> float:
    """Accuracy on `test` of a linear layer that learned `data` from a robust network's features alone, in [0, 1].

    workshop: of the robust network, whose penultimate features stay as they are. Where the labels of `data` are
    independent of its images' robust features (D_rand), what exceeds chance is what leaked through the perturbations:
    a lower bound of the part of a network's accuracy that robust features explain (Goh 2019, "Robust feature leakage",
    doi:10.23915/distill.00019.2). Departure: Goh takes the features of a linear robust model; the robustness of those
    here is what adversarial training gave them (`rbl features usefulness` measures it).
    """
    classes = workshop.n_classes
    if len(test.classes) != classes or len(data.classes) != classes:
        raise UserError(f"--dataset: expected {classes} classes as the robust network has, got {len(data.classes)}")
    train, real = features_of(workshop.features, data), features_of(workshop.features, test)
    weight, bias = fit_linear(train, data.labels, classes)
    right = (real.double() @ weight.T + bias).argmax(1) == test.labels
    return float(right.double().mean())


def fit_linear(features: Tensor, y: Tensor, classes: int, *, penalty: float = 1e-4) -> tuple[Tensor, Tensor]:
    """Weights (K, F) and bias (K,), float64, of multinomial logistic regression on features (N, F).

    The features are first brought to mean 0 and variance 1. The mean cross-entropy plus `penalty` / 2 times the
    squared weights is convex and has one minimum: L-BFGS finds it, and nothing is drawn.
    """
    x = features.double()
    mean, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > 1e-9 * spread.max().clamp_min(1e-300), spread, 1.0)
    scaled = (x - mean) / spread
    weight = torch.zeros((classes, x.shape[1]), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-7, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        search.zero_grad()
        value = cross_entropy(scaled @ weight.T + bias, y) + 0.5 * penalty * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        search.step(loss)  # type: ignore[no-untyped-call]
    found = weight.detach() / spread
    return found, bias.detach() - found @ mean
