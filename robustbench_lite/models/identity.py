"""What makes a network that network: the hash of its state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: name, dtype, shape and bytes of each, in the order of the sorted names.

    Neither the device, the memory layout nor the order in which the tensors are given changes it.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach()
        header = json.dumps([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
        digest.update(header.encode() + b"\n")
        plain = tensor.cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(plain.numpy().data)
    return digest.hexdigest()


def state_sha256(module: nn.Module) -> str:
    """SHA-256 of a module's parameters and buffers, those that a state dict leaves out too.

    Also of what quantised layers and frozen TorchScript networks hold in place of parameters.
    """
    return tensors_sha256(
        {
            **_packed(module),
            **_constants(module),
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
    )


def _packed(module: nn.Module) -> dict[str, Tensor]:
    """The weights of quantised layers, dequantised, and their scales."""
    found: dict[str, Tensor] = {}
    for name, part in module.named_modules():
        if not type(part).__module__.startswith(("torch.ao.nn", "torch.nn.quantized", "torch.ao.quantization")):
            continue
        for which in ("weight", "bias"):
            value = getattr(part, which, None)
            value = value() if callable(value) else None
            if isinstance(value, Tensor):
                found[f"{name}.{which}()"] = value.dequantize() if value.is_quantized else value
    return found


def _constants(module: nn.Module) -> dict[str, Tensor]:
    """The tensors in the graph of a TorchScript network without parameters, as `torch.jit.freeze` makes it."""
    if not isinstance(module, torch.jit.ScriptModule) or next(module.parameters(), None) is not None:
        return {}
    graph: Any = module.graph
    nodes = [n for n in graph.findAllNodes("prim::Constant") if "value" in n.attributeNames()]
    values = [n.t("value") for n in nodes if n.kindOf("value") == "t"]
    dense = [v.to_dense() if v.layout != torch.strided else v for v in values]
    return {f"constant {place}": value for place, value in enumerate(dense)}


def layout_sha256(module: nn.Module) -> str:
    """SHA-256 of how a module prints itself: its parts and their settings, activations included."""
    return hashlib.sha256(repr(module).encode()).hexdigest()
