"""What a peer was given and said, and how far other answers are from it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

Case = dict[str, Any]  # sizes of one comparison
Arrays = dict[str, Tensor]


class Peer(NamedTuple):
    """One comparison: its sizes, and the arrays that the peer was given or said.

    Given: `weights.NAME`, inputs, `STATE.0` where it started from states; said: `outputs`, `STATE.N` after call N.
    """

    sizes: Case
    arrays: Arrays

    def weights(self) -> Arrays:
        """The parameters, under the peer's names."""
        return {name[8:]: array for name, array in self.arrays.items() if name.startswith("weights.")}


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Relative difference, the norm of a whole tensor against the norm of a whole tensor; NaN counts as infinite.

    >>> relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
    0.1
    """
    if found.shape != expected.shape:
        raise ValueError(f"expected answers of shape {tuple(expected.shape)}, found {tuple(found.shape)}")
    found, expected = found.detach().double(), expected.detach().double()
    difference, size = (found - expected).norm(), expected.norm()
    return float(torch.nan_to_num(difference / size.clamp_min(1e-300), nan=torch.inf)) if difference != 0 else 0.0


def largest(peer: Peer, found: Arrays) -> float:
    """The largest relative error of the outputs and of each state after each call."""
    return max(relative_error(array, peer.arrays[name]) for name, array in found.items())
