"""All peers: what is installed for each, how its sizes are drawn, and how it is run."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

from peer_parity import fla_rwkv6, rwkv_package, transformers_mamba
from peer_parity.comparison import Arrays, Case


class Draw(Protocol):
    """Sizes from a seed; `unit` makes them larger."""

    def __call__(self, seed: int, unit: int = 1) -> Case:
        """The sizes."""
        ...


class Source(NamedTuple):
    """One layer or recurrence of one library."""

    distribution: str  # as pip knows it
    module: str  # as Python does
    draw: Draw
    run: Callable[[Case], Arrays]


SOURCES = {
    "transformers-mamba": Source(
        "transformers", "transformers", transformers_mamba.draw_mamba, transformers_mamba.run_mamba
    ),
    "transformers-mamba2": Source(
        "transformers", "transformers", transformers_mamba.draw_mamba2, transformers_mamba.run_mamba2
    ),
    "fla-rwkv6-recurrence": Source("fla-core", "fla", fla_rwkv6.draw_recurrence, fla_rwkv6.run_recurrence),
    "fla-rwkv6-layer": Source("fla-core", "fla", fla_rwkv6.draw_layer, fla_rwkv6.run_layer),
    "rwkv-time-mixing": Source("rwkv", "rwkv", rwkv_package.draw_case, rwkv_package.run),
}
