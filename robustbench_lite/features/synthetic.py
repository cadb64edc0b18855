"""Many features of 1 % correlation, one of 95 %: what each classifier is worth, in closed form and as measured."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import UserError

if TYPE_CHECKING:
    import pandas as pd

_CHUNK = 20_000_000  # numbers drawn at a time


@dataclass(frozen=True)
class Synthetic:
    """The distribution of Tsipras et al. 2019 (arXiv:1805.12152, section 2.1), eq. 3.

    y = +1 or -1, each with probability 1/2. x_0 = y with probability p, else -y. x_1 ... x_d, independent given y,
    are normal with mean eta y and variance 1.
    d: `features`, how many are weak. correlation: of each of them with y, in (0, 1); eta = c / sqrt(1 - c^2).
    p: in (1/2, 1). eps: of the linf adversary, default 2 eta, which turns each weak feature round. samples: drawn for
    learning, and as many for testing. Raises UserError for values out of range.
    """

    features: int = 60_000
    correlation: float = 0.01
    p: float = 0.95
    eps: float | None = None
    samples: int = 5000
    seed: int = 0

    def __post_init__(self) -> None:
        for name, right, expected in (
            ("features", self.features >= 1, "at least 1"),
            ("correlation", 0 < self.correlation < 1, "in (0, 1)"),
            ("p", 0.5 < self.p < 1, "in (0.5, 1)"),
            ("eps", self.eps is None or 0 <= self.eps < 1, "in [0, 1)"),
            ("samples", self.samples >= 10, "at least 10"),
        ):
            if not right:
                raise UserError(f"{name} must be {expected}, got {getattr(self, name)!r}")

    @property
    def eta(self) -> float:
        """The mean of a weak feature, at label 1."""
        return self.correlation / math.sqrt(1 - self.correlation**2)

    @property
    def reach(self) -> float:
        """The adversary's eps."""
        return 2 * self.eta if self.eps is None else self.eps


@dataclass(frozen=True)
class Drawn:
    """Samples: y (n,) of +1 and -1, x_0 (n,), the mean of the weak features (n,), and the first of them (n,).

    correlation: (d,), of each weak feature with y, as found.
    """

    y: Tensor
    strong: Tensor
    mean: Tensor
    first: Tensor
    correlation: Tensor


