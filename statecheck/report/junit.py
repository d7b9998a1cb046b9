"""A report as JUnit XML, which CI systems show: one testsuite, and a testcase for each part of each item.

    FAIL, STALE                  failure
    ERROR, INCONCLUSIVE          error (INCONCLUSIVE of what is not required: skipped), and SKIP where a budget ended it
    SKIP, NOT_APPLICABLE, XFAIL  skipped
    PASS, WARN                   neither; the reason of a WARN stands in system-out

The text of a broken law ends with the command that plays it again.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from statecheck.atomic import atomic_write_text
from statecheck.escaping import visible
from statecheck.report.violations import Replay, is_law, lines_of, replay_of
from statecheck.verdict import Status, Verdict

if TYPE_CHECKING:
    from statecheck.report.record import Report

FAILURES = (Status.FAIL, Status.STALE)
ERRORS = (Status.ERROR, Status.INCONCLUSIVE)
SKIPPED = (Status.SKIP, Status.NOT_APPLICABLE, Status.XFAIL)


def write_junit(report: Report, path: Path) -> None:
    """Write the XML to `path`, whole or not at all. Raises OSError where that can't be done."""
    atomic_write_text(path, junit(report))


def junit(report: Report) -> str:
    """The XML as text. Characters that XML can't hold are written as Python escapes."""
    name = f"statecheck {report.suite.get('name') or 'unnamed'}"
    suite = Element("testsuite", name=visible(name))
    properties = SubElement(suite, "properties")
    for key, value in _properties(report).items():
        SubElement(properties, "property", name=key, value=visible(value))
    kinds = Counter(kind for row in report for kind in _cases(suite, row, replay_of(report), visible(name)))
    suite.set("tests", str(kinds.total()))
    for plural, kind in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(plural, str(kinds[kind]))
    suite.set("time", f"{_seconds(report):.3f}")
    root = Element("testsuites")
    root.append(suite)
    indent(root)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{tostring(root, encoding="unicode")}\n'


def _properties(report: Report) -> dict[str, object]:
    return {
        "model": report.model.get("title") or "the model",
        "verdict": report.verdict,
        "exit_code": report.exit_code,
        "seed": report.seed,
        "suite_digest": report.suite.get("digest") or "",
        "statecheck": report.environment.get("statecheck", ""),
    }


def _seconds(report: Report) -> float:
    """Seconds of all items: those of a run stand under `items`, those of a call beside each other."""
    timings = report.timings.get("items", report.timings)
    return sum(value for value in timings.values() if isinstance(value, (int, float)))


def _cases(suite: Element, row: Verdict, replay: Replay, name: str) -> list[str]:
    """Add a testcase for each part of a row; their kinds. Parts of one name are told apart by their place."""
    kinds = []
    parts = row.parts or (row,)
    named = Counter(part.id for part in parts)
    for part in parts:
        place = f" ({part.measurements[0].where})" if named[part.id] > 1 and part.measurements else ""
        case = SubElement(suite, "testcase", classname=f"{name}.{visible(row.id)}", name=visible(part.id + place))
        kind = _kind(part, required=row.required)
        kinds.append(kind)
        if kind:
            element = SubElement(case, kind, message=visible(part.reason))
            if kind != "skipped":
                element.set("type", str(part.status))
                element.text = _text(row, part, replay)
        elif part.status is Status.WARN:
            SubElement(case, "system-out").text = visible(f"WARN: {part.reason}")
    return kinds


def _kind(part: Verdict, *, required: bool) -> str:
    """The element of a status, "" for none."""
    if part.status in FAILURES:
        return "failure"
    if part.unfinished:
        return "error"
    if part.status in SKIPPED or (part.status is Status.INCONCLUSIVE and not required):
        return "skipped"
    return "error" if part.status in ERRORS else ""


def _text(row: Verdict, part: Verdict, replay: Replay) -> str:
    if part.status is Status.FAIL and is_law(row):
        return "\n".join(lines_of(row, replay))
    return visible(part.reason)
