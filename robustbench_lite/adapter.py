"""Networks of every kind as an evaluation calls them: float32 pixels in any number in, logits (N, K) out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .errors import RblError, UserError
from .modes import deep_copy, evaluating
from .outputs import Found, described, find_logits
from .registry import guard

Binary = Literal["logit", "probability"]
_SIZES = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 10, 20, 50, 100, 200, 500, 1000, 3, 5, 6, 12, 24, 48, 96, 192)
_HEADS = {"logit": ([[-0.5], [0.5]], [0.0, 0.0]), "probability": ([[-1.0], [1.0]], [1.0, 0.0])}


class Adapted(nn.Module):
    """A network whose answer is read as logits (N, K); its state is named as that of the network itself.

    Args:
        network: The network.
        n_classes: How many logits are looked for; None: not known.
        binary: The network gives one number z for each image, of class 1 against class 0. "logit": the logits are
            -z/2 and z/2, whose softmax is the sigmoid of z. "probability": they are the shares 1 - z and z.
        batch: The only number of images that the network takes; batches are cut and filled up to it.
        least: The least number of images that it takes; smaller batches are filled up.
        dtype: That of the network's weights, to which images are converted; None: they stay as they are.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        n_classes: int | None = None,
        binary: Binary | None = None,
        batch: int | None = None,
        least: int = 1,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.n_classes, self.binary, self.dtype = n_classes, binary, dtype
        self.batch, self.least = batch, least
        self.training = bool(getattr(network, "training", False))
        if binary is not None:
            weight, bias = _HEADS[binary]
            self.register_buffer("_weight", torch.tensor(weight), persistent=False)
            self.register_buffer("_bias", torch.tensor(bias), persistent=False)
        self.register_state_dict_post_hook(_bare_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_own_names)  # type: ignore[no-untyped-call]

    _weight: Tensor
    _bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, K) of images (N, C, H, W)."""
        if self.dtype is not None:
            # A copy in another precision has another dtype.
            x = x.to(next(tensor.dtype for tensor in _floating(self.network)))
        if self.batch is None:
            return self._filled(x, self.least) if self.least > 1 and len(x) < self.least else self._read(x)
        parts = [self._filled(part, self.batch) for part in torch.split(x, self.batch)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _filled(self, x: Tensor, size: int) -> Tensor:
        n = len(x)
        return self._read(x if n == size else torch.cat([x, x[:1].expand(size - n, *x.shape[1:])]))[:n]

    def _read(self, x: Tensor) -> Tensor:
        output = self.network(x)
        n = len(x) if isinstance(x, Tensor) else None
        if self.binary is None:
            return find_logits(output, n=n, columns=self.n_classes).logits  # type: ignore[no-any-return]
        value = one_number(output)
        if value is None:
            raise UserError(f"model: expected one number for each image of a binary head, got {described(output)}")
        return F.linear(value.to(self._weight.dtype), self._weight, self._bias)

    def extra_repr(self) -> str:
        """What is done around the network."""
        said = {"binary": self.binary, "batch": self.batch, "dtype": self.dtype, "n_classes": self.n_classes}
        said["least"] = self.least if self.least > 1 else None
        return ", ".join(f"{name}={value}" for name, value in said.items() if value is not None)


def one_number(output: object) -> Any:
    """The numbers (N, 1) of a binary head in an output; None where there is none."""
    if isinstance(output, Tensor):
        if output.ndim == 1 and output.dtype.is_floating_point:
            return output.unsqueeze(1)
        flat = output.flatten(1) if output.ndim > 1 else output
        return flat if flat.ndim == 2 and flat.shape[1] == 1 else None
    try:
        found = find_logits(output, columns=1).logits
    except UserError:
        rows = [v for v in _values(output) if isinstance(v, Tensor) and v.ndim == 1 and v.dtype.is_floating_point]
        return rows[0].unsqueeze(1) if rows else None
    return found


def _values(output: object) -> list[Any]:
    if isinstance(output, dict):
        return list(output.values())
    return list(output) if isinstance(output, tuple | list) else list(getattr(output, "__dict__", {}).values())


def _bare_names(module: nn.Module, state: dict[str, Any], prefix: str, local: Any) -> None:
    del module, local
    inner = f"{prefix}network."
    for name in [name for name in state if name.startswith(inner)]:
        state[prefix + name.removeprefix(inner)] = state.pop(name)


def _own_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    del module
    for name in [name for name in state if name.startswith(prefix)]:
        state[f"{prefix}network.{name.removeprefix(prefix)}"] = state.pop(name)


@dataclass(frozen=True)
class Ready:
    """A network that can be evaluated, `module` itself where nothing is to be done; notes: what is done around it."""

    module: nn.Module
    notes: tuple[str, ...] = ()


def initialised(model: nn.Module, x: Tensor) -> bool:
    """Give lazy parts of the network the shapes that images x (N, C, H, W) need; whether there were any.

    Raises UserError for parameters without numbers, PluginError for a network that raises.
    """
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors):
        raise UserError(
            "model: its parameters are on the meta device and hold no numbers; load them: "
            "model.load_state_dict(state, assign=True), or build the network outside torch.device('meta')"
        )
    if not any(is_lazy(tensor) for tensor in tensors):
        return False
    with evaluating(model), torch.no_grad():
        _ask(model, x)
    return True


def adapt(
    model: nn.Module, x: Tensor, *, n_classes: int | None = None, binary: bool = False, argument: str = "binary=True"
) -> Ready:
    """The network as an evaluation calls it, found by trying it in evaluation mode; it is left as it was found.

    A network that takes any number of float32 images and returns logits (N, K) is taken as it is. Else it is put into
    `Adapted`: where the logits are inside a container (`find_logits`), where it takes batches of one size only, where
    its weights have another dtype, and where it is a binary head.

    Args:
        model: The network.
        x: At least one image (N, C, H, W) in [0, 1], as the network sees it, on the network's device.
        n_classes: The number of classes; None: not known.
        binary: It gives one number for each image, of class 1 against class 0. Where all of them are in [0, 1] for
            the images x they are taken for probabilities, else for logits.
        argument: How the caller states `binary`.

    Returns:
        The network, and one line for each thing that is done around it.

    Raises:
        UserError: for an output without logits, in one line with the way out; PluginError for a network that raises.
    """
    if binary and n_classes not in (None, 2):
        raise UserError(f"{argument}: a binary head tells two classes apart, the data have {n_classes}; leave it out")
    notes = []
    two = (x[:2] if len(x) > 1 else x[:1].expand(2, *x.shape[1:])).clone()
    if initialised(model, two):
        notes.append("lazy layers got their shapes from the images, and random weights where none were loaded")
    with evaluating(model), torch.no_grad():
        settings: dict[str, Any] = {}
        try:
            output = _ask(model, two)
            _ask(model, two[:1])
            asked = two
        except UserError as error:
            model, output, asked, settings = _otherwise(model, two, error)
        if dtype := settings.get("dtype"):
            notes.append(f"its weights are {_short(dtype)}: images are converted to it")
        if settings.pop("exact", False):
            notes.append("its weights have half precision: they are converted to float32, which holds them exactly")
        if batch := settings.get("batch"):
            notes.append(f"it takes batches of {batch} images only: smaller ones are filled up")
        if least := settings.get("least"):
            notes.append(f"it takes no batch of fewer than {least} images: smaller ones are filled up")
        if binary:
            settings["binary"] = _binary(Adapted(model, binary="logit", **settings), output, x)
            notes.append(f"its one number for each image is taken for the {settings['binary']} of class 1")
        elif found := _inside(output, len(asked), n_classes, argument):
            settings["n_classes"] = int(found.logits.shape[1])
            where = found.where or "(N, K) without the trailing axes"
            notes.append(f"it returns {_kind(output)}: {where} is taken for the logits")
    return Ready(Adapted(model, **settings) if settings else model, tuple(notes))


def _ask(model: nn.Module, x: Tensor) -> Any:
    """The network's output; its number of rows is not that of the images where a batch has a fixed size."""
    try:
        output = model(x)
    except RblError:
        raise
    except torch.OutOfMemoryError as error:
        raise UserError(f"batch_size: out of memory at {len(x)} images; use a larger device") from error
    except Exception as error:
        raise guard(f"model: the network, given images of shape {tuple(x.shape)},", error) from error
    rows = [len(v) for v in ([output] if isinstance(output, Tensor) else _values(output)) if _has_rows(v)]
    if rows and len(x) not in rows:
        raise UserError(f"model: expected an answer for each of {len(x)} images, got {described(output)}")
    return output


