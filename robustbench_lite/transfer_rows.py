"""The rows of a matrix of who fools whom: what each network makes of a block of images, as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from .network import Network, Noise
from .streams import Stream, content_hashes
from .transfer_plan import NOISE, TransferPlan

if TYPE_CHECKING:
    import pandas as pd


# The table, in order; the last four are null where an image does not count.
COLUMNS = {
    "surrogate": "string",
    "target": "string",
    "index": "int64",
    "content_hash": "string",
    "label": "int64",
    "surrogate_prediction": "Int64",
    "target_prediction": "int64",
    "correct": "bool",
    "success": "bool",
    "adversarial_prediction": "Int64",
    "restart": "Int64",
    "distance": "float64",
    "adversarial_hash": "string",
}


@dataclass
class Found:
    """What one network makes of one surrogate's images, over a block; -1 and NaN where an image does not count."""

    correct: Tensor
    success: Tensor
    prediction: Tensor
    restart: Tensor
    distance: Tensor
    hashes: list[str | None]

    @classmethod
    def of(cls, correct: Tensor) -> Self:
        """Nothing found yet."""
        none = torch.full(correct.shape, -1, device=correct.device)
        far = torch.full(correct.shape, float("nan"), dtype=torch.float64, device=correct.device)
        return cls(correct, torch.zeros_like(correct), none, none.clone(), far, [None] * len(correct))


@dataclass(frozen=True)
class Block:
    """Some images on the device, and what each network says of them as they are."""

    index: Tensor
    x: Tensor
    y: Tensor
    keys: Tensor
    hashes: list[str]
    predictions: Mapping[str, Tensor]

    @classmethod
    def of(cls, index: Tensor, x: Tensor, y: Tensor, plan: TransferPlan, networks: Mapping[str, Network]) -> Self:
        """The images at `index`, moved to the device of the plan and shown to each network."""
        hashes = content_hashes(x)
        stream = Stream.of(hashes, seed=plan.seed, device=plan.device)
        x, y = x.to(plan.device), y.to(plan.device)
        noise = Noise(stream, torch.zeros_like(y))
        said = {name: network.logits(x, noise).argmax(1) for name, network in networks.items()}
        return cls(index, x, y, stream.keys, hashes, said)

    def right(self, name: str) -> Tensor:
        """Which images a network gets right, (N,) bool; of the noise, which is none, all."""
        return torch.ones_like(self.y, dtype=torch.bool) if name == NOISE else self.predictions[name] == self.y

    def frame(self, surrogate: str, target: str, found: Found) -> pd.DataFrame:
        """The rows of one cell."""
        import pandas as pd

        def given(values: Tensor) -> Any:
            numbers = pd.Series(values.cpu().numpy(), dtype="Int64")
            return numbers.where(numbers >= 0)

        none = torch.full_like(self.y, -1)
        columns: dict[str, Any] = {
            "surrogate": surrogate,
            "target": target,
            "index": self.index.numpy(),
            "content_hash": self.hashes,
            "label": self.y.cpu().numpy(),
            "surrogate_prediction": given(self.predictions.get(surrogate, none)),
            "target_prediction": self.predictions[target].cpu().numpy(),
            "correct": found.correct.cpu().numpy(),
            "success": found.success.cpu().numpy(),
            "adversarial_prediction": given(found.prediction),
            "restart": given(found.restart),
            "distance": found.distance.cpu().numpy(),
            "adversarial_hash": found.hashes,
        }
        return pd.DataFrame(columns).astype(COLUMNS)
