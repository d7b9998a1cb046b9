"""What the exhibits brought: a row for each exhibit and release, and how many were caught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HEAD = ("exhibit", "release", "has it", "law", "plain error", "statecheck", "other laws that failed")
WIDTHS = (18, 22, 6, 8, 11, 12, 0)
SILENT = {"PASS", "NOT_APPLICABLE", "SKIP"}  # SKIP: the law could not be tried, and says why
CLEAN = 1e-4  # a plain error below is no bug: clean calls were measured up to 2e-6


def show(out: Path) -> bool:
    """Print the table of the results in `out`; True if each bug was confirmed and caught, and each fix is silent."""
    records = [json.loads(path.read_text()) for path in out.glob("*@*.json")]
    records.sort(key=lambda record: (record["number"], record["id"], not record["has"], _version(record["release"])))
    print(line(HEAD))
    for record in records:
        print(line(row(record)))
    bad, fixed = [r for r in records if r["has"]], [r for r in records if not r["has"]]
    judged_bad, judged_fixed = [r for r in bad if r["laws"]], [r for r in fixed if r["laws"]]
    caught, silent = [r for r in judged_bad if status(r) == "FAIL"], [r for r in judged_fixed if status(r) in SILENT]
    print(f"\nplain: {sum(map(confirmed, bad))} of {len(bad)} bugs confirmed,", end=" ")
    print(f"{sum(not confirmed(r) for r in fixed)} of {len(fixed)} fixed releases clean")
    print(f"statecheck: {len(caught)} of {len(judged_bad)} caught under the law,", end=" ")
    print(f"{len(silent)} of {len(judged_fixed)} fixed releases silent under it")
    plain = all(confirmed(record) == record["has"] for record in records)
    return plain and len(caught) == len(judged_bad) and len(silent) == len(judged_fixed)


def row(record: dict[str, Any]) -> tuple[str, ...]:
    """The cells of a result."""
    others = [id for id, item in _items(record).items() if item["status"] == "FAIL" and id != record["law"]]
    return (
        record["id"],
        record["release"],
        "yes" if record["has"] else "no",
        record["law"],
        f"{record['error']:.1e}",
        status(record),
        " ".join(others),
    )


def status(record: dict[str, Any]) -> str:
    """The status of the exhibit's law; "-" where laws were not run."""
    if record["laws"] is None:
        return "-"
    if "refused" in record["laws"]:
        return "refused"
    item = _items(record).get(record["law"])
    return item["status"] if item else "no such law"


def confirmed(record: dict[str, Any]) -> bool:
    """Whether plain calls show the bug."""
    return not record["error"] < CLEAN


def line(cells: tuple[str, ...]) -> str:
    """Cells in columns."""
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS, strict=True)).rstrip()


def _items(record: dict[str, Any]) -> dict[str, Any]:
    return (record["laws"] or {}).get("items", {})


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("==")[1].split("."))
