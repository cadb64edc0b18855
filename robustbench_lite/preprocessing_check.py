"""Whether a network looks made for images prepared in another way: normalised, in 0..255, or with other channels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .models.normalize import NAMED
from .reliability import Finding

_FEWEST = 12  # images, below which nothing is told
_GAIN = 0.1  # of the images at least that another preparation must get right in addition
_MENDED = 0.5  # of the wrong images at least that it must get right in addition
_SURE = 9.0  # of McNemar's statistic: chance gives as much once in 370 times


@dataclass(frozen=True)
class Preparation:
    """What may be done with images before the network proper.

    text: what the images are then; advice: how the user has it done; values: whether it changes the values of pixels
    alone, as a stated mean and std do.
    """

    text: str
    advice: str
    of: Callable[[Tensor], Tensor]
    values: bool = False


def preparations(x: Tensor) -> Iterator[Preparation]:
    """The usual ones for images x (N, C, H, W) in [0, 1]."""
    channels = x.shape[1]
    own = x.mean((0, 2, 3)), x.std((0, 2, 3)).clamp_min(1e-3)
    yield _normalised("mean {mean}, std {std}", *own, "--mean {mean} --std {std}")
    yield _normalised("mean 0.5, std 0.5", *_constant((0.5,), (0.5,), channels), "--mean 0.5 --std 0.5")
    for name in ("imagenet", "mnist"):
        if len(NAMED[name][0]) == channels:
            yield _normalised(f"the mean and std of {name}", *_constant(*NAMED[name], channels), f"--mean {name}")
    if 0 < (most := float(x.max())) < 0.5:
        yield Preparation(
            f"with pixels up to 1 in place of {most:.3g}",
            f"divide the pixels by their largest value: they reach {most:.3g} of the range of their type",
            lambda z: z / most,
            values=True,
        )
    yield Preparation("in 0..255", "--mean 0 --std 1/255", lambda z: 255 * z, values=True)
    yield Preparation("inverted (1 - x)", "invert the images", lambda z: 1 - z)
    if channels == 3:
        yield Preparation("with channels in the order BGR", "exchange red and blue", lambda z: z.flip(1))
    if x.shape[2] == x.shape[3]:
        for turns in (1, 2, 3):
            yield Preparation(
                f"turned by {90 * turns} degrees",
                f"turn the images by {90 * turns} degrees (as an EXIF orientation may ask for)",
                functools.partial(torch.rot90, k=turns, dims=(2, 3)),
            )
        yield Preparation("transposed", "exchange rows and columns of the images", lambda z: z.transpose(2, 3))


def check_preprocessing(
    logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, stated: bool = False
) -> list[Finding]:
    """Whether the network is right far more often for images prepared in another way: half of the errors are gone.

    The test is McNemar's (1947), on the images that one way gets right and the other not. One forward pass per image
    where the network is right for nine of ten, else up to thirteen.

    Args:
        logits: From images (N, C, H, W) to logits (N, K); the network without defenses.
        x: Some clean images in [0, 1].
        y: Their labels (N,).
        stated: The user has stated the normalisation (`--mean`, `rbl.Normalize`): another one is a warning only.
    """
    n = len(x)
    if n < _FEWEST:
        return []
    given = _right(logits, x, y)
    if given is None or float(given.float().mean()) > 1 - _GAIN:
        return []
    best: tuple[int, Preparation] | None = None
    for way in preparations(x):
        right = _right(logits, way.of(x).contiguous(), y)
        if right is None:
            continue
        gained, lost = int((right & ~given).sum()), int((given & ~right).sum())
        more, wrong = gained - lost, int((~given).sum())
        sure = more > 0 and more**2 >= _SURE * (gained + lost)
        if sure and more >= max(_GAIN * n, _MENDED * wrong) and (best is None or int(right.sum()) > best[0]):
            best = int(right.sum()), way
    if best is None:
        return []
    count, way = best
    text = (
        f"the images look prepared otherwise than in training: the network is right for {_percent(count, n)} of {n} "
        f"images {way.text}, and for {_percent(int(given.sum()), n)} as they are given"
    )
    named = way.advice.startswith("--mean")
    advice = f"{way.advice}, or --mean 0 --std 1 if nothing is missing" if named else way.advice
    return [Finding(text, fatal=not (stated and way.values), advice=advice)]


def _normalised(name: str, mean: Tensor, std: Tensor, advice: str) -> Preparation:
    texts = {"mean": _values(mean), "std": _values(std)}
    shape = (1, -1, 1, 1)
    return Preparation(
        f"normalised by {name.format(**texts)}",
        advice.format(**texts),
        lambda x: (x - mean.to(x).reshape(shape)) / std.to(x).reshape(shape),
        values=True,
    )


def _constant(mean: tuple[float, ...], std: tuple[float, ...], channels: int) -> tuple[Tensor, Tensor]:
    return torch.tensor(mean).expand(channels), torch.tensor(std).expand(channels)


def _values(values: Tensor) -> str:
    return ",".join(f"{value:.2g}" for value in values.tolist())


def _percent(count: int, n: int) -> str:
    return f"{100 * count / n:.1f} %"


def _right(logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor | None:
    """Which images are right, (N,); None where the network raises or answers with no numbers."""
    try:
        found = logits(x)
    except Exception:
        return None
    return found.argmax(1).cpu() == y.cpu() if len(found) == len(x) and found.isfinite().any() else None
