"""Who fools whom: the matrix of networks that are attacked and networks that are judged, its file and its picture."""

from __future__ import annotations

import datetime
import json
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from .attack import Attack
from .errors import RecordError, UserError
from .files import check_output, write_whole
from .given import device_of, given_fit_data, given_inputs, given_model
from .plan import default_norm, make_threat
from .records.summary import wilson
from .transfer_plan import TransferPlan, check_names
from .transfer_rows import COLUMNS
from .transfer_run import run_rows

if TYPE_CHECKING:
    import pandas as pd

ARGUMENT = "--out"
METADATA_KEY = b"robustbench_lite.transfer"


@dataclass(frozen=True, eq=False)
class TransferMatrix:
    """Who fools whom; every number follows from `table`.

    table: a row for each surrogate (the networks in their order, then `noise`), each network judged (`target`) and each
    image. `correct`: both networks get the image right as it is (for noise: the judged one does); only these count.
    `success`: the judged network gets the surrogate's image of it wrong, in float32, inside ball and box. `restart`:
    the first whose image fooled, else the last. `adversarial_prediction`, `distance` (in the threat's norm) and
    `adversarial_hash` (SHA-256 of its float32 bytes) are of that image. The last four are null where not `correct`.
    specification: what was computed on what, as plain JSON.
    """

    table: pd.DataFrame = field(repr=False)
    specification: dict[str, Any] = field(repr=False)

    @property
    def cells(self) -> pd.DataFrame:
        """A row for each cell: surrogate, target, n, fooled, share, low, high; NaN where no image counts.

        n: the images that count. low, high: the 95 % interval of the share (Wilson 1927).
        """
        import pandas as pd

        grouped = self.table.assign(n=self.table.correct, fooled=self.table.success & self.table.correct)
        counts = grouped.groupby(["surrogate", "target"], sort=False)[["n", "fooled"]].sum().reset_index()
        rows = zip(counts.fooled.tolist(), counts.n.tolist(), strict=True)
        shares = [(k / n, *wilson(k, n)) if n else (math.nan,) * 3 for k, n in rows]
        return pd.concat([counts, pd.DataFrame(shares, columns=["share", "low", "high"])], axis=1)

    @property
    def matrix(self) -> pd.DataFrame:
        """The shares: rows are the surrogates and `noise`, columns the networks judged."""
        cells = self.cells
        wide = cells.pivot(index="surrogate", columns="target", values="share")
        wide = wide.loc[list(cells.surrogate.unique()), list(cells.target.unique())]
        return wide.rename_axis(index=None, columns=None)

    @property
    def clean_accuracy(self) -> dict[str, float]:
        """The share of all images that each network gets right as they are."""
        right = self.table.target_prediction == self.table.label
        shares = right.groupby(self.table.target, sort=False).mean()
        return {str(name): float(share) for name, share in shares.items()}

    def summary(self) -> dict[str, Any]:
        """The numbers as plain JSON; null where no image counts."""
        said, matrix = self.specification, dict[str, dict[str, dict[str, Any]]]()
        for cell in self.cells.to_dict("records"):
            numbers = {name: None if math.isnan(cell[name]) else cell[name] for name in ("share", "low", "high")}
            counts = {name: int(cell[name]) for name in ("fooled", "n")}
            matrix.setdefault(str(cell["surrogate"]), {})[str(cell["target"])] = {**numbers, **counts}
        return {
            "models": [model["name"] for model in said["models"]],
            "dataset": said["dataset"]["name"],
            "n": said["dataset"]["samples"],
            "attack": said["attack"]["name"],
            "attack_options": said["attack"]["options"],
            "norm": said["threat"]["norm"],
            "eps": said["threat"]["eps"],
            "seed": said["seed"],
            "clean_accuracy": self.clean_accuracy,
            "matrix": matrix,
            "seconds": said["times"]["seconds"],
            "warnings": said["warnings"],
        }

    def save(self, path: Path | str) -> None:
        """Write the table as Parquet, whole or not at all; its metadata holds the specification as JSON.

        The key is `robustbench_lite.transfer`. Raises UserError for a path that cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        check_output(Path(path), argument=ARGUMENT, suffix=".parquet")
        table = pa.Table.from_pandas(self.table, preserve_index=False)
        said = json.dumps(self.specification, allow_nan=False).encode()
        table = table.replace_schema_metadata({**table.schema.metadata, METADATA_KEY: said})
        try:
            write_whole(Path(path), lambda file: pq.write_table(table, file, compression="zstd"))
        except UserError as error:
            raise UserError(f"{ARGUMENT}: {error}") from error

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """What `save` wrote. Raises RecordError, in one line that names the file, for anything else."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with Path(path).open("rb") as source:
                found = pq.read_table(source)
            said = json.loads((found.schema.metadata or {})[METADATA_KEY])
            return cls(found.to_pandas()[list(COLUMNS)].astype(COLUMNS), said)
        except KeyError:
            raise RecordError(f"{path}: a Parquet file, but no transfer matrix of robustbench-lite") from None
        except FileNotFoundError:
            raise RecordError(f"{path}: no such file") from None
        except (pa.ArrowException, OSError, ValueError, TypeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise RecordError(f"{path}: corrupt, truncated or no Parquet file ({reason[:120]})") from None


def transfer_matrix(
    models: Mapping[str, nn.Module],
    x: Tensor,
    y: Tensor,
    *,
    attack: str | Attack = "pgd",
    norm: str | None = None,
    eps: float | str | None = None,
    attack_options: Mapping[str, Any] | None = None,
    seed: int = 0,
    batch_size: int = 256,
    device: str | None = None,
    deterministic: bool = False,
    fit_data: tuple[Tensor, Tensor] | None = None,
    binary: bool = False,
    progress: Callable[[int], None] | None = None,
) -> TransferMatrix:
    """Which networks are fooled by the adversarial images of which others (Papernot et al. 2016, arXiv:1605.07277).

    models: networks by name, pixels (N, C, H, W) in [0, 1] to logits (N, K), of one K. x: (N, C, H, W) float32 in
    [0, 1]. y: (N,) int64. attack: one of fixed eps within a norm; every step is taken. norm, eps, attack_options,
    seed, deterministic, fit_data, binary: as for rbl.evaluate. device: default that of the first network.

    Which images count: in cell (A, B) those that A and B both get right as they are; the cell is the share of them
    whose image by A makes B wrong. With several restarts one image that fools is enough. On the same images it is the
    success of rbl.evaluate(B, attack="transfer:pgd", surrogates=[A]). The diagonal is the network itself, every step
    taken. In the row `noise`, one uniform point of the ball for all networks (the attack `noise`), those count that B
    gets right; a cell no higher than that shows no transfer.

    The images of A are made once, of what A gets right, and judged on all: M attacks and M * M forward passes an image
    and restart. progress: told how many images more were attacked, of N for each network.
    The networks, the inputs and the global random state are left as they were found.
    Raises UserError for arguments that do not fit, in one line that says what was expected.

    >>> nets = {name: nn.Sequential(nn.Flatten(), nn.Linear(4, 2)) for name in ("a", "b")}
    >>> found = transfer_matrix(nets, torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64), eps=0.5)
    >>> found.matrix.shape, list(found.matrix.index)
    ((3, 2), ['a', 'b', 'noise'])
    """
    check_names(models)
    for name, model in models.items():
        if not isinstance(model, nn.Module):
            raise UserError(f"models: expected a torch.nn.Module for {name}, got {type(model).__name__}")
    (own, first), *others = models.items()
    one, data = given_inputs(first, x, y, name=own, binary=binary)
    given, few = {own: one}, data.images(torch.arange(min(16, len(data))))
    for name, model in others:
        given[name] = given_model(model, name, x=few, binary=binary, argument=name)
        for note in given[name].notes:
            warnings.warn(f"{name}: {note}", stacklevel=2)
    plan = TransferPlan(
        models=given,
        data=data,
        index=torch.arange(len(data)),
        attack=attack,
        threat=make_threat(norm or default_norm(attack), eps),
        attack_options=dict(attack_options or {}),
        seed=seed,
        batch_size=batch_size,
        device=device or device_of(first),
        deterministic=deterministic,
        fit=None if fit_data is None else given_fit_data(*fit_data),
    )
    found = run_transfer(plan, progress=progress)
    for text in found.specification["warnings"]:
        warnings.warn(text, stacklevel=2)
    return found


def run_transfer(
    plan: TransferPlan,
    *,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    warn: Callable[[str], None] | None = None,
) -> TransferMatrix:
    """Carry a plan out; progress, stop and warn as in `run_rows`."""
    started, began = datetime.datetime.now(datetime.UTC), time.monotonic()
    table, specification = run_rows(plan, progress=progress, stop=stop, warn=warn)
    times = {
        "started": started.isoformat(timespec="seconds").replace("+00:00", "Z"),
        "seconds": round(time.monotonic() - began, 3),
    }
    return TransferMatrix(table, {**specification, "times": times})
