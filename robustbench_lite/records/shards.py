"""Shards: parts of one run, made anywhere, put together when all are there."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import RecordError
from ..files import sync
from ..reliability import joined
from ..row_checks import Rows, check_rows
from .check import check_run
from .run import Run, base_name, differing_verdicts, read_run, seal, settle
from .specification import AttackOutcome, ChecksRecord, Specification
from .verdict import has_checks


def run_files(directory: Path) -> list[Path]:
    """The Parquet files among the runs of a leaderboard folder, in the order of their names."""
    return sorted(p for p in (Path(directory) / "runs").glob("*.parquet") if not p.name.startswith("."))


def is_shard(path: Path) -> bool:
    """Whether a file's name is that of a shard."""
    return base_name(path) + ".parquet" != path.name


def sound_run(path: Path) -> Run:
    """The run in a file, read and checked. Raises RecordError that names the file and its first faults."""
    run = read_run(path)
    faults = check_run(run)
    if faults:
        more = f" (and {len(faults) - 2} more)" if len(faults) > 2 else ""
        raise RecordError(f"{path}: does not prove what it says: {'; '.join(faults[:2])}{more}")
    return run


def shard_groups(directory: Path) -> tuple[dict[tuple[str, int], dict[int, Run]], list[str]]:
    """The sound shards by (name of the run, N), then by I; and the faults of the others."""
    groups: dict[tuple[str, int], dict[int, Run]] = defaultdict(dict)
    problems = []
    for path in filter(is_shard, run_files(directory)):
        try:
            run = sound_run(path)
        except RecordError as error:
            problems.append(str(error))
            continue
        assert run.specification.shard is not None
        number, count = run.specification.shard
        groups[base_name(path), count][number] = run
    return dict(groups), problems


def incomplete(directory: Path) -> list[str]:
    """One line for each run whose shards are not all there and sound."""
    return [line for (name, count), shards in shard_groups(directory)[0].items() if (line := _gap(name, count, shards))]


def _gap(name: str, count: int, shards: dict[int, Run]) -> str | None:
    missing = [str(i) for i in range(1, count + 1) if i not in shards]
    failed = [str(i) for i, run in sorted(shards.items()) if run.specification.status == "failed"]
    parts = [f"{word} {', '.join(numbers)}" for word, numbers in (("missing", missing), ("failed", failed)) if numbers]
    return f"{name}: incomplete, of {count} shards {'; '.join(parts)}" if parts else None


def assemble(directory: Path) -> tuple[list[Path], list[str]]:
    """Make whole runs of the shards in a leaderboard folder; returns their files, and what stood in the way.

    Shards are removed only after the whole lies on disk and was read back sound, so a kill at any moment
    loses nothing. Where a shard failed the whole is written as failed and the shards stay, so that a
    repeated shard can mend it. A run with a shard missing is reported and nothing is written.
    """
    groups, problems = shard_groups(directory)
    made = []
    for (name, count), shards in sorted(groups.items()):
        left = _drop_known(directory, name, shards)
        if not left:
            continue
        line = _gap(name, count, left)
        if line:
            problems.append(line)
        if len(left) < count:
            continue
        try:
            whole = join_shards([left[i] for i in range(1, count + 1)])
        except RecordError as error:
            problems.append(f"{name}: {error}")
            continue
        path, _ = settle(directory, whole)
        sound_run(path)
        made.append(path)
        if whole.specification.status == "complete":
            _remove(shard.path for shard in left.values())
    return made, problems


def _drop_known(directory: Path, name: str, shards: dict[int, Run]) -> dict[int, Run]:
    """Remove the shards whose every verdict a sound whole on disk has already, with checks; return the others."""
    wholes = [path for path in run_files(directory) if path.name.startswith(name) and not is_shard(path)]
    known: set[int] = set()
    for path in wholes:
        try:
            whole = sound_run(path)
        except RecordError:
            continue
        if whole.specification.status == "complete":
            checked = has_checks(whole)
            known |= {
                number
                for number, shard in shards.items()
                if is_part(shard, whole) and (checked or not has_checks(shard))
            }
    _remove(shards[number].path for number in known)
    return {number: shard for number, shard in shards.items() if number not in known}


