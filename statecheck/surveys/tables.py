"""A survey as Markdown: a table of models and laws, and the evidence of each law that is broken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from statecheck.report.markdown import escape_line as markdown

MARKS = {
    "PASS": "·",
    "FAIL": "**F**",
    "SKIP": "s",
    "NOT_APPLICABLE": "–",
    "INCONCLUSIVE": "?",
    "WARN": "w",
    "ERROR": "E",
}
Row = Mapping[str, Any]


def page(rows: Sequence[Row], about: Mapping[str, Any]) -> str:
    """The whole page: what was run, the table, the evidence, and what could not be looked at."""
    run = [row for row in rows if row["stage"] == "run"]
    return "\n".join(
        [
            f"# Survey of {about['library']} {about['release']}",
            "",
            f"{len(rows)} models, each tiny, with random weights: {len(run)} run, of these"
            f" {sum(row['recurrent'] for row in run)} with a recurrent part. Profile {about['profile']}; torch"
            f" {about['torch']}; {sum(row.get('seconds', 0.0) for row in rows) / 60:.0f} minutes of a processor.",
            "",
            "· holds, **F** is broken, ? could not tell, s could not be tried, – does not apply, w warns.",
            "",
            *_table([row for row in run if row["recurrent"]], "Models with a recurrent part"),
            *_table([row for row in run if not row["recurrent"]], "Models with keys and values alone"),
            "## Evidence",
            "",
            *_evidence(run),
            "## Not run",
            "",
            *(
                f"- `{row['model']}`: {row['stage']}: {markdown(row['reason'])}"
                for row in rows
                if row["stage"] != "run"
            ),
            "",
        ]
    )


def _table(rows: Sequence[Row], title: str) -> Iterator[str]:
    if not rows:
        return
    laws = list(dict.fromkeys(law["id"] for row in rows for law in row["laws"]))
    yield from (f"## {title}", "", f"| model | {' | '.join(laws)} |", "|---" * (len(laws) + 1) + "|")
    for row in rows:
        found = {law["id"]: MARKS.get(law["status"], law["status"]) for law in row["laws"]}
        yield f"| {row['model']} | {' | '.join(found.get(law, '') for law in laws)} |"
    broken = Counter(law["id"] for row in rows for law in row["laws"] if law["status"] == "FAIL")
    yield f"| broken | {' | '.join(str(broken[law]) for law in laws)} |"
    yield ""


def _confirmed(row: Row, law: str) -> Iterator[str]:
    """What the library's own calls showed, part by part, with the script that makes them."""
    shown_by = {part: shown for part, shown in row.get("confirmed", {}).items() if part.partition(".")[0] == law}
    if not shown_by:
        yield "  - not confirmed: there is no script of the library's own calls"
    for part, shown in shown_by.items():
        script = f"models/{row['model']}/violations/{part}/script.py"
        told = f"show it: {markdown(shown)}" if shown else "do NOT show it"
        yield f"  - {part}: [the library's own calls]({script}) {told}"


def _evidence(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        failed = [law for law in row["laws"] if law["status"] == "FAIL"]
        if failed:
            yield f"### {row['model']} (`{row['class']}`)"
            yield ""
            for law in failed:
                yield f"- {law['id']}: {markdown(law['reason'])}"
                yield from _confirmed(row, law["id"])
            yield ""
