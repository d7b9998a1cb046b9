"""From verdicts to one decision: PASS, FAIL or INCONCLUSIVE, the path, the banner, the file name and the exit code.

>>> from statecheck.verdict import Status, Verdict
>>> decide([Verdict("S0", Status.PASS, "ok"), Verdict("D4", Status.FAIL, "amnesia")])
Decision(verdict='FAIL', path='B', exit_code=1)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from statecheck.verdict import SEVERITY, Status, Verdict

#: A failure here means that the architecture is wrong, not the training: path C.
ARCHITECTURE_ITEMS = frozenset({"S0", "S1", "S2", "S3", "S4", "D1", "D2"})
ARCHITECTURE_PARTS = frozenset({"flow.share", "flow.memory"})
BLOCKING = (Status.ERROR, Status.STALE, Status.SKIP, Status.INCONCLUSIVE)
PATHS = {
    "A": "proceed",
    "B": "fix, run again, and accept the fix only if `statecheck compare` does",
    "C": "back to architecture",
}


@dataclass(frozen=True)
class Decision:
    """The fold of all verdicts. The banner, the file name, the JSON and the exit code all come from here."""

    verdict: str  # "PASS", "FAIL", "INCONCLUSIVE"
    path: str | None  # "A", "B", "C"; None where nothing can be said
    exit_code: int

    @property
    def banner(self) -> str:
        """`VALIDATION_GATE_PASS`, `VALIDATION_GATE_FAIL` or `VALIDATION_GATE_INCONCLUSIVE`."""
        return f"VALIDATION_GATE_{self.verdict}"

    @property
    def file_name(self) -> str:
        """The name of the gate's file in the run directory."""
        return f"{self.banner}.md"

    @property
    def meaning(self) -> str:
        """The path in words."""
        return f"path {self.path}: {PATHS[self.path]}" if self.path else "no path: the evidence does not suffice"


def decide(verdicts: Iterable[Verdict]) -> Decision:
    """Fold verdicts in the order FAIL, blocked (ERROR, SKIP, STALE, INCONCLUSIVE where required), WARN, PASS.

    Nothing that ran at all is exit 5, but what a budget ended is exit 3. A FAIL of an item that is not required fails
    all the same, and where no item passed (each one is an ERROR that is not required, say) nothing is passed.
    """
    rows = list(verdicts)
    statuses = {row.status for row in rows}
    if not statuses - {Status.SKIP, Status.NOT_APPLICABLE} and not any(row.unfinished for row in rows):
        return Decision("INCONCLUSIVE", None, 5)
    failed = [row for row in rows if row.status is Status.FAIL]
    if failed:
        return Decision("FAIL", "C" if any(map(_architectural, failed)) else "B", 1)
    if any(map(blocks, rows)):
        return Decision("INCONCLUSIVE", None, 3)
    if Status.WARN in statuses:
        return Decision("INCONCLUSIVE", "B", 3)
    if Status.PASS not in statuses:
        return Decision("INCONCLUSIVE", None, 3)
    return Decision("PASS", "A", 0)


def blocks(row: Verdict) -> bool:
    """True for what keeps the gate shut undecided: of a required item, or begun and ended by a budget."""
    return (row.required or row.unfinished) and row.status in BLOCKING


def _architectural(row: Verdict) -> bool:
    broken = {part.id for part in row.parts if part.status is Status.FAIL}
    return row.id in ARCHITECTURE_ITEMS or bool(broken & ARCHITECTURE_PARTS)


def count_line(verdicts: Sequence[Verdict]) -> str:
    """'9 PASS, 1 WARN, 5 NOT_APPLICABLE' in the order of severity.

    >>> count_line([Verdict("a", Status.PASS, ""), Verdict("b", Status.FAIL, ""), Verdict("c", Status.PASS, "")])
    '1 FAIL, 2 PASS'
    """
    counts = Counter(row.status for row in verdicts)
    return ", ".join(f"{counts[status]} {status}" for status in SEVERITY if counts[status])
