"""Fast adversarial training (Wong et al. 2020, algorithm 3) as a plain loop, and as a script of its own.

`python -m benchmarks.plain FOLDER EPOCHS OUT`: FOLDER as torchvision's MNIST has it; the weights go to OUT.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

EPS, STEP, LR, BATCH = 0.3, 0.375, 5e-3, 100

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]


def small_cnn() -> nn.Module:
    """The network of the paper's MNIST experiments, which is `small-cnn`."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10)),
    )


def from_memory(x: Tensor, y: Tensor, seed: int) -> Batches:
    """Batches by indexing: the least that a loop can do."""
    generator = torch.Generator().manual_seed(seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(x), generator=generator)
        for rows in order[: len(x) // BATCH * BATCH].reshape(-1, BATCH):
            yield x[rows], y[rows]

    return batches


def from_loader(x: Tensor, y: Tensor, seed: int) -> Batches:
    """Batches by a DataLoader, as most loops have them."""
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(TensorDataset(x, y), BATCH, shuffle=True, generator=generator, drop_last=True)
    return lambda: iter(loader)


def train(model: nn.Module, batches: Batches, steps: int, epochs: int) -> nn.Module:
    """One random start, one step, Adam, a rate that rises and falls; `steps` batches an epoch."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for epoch in range(epochs):
        for step, (images, labels) in enumerate(batches()):
            done = (epoch + (step + 1) / steps) / epochs
            for group in optimizer.param_groups:
                group["lr"] = LR * (done / 0.4 if done < 0.4 else (1 - done) / 0.6)
            delta = torch.zeros_like(images).uniform_(-EPS, EPS).requires_grad_()
            F.cross_entropy(model(images + delta), labels).backward()  # type: ignore[no-untyped-call]
            assert delta.grad is not None
            delta = (delta.detach() + STEP * delta.grad.sign()).clamp(-EPS, EPS)
            delta = torch.max(torch.min(1 - images, delta), 0 - images)
            loss = F.cross_entropy(model((images + delta).clamp(0, 1)), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return model.eval()


def main(folder: str, epochs: str, out: str) -> None:
    """The script."""
    from torchvision.datasets import MNIST

    data = MNIST(folder, train=True)
    x, y = data.data.unsqueeze(1) / 255.0, data.targets
    torch.manual_seed(0)
    model = train(small_cnn(), from_memory(x, y, 0), len(x) // BATCH, int(epochs))
    torch.save(model.state_dict(), out)


if __name__ == "__main__":
    main(*sys.argv[1:])
