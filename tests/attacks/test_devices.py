"""No attack mixes tensors of two devices: what it makes without saying where is, on a machine without a GPU, marked."""

from __future__ import annotations

import functools
import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

import robustbench_lite as rbl
from robustbench_lite import attacks as package
from robustbench_lite import registry
from robustbench_lite.portfolio import Portfolio

from ..core.nets import images, labels_of, mlp
from .few import EPS, OPTIONS

NAMES = "arange as_tensor empty eye from_numpy full linspace ones rand randn randperm tensor zeros"
FACTORIES = {getattr(torch, name) for name in NAMES.split()}
MOVES = {Tensor.to, Tensor.type_as}


class OnProcessor(Tensor):
    """A tensor of the processor, while images are thought to be elsewhere; what it becomes part of is one too."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            given = [isinstance(t, cls) for t in tree_leaves((args, kwargs or {})) if isinstance(t, Tensor) and t.ndim]
            if func not in MOVES and len(set(given)) == 2:
                raise AssertionError(f"{getattr(func, '__name__', func)} of tensors on two devices")
            found = func(*args, **(kwargs or {}))
            here = func not in MOVES and (not given or given[0])
            mark = cls if here else Tensor
            return tree_map(lambda t: t.as_subclass(mark) if isinstance(t, Tensor) else t, found)


class Elsewhere(TorchFunctionMode):
    """As if the images were on another device: what the code of an attack makes with no device stays here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        made = func in FACTORIES and (kwargs or {}).get("device") is None
        if (made or func is Tensor.cpu) and _asked_by_an_attack():
            return found.as_subclass(OnProcessor)
        return found


def _asked_by_an_attack() -> bool:
    frame = sys._getframe(2)
    return frame is not None and "attacks" in frame.f_globals.get("__name__", "").split(".")[:2]


@pytest.fixture
def _no_caches() -> Iterator[None]:
    """What attacks keep of tables is made anew, and marked tables are not kept."""
    modules = [importlib.import_module(f"{package.__name__}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    caches = [v for module in modules for v in vars(module).values() if isinstance(v, functools._lru_cache_wrapper)]
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def run(name: str, norm: str, options: dict[str, Any] | None) -> rbl.Result:
    x = images(12, (3, 8, 8))
    model = mlp(shape=(3, 8, 8))
    y = labels_of(model, x)
    attack = registry.load("attacks", name)
    with Elsewhere():
        return rbl.evaluate(
            model,
            x[:4],
            y[:4],
            attack=name,
            norm=norm,
            eps=1.0 if attack.own_limits else EPS[norm],
            attack_options=options,
            checks=False,
            fit_data=(x[4:], y[4:]) if attack.learns else None,
        )


@pytest.mark.usefixtures("_no_caches")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "name",
    [n for n in sorted(registry.builtins("attacks")) if not issubclass(registry.load("attacks", n), Portfolio)],
)
def test_an_attack_makes_its_tensors_where_the_images_are(name: str) -> None:
    norm = registry.load("attacks", name).norms[0]
    assert run(name, norm, OPTIONS.get(name)).n == 4


def _mixed(x: Tensor) -> Tensor:
    return torch.where(x > 0, torch.arange(3), x)


def _moved(x: Tensor) -> Tensor:
    return x + torch.arange(3).double().to(x)


def _placed(x: Tensor) -> Tensor:
    return x + torch.arange(3, device=x.device)


@pytest.mark.parametrize(("how", "fails"), [(_mixed, True), (_moved, False), (_placed, False)])
def test_the_mark_shows_a_mixture(
    how: Callable[[Tensor], Tensor], fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "_asked_by_an_attack", lambda: True)
    with Elsewhere():
        if fails:
            with pytest.raises(AssertionError, match="two devices"):
                how(torch.zeros(3, device="cpu"))
        else:
            assert type(how(torch.zeros(3, device="cpu"))) is Tensor
