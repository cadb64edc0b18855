"""A result in words: the lines that `rbl evaluate` and `print(result)` say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .records.specification import threat_text

if TYPE_CHECKING:
    from .result import Result

NAME_WIDTH = 16  # of what stands before each value


def text(result: Result) -> str:
    """The headline and a line for each thing said, without colours."""
    row = result.summary()
    said = [*lines(result, row)]
    if row["run_file"] is not None:
        said.append(("run file", row["run_file"]))
    return "\n".join([headline(row), *(f"  {name:<{NAME_WIDTH}} {value}" for name, value in said), *by_attack(result)])


def by_attack(result: Result) -> Iterator[str]:
    """A table with a row for each of several attacks; nothing for one attack."""
    attacks = result.run.specification.attacks
    if not attacks or result.run.specification.status != "complete":
        return
    frame = result.by_attack
    names = [" ".join(filter(None, (name, options))) for name, options, _ in attacks]
    width = max(NAME_WIDTH, *map(len, names))
    heads = ("images", "successes", "surviving", "forwards", "backwards")
    yield f"  {'in turn':<{width}} " + "".join(f"{head:>11}" for head in heads)
    for name, row in zip(names, frame.to_dict("records"), strict=True):
        shown = (
            f"{row['images']:,}",
            f"{row['successes']:,}",
            f"{100 * row['surviving']:.1f} %",
            f"{row['forwards']:,.1f}",
            f"{row['backwards']:,.1f}",
        )
        yield f"  {name:<{width}} " + "".join(f"{cell:>11}" for cell in shown)
    yield "  each attack is given the images that survive those above it; passes are per image that it is given"


def headline(row: dict[str, Any]) -> str:
    """Which attack on which model and images; `row` is a summary."""
    aim = "" if row["target"] is None else f", target {row['target']}"
    images = f"{row['n']} image{'s' if row['n'] > 1 else ''}"
    return (
        f"{row['model']} on {row['dataset']}, defense {row['defense']}, "
        f"attack {row['attack']}{aim}, {threat_text(row['norm'], row['eps'])}, {images}"
    )


def lines(result: Result, row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What was found, as name and value; shares are as wide as the widest of them."""
    specification = result.run.specification
    if row["status"] == "complete":
        shares = [row["clean_accuracy"], row["robust_accuracy"]]
        if result.confident is not None:
            shares.append(result.confident)
        width = max(len(f"{100 * share:.1f}") for share in shares)
        clean, robust, *confident = (f"{100 * share:{width}.1f} %" for share in shares)
        yield "clean accuracy", clean
        count = len(specification.by_attack)
        worst = f", worst case of {count} attacks" if count else ""
        interval = f"(95 % interval {100 * row['robust_low']:.1f} to {100 * row['robust_high']:.1f})"
        yield "robust accuracy", f"{robust}  {interval}{worst}"
        if specification.rejects:
            moved = f"{100 * result.rejected:.1f} % of the images attacked, which are not fooled"
            yield "rejected", f"{100 * row['false_positive_rate']:.1f} % of the clean images, {moved}"
        if specification.attack.minimal:
            median, norm = row["median_distance"], specification.threat.norm
            yield "median distance", "half were never fooled" if median is None else f"{median:.4g} in {norm}"
        if confident:
            yield "over 50 % sure", f"{confident[0]}  of the images attacked"
    elif specification.shard is not None:
        part, parts = specification.shard
        share = f"{row['n']} of {specification.dataset.samples} images"
        yield "shard", f"{part} of {parts}, {share}; the accuracies come with the other shards (rbl leaderboard merge)"
    if result.fit_forwards:
        learned = f"{result.fit_forwards:,} forward and {result.fit_backwards:,} backward passes"
        yield "learning", f"{learned}, once, not among those below"
    if result.idle:
        why = "eps 0" if row["target"] is None else f"their class is the target {row['target']}"
        yield "not attackable", f"{100 * result.idle:.1f} % of the images, {why}; they count as robust"
    count = len(result.warnings)
    more = f", {count} warning{'s' if count > 1 else ''}" if count else ""
    yield "verdict", f"{specification.verdict}{more}"
    if specification.next_step:
        yield "next step", specification.next_step
    yield (
        "cost",
        f"{row['forwards'] / row['n']:.1f} forward and {row['backwards'] / row['n']:.1f} backward passes an image; "
        f"{row['seconds']:.1f} s",
    )
