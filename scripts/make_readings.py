"""Plant each fault and keep what the item that must catch it says: docs/items/readings.json.

    python scripts/make_readings.py

The model is the selective counter of the culprit matrix, layer 1 of 2; only the items in question are run.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

import statecheck as sc
from statecheck.catalogue import ITEMS
from statecheck.faults import FAULTS
from statecheck.report.rows import asked_text
from statecheck.testing import plant
from statecheck.testing.calibration import selective_counter
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
    model, inputs = selective_counter()
    only = [id for id in ITEMS if any(part.startswith(f"{id}.") for part in parts)]
    report = sc.check_model(plant(model, fault), inputs=inputs, only=only)
    for part in parts:
        if report[part].status is not sc.Status.FAIL:
            raise ValueError(f"{fault} is not caught: {part} is {report[part].status}: {report[part].reason}")
    return {part: shortened(report[part]) for part in parts}


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
