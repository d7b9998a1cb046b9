"""`statecheck trace` and `sc.trace`: states over time, streamed, in memory that does not grow with the length.

The model reads in chunks; the state is looked at after every `every` elements. What is kept is a row of statistics an
observation (thinned by halves once there are `points` of them, so that their number is bounded), a ring of the last
few states for cosines, and running means. Works for any model that can be observed.
"""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from statecheck import plots
from statecheck.atomic import atomic_write_bytes, atomic_write_text
from statecheck.errors import InputRefused
from statecheck.protocol import Capability, StatefulModel, fresh
from statecheck.recording import Group, groups, values
from statecheck.verdict import Series, Where

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LAGS = (1, 2, 4, 8, 16, 32)  # in units of `every`
CENTRED_FROM = 4  # rows from which cosines are taken after the mean over rows is removed


@dataclass(frozen=True)
class Trace:
    """Statistics of a model's states over time. `every` is the final distance of observations, in elements read."""

    title: str
    length: int
    rows: int
    every: int
    observations: tuple[Mapping[str, float | int | str], ...]
    cosines: tuple[Series, ...]
    first_nonfinite: int | None

    def to_frame(self) -> pd.DataFrame:
        """One line an observation and (component, layer).

        Columns: position, component, layer, rms (median over rows) with rms_low and rms_high (10 % and 90 %), mean,
        largest, near_largest (share of units within 1 % of the largest magnitude seen in this layer so far), entropy
        (-sum p log p / log D of p = h^2 / sum h^2, 0..1, depends on coordinates), nonfinite (share of values).
        """
        import pandas as pd

        return pd.DataFrame(list(self.observations))

    def series(self) -> tuple[Series, ...]:
        """The curves: state RMS against position, then cosine against lag."""
        places = dict.fromkeys((row["component"], row["layer"]) for row in self.observations)
        return (*(self._rms(str(c), int(layer)) for c, layer in places), *self.cosines)

    def _rms(self, component: str, layer: int) -> Series:
        own = [row for row in self.observations if (row["component"], row["layer"]) == (component, layer)]
        curve = {key: tuple(float(row[key]) for row in own) for key in ("position", "rms", "rms_low", "rms_high")}
        label, where = f"{component}, layer {layer}", Where(component, layer)
        return Series(
            "state RMS", label, curve["position"], curve["rms"], curve["rms_low"], curve["rms_high"], where=where
        )

    def plot(self) -> dict[str, Figure]:
        """Pictures by file name: RMS against position, layer x position as a heat map, cosine against lag."""
        curves = self.series()
        rms = [s for s in curves if s.name == "state RMS"]
        drawn = {"state-rms.png": plots.lines(f"State RMS of {self.title}", rms)} if rms else {}
        if len(rms) > 1:
            drawn["state-rms-by-layer.png"] = plots.layer_map("state RMS", rms)
        if self.cosines:
            drawn["cosine-against-lag.png"] = plots.lines(self.cosines[0].name, list(self.cosines))
        return drawn

    def save(self, folder: str | Path) -> list[Path]:
        """Write states.csv, cosines.csv and the pictures into `folder`; returns the files."""
        folder = Path(folder)
        table = io.StringIO()
        self.to_frame().to_csv(table, index=False)
        files = {"states.csv": table.getvalue().encode(), "cosines.csv": self._cosine_table().encode()}
        files |= {name: plots.png(figure) for name, figure in self.plot().items()}
        for name, data in files.items():
            atomic_write_bytes(folder / name, data)
        return [folder / name for name in files]

    def _cosine_table(self) -> str:
        lines = ["component,layer,lag,cosine"]
        for curve in self.cosines:
            place = f"{curve.where.component},{curve.where.layer}"
            lines += [f"{place},{lag:g},{cosine!r}" for lag, cosine in zip(curve.x, curve.y, strict=True)]
        return "\n".join(lines) + "\n"


@torch.no_grad()
def trace(
    model: StatefulModel,
    inputs: Tensor | Iterable[Tensor],
    every: int = 16,
    *,
    chunk: int = 64,
    points: int = 1024,
) -> Trace:
    """Stream `inputs` through `model` from no history and look at the states after each `every` elements.

    `inputs` are (batch, time) ids or (batch, time, features) vectors, or an iterable of such pieces, which may be
    endless as far as memory goes. Calls are at most `chunk` elements long. At most `points` observations are kept.
    Raises :class:`InputRefused` when there are fewer than `every` elements.

    >>> from statecheck.adapters import wrap
    >>> model = wrap(torch.nn.LSTM(4, 4, batch_first=True))
    >>> trace(model, torch.zeros(2, 64, 4)).to_frame()[["position", "layer"]].values.tolist()
    [[16, 0], [32, 0], [48, 0], [64, 0]]
    """
    kept = _Kept(model, every, points)
    model = fresh(model)
    step = min(chunk, every) if Capability.CHUNKS in model.facts.capabilities else 1
    for piece in _pieces(inputs, every):
        for start in range(0, every, step):
            model(piece[:, start : start + step])
        kept.look(model)
    if not kept.read:
        raise InputRefused(f"inputs: expected at least {every} elements (every={every})")
    return kept.finished(model.facts.title)


def _pieces(inputs: Tensor | Iterable[Tensor], every: int) -> Iterator[Tensor]:
    """Stretches of exactly `every` elements; a rest at the end is left out."""
    parts: Iterable[Tensor] = (inputs,) if isinstance(inputs, Tensor) else inputs
    rest: Tensor | None = None
    for part in parts:
        rest = part if rest is None or not rest.shape[1] else torch.cat([rest, part], dim=1)
        whole = rest.shape[1] // every * every
        yield from rest[:, :whole].split(every, dim=1) if whole else ()
        rest = rest[:, whole:]


