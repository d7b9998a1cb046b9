"""Plant each fault and keep what the item that must catch it says: docs/items/readings.json.

    python scripts/make_readings.py

The model is the selective counter of the culprit matrix, layer 1 of 2; for faults of a branch the two branches, the
first of them that can have the fault. Only the items in question are run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch

import statecheck as sc
from statecheck.catalogue import ITEMS
from statecheck.faults import FAULTS
from statecheck.report.rows import asked_text
from statecheck.testing import plant
from statecheck.testing.calibration import selective_counter, trained, two_branch
from statecheck.verdict import Verdict

OUT = Path(__file__).resolve().parent.parent / "docs/items/readings.json"


def main() -> None:
    """One entry a fault: part -> reason."""
    torch.set_num_threads(1)
    readings = {name: said(name) for name in FAULTS}
    OUT.write_text(json.dumps(readings, indent=1) + "\n", "utf-8")
    for name, reasons in readings.items():
        print(name, *(f"  {part}: {reason}" for part, reason in reasons.items()), sep="\n")


def said(fault: str) -> dict[str, str]:
    """What the parts that must catch the fault say of it. Raises ValueError if one does not fail."""
    parts = FAULTS[fault].caught_by
    if not parts:
        return {}
    found = {part.id: part for row in verdicts(fault) for part in row.parts if part.status is sc.Status.FAIL}
    for part in parts:
        if part not in found:
            raise ValueError(f"{fault} is not caught: {part} does not fail")
    return {part: shortened(found[part]) for part in parts}


def verdicts(fault: str) -> Iterable[Verdict]:
    """What the items that must catch the fault say of it."""
    chosen = FAULTS[fault]
    model, inputs = two_branch() if chosen.branch else selective_counter()
    if chosen.items == ("extended",):
        return trained(chosen, model, inputs)
    only = [id for id in ITEMS if any(part.startswith(f"{id}.") for part in chosen.caught_by)]
    return sc.check_model(plant(model, fault), inputs=inputs, only=only)


def shortened(part: Verdict) -> str:
    """Value, place and what was asked; the advice stands in the table of thresholds."""
    if not part.measurements:
        return part.reason
    m = part.measurements[0]
    interval = "" if m.low == m.high else f" [{m.low:.3g}, {m.high:.3g}]"
    value = f"{m.value:.3g} {m.unit}".strip()
    note = f"; {m.note}" if m.note else ""
    return f"{value}{interval} at {m.where}; asked {asked_text(part.criteria[0])}{note}"


if __name__ == "__main__":
    main()
