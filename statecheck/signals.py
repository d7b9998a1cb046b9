"""Gates of a model over positions, for a picture: what `get_signals` shows of each call. No verdict rests on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from statecheck.experiments import calls as reading
from statecheck.protocol import SignalKind, StatefulModel, fresh
from statecheck.verdict import Series, Where

PICTURES = {
    SignalKind.GATE: ("fusion gate over positions", "share of the first component"),
    SignalKind.LOG_DECAY: ("log decay over positions", "log of what is kept"),
    SignalKind.SELECTION: ("selection over positions", "share written"),
}
POINTS = 128  # of a curve


@torch.no_grad()
def gates(model: StatefulModel, inputs: Tensor, *, kinds: Sequence[SignalKind] = (SignalKind.GATE,)) -> list[Series]:
    """One curve a signal of `kinds`: its mean over documents and channels at each position, from no history.

    The band holds the middle 80 % of the documents' means over channels. `inputs` are (n, time) ids or (n, time,
    features) vectors. [] for a model that declares no such signal.
    """
    names = [name for name, kind in model.facts.signals.items() if kind in kinds]
    if not names or not callable(getattr(model, "get_signals", None)):
        return []
    model = fresh(model)
    calls = []
    for _ in reading(model, inputs):
        signals = model.get_signals()  # type: ignore[attr-defined]
        calls.append({name: signals[name].double().flatten(2).mean(2) for name in names})  # (n, time) each
    whole = {name: torch.cat([call[name] for call in calls], 1) for name in names}
    return [_curve(name, model.facts.signals[name], values) for name, values in whole.items()]


def _curve(name: str, kind: SignalKind, values: Tensor) -> Series:
    """`values` (n, time), thinned to a mean over each of at most 128 stretches."""
    width = -(-values.shape[1] // POINTS)
    stretches = values.split(width, 1)
    means = torch.stack([stretch.mean(1) for stretch in stretches], 1)  # (n, points)
    low, high = (means.quantile(q, dim=0).tolist() for q in (0.1, 0.9))
    at = [float(i * width + stretch.shape[1]) for i, stretch in enumerate(stretches)]
    title, unit = PICTURES[kind]
    where = Where(state=name)
    return Series(
        title, name, tuple(at), tuple(means.mean(0).tolist()), tuple(low), tuple(high), y_unit=unit, where=where
    )