@dataclass
class _Kept:
    """What a trace holds on to while it streams."""

    model: StatefulModel
    every: int
    points: int
    read: int = 0
    rows: int = 0
    stride: int = 1  # observations that make one kept line
    seen: int = 0
    first_nonfinite: int | None = None
    lines: list[list[dict[str, float | int | str]]] = field(default_factory=list)
    ring: deque[list[Tensor]] = field(default_factory=lambda: deque(maxlen=max(LAGS)))
    largest: dict[tuple[str, int], float] = field(default_factory=dict)
    cosines: dict[tuple[str, int, int], list[float]] = field(default_factory=dict)  # sum and count

    def look(self, model: StatefulModel) -> None:
        """Take in the state after another `every` elements."""
        self.read += self.every
        self.seen += 1
        states = model.get_states()
        kept = groups(model.facts)
        now = [values(states, model.facts, group) for group in kept]
        self.rows = now[0].shape[0] if now else 0
        if self.first_nonfinite is None and not all(bool(torch.isfinite(h).all()) for h in now):
            self.first_nonfinite = self.read
        self._compare(kept, now)
        self.ring.append(now)
        statistics = [self._statistics(group, h) for group, h in zip(kept, now, strict=True)]
        if self.seen % self.stride == 0:
            self.lines.append(statistics)
        if len(self.lines) >= self.points:
            self.lines, self.stride = self.lines[1::2], 2 * self.stride

    def _statistics(self, group: Group, h: Tensor) -> dict[str, float | int | str]:
        key = (group.component, group.layer)
        size = h.abs()
        self.largest[key] = max(self.largest.get(key, 0.0), float(size.nan_to_num().max()))
        low, middle, high = h.square().mean(dim=1).sqrt().quantile(h.new_tensor([0.1, 0.5, 0.9])).tolist()
        near = (size >= 0.99 * self.largest[key]).double().mean() if self.largest[key] else h.new_zeros(())
        return {
            "position": self.read,
            "component": group.component,
            "layer": group.layer,
            "rms": middle,
            "rms_low": low,
            "rms_high": high,
            "mean": float(h.mean()),
            "largest": float(size.max()),
            "near_largest": float(near),
            "entropy": _entropy(h),
            "nonfinite": float((~torch.isfinite(h)).double().mean()),
        }

    def _compare(self, kept: list[Group], now: list[Tensor]) -> None:
        for lag in LAGS:
            if lag > len(self.ring):
                break
            for group, h, earlier in zip(kept, now, self.ring[-lag], strict=True):
                cosine = _cosine(h, earlier)
                if math.isfinite(cosine):
                    total = self.cosines.setdefault((group.component, group.layer, lag), [0.0, 0.0])
                    total[0] += cosine
                    total[1] += 1

    def finished(self, title: str) -> Trace:
        """The trace."""
        observations = tuple(row for line in self.lines for row in line)
        kind = "centred cosine against lag" if self.rows >= CENTRED_FROM else "cosine against lag"
        places = dict.fromkeys((component, layer) for component, layer, _ in self.cosines)
        curves = []
        for component, layer in places:
            own = {lag: total for (c, la, lag), total in self.cosines.items() if (c, la) == (component, layer)}
            x = tuple(float(lag * self.every) for lag in sorted(own))
            y = tuple(own[lag][0] / own[lag][1] for lag in sorted(own))
            label, where = f"{component}, layer {layer}", Where(component, layer)
            curves.append(Series(kind, label, x, y, x_unit="tokens of lag", where=where))
        every = self.every * self.stride
        return Trace(title, self.read, self.rows, every, observations, tuple(curves), self.first_nonfinite)


def _cosine(h: Tensor, earlier: Tensor) -> float:
    """Mean over rows of the cosine; centred by the mean over rows where there are enough of them."""
    if h.shape[0] >= CENTRED_FROM:
        h, earlier = h - h.mean(dim=0), earlier - earlier.mean(dim=0)
    norms = h.norm(dim=1) * earlier.norm(dim=1)
    usable = norms > 0
    if not bool(usable.any()):
        return math.nan
    return float(((h * earlier).sum(dim=1)[usable] / norms[usable]).mean())


def _entropy(h: Tensor) -> float:
    """Mean over rows of -sum p log p / log D, p = h^2 / sum h^2; 0 for a zero state, NaN for one that is not finite."""
    energy = h.square()
    p = energy / energy.sum(dim=1, keepdim=True).clamp_min(torch.finfo(h.dtype).tiny)
    return float(-(torch.xlogy(p, p)).sum(dim=1).mean() / math.log(max(2, h.shape[1])))


def trace_cell(session: Any, cell: Any) -> dict[str, Any]:
    """A cell of kind "trace": the first `rows` documents over `length` elements, written into the run directory."""
    evidence, options = session.evidence, cell.options
    length = options["length"] or 4 * evidence.training_length
    inputs = evidence.streams(length, most=options["rows"])
    found = trace(evidence.model, inputs, options["every"])
    files = [path.name for path in found.save(session.folder)]
    lost = f"; not finite from element {found.first_nonfinite}" if found.first_nonfinite else ""
    what = f"{found.rows} documents, {found.length} elements each, states every {found.every}{lost}"
    summary = f"{found.title}: {what}; {evidence.source}"
    atomic_write_text(session.folder / "trace.txt", summary + "\n")
    return {"files": [*files, "trace.txt"], "summary": summary}
