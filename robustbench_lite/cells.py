"""What a network says under each attempt of an attack whose attempts are each of interest by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .attack import Attack, Batch, ball_of
from .network import Network, Noise, exact_float32, frozen, placed, seed_torch
from .perturbation import make_attack
from .query import Query
from .streams import Stream, content_hashes
from .threat import Threat

if TYPE_CHECKING:
    import pandas as pd

    from .plan import Plan

Block = tuple[Tensor, Tensor, Tensor]


def predictions_by_cell(
    module: nn.Module,
    attack: Attack,
    blocks: Iterable[Block],
    *,
    seed: int = 0,
    device: str = "cpu",
    votes: int = 1,
    rejects: bool = False,
    hard_votes: bool = False,
    progress: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """One row for each image and attempt: index, label, kind, level, prediction.

    module: the network with its defenses. blocks: (index, x, y), a batch of images each. Every image is looked at under
    every attempt, also one that the network gets wrong as it is. The images are those of a run with this seed.
    rejects, hard_votes: of the network, as of `Network`.
    """
    import pandas as pd

    frames = []
    with (
        torch.inference_mode(False),
        exact_float32(),
        placed(module, device),
        frozen(module),
        torch.random.fork_rng([torch.device(device)] if torch.device(device).type == "cuda" else []),
        torch.no_grad(),
    ):
        seed_torch(seed, device)
        network = Network(module, device=device, rejects=rejects, hard_votes=hard_votes)
        for index, x, y in blocks:
            stream = Stream.of(content_hashes(x), seed=seed, device=device)
            x, y = x.to(device), y.to(device)
            noise = Noise(stream, torch.zeros_like(y))
            for number, (kind, level) in enumerate(attack.cells):
                changed = _candidate(network, attack, stream, x, y, number)
                said = network.logits(changed, noise, draws=votes).argmax(1).cpu()
                columns = {"index": index.cpu(), "label": y.cpu(), "prediction": said}
                frame = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
                frames.append(frame.assign(kind=kind, level=level))
            if progress:
                progress(len(y))
    return pd.concat(frames, ignore_index=True)[["index", "label", "kind", "level", "prediction"]]


def _candidate(network: Network, attack: Attack, stream: Stream, x: Tensor, y: Tensor, number: int) -> Tensor:
    """The image of one attempt, with the random numbers that the engine would give it."""
    attempt, zero = torch.full_like(y, number), torch.zeros_like(y)
    own = stream.child(f"attack {attack.name}").child(attempt)
    batch = Batch(ball_of(attack, Threat("linf", 1.0), x), y, None, zero, own, attempt)
    asker = f"attack {attack.name}"
    query = Query(
        network,
        batch,
        access=attack.access,
        asker=asker,
        noise=stream,
        forwards=zero,
        low=torch.zeros_like(y, dtype=torch.bool),
        watch=False,
    )
    return batch.ball.project(attack.start(query, batch.handed()).candidate)


def accuracy_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Accuracy by kind (rows, in their order) and level (columns, sorted)."""
    right = frame.assign(right=frame.prediction == frame.label)
    table = right.pivot_table(index="kind", columns="level", values="right", aggfunc="mean", sort=False)
    return table[sorted(table.columns)]


def accuracy_by_cell(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attack: str | Attack = "corruptions",
    attack_options: dict[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 256,
) -> pd.DataFrame:
    """Accuracy under each corruption (rows) and severity (columns), over all images.

    x: (N, C, H, W) float32 in [0, 1]; y: (N,) int64. The mean of all cells is one minus the mean corruption error,
    without the division by another network's that the authors add.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    >>> x, y = torch.rand(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    >>> table = accuracy_by_cell(net, x, y, attack_options={"kinds": "fog,contrast", "severities": "1,5"})
    >>> list(table.index), list(table.columns)
    (['fog', 'contrast'], ['1', '5'])
    """
    made = make_attack(attack, attack_options, Threat("linf", 1.0))
    first = next(model.parameters(), None)
    index = torch.arange(len(x))
    blocks = zip(index.split(batch_size), x.cpu().split(batch_size), y.cpu().split(batch_size), strict=True)  # type: ignore[no-untyped-call]
    device = "cpu" if first is None else str(first.device)
    return accuracy_table(predictions_by_cell(model, made, blocks, seed=seed, device=device))


def of_plan(plan: Plan, progress: Callable[[int], None] | None = None) -> pd.DataFrame:
    """The predictions of a plan's network on a plan's images, as `predictions_by_cell`."""
    return predictions_by_cell(
        plan.defended(),
        plan.attack,
        plan.data.blocks(plan.order, plan.batch_size),
        seed=plan.seed,
        device=plan.device,
        votes=plan.draws[1],
        rejects=plan.rejects,
        hard_votes=plan.voters is not None,
        progress=progress,
    )


def write_cells(leaderboard: Path, run: str, frame: pd.DataFrame) -> Path:
    """The predictions as `cells/RUN.parquet` in a leaderboard folder."""
    from .records.files import write_in_board

    return write_in_board(leaderboard / "cells" / f"{run}.parquet", lambda file: frame.to_parquet(file, index=False))


def summary(table: pd.DataFrame) -> dict[str, Any]:
    """The table as plain JSON, its mean, and the worst of its cells."""
    cells = {str(kind): {str(level): float(v) for level, v in row.items()} for kind, row in table.iterrows()}
    every = [(value, kind, level) for kind, row in cells.items() for level, value in row.items()]
    worst = min(every)
    return {
        "cells": cells,
        "mean_cell_accuracy": sum(value for value, *_ in every) / len(every),
        "worst_cell": {"kind": worst[1], "level": worst[2], "accuracy": worst[0]},
    }
