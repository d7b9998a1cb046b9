"""Write the pages that say what the code says: docs/items/, and the marked tables of README.md and docs/culprits.md.

    python scripts/make_item_pages.py            # write
    python scripts/make_item_pages.py --check    # exit 1 and name the pages that are not what the code says

Sources: the docstrings of the probes, the suites, the table of faults, and two records of real runs that are kept in
the repository: docs/example/report.json (`make demo`, copied by scripts/keep_example.py) and docs/items/readings.json
(scripts/make_readings.py).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from statecheck.catalogue import ITEMS, ItemEntry
from statecheck.commands.tables import docstring
from statecheck.faults import FAULTS, Fault
from statecheck.report.markdown import escape
from statecheck.report.record import Report
from statecheck.report.rows import NOTHING, row_of, sides
from statecheck.suite import SuiteItem, bundled, load_suite
from statecheck.verdict import Criterion, Verdict

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
EXAMPLE, READINGS = DOCS / "example" / "report.json", DOCS / "items" / "readings.json"
WRITTEN = "<!-- Written by `make docs` from the code; edit the docstring, the suite or the table of faults. -->"


def main() -> int:
    """Write the pages, or compare them with what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a page is stale")
    check = parser.parse_args().check
    wanted = pages()
    stale = sorted(path for path, text in wanted.items() if not path.is_file() or path.read_text("utf-8") != text)
    stale += sorted(path for path in (DOCS / "items").glob("*.md") if path not in wanted)
    for path in stale:
        print(f"{'stale' if check else 'written' if path in wanted else 'removed'}: {path.relative_to(ROOT)}")
        if not check:
            path.write_text(wanted[path], "utf-8") if path in wanted else path.unlink()
    if stale and check:
        print("run `make docs`", file=sys.stderr)
    return 1 if stale and check else 0


def pages() -> dict[Path, str]:
    """Every generated page as it should be."""
    report = Report.from_json(json.loads(EXAMPLE.read_text("utf-8")))
    readings: dict[str, dict[str, str]] = json.loads(READINGS.read_text("utf-8"))
    made = {DOCS / "items" / f"{entry.id}.md": item_page(entry, report, readings) for entry in ITEMS.values()}
    made[DOCS / "items" / "index.md"] = index_page()
    readme = between((ROOT / "README.md").read_text("utf-8"), "items", readme_table())
    made[ROOT / "README.md"] = between(readme, "laws", law_table())
    made[DOCS / "culprits.md"] = between((DOCS / "culprits.md").read_text("utf-8"), "faults", fault_table())
    return made


# One item ---------------------------------------------------------------------------------------------------------


def item_page(entry: ItemEntry, report: Report, readings: dict[str, dict[str, str]]) -> str:
    """The page of one item: what it measures, how it is judged, how it reads, and who proves it."""
    suites = {name: load_suite(name) for name in bundled()}
    rows = {name: item for name, suite in suites.items() for item in suite.items if item.id == entry.id}
    home = entry.target.partition(":")[0].replace(".", "/") + ".py"
    head = [
        f"# {entry.id}. {entry.title}",
        WRITTEN,
        f"Needs {', '.join(entry.needs)}. Cost: {entry.cost}. Suites: {', '.join(rows)}."
        f" Code: [{home}](../../{home}). In the terminal: `statecheck show {entry.id}`.",
    ]
    body = [
        section("What is measured", markdown(definition(entry))),
        section("How it is judged", thresholds(home_suite(rows), rows[home_suite(rows)])),
    ]
    if "phase39" in rows:
        body.append(section("In a report", example(report[entry.id])))
        body.append(section("Culprits", culprits(entry.id, readings)))
    else:
        text = "Laws are held on every route that a model has, in floors of its noise: see [laws](../laws.md)."
        body.append(section("How it is searched", text))
    return "\n\n".join([*head, *body]) + "\n"


def home_suite(rows: Mapping[str, SuiteItem]) -> str:
    """The suite whose thresholds a page shows: phase39 where the item is in it, else conformance."""
    return "phase39" if "phase39" in rows else "conformance"


def section(title: str, text: str) -> str:
    """A heading and its text."""
    return f"## {title}\n\n{text}"


def definition(entry: ItemEntry) -> str:
    """The docstring of the item's function without the id that it begins with."""
    text = docstring(entry).removeprefix(f"{entry.id}: ")
    return text[0].upper() + text[1:]


def markdown(text: str) -> str:
    r"""Plain text as Markdown: stars and tags outside code are shown as they are.

    >>> markdown("h = o * c in `a * b`")
    'h = o \\* c in `a * b`'
    """
    parts = text.split("`")
    parts[::2] = [re.sub(r"<(?=[A-Za-z/!])", "&lt;", part.replace("*", r"\*")) for part in parts[::2]]
    return "`".join(parts)


def thresholds(suite: str, item: SuiteItem) -> str:
    """The criteria of the item in a suite as a table, with sources and advice."""
    rows = [
        (f"`{c.measurement}`", *(escape(side) for side in sides(c)), escape(c.source), escape(c.advice) or NOTHING)
        for c in item.criteria
    ]
    text = table(("Measurement", "PASS", "WARN", "FAIL", "Source", "When it fails"), rows)
    if item.options:
        text += f"\n\nOptions in {suite}: `{json.dumps(item.options)}`."
    return f"{text}\n\nWhat the sources are: [sources](../sources.md)."


