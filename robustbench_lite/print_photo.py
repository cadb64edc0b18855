"""Whether adversarial images survive what a print and a photograph of it do to them: the destruction rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import UserError
from .filters import grid, jpeg, sampled, smoothed
from .network import Network, Noise, exact_float32, frozen, placed
from .streams import Stream, content_hashes

if TYPE_CHECKING:
    import pandas as pd

Transformation = Callable[[Tensor, Stream], Tensor]


def brightness(x: Tensor, more: float) -> Tensor:
    """Every pixel raised, or lowered."""
    return (x + more).clamp(0, 1)


def contrast(x: Tensor, factor: float) -> Tensor:
    """Differences from mid grey enlarged, or made smaller."""
    return (0.5 + factor * (x - 0.5)).clamp(0, 1)


def blur(x: Tensor, sigma: float) -> Tensor:
    """Gaussian, sigma in pixels of an image of side 32, growing with the shorter side."""
    return smoothed(x, sigma * min(x.shape[-2:]) / 32)


def noise(x: Tensor, sigma: float, stream: Stream) -> Tensor:
    """Gaussian."""
    return (x + sigma * stream.child("noise").normal(x.shape[1:])).clamp(0, 1)


def perspective(x: Tensor, share: float, stream: Stream) -> Tensor:
    """Seen askew: each corner moved inwards or outwards by up to a share of the side; the edge is repeated outside."""
    height, width = x.shape[-2:]
    sides = torch.tensor([width - 1.0, height - 1.0], dtype=torch.float64, device=x.device)
    corners = torch.tensor([[0.0, 0], [1, 0], [1, 1], [0, 1]], dtype=torch.float64, device=x.device) * sides
    drawn = 2 * stream.child("corners").uniform((4, 2)).double() - 1
    there = corners + share * drawn * sides
    # Eight equations for the map of corners to where they are seen, u = (a x + b y + c) / (g x + h y + 1), alike v.
    one, nil = torch.ones_like(there[..., 0]), torch.zeros_like(there[..., 0])
    px, py = (corners[:, k].expand(len(x), 4) for k in (0, 1))
    first = torch.stack([px, py, one, nil, nil, nil, -there[..., 0] * px, -there[..., 0] * py], 2)
    second = torch.stack([nil, nil, nil, px, py, one, -there[..., 1] * px, -there[..., 1] * py], 2)
    known = torch.cat([there[..., 0], there[..., 1]], 1)
    a, b, c, d, e, f, g, h = (
        v.reshape(-1, 1, 1) for v in torch.linalg.solve(torch.cat([first, second], 1), known).unbind(1)
    )
    rows, columns = grid(x)
    depth = g * columns + h * rows + 1
    return sampled(x, (d * columns + e * rows + f) / depth, (a * columns + b * rows + c) / depth)


def photo(x: Tensor, stream: Stream) -> Tensor:
    """A print photographed: perspective, blur, light, noise and JPEG, each mild."""
    light = 0.9 + 0.2 * stream.child("light").uniform((1, 1, 1))
    x = blur(perspective(x, 0.05, stream), 0.5) * light
    return jpeg(noise(x.clamp(0, 1), 0.02, stream), 75)


TRANSFORMATIONS: dict[str, Transformation] = {
    "brightness -0.1": lambda x, _: brightness(x, -0.1),
    "brightness +0.1": lambda x, _: brightness(x, 0.1),
    "contrast x 0.7": lambda x, _: contrast(x, 0.7),
    "contrast x 1.3": lambda x, _: contrast(x, 1.3),
    "blur 0.5": lambda x, _: blur(x, 0.5),
    "blur 1.0": lambda x, _: blur(x, 1.0),
    "noise 0.03": lambda x, stream: noise(x, 0.03, stream),
    "noise 0.08": lambda x, stream: noise(x, 0.08, stream),
    "jpeg 90": lambda x, _: jpeg(x, 90),
    "jpeg 50": lambda x, _: jpeg(x, 50),
    "perspective 5 %": lambda x, stream: perspective(x, 0.05, stream),
    "perspective 10 %": lambda x, stream: perspective(x, 0.10, stream),
    "photo": photo,
}


def destruction_rate(
    model: nn.Module,
    x: Tensor,
    adversarial: Tensor,
    y: Tensor,
    *,
    seed: int = 0,
    batch_size: int = 256,
    device: str | None = None,
    votes: int = 1,
    rejects: bool = False,
    hard_votes: bool = False,
) -> pd.DataFrame:
    """Which share of adversarial images ceases to fool once transformed (Kurakin et al. 2016, arXiv:1607.02533).

    rejects, hard_votes: of the network, as of `Network`; an image that is turned away does not fool.
    x, adversarial: (N, C, H, W) in [0, 1], clean images and what an attack made of them; y: (N,) int64. A row for each
    of TRANSFORMATIONS: `fooled`, how many adversarial images are classified wrong whose clean image is classified
    right; `destroyed`, the share of those that is classified right once transformed (eq. 1), NaN where there are none;
    `clean`, the share of the clean images classified right that still is once transformed: where this is low the
    transformation destroys more than the attack. Strengths are ours, in the ranges of the paper's figure 5; perspective
    and photo stand for the paper's print and photograph.
    Raises UserError for shapes that do not fit.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    >>> x = torch.rand(4, 3, 8, 8)
    >>> list(destruction_rate(net, x, 1 - x, torch.zeros(4, dtype=torch.int64)).columns)
    ['fooled', 'destroyed', 'clean']
    """
    import pandas as pd

    if x.ndim != 4 or adversarial.shape != x.shape or y.shape != x.shape[:1]:
        raise UserError(
            f"adversarial: expected images {tuple(x.shape)} like x and labels ({len(x)},), "
            f"got {tuple(adversarial.shape)} and {tuple(y.shape)}"
        )
    first = next(model.parameters(), None)
    device = device or ("cpu" if first is None else str(first.device))
    names = ["as it is", *TRANSFORMATIONS]
    right: dict[str, list[Tensor]] = {f"{which} {name}": [] for which in ("clean", "moved") for name in names}
    with torch.inference_mode(False), exact_float32(), placed(model, device), frozen(model), torch.no_grad():
        network = Network(model, device=device, rejects=rejects, hard_votes=hard_votes)
        for start in range(0, len(x), batch_size):
            part = slice(start, start + batch_size)
            labels = y[part].to(device)
            base = Stream.of(content_hashes(x[part]), seed=seed, device=device)
            draw = Noise(base, torch.zeros_like(labels))
            for which, images in (("clean", x[part].to(device)), ("moved", adversarial[part].to(device))):
                for name in names:
                    stream = base.child(f"print-photo {name}")
                    shown = images if name == "as it is" else TRANSFORMATIONS[name](images, stream)
                    said = network.logits(shown.to(torch.float32), draw, draws=votes).argmax(1)
                    # What is turned away does not fool; of the clean images it is not right either.
                    unfooled = said == (network.n_classes or 0) if rejects and which == "moved" else said == labels
                    right[f"{which} {name}"].append(((said == labels) | unfooled).cpu())
    told = {name: torch.cat(parts) if parts else torch.empty(0, dtype=torch.bool) for name, parts in right.items()}
    clean = told["clean as it is"]
    fooled = clean & ~told["moved as it is"]
    rows = {
        name: (int(fooled.sum()), _share(told[f"moved {name}"][fooled]), _share(told[f"clean {name}"][clean]))
        for name in TRANSFORMATIONS
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["fooled", "destroyed", "clean"])


def _share(which: Tensor) -> float:
    return float(which.double().mean()) if len(which) else math.nan
