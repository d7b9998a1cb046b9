"""SIZE: the state takes the bytes that are declared, and grows only where and as it is declared to."""

from __future__ import annotations

from statecheck.histories.drawing import values
from statecheck.laws.contract import Evidence, Outcome, probe
from statecheck.protocol import StateFacts, States, fresh
from statecheck.states import size_in_bytes
from statecheck.verdict import Measurement

ROWS = 2
SHORT, LONG = 16, 48  # elements


@probe("SIZE", "The state is as large, and grows, as declared", cost="two histories")
def sizes(evidence: Evidence) -> Outcome:
    """Is a state that is declared constant constant, and does one with a time axis hold one element for each read?

    SIZE.undeclared   bytes a row that are there after 48 elements, and are not declared: a state declares the shape
                      of a row, and one with a time axis at most one element of that axis for each element read
    SIZE.growth       shown: bytes a row and element; SIZE.bytes, shown: bytes a row after 48 elements

    By hand: a GRU of 8 units in float32 holds 32 bytes a row, at any time.

    >>> import statecheck as sc, torch
    >>> from statecheck.probes.contract import gather
    >>> found = sizes(gather(sc.wrap(torch.nn.GRU(4, 8, batch_first=True)), None))
    >>> {m.name: m.value for m in (*found.measurements, *found.shown)}
    {'SIZE.undeclared': 0.0, 'SIZE.bytes': 32.0, 'SIZE.growth': 0.0}
    """
    short, long = (_after(evidence, length) for length in (SHORT, LONG))
    declared = sum(_most(evidence.facts.states[name], LONG) for name in long if name in evidence.facts.states)
    held, earlier = size_in_bytes(long) / ROWS, size_in_bytes(short) / ROWS
    growth = (held - earlier) / (LONG - SHORT)
    kinds = sorted({f"{state.kind.value} {state.dtype}" for state in evidence.facts.states.values()})
    return Outcome(
        (Measurement.exact("SIZE.undeclared", max(0.0, held - declared), unit="bytes a row", n=ROWS),),
        shown=(
            Measurement.exact("SIZE.bytes", held, unit="bytes a row", note=", ".join(kinds)),
            Measurement.exact("SIZE.growth", growth, unit="bytes a row and element"),
        ),
    )


def _after(evidence: Evidence, length: int) -> States:
    model = fresh(evidence.model)
    model(values(evidence.facts, ROWS, length, evidence.seed))
    return model.get_states()


def _most(state: StateFacts, length: int) -> float:
    """Bytes of a row that a state may have after so many elements."""
    import torch

    elements = 1
    for axis, size in enumerate(state.shape, start=1):
        elements *= length if axis == state.time_axis else size
    return elements * torch.empty(0, dtype=getattr(torch, state.dtype)).element_size()