def draw(case: Synthetic, *, part: int = 0, progress: Callable[[int], None] | None = None) -> Drawn:
    """Samples of the distribution, every number of them drawn; part 0 to learn from, 1 to test on."""
    generator = torch.Generator().manual_seed((case.seed << 1) + part)
    n, d = case.samples, case.features
    y = torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1
    strong = torch.where(torch.rand(n, generator=generator) < case.p, y, -y)
    total, first = [], []
    product, square, plain = (torch.zeros(d, dtype=torch.float64) for _ in range(3))
    for rows in y.split(max(1, _CHUNK // d)):  # type: ignore[no-untyped-call]
        x = torch.randn((len(rows), d), generator=generator).add_(rows.float().unsqueeze(1), alpha=case.eta)
        total.append(x.double().mean(1))
        first.append(x[:, 0].double())
        product += (rows.float() @ x).double()
        square += x.square().sum(0).double()
        plain += x.sum(0).double()
        if progress is not None:
            progress(len(rows))
    centred = product / n - y.mean() * plain / n
    spread = (square / n - (plain / n).square()).clamp_min(1e-300).sqrt() * y.std(correction=0)
    return Drawn(y, strong, torch.cat(total), torch.cat(first), centred / spread)


def normal_cdf(z: float) -> float:
    """The share of a standard normal below z."""
    return 0.5 * math.erfc(-z / math.sqrt(2))


def closed_form(case: Synthetic, strong: float, weak: float) -> tuple[float, float]:
    """Accuracy and accuracy under the adversary of sign(a x_0 + b mean(x_1 ... x_d)), a >= 0 and b >= 0.

    x_0 is moved by eps towards -y, and so is each weak feature: given y x_0 = s, y times the score is normal with mean
    a (s - eps) + b (eta - eps) and standard deviation b / sqrt(d).
    """

    def share(eps: float) -> float:
        found = 0.0
        for sign, weight in ((1, case.p), (-1, 1 - case.p)):
            centre, spread = strong * (sign - eps) + weak * (case.eta - eps), weak / math.sqrt(case.features)
            found += weight * (normal_cdf(centre / spread) if spread > 0 else float(centre > 0))
        return found

    return share(0.0), share(case.reach)


def learn(case: Synthetic, drawn: Drawn, *, eps: float) -> tuple[float, float]:
    """Weights (a of x_0, b of the mean) of logistic regression under an linf adversary of size eps; 0 for none.

    min over a, b >= 0 of E[log(1 + exp(-(y (a x_0 + b mean) - eps (a + b))))]: for a linear score the worst
    perturbation is known, so that adversarial training is exact. The weak features have one weight, as symmetry asks.
    Convex in two numbers; a small penalty (1e-6) keeps it finite where the data are separable.
    """
    from scipy.optimize import minimize

    strong, weak = (drawn.y * drawn.strong - eps).numpy(), (drawn.y * drawn.mean - eps).numpy()
    # The mean varies little: in units of its own spread both weights are of one size.
    unit = 1 / math.sqrt(case.features)

    def loss(w: Any) -> tuple[float, Any]:
        import numpy as np

        margin = w[0] * strong + w[1] * weak / unit
        share = -np.exp(-np.logaddexp(0, margin))
        value = np.logaddexp(0, -margin).mean() + 0.5e-6 * float(w @ w)
        return value, np.array([(share * strong).mean(), (share * weak / unit).mean()]) + 1e-6 * w

    found = minimize(loss, [0.1, 0.1], jac=True, bounds=[(0, None), (0, None)], method="L-BFGS-B").x
    return float(found[0]), float(found[1] / unit)


def measure(case: Synthetic, drawn: Drawn, strong: float, weak: float) -> tuple[float, float]:
    """Accuracy and accuracy under the adversary of the same score, on samples; a tie counts as wrong."""
    margin = drawn.y * (strong * drawn.strong + weak * drawn.mean)
    return float((margin > 0).double().mean()), float((margin - case.reach * (strong + weak) > 0).double().mean())


def synthetic(case: Synthetic, *, progress: Callable[[int], None] | None = None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Each classifier's accuracy and robust accuracy as the closed form says and as measured, a row each; and notes.

    Rows: one weak feature; the mean of all; x_0 alone; what training learns; what adversarial training learns. Notes:
    the correlation of the weak features as stated and as found, and the bound of theorem 2.1 (Tsipras et al. 2019): a
    classifier of accuracy 1 - delta has at most p / (1 - p) delta under an adversary of eps >= 2 eta.
    """
    import pandas as pd

    train, test = (draw(case, part=part, progress=progress) for part in (0, 1))
    one = {
        "classifier": "one weak feature",
        "strong_weight": 0.0,
        "weak_weight": 1.0,
        "accuracy": normal_cdf(case.eta),
        "measured_accuracy": float((test.y * test.first > 0).double().mean()),
        "robust_accuracy": normal_cdf(case.eta - case.reach),
        "measured_robust_accuracy": float((test.y * test.first - case.reach > 0).double().mean()),
    }
    rows = [one]
    for name, weights in (
        ("mean of the weak features", (0.0, 1.0)),
        ("strong feature", (1.0, 0.0)),
        ("training", learn(case, train, eps=0.0)),
        ("adversarial training", learn(case, train, eps=case.reach)),
    ):
        stated, found = closed_form(case, *weights), measure(case, test, *weights)
        rows.append(
            {
                "classifier": name,
                "strong_weight": weights[0],
                "weak_weight": weights[1],
                "accuracy": stated[0],
                "measured_accuracy": found[0],
                "robust_accuracy": stated[1],
                "measured_robust_accuracy": found[1],
            }
        )
    frame = pd.DataFrame(rows)
    holds = case.reach >= 2 * case.eta
    frame["bound"] = [
        min(1.0, case.p / (1 - case.p) * (1 - a)) if holds else math.nan for a in frame["accuracy"].tolist()
    ]
    notes = {
        "correlation": case.correlation,
        "measured_correlation": float(test.correlation.mean()),
        "largest_correlation": float(test.correlation.abs().max()),
        "eta": case.eta,
        "eps": case.reach,
    }
    return frame, notes
