"""Expected failures: a failure that is known and has a reason is XFAIL; one that no longer happens is STALE.

Keys are items ("PADR") or parts of them ("PADR.native"). Only what passes makes a mark STALE: what could not be judged
stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from statecheck.catalogue import suggest
from statecheck.errors import UsageError
from statecheck.suite import Suite, folded
from statecheck.verdict import Status, Verdict, worst

PASSED = (Status.PASS, Status.WARN)


def refuse_unknown(expected: Mapping[str, str], suite: Suite) -> None:
    """Raise :class:`UsageError` for a key that is no item or part of the suite, and for one without a reason."""
    parts = (criterion.measurement for item in suite.items for criterion in item.criteria)
    known = {item.id for item in suite.items} | set(parts)
    for key, why in expected.items():
        if key not in known:
            hint = suggest(key, known)
            raise UsageError(f"expected failure {key!r}: not an item or part of suite {suite.name!r}{hint}")
        if not why.strip():
            raise UsageError(f"expected failure {key!r}: give a reason, a link to the issue say")


def expect(verdicts: Iterable[Verdict], expected: Mapping[str, str]) -> list[Verdict]:
    """Verdicts with their expected failures: XFAIL does not fail, STALE blocks even where an item is not required.

    >>> part = Verdict("PADR.native", Status.FAIL, "400 floors")
    >>> row = Verdict("PADR", Status.FAIL, "PADR.native: 400 floors", parts=(part,))
    >>> print(expect([row], {"PADR.native": "issue 48256"})[0].reason)
    PADR.native: expected to fail (issue 48256): 400 floors
    >>> expect([row], {"PADR": "issue 48256"})[0].status
    <Status.XFAIL: 'XFAIL'>
    """
    return [_row(row, expected) for row in verdicts]


def _row(row: Verdict, expected: Mapping[str, str]) -> Verdict:
    """Names of parts come before that of the row, which speaks of all parts that are not named."""
    parts = row.parts or (row,)
    named = {part.id for part in parts if part.id in expected and part.id != row.id}
    if not named and row.id not in expected:
        return row
    marked: dict[int, Verdict] = {}
    for key in (*sorted(named), *([row.id] if row.id in expected else [])):
        own = [i for i, part in enumerate(parts) if part.id == key or (key == row.id and part.id not in named)]
        marked |= dict(zip(own, _marked([parts[i] for i in own], expected[key]), strict=True))
    done = folded(row, tuple(marked.get(i, part) for i, part in enumerate(parts)))
    statuses = {part.status for part in done.parts}
    if done.status is Status.PASS and Status.XFAIL in statuses:
        known = "; ".join(f"{part.id}: {part.reason}" for part in done.parts if part.status is Status.XFAIL)
        done = replace(done, status=Status.XFAIL, reason=known)
    return replace(done, required=row.required or Status.STALE in statuses)


def _marked(parts: list[Verdict], why: str) -> list[Verdict]:
    """Parts under one key: what fails is XFAIL; if nothing does and all that can be judged passes, that is STALE."""
    if not parts:
        return []
    if any(part.status is Status.FAIL for part in parts):
        known = f"expected to fail ({why})"
        return [
            replace(part, status=Status.XFAIL, reason=known if part.measurements else f"{known}: {part.reason}")
            if part.status is Status.FAIL
            else part
            for part in parts
        ]
    if worst(part.status for part in parts) not in PASSED:
        return parts
    gone = f"was expected to fail ({why}) and did not: take the mark away"
    return [
        replace(part, status=Status.STALE, reason=f"{gone}; {part.reason}") if part.status in PASSED else part
        for part in parts
    ]
