"""Where the logits are in what a network returns: a tensor, or one inside a tuple, a dict or an object."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from .errors import UserError

# Names under which libraries return logits, the most common first.
NAMES = (
    *("logits", "out", "output", "outputs", "pred", "preds", "prediction", "predictions"),
    *("y_hat", "y_pred", "scores", "class_logits", "cls_logits", "cls", "classification", "probs"),
)
_DEPTH = 3  # of containers in containers


@dataclasses.dataclass(frozen=True)
class Found:
    """The logits of an output, and where in it they are: `["logits"]`, `[0]`, `.logits`; "" for the output itself."""

    logits: Any
    where: str


def find_logits(output: object, *, n: int | None = None, columns: int | None = None) -> Found:
    """The logits (n, columns) in a network's output.

    A tensor is taken as it is. Of a container these are candidates: tensors (n, columns), or (n, columns, 1, 1), whose
    trailing axes are dropped. The first under a name of `NAMES` is taken; then the first of a tuple or list, or the
    only one of a dict or object. A number of `columns` that is not known is taken from the candidates, as long as the
    first of them is not wider than another, which features usually are.

    Args:
        output: What the network returned; inside a trace the tensors may be proxies, of any shape.
        n: The number of images; None: not known.
        columns: The number of logits; None: not known.

    Raises:
        UserError: where there are none, or several with nothing to choose by; it describes the output.
    """
    if _is_tensor(output):
        return Found(_trimmed(output), "")
    leaves = [(where, name, value) for where, name, value in _leaves(output) if _fits(value, n, columns)]
    named = sorted((NAMES.index(name), place) for place, (_, name, _) in enumerate(leaves) if name in NAMES)
    if named:
        where, _, value = leaves[named[0][1]]
        return Found(_trimmed(value), where)
    ordered = isinstance(output, tuple | list)
    wider = columns is None and len(leaves) > 1 and _width(leaves[0][2]) > min(_width(v) for _, _, v in leaves)
    if leaves and not wider and (ordered or len(leaves) == 1):
        where, _, value = leaves[0]
        return Found(_trimmed(value), where)
    expected = f"({'N' if n is None else n}, {columns or 'K'})"
    raise UserError(
        f"model: expected logits of shape {expected}, one for each class, got {described(output)}; "
        "let forward return the logits alone, or as the first of a tuple, .logits or ['logits']"
    )


def described(output: object) -> str:
    """An output in a few words: `dict of a (16, 10), b (16, 4)`."""
    if isinstance(output, Tensor):
        return str(tuple(output.shape))
    parts = [f"{where} {tuple(value.shape)}" for where, _, value in _leaves(output) if isinstance(value, Tensor)]
    more = f" and {len(parts) - 4} more" if len(parts) > 4 else ""
    return f"{type(output).__name__}{' of ' * bool(parts)}{', '.join(parts[:4])}{more}"


def _leaves(output: object, depth: int = _DEPTH) -> Iterator[tuple[str, str, Any]]:
    """Every tensor in a container: where it is, the name it has there, and itself."""
    for where, name, value in _entries(output):
        if _is_tensor(value):
            yield where, name, value
        elif depth:
            yield from ((where + inner, last, leaf) for inner, last, leaf in _leaves(value, depth - 1))


def _entries(output: object) -> Iterator[tuple[str, str, Any]]:
    if isinstance(output, Mapping):
        yield from ((f"[{key!r}]", str(key), value) for key, value in output.items())
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        yield from ((f".{name}", name, getattr(output, name)) for name in output._fields)
    elif isinstance(output, tuple | list):
        yield from ((f"[{place}]", "", value) for place, value in enumerate(output))
    elif dataclasses.is_dataclass(output):
        yield from ((f".{f.name}", f.name, getattr(output, f.name)) for f in dataclasses.fields(output))
    else:
        # Named ones first: they may be properties, or slots, of a class.
        named = [name for name in NAMES if _is_tensor(getattr(output, name, None))]
        others = [name for name in getattr(output, "__dict__", {}) if name not in named]
        yield from ((f".{name}", name, getattr(output, name)) for name in (*named, *others))


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor | fx.Proxy)


def _fits(value: Any, n: int | None, columns: int | None) -> bool:
    if not isinstance(value, Tensor):
        return True  # of a trace
    shape = tuple(value.shape)
    if len(shape) < 2 or any(side != 1 for side in shape[2:]) or not value.dtype.is_floating_point:
        return False
    return (n is None or shape[0] == n) and (columns is None or shape[1] == columns)


def _width(value: Any) -> int:
    return int(value.shape[1]) if isinstance(value, Tensor) else 0


def _trimmed(value: Any) -> Any:
    """Logits (N, K) of a network without a flattening at its end, (N, K, 1, 1)."""
    if isinstance(value, Tensor) and value.ndim > 2 and all(side == 1 for side in value.shape[2:]):
        return value.flatten(1)
    return value
