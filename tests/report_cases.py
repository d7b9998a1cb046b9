"""Made-up reports for the tests of what is written about a run: realistic rows, and names that try to break out."""

from __future__ import annotations

import math

from statecheck.report.record import Report, make_report
from statecheck.verdict import Bound, Criterion, Measurement, Series, Status, Verdict, Where

NASTY = "a|b`<script>\x1b[31m\n"
PLACE = Where("lstm", 1)
FACTS = {
    "inputs": "tokens",
    "vocabulary": 4096,
    "width": None,
    "dtype": "float32",
    "training_length": 256,
    "components": {"lstm": {}},
    "states": {"c0": {}, "c1": {}},
}


def part(
    name: str,
    status: Status,
    value: float,
    low: float = math.nan,
    high: float = math.nan,
    *,
    passes: str = "< 2",
    fails: str = "> 10",
    where: Where = PLACE,
) -> Verdict:
    """One judged part; an exact number where no interval is given."""
    ends = (value, value) if math.isnan(low) else (low, high)
    number = Measurement(name, value, "x", where, *ends, n=16)
    bounds = [tuple(Bound.parse(text) for text in side.split(" and ") if text) for side in (passes, fails)]
    criterion = Criterion(name, bounds[0], bounds[1], "phase 3.9", "Look at the decay.")
    reason = f"{value:g} at {where}; asked {passes}"
    return Verdict(name, status, reason, measurements=(number,), criteria=(criterion,))


def item(*parts: Verdict, id: str = "", title: str = "A check", series: tuple[Series, ...] = ()) -> Verdict:
    """A row whose first part decides."""
    first = parts[0]
    return Verdict(
        id or first.id.partition(".")[0],
        first.status,
        f"{first.id}: {first.reason}",
        title,
        tuple(m for one in parts for m in one.measurements),
        tuple(c for one in parts for c in one.criteria),
        parts,
        series=series,
    )


def bare(id: str, status: Status, reason: str, title: str = "A check") -> Verdict:
    """A row without a number."""
    return Verdict(id, status, reason, title, parts=(Verdict(id, status, reason),))


def rms(name: str, layers: int, *, prefix: str = "state ") -> tuple[Series, ...]:
    """Curves of RMS against position, one a layer, with a band."""
    x = tuple(float(16 * i) for i in range(32))
    curves = [tuple(1 + layer + math.sin(i / 9) / 5 for i in range(32)) for layer in range(layers)]
    return tuple(
        Series(
            name,
            f"{prefix}{layer}",
            x,
            y,
            tuple(v * 0.9 for v in y),
            tuple(v * 1.1 for v in y),
            where=Where("lstm", layer),
        )
        for layer, y in enumerate(curves)
    )


def report_of(*verdicts: Verdict, title: str = "byte LSTM", seconds: float = 1.5) -> Report:
    """A report of these rows on a made-up model."""
    return make_report(
        verdicts,
        model={"title": title, "origin": "registered name 'toy'", "digest": "ab" * 32, "facts": FACTS},
        suite={"name": "phase39", "title": "Scale this model, or not", "digest": "cd" * 32},
        inputs="16 chapters of a novel, 1,024 tokens of each",
        inputs_digest="ef" * 32,
        environment={"device": "cpu", "threads": 1},
        timings={"D1": seconds},
        seed=7,
        notes=("the training length is assumed",),
    )


def passing() -> Report:
    """Everything that applies passes."""
    growth = item(part("D1.growth", Status.PASS, 1.04, 1.01, 1.1), title="Divergence")
    return report_of(growth, bare("D3", Status.NOT_APPLICABLE, "one component", "Interaction"))


def nasty() -> Report:
    """Every text that a model, a suite or a plug-in could bring is :data:`NASTY`."""
    growth = part("D1.growth", Status.FAIL, 12, 10.5, 14, where=Where(NASTY, 1, state=NASTY))
    row = item(growth, title=NASTY, series=rms(NASTY, 2, prefix=NASTY))
    shown = (Measurement(NASTY, math.inf, NASTY, Where(state=NASTY), note=NASTY),)
    row = Verdict(**{**vars(row), "reason": NASTY, "shown": shown, "notes": (NASTY, f"# {NASTY}", f"1. {NASTY}")})
    others = (
        bare("D4", Status.INCONCLUSIVE, NASTY, NASTY),
        bare(NASTY, Status.SKIP, NASTY, NASTY),
        bare("S1", Status.WARN, NASTY, NASTY),
    )
    base = report_of(row, *others, title=NASTY)
    return make_report(
        base.verdicts,
        model={"title": NASTY, "origin": NASTY, "digest": NASTY, "facts": {NASTY: NASTY, "dtype": NASTY}},
        suite={"name": NASTY, "title": NASTY, "digest": NASTY},
        inputs=NASTY,
        environment={NASTY: {NASTY: [NASTY]}},
        timings={NASTY: NASTY},
        notes=(NASTY, f"- {NASTY}", f"> {NASTY}"),
    )
