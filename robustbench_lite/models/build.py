"""From a model's name to the network: which family, library or factory it means, and its building."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import registry
from ..data.decode import Framing
from ..errors import RblError, UserError, near_names, unknown_name
from ..foreign import ask
from ..registry import ended, guard
from .seeding import seeded

ARGUMENT = "--model"
LIBRARIES = ("torchvision", "timm")
FORMS = "small-cnn, mlp, torchvision:NAME, timm:NAME, FILE.py:FACTORY, package.module:FACTORY"


@dataclass(frozen=True)
class Source:
    """What a model's name was found to mean: an architecture of a family, or a factory."""

    spec: str
    family: Any = None
    architecture: str = ""
    entry: registry.Entry | None = None

    @property
    def is_factory(self) -> bool:
        """Whether the network comes from a user's callable, which may have given it weights."""
        return self.entry is not None

    def importing(self) -> AbstractContextManager[None]:
        """Context manager: code of a factory's network finds the modules that lie beside it."""
        return nullcontext() if self.entry is None else self.entry.importing()

    @property
    def qualified(self) -> str:
        """The name that says where the network comes from: `torchvision:resnet18` for `resnet18`."""
        if self.family is None:
            return shown(self.spec)
        return f"{self.family.name}:{self.architecture}" if self.architecture else str(self.family.name)


def shown(spec: str) -> str:
    """A model's name as records show it: of a file's path only the last part."""
    file, colon, factory = spec.rpartition(":")
    return f"{Path(file).name}:{factory}" if colon and file.endswith(".py") else spec


def find_source(spec: str) -> Source:
    """What `spec` means: `NAME` is looked for in the built-ins, torchvision, timm and installed plug-ins.

    Raises UserError for an unknown name, with the close ones.
    """
    library, colon, architecture = spec.partition(":")
    if colon and library in LIBRARIES:
        family = _family(library)
        if not _has(family, architecture):
            raise unknown_name(ARGUMENT, spec, [f"{library}:{name}" for name in family.names()])
        return Source(spec, family, architecture)
    if spec in LIBRARIES:
        raise UserError(f"{ARGUMENT}: {spec} is a library; say which of its networks, {spec}:NAME")
    if colon or spec.endswith(".py"):
        return Source(spec, entry=registry.find("models", spec, argument=ARGUMENT))
    if spec in registry.builtins("models"):
        return Source(spec, _family(spec))
    for library in LIBRARIES:
        if _has(family := _family(library), spec):
            return Source(spec, family, spec)
    if spec in registry.installed("models"):
        return Source(spec, entry=registry.installed("models")[spec])
    known = {*registry.names("models"), *(name for library in LIBRARIES for name in _family(library).names())}
    known -= set(LIBRARIES)
    if near_names(spec, known):
        raise unknown_name(ARGUMENT, spec, known)
    raise UserError(f"{ARGUMENT}: unknown name {spec!r}; expected one of {FORMS}")


def _family(name: str) -> Any:
    return registry.builtins("models")[name].load()()


def _has(family: Any, architecture: str) -> bool:
    # timm's names may end in the tag of their weights.
    stem = architecture.partition(".")[0] if family.name == "timm" else architecture
    return stem in family.names()


def build_model(
    spec: str,
    *,
    n_classes: int,
    shape: tuple[int, int, int],
    pretrained: bool = False,
    seed: int = 0,
) -> nn.Module:
    """The network that `spec` names, from pixels (N, *shape) in [0, 1] to logits (N, n_classes).

    It is initialised from `seed` unless `pretrained`, which asks for the library's own weights (a
    download where they are not on disk yet) and puts their normalisation inside. The global random
    state is left as it was found.

    Raises UserError for an unknown name, for images the network cannot take, and for published weights
    that cannot be had or tell other classes apart; PluginError for a factory that raises.
    """
    return build_source(find_source(spec), n_classes=n_classes, shape=shape, pretrained=pretrained, seed=seed)


