"""How much of what a constructed data set teaches may come from robust features that leaked into it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from ..data.dataset import Dataset
from ..errors import UserError
from ..network import Network, Noise, exact_float32
from ..streams import Stream
from .construction import Workshop

BLOCK = 1024
ITERATIONS = 500


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
    from scipy.optimize import minimize

    x = features.double()
    mean, spread = x.mean(0), x.std(0, correction=0)
    spread = torch.where(spread > 1e-9 * spread.max().clamp_min(1e-300), spread, 1.0)
    scaled = (x - mean) / spread
    size = classes * x.shape[1]
    share, own = scaled / len(x), one_hot(y, classes).double()

    def loss(flat: Any) -> tuple[float, Any]:
        weight, bias = torch.from_numpy(flat[:size]).reshape(classes, -1), torch.from_numpy(flat[size:])
        logits = scaled @ weight.T + bias
        value = cross_entropy(logits, y) + 0.5 * penalty * weight.square().sum()
        error = logits.softmax(1) - own
        slope = torch.cat([(error.T @ share + penalty * weight).flatten(), error.mean(0)])
        return float(value), slope.numpy()

    start = torch.zeros(size + classes, dtype=torch.float64).numpy()
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS, "gtol": 1e-7, "ftol": 0})
    flat = torch.from_numpy(best.x)
    weight, bias = flat[:size].reshape(classes, -1), flat[size:]
    found = weight / spread
    return found, bias - found @ mean
