"""What a defense is worth, in words, by a rule that is computed from its runs and those of the undefended network."""

from __future__ import annotations

from dataclasses import dataclass

# In shares of the images: what counts as a difference, and how far a plain attack may be from all attacks together.
MARGIN = 0.05
FLATTERED = 0.10

RULE = (
    "Compared with the undefended network of the same model, images, threat and seeds, by the worst case, which is the "
    "share of images that withstand every attack: "
    "helps: more than 5 points above it and above what one answer for all images gets, its 95 % interval apart from "
    "both; unclear: as much above, but not apart: too few images; "
    "fails: all else. "
    "flattered: the strongest plain attack (one that is neither made for the defense nor a portfolio) leaves more than "
    "10 points that all attacks together do not. "
    "costs: clean accuracy is more than 5 points below. "
    "unreliable: of the attacks within 5 points of the worst case, none was found reliable by the second look after it."
)


@dataclass(frozen=True)
class Evidence:
    """What is known of a row: shares of the images in [0, 1].

    clean: right without an attack. worst: right under every attack, with its 95 % interval low to high. plain: what
    the strongest plain attack leaves; None where there was none. reliable: whether an attack near the worst case
    was found reliable. chance: what the most frequent class as the answer for all images gets.
    """

    clean: float
    worst: float
    low: float
    high: float
    plain: float | None = None
    reliable: bool = True
    chance: float = 0.0


def marks(row: Evidence, undefended: Evidence | None) -> tuple[str, ...]:
    """The words for a defense; () for one that there is nothing to compare with.

    >>> bare = Evidence(0.99, 0.03, 0.01, 0.08)
    >>> marks(Evidence(0.98, 0.70, 0.60, 0.78, plain=0.72), bare)
    ('helps',)
    >>> marks(Evidence(0.90, 0.04, 0.02, 0.09, plain=0.60), bare)
    ('fails', 'flattered', 'costs')
    >>> marks(Evidence(0.10, 0.10, 0.05, 0.17, chance=0.10), bare)
    ('fails', 'costs')
    """
    if undefended is None:
        return ()
    if not _more(row.worst, max(undefended.worst, row.chance), MARGIN):
        words = ["fails"]
    else:
        words = ["helps" if row.low > max(undefended.high, row.chance) else "unclear"]
    if row.plain is not None and _more(row.plain, row.worst, FLATTERED):
        words.append("flattered")
    if _more(undefended.clean, row.clean, MARGIN):
        words.append("costs")
    if not row.reliable:
        words.append("unreliable")
    return tuple(words)


def _more(one: float, other: float, by: float) -> bool:
    """Whether one is above the other by more than this, but for rounding: exactly 5 points are not more than 5."""
    return one - other > by + 1e-9
