"""A report as workflow commands of GitHub: annotations that stand on the page of a run and beside a pull request.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions has the form; the escapes are those of
GitHub's own toolkit (actions/toolkit, packages/core/src/command.ts): in a message %, CR and LF, in a property : and ,
too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from statecheck.escaping import visible
from statecheck.gate import blocks
from statecheck.report.violations import is_law, lines_of, replay_of
from statecheck.verdict import Status, Verdict

if TYPE_CHECKING:
    from statecheck.report.record import Report

ERRORS = (Status.FAIL, Status.ERROR, Status.STALE)


def wanted(environment: Mapping[str, str] | None = None) -> bool:
    """True in a workflow of GitHub, which says so in GITHUB_ACTIONS."""
    return (os.environ if environment is None else environment).get("GITHUB_ACTIONS") == "true"


def annotation_lines(report: Report) -> list[str]:
    """A line for each item that fails, errs, or keeps the gate shut: `::error title=...::...` or `::warning ...`."""
    lines = []
    for row in report:
        level = _level(row)
        if level:
            title = f"{visible(row.id)} {row.status} on {visible(report.model.get('title') or 'the model')}"
            told = lines_of(row, replay_of(report)) if _broken(row) else [visible(row.reason)]
            lines.append(workflow_command(level, "\n".join(told), title=title))
    return lines


def workflow_command(level: str, message: str, *, title: str) -> str:
    r"""One line for GitHub's runner.

    >>> print(workflow_command("error", "100 % wrong\nat once", title="STEP: a, b"))
    ::error title=STEP%3A a%2C b::100 %25 wrong%0Aat once
    """
    return f"::{level} title={_escaped(title).replace(':', '%3A').replace(',', '%2C')}::{_escaped(message)}"


def _escaped(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _level(row: Verdict) -> str:
    if row.status in ERRORS:
        return "error"
    return "warning" if row.status is Status.WARN or blocks(row) else ""


def _broken(row: Verdict) -> bool:
    return row.status is Status.FAIL and is_law(row)
