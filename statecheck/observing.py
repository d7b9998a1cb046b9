"""Statistics of a state, head by head, and how those of a layer are put together from them.

They are measured here on the state itself, or told by the model (:class:`statecheck.protocol.Observing`), which need
not hand out its state then: every statistic of a layer is a function of those of its heads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from statecheck.protocol import ModelFacts, StateFacts, Statistics
from statecheck.recording import real, units

NEAR = 0.99  # a unit is near the largest when it has at least this share of its magnitude
KEYS = ("square_sum", "largest", "mean", "near_largest", "nonfinite", "entropy")
#: Columns of :func:`combined`: "rms" with its quantiles over rows, then one number each.
COLUMNS = ("rms", "rms_low", "rms_high", "mean", "largest", "near_largest", "entropy", "nonfinite")


def measured(h: Tensor, heads: int, running: Tensor | None = None) -> dict[str, Tensor]:
    """The statistics of one state as it stands: (n, 1, heads) each and `running` (n, heads), all as in `Observing`.

    `h` is (n, units) float64, heads first; `running` comes from the observation before.

    >>> found = measured(torch.tensor([[3.0, -4.0, 0.0, 0.0]]), heads=2)
    >>> found["square_sum"].tolist(), found["near_largest"].tolist(), found["running"].tolist()
    ([[[25.0, 0.0]]], [[[1, 0]]], [[4.0, 0.0]])
    """
    h = h.reshape(h.shape[0], heads, -1)
    size, finite = h.abs(), torch.isfinite(h)
    reached = size.masked_fill(~finite, 0.0).amax(dim=2)
    running = reached if running is None else torch.maximum(running.to(reached), reached)
    energy = h.square().sum(dim=2)
    p = h.square() / energy.clamp_min(torch.finfo(h.dtype).tiny)[..., None]
    found = {
        "square_sum": energy,
        "largest": size.amax(dim=2),
        "mean": h.mean(dim=2),
        "near_largest": near_largest(h, running, NEAR),
        "nonfinite": (~finite).sum(dim=2),
        "entropy": -torch.xlogy(p, p).sum(dim=2) / math.log(max(2, h.shape[2])),
    }
    return {**{key: value[:, None] for key, value in found.items()}, "running": running}


def near_largest(h: Tensor, running: Tensor, share: float) -> Tensor:
    """How many units of h (n, heads, units) are finite and at least `share` of what their row's head has held.

    `running` (n, heads) is what it has held; none are near it while that is 0.
    """
    reached = running[..., None]
    return (torch.isfinite(h) & (h.abs() >= share * reached) & (reached > 0)).sum(dim=2)


def of_state(states: Mapping[str, Tensor], name: str, facts: StateFacts, running: Tensor | None) -> dict[str, Tensor]:
    """:func:`measured` of the state `name`, normalised as it is declared; complex units count as pairs."""
    return measured(real(units(states, name, facts)), facts.heads, running)


def units_of_a_head(facts: StateFacts) -> int:
    """Numbers in one head of a state."""
    numbers = 2 if facts.dtype.startswith("complex") else 1
    return numbers * math.prod(facts.shape) // facts.heads


def combined(parts: Sequence[tuple[Mapping[str, Tensor], int]]) -> Tensor:
    """The statistics of a layer (K, columns) from those of the heads of its states, float64; see `COLUMNS`.

    Each part is the statistics of one state at K observations, (B, K, heads), and the units of one of its heads.
    With q the share of a head in the energy of all, the entropy is (sum q H - sum q log q) / log D, H a head's own.

    >>> h = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    >>> one, two = combined([(measured(h, 1), 4)]), combined([(measured(h, 2), 2)])
    >>> COLUMNS[6], torch.allclose(one[:, 6], two[:, 6])
    ('entropy', True)
    """
    joined = {key: torch.cat([found[key].double() for found, _ in parts], dim=2) for key in KEYS}
    sizes = torch.cat([found["mean"].new_full((found["mean"].shape[2],), n).double() for found, n in parts])
    total = float(sizes.sum())
    energy = joined["square_sum"].sum(dim=2)
    low, middle, high = (energy / total).sqrt().quantile(energy.new_tensor([0.1, 0.5, 0.9]), dim=0)
    share = joined["square_sum"] / energy.clamp_min(torch.finfo(energy.dtype).tiny)[..., None]
    own = joined["entropy"] * sizes.clamp_min(2).log()
    entropy = (share * own - torch.xlogy(share, share)).sum(dim=2) / math.log(max(2.0, total))
    columns = {
        "rms": middle,
        "rms_low": low,
        "rms_high": high,
        "mean": ((joined["mean"] * sizes).sum(dim=2) / total).mean(dim=0),
        "largest": joined["largest"].amax(dim=(0, 2)),
        "near_largest": (joined["near_largest"].sum(dim=2) / total).mean(dim=0),
        "entropy": entropy.mean(dim=0),
        "nonfinite": (joined["nonfinite"].sum(dim=2) / total).mean(dim=0),
    }
    return torch.stack([columns[name] for name in COLUMNS], dim=1)


def misfit(found: Statistics, facts: ModelFacts, rows: int, observations: int, *, entropy: bool) -> str | None:
    """What is wrong with the form of what `forward_with_statistics` gave, in words; None if nothing is."""
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}: expected a mapping of names of states"
    wanted = [key for key in (*KEYS, "running") if entropy or key != "entropy"]
    for name in facts.names():
        heads = facts.states[name].heads
        if not isinstance(found.get(name), Mapping):
            return f"no statistics of state {name!r}: found {', '.join(map(str, found)) or 'none'}"
        for key in wanted:
            value = found[name].get(key)
            shape = (rows, heads) if key == "running" else (rows, observations, heads)
            if not isinstance(value, Tensor):
                return f"{key!r} of state {name!r}: expected a tensor {shape}, found {type(value).__name__}"
            if tuple(value.shape) != shape:
                hint = "" if facts.states[name].head_axis else " (one head, as no head_axis is declared)"
                return f"{key!r} of state {name!r}: expected shape {shape}{hint}, found {tuple(value.shape)}"
    return None
