"""`statecheck trace` and `sc.trace`: states over time, streamed, in memory that does not grow with the length.

The model reads in chunks; the state is looked at after every `every` elements. What is kept is a row of statistics an
observation (thinned by halves once there are `points` of them, so that their number is bounded), a ring of the last
few states for cosines, and running means. Works for any model that can be observed: its states are read, or the model
tells their statistics itself, from inside its recurrence, which gives the same numbers.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from statecheck import plots
from statecheck.atomic import atomic_write_bytes, atomic_write_text
from statecheck.errors import ContractError, InputRefused, UsageError
from statecheck.gathering import Cosines, Table
from statecheck.observing import misfit, of_state
from statecheck.protocol import Capability, ModelFacts, Observing, StatefulModel, Statistics, fresh
from statecheck.verdict import Series, Where

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PATHS = ("auto", "fused", "generic")
LEAST_APART = 64  # so that the fused path has calls worth their overhead
FUSED_CALL, GENERIC_CALL = 1024, 64  # elements of a call at most, where nothing is said


@dataclass(frozen=True)
class Trace:
    """Statistics of a model's states over time.

    `every` is the final distance of observations in elements, `path` says where the statistics come from.
    """

    title: str
    length: int
    rows: int
    every: int
    observations: tuple[Mapping[str, float | int | str], ...]
    cosines: tuple[Series, ...]
    first_nonfinite: int | None
    path: str

    def to_frame(self) -> pd.DataFrame:
        """One line an observation and (component, layer).

        Columns: position, component, layer, rms (median over rows) with rms_low and rms_high (10 % and 90 %), mean,
        largest, near_largest (share of units that are finite and within 1 % of the largest finite magnitude that their
        own row's head of the state has held at any observation so far; a state without heads is one head), entropy
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
    apart: int | None = None,
    chunk: int | None = None,
    points: int = 1024,
    path: str = "auto",
) -> Trace:
    """Stream `inputs` through `model` from no history and look at the states after each `every` elements.

    `inputs` are (batch, time) ids or (batch, time, features) vectors, or an iterable of such pieces, which may be
    endless as far as memory goes. Cosines are taken between states `apart` elements (a multiple of `every`; the
    smallest that is 64 or more where None) and multiples of that away from each other; 0 leaves them out. Fewer than
    `points` observations are kept.

    `path` says where the statistics come from: "fused" asks the model (capability STATISTICS), which takes them inside
    its recurrence, in calls as long as `chunk` (1,024) and `apart` allow; "generic" reads the states, in calls as long
    as `chunk` (64) and `every` allow; "auto" is the first of these that can be had. The numbers are the same.

    Raises :class:`InputRefused` when there are fewer than `every` elements, and :class:`UsageError` for a distance or
    a path that can't be meant.

    >>> from statecheck.adapters import wrap
    >>> model = wrap(torch.nn.LSTM(4, 4, batch_first=True))
    >>> found = trace(model, torch.zeros(2, 64, 4))
    >>> found.to_frame()[["position", "layer"]].values.tolist(), found.path[:38]
    ([[16, 0], [32, 0], [48, 0], [64, 0]], 'generic: states read every 16 elements')
    """
    if every < 1 or points < 2:
        raise UsageError(f"expected every >= 1 and points >= 2, found every={every}, points={points}")
    apart = _apart(every, apart)
    way = _way(model.facts, path, every, apart, chunk)
    table, cosines = Table(model.facts, every, points), Cosines(model.facts, apart)
    model, read, rows = fresh(model), 0, 0
    running: dict[str, Tensor] = {}
    for call in _calls(inputs, every, way.limit, apart):
        found = _told(model, call, every, running) if way.fused else _read(model, call, way.step, running)
        running = {name: of["running"] for name, of in found.items()}
        rows, read = call.shape[0], read + call.shape[1]
        table.add(found, call.shape[1] // every)
        if apart and read % apart == 0:
            cosines.look(model.get_states())
    if not read:
        raise InputRefused(f"inputs: expected at least {every} elements (every={every})")
    lines = tuple(table.lines())
    title, distance = model.facts.title, every * table.stride
    return Trace(title, read, rows, distance, lines, cosines.curves(), table.first_nonfinite, way.words)


def _apart(every: int, apart: int | None) -> int:
    """The distance of compared states: as asked, else the smallest multiple of `every` that is 64 or more."""
    if apart is None:
        return every * max(1, -(-LEAST_APART // every))
    if apart < 0 or apart % every:
        raise UsageError(f"apart={apart}: expected a multiple of every={every}, or 0 for no cosines")
    return apart


@dataclass(frozen=True)
class _Way:
    """How the model is read: elements up to the next look, elements of a call, and what is said of it."""

    fused: bool
    limit: int
    step: int
    words: str


def _way(facts: ModelFacts, path: str, every: int, apart: int, chunk: int | None) -> _Way:
    if path not in PATHS:
        raise UsageError(f"path {path!r}: expected {', '.join(PATHS)}")
    most = (chunk or FUSED_CALL) if Capability.CHUNKS in facts.capabilities else 1
    reason = "as asked for" if path == "generic" else _why_not_fused(facts, every, most)
    if reason is None:
        limit = min(most // every * every, apart or most)
        calls = f"calls of up to {limit:,} elements"
        return _Way(True, limit, limit, f"fused: statistics inside the recurrence (backend {facts.backend}), {calls}")
    if path == "fused":
        raise UsageError(f"path 'fused' can't be had: {reason}; take 'auto' or 'generic'")
    step = min(chunk or GENERIC_CALL, every) if Capability.CHUNKS in facts.capabilities else 1
    return _Way(False, every, step, f"generic: states read every {every:,} elements ({reason})")


def _why_not_fused(facts: ModelFacts, every: int, most: int) -> str | None:
    names = facts.names()
    normalised = [name for name in names if facts.states[name].normaliser is not None]
    if not names:
        return "no state is recurrent"
    if Capability.STATISTICS not in facts.capabilities:
        return facts.missing.get(Capability.STATISTICS, "the model tells no statistics")
    if normalised:
        return f"state {normalised[0]!r} is looked at divided by {facts.states[normalised[0]].normaliser!r}"
    if every > most:
        return f"a call takes at most {most:,} elements"
    return None


def _told(model: StatefulModel, call: Tensor, every: int, running: Mapping[str, Tensor]) -> Statistics:
    """Statistics that the model tells of a call, of its recurrent states."""
    observing = cast(Observing, model)
    _, found = observing.forward_with_statistics(call, every=every, entropy=True, running=running or None)
    wrong = misfit(found, model.facts, call.shape[0], call.shape[1] // every, entropy=True)
    if wrong:
        raise ContractError(f"forward_with_statistics gave {wrong}")
    return {name: found[name] for name in model.facts.names()}


def _read(model: StatefulModel, call: Tensor, step: int, running: Mapping[str, Tensor]) -> Statistics:
    """Statistics of the states after `call`, read in calls of `step` elements."""
    for piece in call.split(step, dim=1):
        model(piece)
    states, facts = model.get_states(), model.facts
    return {name: of_state(states, name, facts.states[name], running.get(name)) for name in facts.names()}


def _calls(inputs: Tensor | Iterable[Tensor], every: int, limit: int, apart: int) -> Iterator[Tensor]:
    """Stretches of whole multiples of `every`, at most `limit` long; none crosses a multiple of `apart`.

    A rest at the end that is shorter than `every` is left out.
    """
    parts: Iterable[Tensor] = (inputs,) if isinstance(inputs, Tensor) else inputs
    rest: Tensor | None = None
    read = 0
    for part in parts:
        rest = part if rest is None or not rest.shape[1] else torch.cat([rest, part], dim=1)
        while rest.shape[1] >= (length := min(limit, apart - read % apart) if apart else limit):
            yield rest[:, :length]
            rest, read = rest[:, length:], read + length
    if rest is not None and (length := rest.shape[1] // every * every):
        yield rest[:, :length]


def trace_cell(session: Any, cell: Any) -> dict[str, Any]:
    """A cell of kind "trace": the first `rows` documents over `length` elements, written into the run directory.

    Its options are every, apart, path (as :func:`trace` takes them), length and rows.
    """
    evidence, options = session.evidence, cell.options
    length = options["length"] or 4 * evidence.training_length
    inputs = evidence.streams(length, most=options["rows"])
    found = trace(evidence.model, inputs, options["every"], apart=options["apart"], path=options["path"])
    files = [path.name for path in found.save(session.folder)]
    lost = f"; not finite from element {found.first_nonfinite}" if found.first_nonfinite else ""
    what = f"{found.rows} documents, {found.length} elements each, states every {found.every}{lost}"
    summary = f"{found.title}: {what}; {evidence.source}; {found.path}"
    atomic_write_text(session.folder / "trace.txt", summary + "\n")
    return {"files": [*files, "trace.txt"], "summary": summary}
