"""One process or several: `torchrun` says which in the environment, and everything else asks here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Args:
        rank: which it is.
        count: how many there are.
        device: where it computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether it is the one that writes."""
        return self.rank == 0

    def gather(self, value: Any) -> list[Any]:
        """What every process gives, in their order, to all of them."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, value)
        return found

    def largest(self, value: int) -> int:
        """The largest of the processes' numbers."""
        if self.count == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return int(tensor)


@contextmanager
def processes(device: str = "auto") -> Iterator[Processes]:
    """Join the processes that `torchrun` started, or be the only one.

    Args:
        device: `"auto"`, a GPU where torch sees one; `"cpu"`; or `"cuda"`, one a process.

    Yields:
        This process. They talk by NCCL on GPUs and by Gloo on CPUs.

    Raises:
        ValueError: another device, or more processes than GPUs.

    >>> with processes("cpu") as here:
    ...     here.count, here.largest(3)
    (1, 3)
    """
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be one of auto, cpu, cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no GPU here; use --device cpu, or auto")
    rank, count, local = (int(os.environ.get(name, default)) for name, default in _ENVIRONMENT.items())
    if device == "cpu" or not torch.cuda.is_available():
        where = torch.device("cpu")
    elif local >= torch.cuda.device_count():
        raise ValueError(f"there must be a GPU a process, got {torch.cuda.device_count()} and process {local} here")
    else:
        where = torch.device("cuda", local)
        torch.cuda.set_device(where)
    if count == 1:
        yield Processes(0, 1, where)
        return
    distributed.init_process_group("nccl" if where.type == "cuda" else "gloo")
    try:
        yield Processes(rank, count, where)
        # one that leaves while another still ends its last exchange aborts now and then, in Gloo's threads
        distributed.barrier()
    finally:
        distributed.destroy_process_group()


_ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