def example(verdict: Verdict) -> str:
    """How the item read in a real run: the example report's lines on it."""
    parts = verdict.parts if verdict.parts else (verdict,)
    rows = [(str(verdict.status), verdict.id, ""), *((f"  {part.status}", part.id, said(part)) for part in parts)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    text = "\n".join(f"{status:<{widths[0]}}  {id:<{widths[1]}}  {rest}".rstrip() for status, id, rest in rows)
    return f"From the [example report](../example/statefulness_report.md) (`make demo`):\n\n```text\n{text}\n```"


def said(part: Verdict) -> str:
    """Value, what was asked and where; the reason where there is no number."""
    row = row_of(part)
    return f"{row.estimate}, asked {row.asked}, at {row.where}" if row.value != NOTHING else row.reason


def culprits(id: str, readings: dict[str, dict[str, str]]) -> str:
    """The faults that this item must catch, with what it says of each."""
    rows = [
        (f"`{fault.name}`", escape(fault.sin), f"`{part}`", escape(readings[fault.name].get(part, NOTHING)))
        for fault in FAULTS.values()
        for part in fault.caught_by
        if belongs(part, id)
    ]
    if not rows:
        also = [fault.name for fault in FAULTS.values() if any(belongs(part, id) for part in fault.follows)]
        seen = f" It fails, as a consequence, on {', '.join(f'`{name}`' for name in also)}." if also else ""
        return f"No fault is left to this item alone.{seen} See [the matrix](../culprits.md)."
    text = (
        "Faults that this item must catch, and what it says of each when it is planted in the selective counter, or a"
        " fault of a branch in the two branches"
    )
    command = "(`python scripts/make_readings.py`); the whole matrix is in [culprits](../culprits.md)."
    return f"{text} {command}\n\n" + table(("Fault", "What it does", "Caught by", "Reason given"), rows)


def belongs(part: str, id: str) -> bool:
    """True for the parts of an item: D1.growth is of D1, G3.5.cosine of G3.5."""
    return part.startswith(f"{id}.")


# Tables of all ----------------------------------------------------------------------------------------------------


def index_page() -> str:
    """The list of the item pages."""
    rows = [(f"[{e.id}]({e.id}.md)", e.title, ", ".join(e.needs), e.cost) for e in ITEMS.values()]
    text = "The items that a suite can hold. `statecheck ls` prints this list, `statecheck show ITEM` a page of it."
    return f"# Items\n\n{WRITTEN}\n\n{text}\n\n{table(('Item', 'Question', 'Needs', 'Cost'), rows)}\n"


def readme_table() -> str:
    """Items with one line each: what is asked in phase39."""
    asked = {item.id: item.criteria for item in load_suite("phase39").items}
    rows = [
        (
            f"[{entry.id}](docs/items/{entry.id}.md)",
            entry.title,
            "; ".join(f"{c.measurement.removeprefix(entry.id + '.')} {passing(c)}" for c in asked[entry.id]),
        )
        for entry in ITEMS.values()
        if entry.id in asked
    ]
    return table(("Item", "Question", "Passes when"), rows)


def law_table() -> str:
    """Laws with one line each."""
    held = {item.id for item in load_suite("conformance").items}
    rows = [(f"[{e.id}](docs/items/{e.id}.md)", e.title) for e in ITEMS.values() if e.id in held]
    return table(("Law", "Statement"), rows)


def passing(criterion: Criterion) -> str:
    """What is asked: the bounds that pass, or what must not be."""
    return sides(criterion)[0] if criterion.passes else f"not {sides(criterion)[2]}"


def fault_table() -> str:
    """Each fault: what it does, who must catch it, what follows from it."""
    rows = [fault_row(fault) for fault in FAULTS.values()]
    columns = ("Fault", "What is wrong", "Must be caught by", "Fails with it, rightly", "Severity")
    return table(columns, rows)


def fault_row(fault: Fault) -> tuple[str, ...]:
    """One row of the table."""
    severity = f"{fault.severity:g}: {fault.meaning}" if fault.caught_by and fault.meaning != NOTHING else NOTHING
    return (f"`{fault.name}`", escape(fault.sin), code(fault.caught_by), code(fault.follows), severity)


def code(names: Iterable[str]) -> str:
    """Names as code, or '-'."""
    return ", ".join(f"`{name}`" for name in names) or NOTHING


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; cells are Markdown already."""
    lines = [" | ".join(columns), "|".join("---" for _ in columns), *(" | ".join(row) for row in rows)]
    return "\n".join(f"| {line} |" if "---" not in line else f"|{line}|" for line in lines)


def between(page: str, name: str, text: str) -> str:
    """The page with what stands between its two marks of that name replaced.

    Raises ValueError if the page has no such marks.
    """
    begin, end = f"<!-- BEGIN {name}: written by `make docs` -->", f"<!-- END {name} -->"
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"expected one {begin!r} and one {end!r}")
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    sys.exit(main())