def build_source(
    source: Source, *, n_classes: int, shape: tuple[int, int, int], pretrained: bool = False, seed: int = 0
) -> nn.Module:
    """`build_model` for a name that has been looked up."""
    if source.entry is not None:
        if pretrained:
            raise UserError(
                f"--weights pretrained: {shown(source.spec)} is a factory, not a library's network; "
                "let it return its weights, or give a file with --weights FILE"
            )
        # Outside: a module draws when it is imported first, and not again.
        with seeded(seed):
            factory = source.entry.load()
        with seeded(seed), source.entry.importing():
            return call_factory(factory, shown(source.spec), n_classes=n_classes, shape=shape)
    options: dict[str, Any] = {"n_classes": n_classes, "shape": shape}
    if not pretrained:
        with seeded(seed):
            try:
                module: nn.Module = source.family.build(source.architecture, **options)
            except (RuntimeError, ValueError, AssertionError, TypeError, ZeroDivisionError) as error:
                if isinstance(error, RblError):
                    raise
                raise _does_not_take(source, shape, error) from error
    elif hasattr(source.family, "names"):
        module = source.family.build(source.architecture, pretrained=True, **options)
    else:
        raise UserError(
            f"--weights pretrained: {source.qualified} has none; leave --weights out to train it, or name a file"
        )
    _try(module, source, n_classes=n_classes, shape=shape)
    return module


def _does_not_take(source: Source, shape: tuple[int, int, int], error: Exception) -> UserError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    size = "x".join(map(str, shape))
    return UserError(f"{ARGUMENT}: {source.qualified} cannot take images of {size} ({reason}); name another network")


def _try(module: nn.Module, source: Source, *, n_classes: int, shape: tuple[int, int, int]) -> None:
    """One image through the network, so that one too small for it is named here and not in training."""
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            logits = ask(module, torch.zeros(1, *shape))
    except Exception as error:
        raise _does_not_take(source, shape, error) from error
    finally:
        module.train(training)
    if not isinstance(logits, torch.Tensor) or logits.shape != (1, n_classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"{ARGUMENT}: {source.qualified} gives {found} for one image, expected logits (1, {n_classes}); "
            "name another network"
        )


def call_factory(factory: Callable[..., Any], name: str, *, n_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The network a factory returns; `n_classes` and `shape` are passed where its signature names them.

    Raises PluginError where it raises, UserError where it is none or returns something else.
    """
    if isinstance(factory, nn.Module):
        raise UserError(
            f"{ARGUMENT}: {name} is a network, expected a callable that returns one: def make(): return ..."
        )
    if not callable(factory):
        raise UserError(f"{ARGUMENT}: {name} is a {type(factory).__name__}, expected a callable that returns a network")
    try:
        parameters = dict(inspect.signature(factory).parameters)
    except ValueError:  # a callable written in C
        parameters = {}
    offered = {"n_classes": n_classes, "shape": shape}
    given = {key: value for key, value in offered.items() if key in parameters}
    needed = [
        p.name
        for p in parameters.values()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name not in given
    ]
    if needed:
        raise UserError(
            f"{ARGUMENT}: {name} needs {', '.join(needed)}; a factory is called with nothing but n_classes and shape "
            "(where it names them), so give the rest defaults"
        )
    try:
        module = factory(**given)
    except RblError:
        raise
    except SystemExit as error:
        raise ended(f"{ARGUMENT}: {name}", error) from error
    except Exception as error:
        raise guard(f"{ARGUMENT}: {name}", error) from error
    if not isinstance(module, nn.Module):
        hint = "; give its .module()" if type(module).__name__ == "ExportedProgram" else ""
        raise UserError(f"{ARGUMENT}: {name} returned a {type(module).__name__}, expected a torch.nn.Module{hint}")
    return module


def pretrained_framing(spec: str) -> Framing | None:
    """The resizing and cropping that the published weights of a library's network expect; None for others."""
    source = find_source(spec)
    if source.family is None or not hasattr(source.family, "framing"):
        return None
    framing: Framing | None = source.family.framing(source.architecture)
    return framing


def pretrained_preprocessing(spec: str) -> dict[str, Any]:
    """What the published weights of a library's network expect (mean, std, input_size); {} for others.

    Nothing is downloaded or built, so that a data set can be opened at the right size first.
    """
    source = find_source(spec)
    if source.family is None or not hasattr(source.family, "preprocessing"):
        return {}
    expected: dict[str, Any] = source.family.preprocessing(source.architecture)
    return expected
