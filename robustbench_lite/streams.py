"""Random numbers that belong to a sample: the same at any batch size, order, shard or worker.

A `Stream` holds one 64-bit key a sample. Number i of draw d is a hash of (key, d, i), so nothing is
consumed: whoever asks for the same draw of the same sample gets the same numbers. The hash is the
finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"),
applied to a counter as that generator does.

A network that is random by intent draws its noise with `normal_like` and `uniform_like`: inside an
evaluation they give each image the numbers of its own stream, outside torch's global generator.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .errors import UserError

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts arithmetically; the hash wants zeros


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


@functools.lru_cache(maxsize=1024)
def hash_text(text: str) -> int:
    """A signed 64-bit hash of a text, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def hash_rows(hashes: Sequence[str]) -> Tensor:
    """Hashes in hexadecimal as bytes, (N, 32) uint8."""
    raw = bytes.fromhex("".join(hashes))
    return torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).reshape(-1, 32).copy())


def content_hashes(x: Tensor) -> list[str]:
    """SHA-256 of each image (N, ...), over its float32 bytes in C order, as hexadecimal."""
    images = x.detach().to("cpu", torch.float32).contiguous().numpy()
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


@dataclass(frozen=True)
class Stream:
    """One source of random numbers a sample; `keys`: (N,) int64."""

    keys: Tensor

    @classmethod
    def of(cls, hashes: Sequence[str], *, seed: int, device: torch.device | str = "cpu") -> Stream:
        """The streams of samples with these content hashes, in a run with this seed."""
        keys = [int.from_bytes(bytes.fromhex(h)[:8], "little", signed=True) for h in hashes]
        stream = cls(torch.tensor(keys, dtype=torch.int64, device=device))
        return stream.child(f"seed {seed}")

    def child(self, tag: str | Tensor) -> Stream:
        """Independent streams for a purpose: a text, or one integer a sample (N,)."""
        salt = hash_text(tag) if isinstance(tag, str) else _mix(tag.to(torch.int64) * _GOLDEN + 1)
        return Stream(_mix(self.keys * _MIX_2 + _mix(self.keys ^ salt)))

    def _bits(self, count: int, draw: int | Tensor) -> Tensor:
        device = self.keys.device
        drawn = torch.as_tensor(draw, dtype=torch.int64, device=device)
        base = _mix(self.keys ^ _mix((drawn + 1) * _MIX_1)).unsqueeze(1)
        counter = torch.arange(1, count + 1, dtype=torch.int64, device=device)
        return _mix(base + counter * _GOLDEN)

    def uniform(self, shape: Sequence[int], draw: int | Tensor = 0) -> Tensor:
        """Uniform on [0, 1): (N, *shape) float32. `draw` numbers the request, one for all or (N,)."""
        bits = _shift(self._bits(math.prod(shape), draw), 40)
        return (bits.to(torch.float32) * 2.0**-24).reshape(-1, *shape)

    def normal(self, shape: Sequence[int], draw: int | Tensor = 0) -> Tensor:
        """Standard normal: (N, *shape) float32, by Box and Muller 1958.

        Computed in float64, so that the last bit does not hang on how a processor groups the rows.
        """
        count = math.prod(shape)
        half = (count + 1) // 2
        bits = _shift(self._bits(2 * half, draw), 11).to(torch.float64) * 2.0**-53
        radius = torch.sqrt(-2.0 * torch.log1p(-bits[:, :half]))
        angle = 2.0 * math.pi * bits[:, half:]
        both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)[:, :count]
        return both.to(torch.float32).reshape(-1, *shape)

    def integers(self, high: int | Tensor, draw: int | Tensor = 0) -> Tensor:
        """Uniform on 0..high-1: (N,) int64; `high`: one for all or (N,)."""
        bits = _shift(self._bits(1, draw)[:, 0], 11).to(torch.float64) * 2.0**-53
        limit = torch.as_tensor(high, device=self.keys.device)
        return torch.minimum((bits * limit).to(torch.int64), limit.to(torch.int64) - 1)


@dataclass
class _Source:
    stream: Stream
    draw: Tensor
    tag: str
    calls: int = field(default=0)


_source: ContextVar[_Source | None] = ContextVar("robustbench_lite_source", default=None)


@contextlib.contextmanager
def drawing(stream: Stream, draw: Tensor, tag: str = "") -> Iterator[None]:
    """Within: `normal_like` and `uniform_like` draw from these streams, row by row, for the purpose `tag`.

    The children are made by whoever draws: most networks never do.
    """
    token = _source.set(_Source(stream, draw, tag))
    try:
        yield
    finally:
        _source.reset(token)


@contextlib.contextmanager
def replaying() -> Iterator[Callable[[], None]]:
    """Within: calling what is given makes the draws since the beginning come again; the end goes on after the first."""
    source = _source.get()
    if source is None:
        yield lambda: None
        return
    start, ends = source.calls, [0]

    def again() -> None:
        ends.append(source.calls)
        source.calls = start

    yield again
    source.calls = max(source.calls, *ends)


def _take(x: Tensor) -> tuple[Stream, Tensor] | None:
    source = _source.get()
    if source is None:
        return None
    if len(x) != len(source.stream.keys):
        raise UserError(
            f"normal_like, uniform_like: expected {len(source.stream.keys)} rows, one for each image of the batch, "
            f"got {len(x)}; draw once for each copy of the batch"
        )
    source.calls += 1
    return source.stream.child(f"{source.tag} call {source.calls}"), source.draw


def normal_like(x: Tensor) -> Tensor:
    """Standard normal numbers shaped as `x` (N, ...), from each image's own stream inside an evaluation."""
    own = _take(x)
    return torch.randn_like(x) if own is None else own[0].normal(x.shape[1:], own[1]).to(x)


def uniform_like(x: Tensor) -> Tensor:
    """Uniform numbers on [0, 1) shaped as `x` (N, ...), from each image's own stream inside an evaluation."""
    own = _take(x)
    return torch.rand_like(x) if own is None else own[0].uniform(x.shape[1:], own[1]).to(x)


def uniform_noise(x: Tensor) -> Tensor:
    """Numbers in [-1, 1) shaped as `x`, in steps of 2 ** -15, from torch's own generator: noise for a training.

    x: float32 or float64; shorter types round the last steps to 1. Four numbers of each draw of 64 bits: on a CPU,
    where they are drawn one after the other, a third of the time of `rand_like`.
    """
    drawn = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    return drawn.view(torch.int16)[: x.numel()].view(x.shape).to(x.dtype).mul_(2.0**-15)
