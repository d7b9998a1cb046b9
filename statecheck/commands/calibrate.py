"""`statecheck calibrate`: faults planted in the healthy models that can have them, and what each check says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from statecheck.catalogue import ITEMS, suggest
from statecheck.commands.asking import make_plan
from statecheck.commands.run import carry_out
from statecheck.engine import Limits
from statecheck.errors import UsageError
from statecheck.faults import ARCHITECTURES, FAULTS, planted_in
from statecheck.plan import Cell
from statecheck.store import Result, open_run

#: How a status is printed in the matrix; a pass is a dot, so that what matters stands out.
SIGNS = {"PASS": ".", "FAIL": "F", "WARN": "w", "INCONCLUSIVE": "?", "ERROR": "E", "SKIP": "s", "NOT_APPLICABLE": "-"}


def calibrate(
    *, faults: Sequence[str], architectures: Sequence[str], seed: int, out: Path | None, fresh: bool, limits: Limits
) -> int:
    """Print the matrix. 0 if every fault is caught and nothing cries wolf, 1 if not, 3 if a cell has no answer."""
    ids = cells(faults, architectures)
    plan = make_plan("calibrate", None, [Cell(id, "calibrate") for id in ids], seed=seed, suite=None)
    with open_run(out or _folder([*architectures, *faults]), plan, fresh=fresh) as folder:
        ending = carry_out(folder, limits, {})
        results = folder.results()
        if ending.at_once:
            return ending.exit_code or 130
    for line in matrix(results):
        print(line)
    print(f"results: {folder.path}")
    bad = [r for r in results.values() if r.payload is not None and not r.payload["good"]]
    lost = [r for r in results.values() if r.payload is None]
    return ending.exit_code or (3 if lost else 1 if bad else 0)


def cells(faults: Sequence[str], architectures: Sequence[str]) -> list[str]:
    """Which fault is planted in which architecture; all where none is named. Raises UsageError if that is nothing.

    >>> cells(["none", "branch-off"], ["gru-filter", "two-branch"])
    ['gru-filter/none', 'two-branch/none', 'two-branch/branch-off']
    """
    for wanted, known in ((faults, FAULTS), (architectures, ARCHITECTURES)):
        for name in wanted:
            if name not in known:
                raise UsageError(f"unknown {name!r}{suggest(name, known)}")
    ids = [f"{a}/{f}" for a in architectures or ARCHITECTURES for f in planted_in(a) if f in (faults or FAULTS)]
    if not ids:
        planted = "; ".join(f"in {a}: {', '.join(planted_in(a))}" for a in architectures)
        raise UsageError(f"{', '.join(faults)} can't be planted in {' or '.join(architectures)}. There are {planted}")
    return ids


def _folder(parts: Sequence[str]) -> Path:
    """The same folder for the same question, so that the same command resumes."""
    parent = Path("statecheck-runs")
    try:
        parent.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"can't make the folder {parent}: {error.strerror}; say --out D") from None
    return parent / "-".join(["calibration", *parts])


def matrix(results: Mapping[str, Result]) -> list[str]:
    """The culprit matrix as lines: a row for each fault and architecture, a column for each item."""
    rows = [result for result in results.values()]
    said = dict.fromkeys(id for row in rows if row.payload for id in row.payload["statuses"])
    items = sorted(said, key=[*ITEMS, *said].index)
    width = max([len(row.cell) for row in rows] + [0])
    lines = [f"{'':<{width}}  {'  '.join(items)}"]
    for row in rows:
        if row.payload is None:
            lines.append(f"{row.cell:<{width}}  no answer: {row.fault}")
            continue
        signs = [SIGNS.get(row.payload["statuses"].get(id, ""), " ").center(len(id)) for id in items]
        lines.append(f"{row.cell:<{width}}  {'  '.join(signs)}  {_said(row.payload)}")
    signs_meaning = ", ".join([*(f"{sign} {status}" for status, sign in SIGNS.items()), "blank not run"])
    return [*lines, signs_meaning, counted([row.payload for row in rows])]


def counted(payloads: Sequence[Mapping[str, Any] | None]) -> str:
    """The closing line: how many faults are caught, how many models clean without one, and what went wrong.

    >>> counted([{"fault": "none", "missed": [], "wolves": []}, {"fault": "dead", "missed": ["D2.dead"], "wolves": []}])
    '0 of 1 faults caught, 1 of 1 models clean without one; 1 missed, 0 cried wolf, 0 without an answer'
    """
    answers = [payload for payload in payloads if payload is not None]
    good = [not (answer["missed"] or answer["wolves"]) for answer in answers]
    healthy = [answer["fault"] == "none" for answer in answers]
    caught = sum(fine and not control for fine, control in zip(good, healthy, strict=True))
    clean = sum(
        answer["fault"] == "none" and not (answer["wolves"] or answer.get("own") or answer.get("unsettled"))
        for answer in answers
    )
    missed, wolves = (sum(bool(answer[key]) for answer in answers) for key in ("missed", "wolves"))
    return (
        f"{caught} of {len(answers) - sum(healthy)} faults caught, {clean} of {sum(healthy)} models clean without one;"
        f" {missed} missed, {wolves} cried wolf, {len(payloads) - len(answers)} without an answer"
    )


def _said(payload: Mapping[str, Any]) -> str:
    said = [f"MISSED {', '.join(payload['missed'])}"] if payload["missed"] else []
    said += [f"CRIED WOLF {', '.join(payload['wolves'])}"] if payload["wolves"] else []
    if said:
        return "; ".join(said)
    if payload["fault"] != "none":
        return "caught"
    found = [f"fails {', '.join(payload['own'])}"] if payload.get("own") else []
    found += [f"leaves open {', '.join(payload['unsettled'])}"] if payload.get("unsettled") else []
    return f"as found, {'; '.join(found)}" if found else "clean"
