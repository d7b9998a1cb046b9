"""Training by several processes: which rows of the batch each of them reads, and how their gradients become one.

torchrun starts the processes and tells each its place (RANK, WORLD_SIZE, LOCAL_RANK):

    torchrun --nproc-per-node 2 -m statecheck_reference.cli train --data novels --out work
    torchrun --nproc-per-node 2 --no-python statecheck-reference train --data novels --out work

In both kinds a process reads an equal part of the rows of the one batch and carries their states, and gradients are
means over the processes: the result is that of one process but for rounding. All processes see one work directory.

ddp     every process holds the whole model. Li et al. 2020, arXiv 2006.15704.
fsdp    every process holds a share of each parameter, and gathers a block when it is its turn. Zhao et al. 2023,
        arXiv 2304.11277. For models whose gradients and moments are too large for one device; the main process holds
        the whole weights once more, to validate.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from statecheck_reference.streams import Batch

KINDS = ("ddp", "fsdp")
CPU = torch.device("cpu")
PATIENCE = timedelta(hours=2)  # others wait while the first validates; torchrun itself sees a process that has ended
LOST = ("gloo", "NCCL", "TCPStore")  # in what torch says of a process that no longer answers
Made = TypeVar("Made")


@dataclass(frozen=True)
class World:
    """The processes of a run, and this one's place: number `rank`, from 0, of `size`, computing on `device`."""

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    kind: str = "ddp"

    @property
    def main(self) -> bool:
        """True for the one process that writes files and tells of the run."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """True if a process holds only a share of each parameter."""
        return self.size > 1 and self.kind == "fsdp"

    def rows(self, batch: int) -> slice:
        """Which of `batch` rows are this process's; ValueError unless all get as many.

        >>> World(rank=1, size=2).rows(8)
        slice(4, 8, None)
        >>> World(rank=1, size=3).rows(8)
        Traceback (most recent call last):
            ...
        ValueError: batch: expected a multiple of the number of processes, 3, found 8; ask for another --batch
        """
        if batch % self.size:
            raise ValueError(
                f"batch: expected a multiple of the number of processes, {self.size}, found {batch}; "
                "ask for another --batch"
            )
        share = batch // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def own(self, batch: Batch) -> Batch:
        """This process's rows of `batch`, on its device."""
        rows = self.rows(len(batch.fresh))
        return Batch(*(part[rows].to(self.device) for part in (batch.inputs, batch.targets, batch.fresh)))

    def own_states(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This process's rows of the states of all rows, on its device."""
        return {name: state[self.rows(len(state))].to(self.device) for name, state in states.items()}

    def all_states(self, states: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The states of all rows, from those of each process; {} in all but the main one. All must call it."""
        if self.size == 1:
            return dict(states)
        found: dict[str, Tensor] = {}
        for name, state in states.items():
            parts = [torch.empty_like(state) for _ in range(self.size)] if self.main else None
            distributed.gather(state.contiguous(), parts)
            if parts is not None:
                found[name] = torch.cat(parts)
        return found

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean over the processes of each of `values`. All must call it, with as many."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(total)
        return (total / self.size).tolist()

    def spread(self, model: nn.Module) -> nn.Module:
        """What is called in `model`'s place, so that gradients are means over the processes.

        With "fsdp" it is `model` itself, whose parameters are shares from then on: make optimisers after this.
        """
        if self.size == 1:
            return model
        if not self.sharded:
            # So told, it never rearranges what it adds up after the first step. Three gradients in another order have
            # another sum: a run that goes on would not be bit-identical. It warns, once, that it found none unused.
            return DistributedDataParallel(model, find_unused_parameters=True)
        _shard(model, self)
        return model

    def wait(self) -> None:
        """Go on when all processes have come here."""
        if self.size > 1:
            self.mean([0.0])

    def main_first(self, make: Callable[[], Made]) -> Made:
        """What `make` gives; the main process calls it before the others, which then find the files that it wrote."""
        if self.main:
            made = make()
            self.wait()
            return made
        self.wait()
        return make()

    def require_same(self, what: str, number: int) -> None:
        """Raise ValueError if `number` is not the same in all processes: they see different work directories."""
        if self.mean([float(number)])[0] != number:
            raise ValueError(
                f"work directory: expected the same {what} in all processes, found {number} here and others elsewhere; "
                "it must be on a file system that all of them share"
            )


ALONE = World()


@contextmanager
def joined(kind: str | None = None, device: str | None = None) -> Iterator[World]:
    """The processes that torchrun started together, or this one alone.

    Without `device`, several processes compute on a GPU each where there is one, else on the CPU; one process on the
    CPU. Raises ValueError for a kind or device that can't be.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"--parallel: expected one of {', '.join(KINDS)}, found {kind!r}")
    if kind is not None and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            f"--parallel {kind}: expected several processes, found one; start them with "
            "torchrun --nproc-per-node N -m statecheck_reference.cli train ..."
        )
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    world = World(rank, size, _device(device), kind or "ddp")
    if size == 1:
        yield world
        return
    with_gpus = world.device.type == "cuda"
    if with_gpus:
        torch.cuda.set_device(world.device)
    distributed.init_process_group("nccl" if with_gpus else "gloo", timeout=PATIENCE)
    try:
        yield world
    except RuntimeError as error:
        if not any(sign in str(error) for sign in LOST):
            raise
        raise RuntimeError("another process of the run has ended, and so does this one; the other says why") from error
    with suppress(RuntimeError):  # one that leaves early looks like a fault to those that are not quite through
        world.wait()
    distributed.destroy_process_group()  # not after an error: it might wait for processes that are no more


def whoami() -> str:
    """`process 1 of 2: `, to begin a line with; "" for a process alone.

    >>> whoami()
    ''
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return f"process {os.environ.get('RANK', '0')} of {size}: " if size > 1 else ""


def _device(name: str | None) -> torch.device:
    """The device of that name; `cuda` is this process's own GPU."""
    if name not in (None, "cpu", "cuda"):
        raise ValueError(f"--device: expected cpu or cuda, found {name!r}")
    if name == "cpu" or (name is None and not (torch.cuda.is_available() and "WORLD_SIZE" in os.environ)):
        return CPU
    index, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= found:
        raise ValueError(f"--device cuda: expected a GPU for each process, {index + 1} or more, torch finds {found}")
    return torch.device("cuda", index)


def _shard(model: nn.Module, world: World) -> None:
    """Leave this process its share of each parameter of `model`: of each of its blocks or layers, then of the rest."""
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # takes seconds to import
    except ImportError as error:
        raise ValueError(f"--parallel fsdp: expected torch 2.6 or later, found {torch.__version__}") from error
    # States are views here and there. Nobody writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(world.device.type, (world.size,))
    for child in model.children():
        for block in child if isinstance(child, nn.ModuleList) else ():
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)


def whole(tensor: Tensor) -> Tensor:
    """The whole of a tensor of which this process may hold a share; all that hold one must call it together."""
    gather = getattr(tensor, "full_tensor", None)  # of a DTensor, whose module takes a second to import
    return tensor if gather is None else gather()


def share(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's share of a whole `tensor`, if it holds a share of `like`; else the tensor as it is."""
    if getattr(like, "full_tensor", None) is None:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = like.device_mesh, like.placements  # type: ignore[attr-defined]
    return distribute_tensor(tensor.to(like.device), mesh, placements)


def gathered(values: Any, *, keep: bool) -> Any:
    """Nested dicts and lists with the tensors in them whole; all processes must call it together.

    Without `keep` None stands for each, and nothing of them stays in memory: for those who only help to gather.
    """
    if isinstance(values, Tensor):
        found = whole(values)
        if not keep:
            return None
        return found if found is values else found.cpu()
    if isinstance(values, Mapping):
        return {name: gathered(value, keep=keep) for name, value in values.items()}
    if isinstance(values, list):
        return [gathered(value, keep=keep) for value in values]
    return values
