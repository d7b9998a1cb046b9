"""What a call on the compiled library needs beside its tensors: which steps belong together, what is to be observed."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from statecheck_kernels.contract import Observe, StateStatistics, differentiable
from statecheck_kernels.cpu.records import STATISTICS, Sequences, Statistics


class Packing:
    """The sequences of one call: how many, where their chunks begin, and the record that says so."""

    def __init__(self, steps: int, rows: int, cu_seqlens: Tensor | None, chunk: int) -> None:
        self.count, self.steps, self.packed = rows, steps, cu_seqlens is not None
        self._cu = self._first_chunk = None
        self.chunks = rows * -(-steps // chunk)
        if cu_seqlens is not None:
            # A copy: the caller's may change before the backward pass.
            self._cu = cu_seqlens.to(torch.int64, copy=True).contiguous()
            chunks = -(-(self._cu[1:] - self._cu[:-1]) // chunk)
            self._first_chunk = chunks.cumsum(0) - chunks
            self.chunks = int(chunks.sum())

    def record(self) -> Sequences:
        """For the library; valid as long as this object lives."""
        cu, first = (None if x is None else x.data_ptr() for x in (self._cu, self._first_chunk))
        return Sequences(self.count, self.steps, cu, first)


class Observer:
    """The tensors that a call's statistics are written into."""

    def __init__(self, observe: Observe | None, packing: Packing, heads: int) -> None:
        self.observe = observe
        if observe is None:
            return
        rows, steps = 1 if packing.packed else packing.count, packing.steps // observe.every
        names = STATISTICS if observe.entropy else STATISTICS[:-1]
        self._found = {name: torch.zeros(rows, steps, heads, dtype=torch.float64) for name in names}
        running = observe.running
        zeros = torch.zeros(packing.count, heads, dtype=torch.float64)
        self._running = zeros if running is None else zeros + running.detach()

    def record(self) -> Statistics:
        """For the library; valid as long as this object lives."""
        if self.observe is None:
            return Statistics()
        places = {name: tensor.data_ptr() for name, tensor in self._found.items()}
        wanted = (self.observe.every, int(self.observe.entropy))
        return Statistics(*wanted, running=self._running.data_ptr(), **places)

    def statistics(self) -> StateStatistics | None:
        """What the library wrote."""
        if self.observe is None:
            return None
        found = self._found
        return StateStatistics(
            square_sum=found["square_sum"],
            largest=found["largest"],
            mean=found["mean"],
            near_largest=found["near_largest"].to(torch.int64),
            nonfinite=found["nonfinite"].to(torch.int64),
            entropy=found.get("entropy"),
            running=self._running,
        )


@dataclass(frozen=True)
class Plan:
    """Of one call. `training` says whether a gradient may be asked for: then what the backward pass wants is kept."""

    packing: Packing
    observer: Observer
    training: bool

    @staticmethod
    def of(
        inputs: Sequence[Tensor | None], state: Tensor, cu_seqlens: Tensor | None, observe: Observe | None, chunk: int
    ) -> "Plan":
        """The plan of a call with `inputs`, the first of them (B, T, ...), in chunks of so many steps.

        A state (rows, H, K, V) has H heads, a smaller one is one head.
        """
        assert inputs[0] is not None
        packing = Packing(inputs[0].shape[1], len(state), cu_seqlens, chunk)
        heads = state.shape[1] if state.dim() == 4 else 1
        return Plan(packing, Observer(observe, packing, heads), differentiable(*inputs, state))

    @property
    def observing(self) -> bool:
        """Whether statistics are wanted."""
        return self.observer.observe is not None


def widened(state: Tensor, *inputs: Tensor | None) -> list[Tensor | None]:
    """The inputs in the dtype of the state, which is that of all arithmetic."""
    return [None if x is None else x.to(state.dtype) for x in inputs]
