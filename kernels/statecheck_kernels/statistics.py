"""The statistics of a state, from the states themselves, in float64: what every other way to get them must agree with.

Definitions: :class:`statecheck_kernels.contract.StateStatistics`. A state with no unit at all has 0 everywhere.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

from statecheck_kernels.contract import NEAR, Observe, StateStatistics
from statecheck_kernels.layout import Layout


def of_states(states: Tensor, observe: Observe, cu_seqlens: Tensor | None = None) -> StateStatistics:
    """Statistics of `states` (B, T, H, ...), the state after every step; packed ones (1, T, H, ...).

    >>> found = of_states(torch.tensor([3.0, -4.0]).view(1, 1, 1, 2), Observe())
    >>> found.square_sum.item(), found.largest.item(), found.mean.item(), found.near_largest.item()
    (25.0, 4.0, -0.5, 1)
    """
    layout = Layout.of(states, cu_seqlens)
    observer = Observer(layout, observe, states.shape[2], states.device)
    observer.take(layout.lay(states))
    return observer.statistics()


class Observer:
    """Takes the states of one call a stretch of steps at a time, so that they need not all be in memory at once."""

    def __init__(self, layout: Layout, observe: Observe, heads: int, device: torch.device) -> None:
        self.layout, self.every, self.entropy = layout, observe.every, observe.entropy
        due = torch.arange(1, layout.steps + 1, device=device) % self.every == 0  # steps count along the call
        self.due = layout.lay(due.unsqueeze(0)).expand(layout.rows, -1)  # (rows, longest)
        self.column = 0  # the next one to be taken
        if observe.running is None:
            self.running = torch.zeros(layout.rows, heads, dtype=torch.float64, device=device)
        else:
            self.running = observe.running.detach().to(device, torch.float64)
        none = torch.zeros(layout.rows, 0, heads, 1, dtype=torch.float64, device=device)
        self.found = [measure(none, self.due[:, :0], self.running, self.entropy)]

    def take(self, states: Tensor) -> None:
        """The states (rows, steps, H, ...) after the steps that follow those taken; what is past the last is let go."""
        due = self.due[:, self.column : self.column + states.shape[1]]
        self.column += due.shape[1]
        columns = due.any(0).nonzero().squeeze(1)  # those where a row is due
        self.found.append(measure(states[:, columns], due[:, columns], self.running, self.entropy))
        self.running = self.found[-1].running

    def statistics(self) -> StateStatistics:
        """Of all that was taken, in the order of the call."""
        found = self.found
        return StateStatistics(
            square_sum=self._joined([x.square_sum for x in found]),
            largest=self._joined([x.largest for x in found]),
            mean=self._joined([x.mean for x in found]),
            near_largest=self._joined([x.near_largest for x in found]),
            nonfinite=self._joined([x.nonfinite for x in found]),
            entropy=self._joined([x.entropy for x in found if x.entropy is not None]) if self.entropy else None,
            running=self.running.clone(),
        )

    def _joined(self, pieces: list[Tensor]) -> Tensor:
        """(rows, steps looked at, H) in pieces to (B, T // every, H) of the call."""
        whole = torch.cat(pieces, 1)
        if self.layout.row is None or self.layout.column is None:
            return whole
        place = self.due.any(0).cumsum(0) - 1  # column -> which of the columns looked at
        row, column = (x[self.every - 1 :: self.every] for x in (self.layout.row, self.layout.column))
        return whole[row, place[column]].unsqueeze(0)


@torch.no_grad()
def measure(states: Tensor, due: Tensor, running: Tensor, entropy: bool) -> StateStatistics:
    """Statistics (rows, steps, H) of `states` (rows, steps, H, ...); `running` (rows, H) is M before them.

    `due` (rows, steps) says which of them count as observed: the others leave M as it is.
    """
    h = states.to(torch.float64).flatten(3)  # (rows, steps, H, n)
    if h.shape[-1] == 0:
        h = functional.pad(h, (0, 1))
    size, finite = h.abs(), h.isfinite()
    top = size.masked_fill(~(finite & due[..., None, None]), 0).amax(-1)  # (rows, steps, H)
    largest_yet = torch.cat([running.unsqueeze(1), top], 1).cummax(1).values  # (rows, 1 + steps, H)
    m = largest_yet[:, 1:].unsqueeze(-1)
    square_sum = h.square().sum(-1)
    return StateStatistics(
        square_sum=square_sum,
        largest=size.amax(-1),
        mean=h.mean(-1),
        near_largest=(finite & (size >= NEAR * m) & (m > 0)).sum(-1),
        nonfinite=(~finite).sum(-1),
        entropy=_entropy(h, square_sum, finite) if entropy else None,
        running=largest_yet[:, -1],
    )


def _entropy(h: Tensor, square_sum: Tensor, finite: Tensor) -> Tensor:
    """(rows, steps, H): of the energy, 0 to 1; NaN for a state that is not finite."""
    p = h.square() / square_sum.masked_fill(square_sum == 0, 1).unsqueeze(-1)
    entropy = -torch.xlogy(p, p).sum(-1) / max(math.log(h.shape[-1]), 1e-300)  # n = 1: 0 over anything
    return entropy.masked_fill(~finite.all(-1), torch.nan) + 0.0  # no -0