def is_part(shard: Run, whole: Run) -> bool:
    """Whether the whole holds every row of the shard with the same verdict."""
    mask = pc.is_in(whole.table["index"], value_set=shard.table["index"].combine_chunks())
    return differing_verdicts(shard, Run(whole.specification, whole.table.filter(mask)))[0] == 0


def _remove(paths: Iterable[Path | None]) -> None:
    folders = set()
    for path in paths:
        assert path is not None
        path.unlink(missing_ok=True)
        folders.add(path.parent)
    for folder in folders:
        sync(folder)


def join_shards(shards: list[Run]) -> Run:
    """The whole run of all its shards, in the order 1 to N: failed where one failed, sound otherwise.

    Times and calls are summed, warnings united, the earliest start kept. Saved examples stay with the shards. What an
    attack learned is the same in every shard, so the whole says the passes of learning it once (`fit_...`).
    Raises RecordError where the shards are not of one run or do not fit together.
    """
    parts = [shard.specification for shard in shards]
    first = parts[0]
    if any(part.identity() != first.identity() for part in parts):
        raise RecordError("shards of different runs under one name")
    calls: Counter[str] = Counter()
    for part in parts:
        calls.update({name: count for name, count in part.calls.items() if not name.startswith("fit_")})
    for name in _unique(name for part in parts for name in part.calls if name.startswith("fit_")):
        calls[name] = max(part.calls.get(name, 0) for part in parts)
    failed = any(part.status == "failed" for part in parts)
    table = pa.concat_tables([shard.table for shard in shards])
    found = check_rows(Rows.of(table, classes=first.dataset.classes, target=first.target)) if table.num_rows else []
    advice = [*(finding.advice for finding in found), *(part.next_step for part in parts)]
    specification = dataclasses.replace(
        first,
        status="failed" if failed else "complete",
        shard=None,
        warnings=tuple(
            _unique([*(w for part in parts for w in part.warnings), *(f.text for f in found), *_mixed(parts)])
        ),
        verdict=joined((part.verdict for part in parts), found),
        next_step=next(iter(_unique(advice)), ""),
        checks=_checks(parts),
        device=" + ".join(_unique(part.device for part in parts)),
        times=dataclasses.replace(
            first.times,
            started=min(part.times.started for part in parts),
            seconds=sum(part.times.seconds for part in parts),
        ),
        calls=dict(calls),
        examples=None,
        by_attack=tuple(map(_joined, zip(*(part.by_attack for part in parts), strict=True))),
    )
    whole = seal(specification, table)
    faults = check_run(whole)
    if faults:
        raise RecordError(f"shards do not fit together: {'; '.join(faults[:2])}")
    return whole


def _checks(parts: list[Specification]) -> ChecksRecord | None:
    """The checks that ran in every part; None where one does not know."""
    each = [part.checks for part in parts if part.checks is not None]
    if len(each) < len(parts):
        return None
    return ChecksRecord(
        asked=all(checks.asked for checks in each),
        before=tuple(name for name in each[0].before if all(name in checks.before for checks in each)),
        # A part in which no image survived has nothing for other attacks to be tried on.
        after=tuple(_unique(name for checks in each for name in checks.after)),
        images=sum(checks.images for checks in each),
    )


def _joined(parts: Sequence[AttackOutcome]) -> AttackOutcome:
    """What one of several attacks did in all shards."""
    names = ("images", "successes", "forwards", "backwards")
    return dataclasses.replace(parts[0], **{name: sum(getattr(part, name) for part in parts) for name in names})


def _mixed(parts: list[Specification]) -> list[str]:
    circumstances: dict[str, Callable[[Specification], object]] = {
        "versions of robustbench-lite": lambda part: part.version,
        "versions of torch": lambda part: part.environment.torch,
        "git commits": lambda part: part.environment.git_commit,
    }
    return [
        f"shards ran on different {name}: {', '.join(found)}"
        for name, read in circumstances.items()
        if len(found := _unique(str(read(part)) for part in parts)) > 1
    ]


def _unique(items: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(item for item in items if item))
