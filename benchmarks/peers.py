"""Attack by attack: what each of ours leaves standing beside the same attack of a peer, and whether that is enough."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .measure import Measured, measure
from .rivals import Rivalry, rivals

ALLOWED = 0.01  # robust accuracy that ours may leave above a peer's
HEADS = (
    *(
        "attack",
        "norm",
        "network",
        "eps",
        "images",
        "peer",
        "ours",
        "the peer's",
        "points",
        "median, ours",
        "the peer's",
    ),
    *("calls / image, ours", "the peer's", "at most one point more"),
)
LEFT = ("norm", "network", "peer", "at most one point more")


@dataclass(frozen=True)
class Row:
    """One attack beside one peer's; `theirs` is None where the peer raised, and `failed` says what."""

    rivalry: Rivalry
    peer: str
    ours: Measured
    theirs: Measured | None
    failed: str = ""

    def __str__(self) -> str:
        return f"{self.rivalry.attack} {self.rivalry.norm} on {self.rivalry.on} beside {self.peer}"

    @property
    def points(self) -> float:
        """What ours leaves above the peer, in points."""
        assert self.theirs is not None
        assert self.ours.robust is not None
        assert self.theirs.robust is not None
        return 100 * (self.ours.robust - self.theirs.robust)

    @property
    def kept(self) -> bool:
        """Whether ours leaves at most one point more, or one image of few; yes where the peer failed."""
        return self.theirs is None or self.points <= 100 * max(ALLOWED, 1 / self.rivalry.images) + 1e-9

    @property
    def reason(self) -> str:
        """Why it may leave more; empty where nothing is listed."""
        return self.rivalry.reasons.get(self.peer, "")

    @property
    def missed(self) -> bool:
        """Whether it leaves more and no reason is listed."""
        return not self.kept and not self.reason

    def cells(self) -> tuple[str, ...]:
        """The row as text, one for each of `HEADS`."""
        of, theirs = self.rivalry, self.theirs
        verdict = self.failed or ("yes" if self.kept else f"no: {self.reason}" if self.reason else "NO")
        return (
            *(of.attack, of.norm, of.on, f"{of.eps:.4g}", str(of.images), self.peer),
            *(_percent(self.ours), _percent(theirs), "-" if theirs is None else f"{self.points:+.1f}"),
            *(_distance(self.ours), _distance(theirs)),
            *(_calls(self.ours, of.images), _calls(theirs, of.images), verdict),
        )


def _percent(found: Measured | None) -> str:
    return "-" if found is None or found.robust is None else f"{found.robust:.1%}"


def _distance(found: Measured | None) -> str:
    return "-" if found is None or found.distance is None else f"{found.distance:.4g}"


def _calls(found: Measured | None, images: int) -> str:
    return "-" if found is None else f"{(found.calls.forwards + found.calls.backwards) / images:.0f}"


def compared(
    rivalry: Rivalry, batch_size: int, note: Callable[[str], None], show: Callable[[str], None]
) -> Iterator[Row]:
    """A row for each peer that is installed; `note` is told of one that is not, `show` who is on."""
    part = rivalry.part(batch_size)
    ours: Measured | None = None
    for contestant in rivals(rivalry, part, note):
        show(f"{rivalry.attack} {rivalry.norm} on {rivalry.on}: {contestant.name}")
        try:
            (found,) = measure(part, [contestant], rounds=0, note=lambda _: None, minimal=rivalry.minimal)
        except Exception as error:  # the peers' code, of which anything may come
            if ours is None:
                raise
            first = str(error).strip().partition("\n")[0] or type(error).__name__
            yield Row(rivalry, contestant.name, ours, None, f"the peer fails: {first[:80]}")
            continue
        if ours is None:
            ours = found
        else:
            yield Row(rivalry, contestant.name, ours, found)
