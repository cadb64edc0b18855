"""A network as a list of operations that can be bounded, found by tracing it once; what cannot be is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from .bounds_affine import Operation
from .bounds_calls import Call, cannot, normalized
from .defense import Defended, InferenceDefense, see_through
from .errors import UserError
from .models.normalize import Normalize
from .modes import evaluating

_ROWS = 3  # of the image that is traced: a size of the batch that no layer has by itself


@dataclass(frozen=True)
class Step:
    """One operation and the places of what it takes, in the list it stands in; `layer` is what it is called.

    shape: of its result without the batch. The first step of a list is the image, whose operation is None.
    """

    operation: Operation | None
    given: tuple[int, ...]
    shape: tuple[int, ...]
    layer: str


def steps_of(module: nn.Module, shape: Sequence[int]) -> list[Step]:
    """The operations of a network from images (N, *shape), in an order in which each comes after what it takes.

    The network is read in evaluation mode and left as it was found; operations hold its own weights, in its dtype.
    Raises UserError, in one line that names the layer and its type, for what cannot be bounded.
    """
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise cannot(
            "the network", "TorchScript", "its layers cannot be followed; give the module that it was made from"
        )
    with evaluating(module):
        tracer = _Tracer()
        try:
            graph = tracer.trace(module)
        except UserError:
            raise
        except Exception as error:
            if (defense := _in_the_way(module)) is not None:
                raise UserError(
                    f"--defense: {defense.name} stands before the network, and bounds cannot follow it; leave it out"
                ) from error
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise cannot(
                type(module).__name__, "its forward pass cannot be followed", f"{reason}; write it as layers"
            ) from error
        traced = fx.GraphModule(tracer.root, graph)
        parameter = next(module.parameters(), torch.zeros(1))
        with torch.random.fork_rng():  # with gradients: bounds are learned from, in `ibp`
            lowered = _Lowered(traced, torch.rand((_ROWS, *shape), dtype=parameter.dtype, device=parameter.device))
            return lowered.steps()


class _Alone(nn.Module):
    """A defense without its network."""

    def __init__(self, defense: InferenceDefense) -> None:
        super().__init__()
        self.defense = defense

    def forward(self, x: Tensor) -> Tensor:
        return see_through(self.defense, x)


def _in_the_way(module: nn.Module) -> InferenceDefense | None:
    """The first of the defenses before a network that cannot be followed."""
    while isinstance(module, Defended):
        try:
            _Tracer().trace(_Alone(module.defense))
        except Exception:
            return module.defense
        module = module.model
    return None


class _Tracer(fx.Tracer):
    """Goes into modules that are not torch's own, and through `Normalize`, whose way depends on the image's shape."""

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(m, Normalize):
            x = self.create_proxy("call_function", normalized, (args[0], m.mean, m.std), {})
            return m.model(x)
        return super().call_module(m, forward, args, kwargs)

    def trace(self, root: nn.Module | Callable[..., Any], concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        # A network that is itself a Normalize, or one layer, is met as any other part.
        assert isinstance(root, nn.Module)
        return super().trace(_Whole(root), concrete_args)


class _Whole(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)  # type: ignore[no-any-return]


class _Lowered(fx.Interpreter):
    """Carries a traced network out on an image, and notes the operation of each step on the way."""

    def __init__(self, traced: fx.GraphModule, x: Tensor) -> None:
        super().__init__(traced)
        self.extra_traceback = False
        self.x = x
        self.found: list[Step] = []
        self.place: dict[fx.Node, int] = {}

    def steps(self) -> list[Step]:
        """The operations up to the answer, without those that it does not depend on."""
        self.run(self.x)
        answer = next(node for node in reversed(list(self.graph.nodes)) if node.op == "output").args[0]
        last = self.place.get(answer) if isinstance(answer, fx.Node) else None
        if last is None:
            raise cannot("the answer", "it does not come from the image", "return logits (N, K)")
        return _needed(self.found, last)

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except UserError:
            raise
        except Exception as error:
            raise cannot(_name(n, self.module), type(error).__name__, str(error).splitlines()[0][:120]) from error
        if n.op == "placeholder":
            self._note(n, None, (), value)
        elif n.op in ("call_module", "call_function", "call_method") and isinstance(value, Tensor):
            inputs = [a for a in n.all_input_nodes if a in self.place]
            if inputs:
                try:
                    self._lower(n, value, inputs)
                except (IndexError, KeyError, TypeError, AttributeError, RuntimeError) as error:
                    raise cannot(_name(n, self.module), str(n.op), "it is called in a way that is not known") from error
        return value

    def _note(self, n: fx.Node, operation: Operation | None, given: Sequence[fx.Node], value: Tensor) -> None:
        places = tuple(self.place[g] for g in given)
        self.found.append(Step(operation, places, tuple(value.shape[1:]), _name(n, self.module)))
        self.place[n] = len(self.found) - 1

    def _lower(self, n: fx.Node, value: Tensor, inputs: list[fx.Node]) -> None:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        call = Call(_thing(n, self.module), args, kwargs, [self.env[i] for i in inputs], value)
        if not value.ndim or value.shape[0] != _ROWS:
            raise cannot(_name(n, self.module), call.kind, "it mixes the images of a batch")
        operation = call.operation()
        if operation is NotImplemented:
            raise cannot(_name(n, self.module), call.kind)
        if operation is None:
            self.place[n] = self.place[inputs[0]]
            return
        self._note(n, operation, [i for a, i in _in_order(n, inputs)], value)


def _in_order(n: fx.Node, inputs: list[fx.Node]) -> list[tuple[int, fx.Node]]:
    """What the call takes, in the order of its arguments; an addition of one to itself takes it twice."""
    found: list[fx.Node] = []

    def look(a: fx.Node) -> fx.Node:
        if a in inputs:
            found.append(a)
        return a

    fx.node.map_arg((n.args, n.kwargs), look)
    return list(enumerate(found))


def _needed(steps: list[Step], last: int) -> list[Step]:
    wanted, stack = {0}, [last]
    while stack:
        place = stack.pop()
        if place not in wanted:
            wanted.add(place)
            stack += steps[place].given
    kept = sorted(wanted)
    moved = {old: new for new, old in enumerate(kept)}
    if last == 0:
        raise cannot("the answer", "it is the image itself", "return logits (N, K)")
    return [
        Step(steps[k].operation, tuple(moved[g] for g in steps[k].given), steps[k].shape, steps[k].layer) for k in kept
    ]


def _name(n: fx.Node, module: nn.Module) -> str:
    if n.op == "call_module":
        return str(n.target).removeprefix("network.").removeprefix("network") or type(_thing(n, module)).__name__
    return str(n.name)


def _thing(n: fx.Node, module: nn.Module) -> Any:
    return module.get_submodule(str(n.target)) if n.op == "call_module" else n.target
