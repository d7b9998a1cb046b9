"""Mutants of the reference models: which law kills which? Prints the catch matrix law x mutant, as markdown.

    python scripts/mutants.py                           # all of them; about half a minute each
    python scripts/mutants.py --only window --jobs 2    # those whose name has the word
    python scripts/mutants.py --print                   # what was measured so far

Each mutant (one changed line, `scripts/mutation`) is held against the unchanged model in random histories by plain
calls, and then given to the suite `conformance`. Results are kept in a file outside of the repository, and what was
measured is not measured again unless the row, its module or the law's own file has changed (`--again` measures all
anew; do that when something that laws share was changed).

Ends with 0 if every mutant whose outputs differ is killed and every unchanged model passes, 1 if not.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from mutation import cached_rows, kernel_rows, layer_rows, matrix, transformer_rows
from mutation.measuring import measured, missing
from mutation.rows import Mutant
from mutation.subjects import SUBJECTS

ROWS = (*kernel_rows.ROWS, *layer_rows.ROWS, *transformer_rows.ROWS, *cached_rows.ROWS)
RESULTS = Path(tempfile.gettempdir()) / "statecheck-mutants.json"
HISTORIES = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="those whose 'model: name' has this")
    parser.add_argument("--histories", type=int, default=HISTORIES, help="random histories by plain calls")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"where results are kept ({RESULTS})")
    parser.add_argument("--again", action="store_true", help="measure what was measured, too")
    parser.add_argument("--print", action="store_true", help="measure nothing")
    told = parser.parse_args(arguments)
    kept = json.loads(told.results.read_text()) if told.results.exists() else {}
    rows = [row for row in ROWS if told.only in matrix.key(row)]
    subjects = [name for name in SUBJECTS if any(row.subject == name for row in rows)]
    if not told.print:
        models: list[tuple[Mutant | None, str]] = [(None, name) for name in subjects]
        _measure([*models, *((row, row.subject) for row in rows)], told, kept)
    print("\n".join(matrix.printed(rows, kept)))
    unknown = [row for row in rows if not matrix.complete(row, kept)]
    alive = matrix.survivors([row for row in rows if row not in unknown], kept)
    false = [name for name in subjects if matrix.failed(kept.get(matrix.unchanged(name), {"laws": {}}))]
    return 1 if unknown or alive or false else 0


def _measure(models: Sequence[tuple[Mutant | None, str]], told: argparse.Namespace, kept: dict[str, Any]) -> None:
    """Measure what is missing, and write the file of results after each."""
    tasks = []
    for row, subject in models:
        name = matrix.key(row) if row else matrix.unchanged(subject)
        have = {} if told.again else kept.get(name, {})
        tasks.append(missing(row, subject, told.histories, told.seed, have))
    tasks = [task for task in tasks if task.differ or task.laws]
    with ProcessPoolExecutor(told.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(measured, task): task for task in tasks}
        for count, future in enumerate(as_completed(running), 1):
            name, found = running[future].name, future.result()
            had = kept.get(name, {})
            kept[name] = {**had, **found, "laws": had.get("laws", {}) | found["laws"]}
            told.results.write_text(json.dumps(kept, indent=1) + "\n")
            seconds = sum(law["seconds"] for law in found["laws"].values())
            print(f"{count}/{len(tasks)} {name}: {_said(kept[name])} ({seconds:.0f} s)", file=sys.stderr, flush=True)


def _said(result: dict[str, Any]) -> str:
    found = result.get("differ")
    error = "" if not found else f"history {found['history']}, error {found['error']:.2g}, "
    return f"{error}fails {', '.join(matrix.failed(result)) or 'nothing'}"


if __name__ == "__main__":
    raise SystemExit(main())
