"""What is printed: the catch matrix law x mutant, the killed, the survivors, and those that do not differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mutation.measuring import REFUSED, UNCHANGED
from mutation.rows import Mutant

Results = Mapping[str, Mapping[str, Any]]
SIGNS = {
    "FAIL": "x",
    "ERROR": "E",
    "WARN": "w",
    "PASS": ".",
    "INCONCLUSIVE": "?",
    "SKIP": " ",
    "NOT_APPLICABLE": " ",
    REFUSED: "r",
}


def differs(result: Mapping[str, Any]) -> bool:
    """True if its outputs did, in plain calls."""
    return result["differ"]["history"] is not None


def failed(result: Mapping[str, Any]) -> list[str]:
    """The laws that failed; "wrap" where the model was refused at the door."""
    statuses = {law: found["status"] for law, found in result["laws"].items()}
    return ["wrap"] if REFUSED in statuses.values() else [law for law in statuses if statuses[law] == "FAIL"]


def killers(row: Mutant, results: Results) -> list[str]:
    """The laws that failed on the mutant and not on the model as it is: such a one shows nothing."""
    blind = failed(results.get(unchanged(row.subject), {"laws": {}}))
    return [law for law in failed(results[key(row)]) if law not in blind]


def survivors(rows: Sequence[Mutant], results: Results) -> list[Mutant]:
    """Mutants that differ and that no law kills."""
    return [row for row in rows if differs(results[key(row)]) and not killers(row, results)]


def key(row: Mutant) -> str:
    """The name under which the results of a row are kept."""
    return f"{row.subject}: {row.name}"


def complete(row: Mutant, results: Results) -> bool:
    """True if it was measured whether the row differs, and what laws say."""
    return {"differ", "laws"} <= results.get(key(row), {}).keys()


def unchanged(subject: str) -> str:
    """The name under which the results of a model as it is are kept."""
    return f"{subject}: {UNCHANGED}"


def printed(rows: Sequence[Mutant], results: Results) -> Iterator[str]:
    """All of it, as markdown, of the rows that were measured and of their models as they are."""
    done = [row for row in rows if complete(row, results)]
    models = [name for name in dict.fromkeys(unchanged(row.subject) for row in done) if name in results]
    different = [row for row in done if differs(results[key(row)])]
    alive = survivors(done, results)
    yield from _table(models, different, results)
    yield (
        f"{len(different)} mutants differ ({_by_subject(different)}): {len(different) - len(alive)} killed,"
        f" {len(alive)} survive."
    )
    for row in alive:
        yield f"- survives: {key(row)} ({row.kind}; {row.law} ought to kill it)"
    yield from _unexpected(different, results)
    yield from _the_same([row for row in done if row not in different], results)
    for name in models:
        if failed(results[name]):
            yield f"- a false alarm: {name}, fails {', '.join(failed(results[name]))}"


def _table(models: Sequence[str], rows: Sequence[Mutant], results: Results) -> Iterator[str]:
    laws = _laws([results[name] for name in [*models, *map(key, rows)]])
    yield f"| mutant | kind | differs | {' | '.join(laws)} |"
    yield f"|---|---|---|{'---|' * len(laws)}"
    for name in models:
        yield f"| *{name}* | | | {' | '.join(_cells(results[name], laws))} |"
    for row in rows:
        result = results[key(row)]
        yield f"| {key(row)} | {row.kind} | {_error(result['differ'])} | {' | '.join(_cells(result, laws))} |"
    yield ""
    yield "x: the law fails; .: it passes; ?: it could not tell; E: the law itself raised; r: `wrap` refused the model;"
    yield "empty: it does not apply, or was not run. A law that fails on the unchanged model kills nothing."
    yield ""


def _unexpected(rows: Sequence[Mutant], results: Results) -> Iterator[str]:
    for row in rows:
        found = killers(row, results)
        if found and row.law not in found:
            yield f"- killed by {', '.join(found)}, not by {row.law}: {key(row)}"


def _the_same(rows: Sequence[Mutant], results: Results) -> Iterator[str]:
    for row in rows:
        result, found = results[key(row)], killers(row, results)
        where = result["differ"]["elsewhere"]
        what = f"differs in {where} alone" if where else "does not differ"
        yield f"- {what}: {key(row)}; {'killed by ' + ', '.join(found) if found else 'no law kills it'}"


def _laws(results: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(law for result in results for law in result["laws"]))


def _cells(result: Mapping[str, Any], laws: Sequence[str]) -> list[str]:
    found = result["laws"]
    return [SIGNS.get(found[law]["status"], found[law]["status"]) if law in found else "" for law in laws]


def _error(differ: Mapping[str, Any]) -> str:
    return "raises" if differ["note"] else "inf" if math.isinf(differ["error"]) else f"{differ['error']:.2g}"


def _by_subject(rows: Sequence[Mutant]) -> str:
    names = [row.subject for row in rows]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