def _has_rows(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _otherwise(model: nn.Module, two: Tensor, error: UserError) -> tuple[nn.Module, Any, Tensor, dict[str, Any]]:
    """A network that does not take two float32 images: with another dtype, or in batches of one size."""
    dtypes = {tensor.dtype for tensor in _floating(model)}
    tries: list[tuple[nn.Module, dict[str, Any]]] = [(model, {})]
    if dtypes and torch.float32 not in dtypes:
        if dtypes == {torch.float64}:
            tries = [(model, {"dtype": torch.float64})]
        else:
            tries = [(_in_float32(model, error), {"exact": True})]
    for tried, settings in tries:
        dtype = settings.get("dtype") or two.dtype
        for size in (2, *_SIZES):
            many = two[:1].expand(size, *two.shape[1:]).to(dtype).contiguous()
            try:
                output = _ask(tried, many)
            except UserError:
                continue
            one, next_ = (many[:1].expand(k, *many.shape[1:]).contiguous() for k in (1, size + 1))
            if _fails(tried, next_):
                settings = {**settings, "batch": size}
            elif size > 1 and _fails(tried, one):
                settings = {**settings, "least": size}
            return tried, output, many, settings
    raise error


def _floating(model: nn.Module) -> Iterator[Tensor]:
    return (t for t in itertools.chain(model.parameters(), model.buffers()) if t.dtype.is_floating_point)


def _in_float32(model: nn.Module, error: UserError) -> nn.Module:
    try:
        return deep_copy(model).float()
    except Exception:
        raise error from None


def _fails(model: nn.Module, x: Tensor) -> bool:
    try:
        _ask(model, x)
    except UserError:
        return True
    return False


def _inside(output: Any, n: int, n_classes: int | None, argument: str) -> Found | None:
    """The logits inside an output; None where they are all of it, or where `Network` says what is wrong."""
    single = one_number(output)
    if single is not None and n_classes in (None, 2):
        raise UserError(
            f"model: expected logits of shape ({n}, {n_classes or 'K'}), one for each class, got {described(output)}: "
            f"one number for each image; give {argument} to read it as that of class 1 against class 0"
        )
    if isinstance(output, Tensor) and not output.dtype.is_floating_point:
        raise UserError(
            f"model: expected logits in floating point, got {_short(output.dtype)} {tuple(output.shape)}; return what "
            "the classes are chosen by (before argmax, or the real part)"
        )
    found = find_logits(output, n=n, columns=n_classes)
    return None if found.logits is output else found


def _binary(reading: nn.Module, output: Any, x: Tensor) -> Binary:
    if one_number(output) is None:
        raise UserError(
            f"binary: expected one number for each image, got {described(output)}; leave it out for a network with a "
            "logit for each class"
        )
    z = 2 * reading(x)[:, 1]
    return "probability" if bool(((z >= 0) & (z <= 1)).all()) else "logit"


def _kind(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"{tuple(output.shape)}"
    name = type(output).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
