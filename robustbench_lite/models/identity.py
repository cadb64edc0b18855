"""What makes a network that network: the hash of its state."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

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
    """SHA-256 of a module's parameters and buffers, those that a state dict leaves out too."""
    return tensors_sha256(
        {
            **dict(module.named_parameters(remove_duplicate=False)),
            **dict(module.named_buffers(remove_duplicate=False)),
        }
    )


def layout_sha256(module: nn.Module) -> str:
    """SHA-256 of how a module prints itself: its parts and their settings, activations included."""
    return hashlib.sha256(repr(module).encode()).hexdigest()
