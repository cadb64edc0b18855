"""The table of a sweep, from run files alone: a row for each network, defense and threat, a column for each attack."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ..records.files import write_in_board
from ..records.run import Run
from ..records.schema import METADATA_KEY
from ..records.shards import sound_run
from ..records.specification import Specification
from ..records.summary import summarize, wilson
from .marks import MARGIN, Evidence, marks
from .plan import ADAPTIVE

if TYPE_CHECKING:
    import pandas as pd

KEY = ["dataset", "n", "model", "defense", "defense_options", "norm", "eps"]
BESIDE = ["dataset", "n", "model", "norm", "eps"]  # what a row and the undefended one share


def runs_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """One row a run: the columns of a leaderboard, and what a sweep's table needs beside them.

    label: the attack with its options. adaptive: it is the one that a defense of the run states. portfolio: it is made
    of several. recipe_seed: of the training. chance: the share of the most frequent class. standing: per image, right
    and not fooled, by index.
    """
    import pandas as pd

    rows = []
    for run in runs:
        said = run.specification
        costs = said.costs
        names = ("training_seconds", "forward_ratio", "passes")
        table = run.table.select(["index", "label", "correct", "success"]).to_pylist()
        labels = collections.Counter(row["label"] for row in table)
        rows.append(
            {
                **summarize(run, run_id=run.path.stem if run.path else None),
                "label": " ".join(filter(None, (said.attack.name, said.attack_options))),
                "adaptive": is_adaptive(said),
                "portfolio": "parts" in said.attack.resolved,
                "recipe_seed": (said.model.recipe or {}).get("seed"),
                **{name: getattr(costs, name, None) for name in names},
                "chance": max(labels.values()) / len(table),
                "standing": {row["index"]: row["correct"] and not row["success"] for row in table},
            }
        )
    return pd.DataFrame(rows)


def is_adaptive(said: Specification) -> bool:
    """Whether the attack of a run is, with its options, the one that a defense of the run states to be made for it."""
    return any(
        stated["attack"] == said.attack.name
        and all(said.attack.resolved.get(name) == value for name, value in stated["options"].items())
        and set(said.attack.options) <= set(stated["options"])
        for defense in said.defenses
        if (stated := defense.adaptive)
    )


def tabulate(runs: Iterable[Run]) -> pd.DataFrame:
    """One row for each network, defense, data set, threat and attack; what is not of the attack is the same in all.

    attack: a label, or `adaptive` for the attack that the defense states. An attack that undefended networks face too,
    or defenses that do not state it, has its own rows as well. robust_accuracy: mean over seeds; robust_std: sample
    standard deviation (null for one seed); robust_min, robust_max; seeds; run_ids: the runs that it was made of.
    worst: share of images that withstand every attack, mean over seeds; worst_low, worst_high: its 95 % interval, as
    of n images however many seeds. clean_accuracy, clean_std; training_seconds, forward_ratio, passes: medians.
    mark: words of `marks`, with blanks between, empty where there is no undefended row beside it.
    """
    import pandas as pd

    frame = runs_frame(runs)
    if not len(frame):
        return pd.DataFrame()
    frame = frame[frame["status"] == "complete"]
    plain = set(frame.loc[~frame["adaptive"], "label"])
    rows: list[dict[str, Any]] = []
    for key, group in frame.groupby(KEY, sort=False, dropna=False):
        shared = {**dict(zip(KEY, key, strict=True)), **_whole(group)}
        attacks = [(label, part) for label, part in group.groupby("label", sort=False) if label in plain]
        own = group[group["adaptive"]]
        if len(own):
            attacks.append((ADAPTIVE, own.sort_values("robust_accuracy").groupby("seed", sort=False).head(1)))
        rows += [{**shared, "attack": label, **_of_attack(part)} for label, part in attacks]
    return _marked(pd.DataFrame(rows))


def _whole(group: pd.DataFrame) -> dict[str, Any]:
    """What the runs of a row say together."""
    import pandas as pd

    standing = {seed: pd.DataFrame(list(part["standing"])).all(axis=0).mean() for seed, part in group.groupby("seed")}
    n, worst = int(group["n"].iloc[0]), float(pd.Series(standing).mean())
    # A mean over seeds may lie between two counts: the wider interval holds both.
    low, high = wilson(math.floor(worst * n + 1e-9), n)[0], wilson(math.ceil(worst * n - 1e-9), n)[1]
    clean = group.groupby("seed")["clean_accuracy"].mean()
    plain = group[~group["adaptive"] & ~group["portfolio"]].groupby("label")["robust_accuracy"].mean()
    near = group.groupby("label").filter(lambda part: part["robust_accuracy"].mean() <= worst + MARGIN)
    sound = [bool((part["verdict"] == "reliable").all()) for _, part in near.groupby("label")]
    once = group.drop_duplicates("seed")
    return {
        "seeds": sorted(int(str(seed)) for seed in standing),
        "clean_accuracy": float(clean.mean()),
        "clean_std": _std(clean),
        "worst": worst,
        "worst_low": low,
        "worst_high": high,
        "plain": float(plain.min()) if len(plain) else None,
        "reliable": any(sound),
        "chance": float(group["chance"].max()),
        "training_seconds": _median(once["training_seconds"]),
        "forward_ratio": _median(group["forward_ratio"]),
        "passes": _median(group["passes"]),
    }


def _of_attack(part: pd.DataFrame) -> dict[str, Any]:
    robust = part["robust_accuracy"]
    return {
        "made_of": " / ".join(dict.fromkeys(part["label"])),
        "robust_accuracy": float(robust.mean()),
        "robust_std": _std(robust),
        "robust_min": float(robust.min()),
        "robust_max": float(robust.max()),
        "run_ids": list(part["run_id"]),
    }


def _std(values: pd.Series) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _median(values: pd.Series) -> float | None:
    known = values.dropna()
    return float(known.median()) if len(known) else None


def _marked(table: pd.DataFrame) -> pd.DataFrame:
    """With the marks, and the best worst case of a model, its images and a threat first."""
    bare = {
        (*(row[name] for name in BESIDE), tuple(row["seeds"])): _evidence(row)
        for row in table[table["defense"] == "none"].to_dict("records")
    }
    words = [
        "" if row["defense"] == "none" else " ".join(marks(_evidence(row), bare.get(_beside(row))))
        for row in table.to_dict("records")
    ]
    order = ["dataset", "n", "model", "norm", "eps", "worst", "clean_accuracy", "defense", "defense_options"]
    rising = [name not in ("worst", "clean_accuracy") for name in order]
    return table.assign(mark=words).sort_values(order, ascending=rising, kind="stable", ignore_index=True)


def _beside(row: dict[Any, Any]) -> tuple[Any, ...]:
    return (*(row[name] for name in BESIDE), tuple(row["seeds"]))


def _evidence(row: dict[Any, Any]) -> Evidence:
    plain = row["plain"]
    return Evidence(
        clean=row["clean_accuracy"],
        worst=row["worst"],
        low=row["worst_low"],
        high=row["worst_high"],
        plain=None if plain is None or plain != plain else plain,
        reliable=bool(row["reliable"]),
        chance=row["chance"],
    )


def write_table(folder: Path, name: str, files: Sequence[Path]) -> pd.DataFrame:
    """The table of these run files, written as NAME.parquet and NAME.md beside the leaderboard, whole or not at all."""
    from .shown import to_markdown

    # Two cells may be one run: an attack that a defense states, and the same among those of all.
    table = tabulate(sound_run(file) for file in dict.fromkeys(files))
    stored = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata({METADATA_KEY: b'{"sweep": 1}'})
    write_in_board(folder / f"{name}.parquet", lambda file: pq.write_table(stored, file, compression="zstd"))

    def write(file: BinaryIO) -> None:
        file.write(to_markdown(table).encode())

    write_in_board(folder / f"{name}.md", write)
    return table
