"""Processes that train one network together, each from its part of every batch, as `torchrun` starts them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .errors import UserError
from .network import seed_torch


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; the first one (`main`) speaks and writes."""

    rank: int
    count: int

    @staticmethod
    def of_torchrun(device: torch.device | str) -> Processes:
        """Those that `torchrun` started; one alone where it did not.

        The group is accelerate's: gloo between CPUs, NCCL between GPUs.
        """
        if process_count() == 1:
            return alone()
        from accelerate import PartialState

        state = PartialState(cpu=torch.device(device).type == "cpu")
        return Processes(state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        """Whether this is the first."""
        return self.rank == 0

    def device(self, device: torch.device | str) -> torch.device:
        """The device of this process: on a machine with several GPUs one each."""
        name = str(device)
        return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if self.count > 1 and name == "cuda" else name)

    def part(self, n: int) -> slice:
        """The rows of a batch of `n` that are this process's, at least one."""
        first, last = self.rank * n // self.count, (self.rank + 1) * n // self.count
        if first == last:
            raise UserError(f"batch_size: a batch of {n} is too small for {self.count} processes")
        return slice(first, last)

    def draw_apart(self, seed: int, epoch: int, device: torch.device) -> None:
        """Seed torch's generators for an epoch, each process its own, so that no two draw the same noise or images.

        One alone goes on with what it has.
        """
        if self.count > 1:
            seed_torch(((seed << 20) + epoch) * self.count + self.rank, device)

    def mean_gradients(self, parameters: Sequence[nn.Parameter], rows: int) -> None:
        """Every parameter's gradient becomes the mean over the whole batch, of which `rows` were here."""
        if self.count == 1:
            return
        from torch import distributed

        device = parameters[0].device
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
        flat = torch.cat([flat * rows, torch.tensor([float(rows)], device=device)])
        distributed.all_reduce(flat)
        flat = flat[:-1] / flat[-1]
        first = 0
        for parameter in parameters:
            parameter.grad = flat[first : first + parameter.numel()].view_as(parameter)
            first += parameter.numel()

    def same(self, module: nn.Module) -> None:
        """Every process's network becomes that of the first, running statistics and all."""
        if self.count == 1:
            return
        from torch import distributed

        tensors: list[Tensor] = [*module.parameters(), *module.buffers()]
        with torch.no_grad():
            for tensor in tensors:
                distributed.broadcast(tensor.data, src=0)

    def wait(self) -> None:
        """For each other."""
        if self.count > 1:
            from torch import distributed

            distributed.barrier()


def alone() -> Processes:
    """One process."""
    return Processes(0, 1)


def process_count() -> int:
    """How many processes `torchrun` started; 1 where it did not."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def main_process() -> bool:
    """Whether this process is the first of those that `torchrun` started, or none did."""
    return os.environ.get("RANK", "0") == "0"
